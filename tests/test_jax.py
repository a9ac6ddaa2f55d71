"The losses in JAX: the values and gradients of those in PyTorch, under jit and vmap too. Skipped without JAX."
import math

import numpy as np, pytest, torch
from torch.testing import assert_close

import asl
from asl.posterior import posterior as torch_posterior

jax = pytest.importorskip('jax')
from jax import numpy as jnp

from asl import jax as ours

each = np.linspace(.5, 1.5, 7, dtype=np.float32)
settings_multi = [dict(gamma_neg=2.5, gamma_pos=.5, clip=.2, weight=each, pos_weight=2*each, reduction='mean'),
    dict(gamma_neg=4*each, gamma_pos=each, clip=each/10), dict(gamma_neg=0., gamma_pos=0., clip=0., ignore_index=1),
    dict(smoothing=.1, disable_torch_grad_focal_loss=True, reduction='batchmean')]
settings_single = [dict(eps=0.), dict(gamma_pos=.5, gamma_neg=2.5, eps=.3, reduction='sum'),
    dict(gamma_pos=each, gamma_neg=4*each, weight=each, ignore_index=1, reduction='none')]

def data(unknown=-100):
    "Logits near and far, (12, 7), labels with some unknown, and classes, one unknown"
    rng = np.random.default_rng(0)
    z = rng.normal(size=(12, 7)).astype(np.float32)*np.float32(3)
    z[0] = [-80, -20, math.log(.05/.95)+1e-3, -2.9, 20, 60, 80]
    y = (rng.random((12, 7)) < .3).astype(np.float32)
    t = rng.integers(0, 7, 12)
    y[3, :2] = t[5] = unknown
    return z, y, t

def in_torch(loss, z, target, **settings):
    "Value and gradient in PyTorch, of arrays"
    z = torch.tensor(z, requires_grad=True)
    value = loss(z, torch.tensor(target), **tensors(settings)).sum()
    return value.item(), torch.autograd.grad(value, z)[0].numpy()

def tensors(settings):
    "Arrays as tensors"
    return {name: torch.tensor(value) if isinstance(value, np.ndarray) else value for name, value in settings.items()}

def in_jax(loss, z, target, **settings):
    "The same in JAX"
    return jax.value_and_grad(lambda z: loss(z, target, **settings).sum())(z)

@pytest.mark.parametrize('settings', settings_multi)
def test_many_labels_are_as_in_torch(settings):
    z, y, _ = data(settings.get('ignore_index', -100))
    got = in_jax(ours.asymmetric_loss_multi_label, z, y, **settings)
    want = in_torch(asl.asymmetric_loss_multi_label, z, y, **settings)
    for a, b in zip(got, want): np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)

@pytest.mark.parametrize('settings', settings_single)
def test_one_label_is_as_in_torch(settings):
    z, _, t = data(settings.get('ignore_index', -100))
    got = in_jax(ours.asymmetric_loss_single_label, z, t, **settings)
    want = in_torch(asl.asymmetric_loss_single_label, z, t, **settings)
    for a, b in zip(got, want): np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)

@pytest.mark.parametrize('settings', [{}, dict(gamma_neg=2., gamma_pos=.5, clip=0., smoothing=.1, pos_weight=2.),
    dict(gamma_neg=4*each, clip=each/10, disable_torch_grad_focal_loss=True)])
def test_posteriors_are_as_in_torch(settings):
    z, *_ = data()
    want = torch_posterior(torch.tensor(z), **tensors(settings))
    np.testing.assert_allclose(np.asarray(ours.posterior(z, **settings)), want.numpy(), rtol=5e-5, atol=1e-6)

def test_under_jit_and_vmap():
    z, y, t = data()
    for loss, target in (ours.asymmetric_loss_multi_label, y), (ours.asymmetric_loss_single_label, t):
        np.testing.assert_allclose(jax.jit(loss)(z, target), loss(z, target), rtol=1e-5)
    by_row = jax.vmap(ours.asymmetric_loss_multi_label)(z, y)
    np.testing.assert_allclose(by_row, ours.asymmetric_loss_multi_label(z, y, reduction='none').sum(1), rtol=1e-5)
    gradient = jax.jit(jax.grad(ours.asymmetric_loss_multi_label))(z, y)
    np.testing.assert_allclose(gradient, jax.grad(ours.asymmetric_loss_multi_label)(z, y), rtol=1e-4, atol=1e-6)

def test_second_derivatives_are_as_in_torch():
    z, y, _ = data()
    slope = jax.grad(lambda z: ours.asymmetric_loss_multi_label(z, y))
    got = jax.grad(lambda z: (slope(z)**2).sum())(z)
    logits, labels = torch.tensor(z, requires_grad=True), torch.tensor(y)
    slope, = torch.autograd.grad(asl.asymmetric_loss_multi_label(logits, labels), logits, create_graph=True)
    slope.square().sum().backward()
    np.testing.assert_allclose(got, logits.grad.numpy(), rtol=1e-3, atol=1e-5)

def test_gradients_of_settings():
    z, y, _ = data()
    got = jax.grad(lambda gamma: ours.asymmetric_loss_multi_label(z, y, gamma_neg=gamma))(jnp.asarray(4*each))
    gamma = torch.tensor(4*each, requires_grad=True)
    asl.asymmetric_loss_multi_label(torch.tensor(z), torch.tensor(y), gamma_neg=gamma).backward()
    assert_close(torch.tensor(np.asarray(got)), gamma.grad, rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize('call, kind, message', [
    (lambda z, y, _: ours.asymmetric_loss_multi_label(z, y[:3]), ValueError, 'target: got shape'),
    (lambda z, y, _: ours.asymmetric_loss_multi_label(z, y, gamma_neg=-1.), ValueError, 'gamma_neg: got -1'),
    (lambda z, y, _: ours.asymmetric_loss_multi_label(z, y, clip=each[:3]), ValueError, 'clip: got shape'),
    (lambda z, _, t: ours.asymmetric_loss_single_label(z, t*1.), TypeError, 'target: got torch.float64'),
    (lambda z, _, t: ours.asymmetric_loss_single_label(z, t, reduction='batchmean'), ValueError, 'reduction'),
    (lambda z, _y, _t: ours.posterior(z, smoothing=1.), ValueError, 'smoothing'),
])
def test_what_cannot_be_meant_is_refused_by_name(call, kind, message):
    with pytest.raises(kind, match=message): call(*data())

def test_a_value_that_cannot_be_meant_gives_nan():
    z, y, t = data()
    assert np.isnan(ours.asymmetric_loss_multi_label(z, y+.5)) and np.isnan(ours.asymmetric_loss_single_label(z, t+7))
    assert np.isnan(ours.asymmetric_loss_multi_label(z, y, gamma_neg=-each))
