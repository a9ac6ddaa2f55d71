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
    dict(gamma_neg=4*each, clip=each/10, disable_torch_grad_focal_loss=True), dict(kept=.4),
    dict(kept=each/2, smoothing=.1)])
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
    (lambda z, y, _: ours.asymmetric_loss_multi_label(z.tolist(), y), TypeError, 'input: got list'),
    (lambda z, y, _: ours.asymmetric_loss_multi_label(z, torch.tensor(y)), TypeError, 'target: got Tensor'),
    *[(lambda z, y, _, setting=setting: ours.asymmetric_loss_multi_label(z, y, **setting), kind, next(iter(setting)))
        for kind, setting in [
            *[(TypeError, {'ignore_index': value}) for value in (None, 'x', [0], True)],
            (ValueError, {'ignore_index': math.nan}),
            *[(TypeError, {name: True}) for name in ('gamma_neg', 'gamma_pos', 'clip', 'smoothing', 'pos_weight')],
            *[(TypeError, {name: 'abc'}) for name in ('gamma_neg', 'clip', 'weight', 'class_dim')],
            *[(ValueError, {name: value}) for name in ('weight', 'pos_weight') for value in (-1, math.inf, math.nan)],
            (ValueError, {'class_dim': 2}), (ValueError, {'class_dim': -3}), (TypeError, {'class_dim': True})]],
    (lambda z, _, t: ours.asymmetric_loss_single_label(z, t, eps=True), TypeError, 'eps: got bool'),
    (lambda z, _, t: ours.asymmetric_loss_single_label(z, t, ignore_index='x'), TypeError, 'ignore_index: got str'),
    (lambda z, _, t: ours.asymmetric_loss_single_label(z, t, weight=-1), ValueError, 'weight: got -1'),
    (lambda z, _, t: ours.asymmetric_loss_single_label(z, t > 0), TypeError, 'target: got torch.bool'),
    (lambda z, _y, _t: ours.posterior(z, class_dim=2), ValueError, 'class_dim: got 2'),
    (lambda z, _y, _t: ours.posterior(z, pos_weight=0), ValueError, 'pos_weight: got 0'),
    (lambda z, _y, _t: ours.posterior(z, kept=0.), ValueError, 'kept: got 0'),
    (lambda z, _y, _t: ours.posterior(z, kept=True), TypeError, 'kept: got bool'),
    (lambda z, _y, _t: ours.posterior(z, kept=each[:2]), ValueError, 'kept: got shape'),
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

INFINITE = np.array([[-np.inf, np.inf, -np.inf, np.inf]], np.float32)
SIDES = np.array([[0., 1., 1., 0.]])           # right, right, wrong, wrong

@pytest.mark.parametrize('clip, loss, slope',
    [(0., math.inf, 1.), (np.zeros(4), math.inf, 1.), (.25, math.log(4)*.75**4, 0.)])
def test_infinite_logits_have_their_limits(clip, loss, slope):
    settings = dict(clip=clip, weight=2., pos_weight=3., reduction='none')
    def entries(z): return ours.asymmetric_loss_multi_label(z, SIDES, **settings)
    def total(z): return entries(z).sum()
    for run in (lambda f: f, jax.jit):
        np.testing.assert_allclose(run(entries)(INFINITE), [[0, 0, math.inf, 2*loss]], rtol=1e-6)
        np.testing.assert_array_equal(run(jax.grad(total))(INFINITE), [[0, 0, -6, 2*slope]])
        np.testing.assert_array_equal(run(jax.jacfwd(total))(INFINITE), [[0, 0, -6, 2*slope]])
        np.testing.assert_array_equal(run(jax.hessian(total))(INFINITE), np.zeros((1, 4, 1, 4)))

@pytest.mark.parametrize('eps', [0., .1])
def test_masked_classes_add_nothing(eps):
    z = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    t = np.array([0, 1, 2, 0, 1])
    masked = np.insert(z, 4, -np.inf, axis=1)
    def loss(z, eps=eps): return ours.asymmetric_loss_single_label(z, t, eps=eps, reduction='sum')
    if eps == 0: np.testing.assert_allclose(loss(masked), loss(z), rtol=1e-6)
    got = jax.jit(jax.value_and_grad(loss))(masked)
    want = in_torch(asl.asymmetric_loss_single_label, masked, t, eps=eps, reduction='sum')
    for a, b in zip(got, want): np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert not got[1][:, -1].any() and np.isfinite(jax.hessian(loss)(masked)).all()

def test_masked_and_certain_targets():
    z = np.array([[1., 2., -np.inf], [1., np.inf, 0.], [1., np.inf, 0.]], np.float32)
    t = np.array([2, 1, 0])
    loss, pullback = jax.vjp(lambda z: ours.asymmetric_loss_single_label(z, t, eps=0., reduction='none'), z)
    gradient, = pullback(jnp.ones(3))
    np.testing.assert_array_equal(loss, [math.inf, 0, math.inf])
    np.testing.assert_allclose(gradient, [[1/(1+math.e), 1/(1+1/math.e), -1], [0, 0, 0], [-1, 1, 0]], rtol=1e-6)
    def certain(weight): return ours.asymmetric_loss_single_label(z[1:2], t[1:2], weight=weight)
    assert np.isfinite(jax.grad(certain)(jnp.ones(3))).all()
    assert np.isnan(ours.asymmetric_loss_single_label(np.full((1, 3), -np.inf, np.float32), np.array([0])))

@pytest.mark.parametrize('settings', [{}, dict(clip=0.), dict(gamma_neg=0., gamma_pos=2., smoothing=.1),
    dict(gamma_neg=0., gamma_pos=0., clip=0.), dict(clip=np.full(4, .1), disable_torch_grad_focal_loss=True)])
def test_posteriors_at_infinity_are_0_and_1(settings):
    for dtype in (np.float32, np.float16):
        got = np.asarray(jax.jit(lambda z: ours.posterior(z, **settings))(INFINITE.astype(dtype)))
        np.testing.assert_array_equal(got, [[0, 1, 0, 1]])

def test_a_posterior_at_infinity_is_its_ceiling_without_focusing_of_positives():
    far = torch_posterior(torch.tensor([1e6], dtype=torch.float64), gamma_pos=0.).item()
    np.testing.assert_allclose(ours.posterior(INFINITE, gamma_pos=0.), [[0, far, 0, far]], rtol=1e-6)

@pytest.mark.parametrize('dtype', [np.int32, np.int64])
def test_what_is_known_is_asked_in_the_type_of_the_target(dtype):
    z = np.zeros((1, 2), np.float32)
    unknown = 2**24+1
    for target in (np.array([[unknown, 1]], dtype), jnp.array([[unknown, 1]], jnp.int32)):
        want = ours.asymmetric_loss_multi_label(z[:, 1:], np.ones((1, 1)))
        assert ours.asymmetric_loss_multi_label(z, target, ignore_index=unknown) == want
        assert np.isnan(ours.asymmetric_loss_multi_label(z, target-1, ignore_index=unknown))    # 2**24 is no label
    assert ours.asymmetric_loss_single_label(z, np.array([unknown], dtype), ignore_index=unknown, reduction='sum') == 0
    assert np.isnan(ours.asymmetric_loss_single_label(z, np.array([unknown-1], dtype), ignore_index=unknown))

def test_classes_that_their_type_cannot_tell_from_ignore_index():
    z = np.zeros((1, 300), np.float32)
    want = asl.asymmetric_loss_single_label(torch.zeros(1, 300), torch.tensor([156])).item()
    for target in (np.array([156], np.uint8), jnp.array([156], jnp.uint8)):                     # -100 as uint8
        np.testing.assert_allclose(ours.asymmetric_loss_single_label(z, target), want, rtol=1e-6)
    assert np.isnan(ours.asymmetric_loss_single_label(z, np.array([2**32])))                    # 0 in 32 bits
    assert np.isfinite(ours.asymmetric_loss_single_label(z, jnp.array([5], jnp.int8)))          # 300 is no int8

@pytest.mark.parametrize('dtype', [np.float32, np.float16, jnp.bfloat16])
def test_labels_a_few_steps_off_are_taken_for_0_and_1(dtype):
    z = np.array([[1., -1.]], np.float32)
    step = float(jnp.finfo(dtype).eps)
    near = np.array([[1+2*step, -2*step]]).astype(dtype)
    off = np.array([[1+8*step, 0]]).astype(dtype)
    assert ours.asymmetric_loss_multi_label(z, near) == ours.asymmetric_loss_multi_label(z, np.array([[1., 0.]]))
    assert np.isnan(ours.asymmetric_loss_multi_label(z, off))

def test_the_gradient_of_labels_is_the_true_one():
    z, y, _ = data()
    y = np.abs(y*.5)*(y >= 0)                  # some labels are 0: no half of a derivative there
    y[:, 0] = 1.
    got = jax.grad(lambda y: ours.asymmetric_loss_multi_label(z, y))(y)
    want = (ours.asymmetric_loss_multi_label(z, np.ones_like(y), reduction='none')
        - ours.asymmetric_loss_multi_label(z, np.zeros_like(y), reduction='none'))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('loss, target', [
    (ours.asymmetric_loss_multi_label, np.full((2, 3), -100.)),
    (ours.asymmetric_loss_multi_label, np.full((2, 3), -100)),
    (ours.asymmetric_loss_single_label, np.full(2, -100))])
def test_a_mean_of_nothing_is_nan_with_gradient_0(loss, target):
    value, gradient = jax.jit(jax.value_and_grad(lambda z: loss(z, target, reduction='mean')))(np.ones((2, 3)))
    assert np.isnan(value) and not gradient.any()

@pytest.mark.parametrize('m', [.95, .999, .9999])
def test_large_margins_of_classes_keep_their_digits(m):
    z, y = np.linspace(5, 20, 16)[:, None], np.zeros((16, 1))
    want = in_torch(asl.asymmetric_loss_multi_label, z, y, clip=m, gamma_neg=1.)
    for margin in (np.array([m]), np.array(m)):
        got = in_jax(ours.asymmetric_loss_multi_label, z.astype(np.float32), y, clip=margin, gamma_neg=1.)
        for a, b in zip(got, want): np.testing.assert_allclose(a, b, rtol=2e-6)
        with jax.enable_x64(True): got = in_jax(ours.asymmetric_loss_multi_label, z, y, clip=margin, gamma_neg=1.)
        for a, b in zip(got, want): np.testing.assert_allclose(a, b, rtol=1e-13)

@pytest.mark.parametrize('margin, rtol', [(.05, 1e-12), (np.full(3, .05), 1e-3)])     # PyTorch's tensors: 1e-4
def test_at_the_margin_in_float64(margin, rtol):
    mpmath = pytest.importorskip('mpmath')
    near = math.log(.05/.95) + np.array([1e-12, 1e-9, 1e-5])
    with mpmath.workdps(50):
        p_m = [1/(1+mpmath.exp(-mpmath.mpf(z)))-mpmath.mpf(.05) for z in near]
        want = [float(-mpmath.log1p(-p)) for p in p_m]
    settings = dict(gamma_neg=0., clip=margin, reduction='none')
    with jax.enable_x64(True):
        got = jax.jit(lambda z: ours.asymmetric_loss_multi_label(z, jnp.zeros(3), **settings))(near)
        np.testing.assert_allclose(got, want, rtol=rtol)

def test_classes_in_another_dimension():
    rng = np.random.default_rng(2)
    z = rng.normal(size=(2, 7, 3, 7)).astype(np.float32)
    y = (rng.random(z.shape) < .3).astype(np.float32)
    settings = dict(weight=each, gamma_neg=4*each, clip=each/10)
    for reduction in ('sum', 'mean', 'batchmean'):
        given = dict(settings, reduction=reduction, class_dim=1)
        want = asl.asymmetric_loss_multi_label(torch.tensor(z), torch.tensor(y), **tensors(given))
        np.testing.assert_allclose(ours.asymmetric_loss_multi_label(z, y, **given), want.item(), rtol=1e-5)
    got = ours.asymmetric_loss_multi_label(z, y, **settings, reduction='none', class_dim=1)
    want = ours.asymmetric_loss_multi_label(np.moveaxis(z, 1, -1), np.moveaxis(y, 1, -1), **settings, reduction='none')
    np.testing.assert_array_equal(got, np.moveaxis(want, -1, 1))
    want = np.moveaxis(ours.posterior(np.moveaxis(z, 1, -1), clip=each/10), -1, 1)
    np.testing.assert_array_equal(ours.posterior(z, clip=each/10, class_dim=1), want)

@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_types_stay_where_float64_is_on(dtype):
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    y, t = np.array([[1, 0, -100]]*2), np.array([1, -100])
    with jax.enable_x64(True):
        z = jnp.ones((2, 3), dtype)
        for reduction in ('none', 'sum', 'mean'):
            losses = [ours.asymmetric_loss_multi_label(z, y, reduction=reduction),
                ours.asymmetric_loss_multi_label(z, y, clip=np.full(3, .999), reduction=reduction),
                ours.asymmetric_loss_single_label(z, t, reduction=reduction),
                ours.asymmetric_loss_single_label(z, t, weight=np.ones(3), reduction=reduction)]
            assert {loss.dtype for loss in losses} == {jnp.dtype(wide)}
        assert ours.posterior(z, clip=np.full(3, .1), smoothing=.1).dtype == wide
