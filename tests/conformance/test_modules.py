"""Laws of the modules and of what people put around them: pickles, casts, devices, tracers, exports, transforms, modes.
After PyTorch's own ModuleInfo and OpInfo tests, each law for each module."""
import copy, io, pickle, warnings
from contextlib import contextmanager
from unittest import mock

import pytest, torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import asl
from asl import AdaptiveGamma, AsymmetricLossMultiLabel, AsymmetricLossSingleLabel, Posterior
from cases import C, N, each, randn, t, y, zs
from paths import asked_of

float_z, float_y = randn(N, C).float(), y.float()
maps, map_labels = randn(2, C, 3, 5).float(), (randn(2, C, 3, 5, seed=4) > 3).float()
map_classes = torch.randint(0, C, (2, 3, 5), generator=torch.Generator().manual_seed(0))

LOSSES = {
    'multi': (lambda: AsymmetricLossMultiLabel(), float_z, float_y),
    'multi, tensors': (lambda: AsymmetricLossMultiLabel(each*4, each*1, each/9, weight=each/2, pos_weight=2*each),
        float_z, float_y),
    'multi, kept': (lambda: AsymmetricLossMultiLabel(kept=each/9, smoothing=.1), float_z, float_y),
    'multi, kept of all': (lambda: AsymmetricLossMultiLabel(kept=.3), float_z, float_y),
    'multi, mean': (lambda: AsymmetricLossMultiLabel(reduction='mean', clip=None, weight=2.), float_z, float_y),
    'multi, maps': (lambda: AsymmetricLossMultiLabel(weight=each, class_dim=1, reduction='batchmean'),
        maps, map_labels),
    'single': (lambda: AsymmetricLossSingleLabel(), zs.float(), t),
    'single, tensors': (lambda: AsymmetricLossSingleLabel(each*1, 4*each, weight=each/2), zs.float(), t),
    'single, maps': (lambda: AsymmetricLossSingleLabel(eps=0., reduction='sum'), maps, map_classes),
}
losses = asked_of('make, logits, target', lambda tables: [pytest.param(*row, id=name)
    for name, row in tables['LOSSES'].items()])
layers = asked_of('make, logits', lambda tables: [pytest.param(lambda make=make: Posterior(make()), logits, id=name)
    for name, (make, logits, _) in tables['LOSSES'].items()])

def value_and_gradient(loss, logits, *args):
    logits = logits.clone().requires_grad_()
    value = loss(logits, *args)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]

def close(got, want, rtol=1e-5, atol=1e-7): assert_close(got, want, rtol=rtol, atol=atol)

@losses
def test_copies_and_pickles_are_the_same_loss(make, logits, target):
    loss = make()
    want = value_and_gradient(loss, logits, target)
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    other = make()
    other.load_state_dict(loss.state_dict())
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.load(file, weights_only=False), other):
        assert repr(again) == repr(loss)
        assert_close(value_and_gradient(again, logits, target), want, rtol=0, atol=0)

@pytest.mark.parametrize('cast', [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to(torch.bfloat16),
    lambda m: m.type(torch.float16), nn.Module.float], ids=['half', 'bfloat16', 'double', 'to', 'type', 'float'])
@losses
def test_casts_do_not_change_a_loss(make, logits, target, cast):
    loss, want = make(), make()(logits, target)
    model = nn.Sequential(nn.Linear(2, 2), loss)
    cast(model)
    assert_close(loss(logits, target), want, rtol=1e-7, atol=0)
    assert all(buffer.dtype.itemsize >= 4 for buffer in loss.buffers())

@losses
def test_nothing_of_a_call_stays_in_the_module(make, logits, target):
    loss = make()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    size = len(pickle.dumps(loss))
    loss(logits.requires_grad_(), target).sum().backward()
    assert len(pickle.dumps(loss)) == size and not list(loss.parameters())
    assert_close(dict(loss.state_dict()), before, rtol=0, atol=0)
    logits.requires_grad_(False)

# Grad modes
@losses
def test_no_grad_and_inference_mode(make, logits, target):
    loss, wanted = make(), make()(logits, target)
    watched = logits.clone().requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = loss(watched, target)
            assert not out.requires_grad and not torch.is_grad_enabled()
        assert_close(out, wanted, rtol=1e-6, atol=0)
    with torch.inference_mode(): inside = logits.clone()
    assert_close(loss(inside, target), wanted, rtol=1e-6, atol=0)
    assert loss(watched, target).requires_grad

@losses
def test_forward_derivatives_are_those_of_backward(make, logits, target):
    loss, direction = make(), randn(*logits.shape, seed=11).float()
    _, gradient = value_and_gradient(loss, logits, target)
    with forward_ad.dual_level():
        out = loss(forward_ad.make_dual(logits, direction), target)
        forwards = forward_ad.unpack_dual(out).tangent
    close(forwards.sum(), (gradient*direction).sum(), rtol=1e-4, atol=1e-5)

@losses
def test_transforms(make, logits, target):
    loss = make()
    _, gradient = value_and_gradient(loss, logits, target)
    close(torch.func.grad(lambda v: loss(v, target).sum())(logits), gradient)
    one = torch.stack([logits, logits*2])
    both = torch.func.vmap(lambda v: loss(v, target))(one)
    close(both, torch.stack([loss(v, target) for v in one]))
    hessian = torch.func.hessian(lambda v: loss(v, target).sum())(logits)
    assert hessian.isfinite().all() and hessian.shape == logits.shape*2

@losses
def test_autograd_functional(make, logits, target):
    "What Hessian optimisers call"
    loss, direction = make(), randn(*logits.shape, seed=12).float()
    _, product = torch.autograd.functional.hvp(lambda v: loss(v*1, target).sum(), logits, direction)
    want = torch.func.jvp(torch.func.grad(lambda v: loss(v, target).sum()), (logits,), (direction,))[1]
    close(product, want, rtol=1e-4, atol=1e-5)

@losses
def test_memory_formats(make, logits, target):
    if logits.ndim < 4: pytest.skip('no maps')
    loss = make()
    want = value_and_gradient(loss, logits, target)
    turned = logits.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (logits.to(memory_format=torch.channels_last), turned):
        close(value_and_gradient(loss, other, target), want)

# Without values
@losses
def test_meta_and_fake_tensors_give_shapes(make, logits, target):
    loss = make()
    want = value_and_gradient(loss, logits, target)
    on_meta = copy.deepcopy(loss).to('meta')
    got = value_and_gradient(on_meta, logits.to('meta'), target.to('meta'))
    assert [(x.shape, x.dtype, x.device.type) for x in got] == [(x.shape, x.dtype, 'meta') for x in want]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = value_and_gradient(loss, mode.from_tensor(logits), mode.from_tensor(target))
    assert [(x.shape, x.dtype) for x in fake] == [(x.shape, x.dtype) for x in want]

@losses
def test_made_under_a_meta_device_it_keeps_what_it_was_given(make, logits, target):
    with torch.device('meta'): loss = make()
    assert not any(buffer.is_meta for buffer in loss.buffers())
    assert_close(loss(logits, target), make()(logits, target), rtol=0, atol=0)

# Tracers
@losses
def test_jit_trace(make, logits, target):
    loss = make()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(loss, (logits, target), check_trace=False)
    close(traced(logits/2, target), loss(logits/2, target), rtol=1e-5)

@layers
def test_jit_trace_of_a_posterior(make, logits):
    layer = make()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(layer, (logits,), check_trace=False)
    close(traced(logits/2), layer(logits/2))

@losses
def test_fx_symbolic_trace(make, logits, target):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = make()
        def forward(self, x, y): return self.loss(x*2, y)
    traced = torch.fx.symbolic_trace(Model())
    close(traced(logits, target), make()(logits*2, target), rtol=1e-6)
    assert any('loss' in str(node.target) for node in traced.graph.nodes)

@layers
def test_fx_symbolic_trace_of_a_posterior(make, logits): close(torch.fx.symbolic_trace(make())(logits), make()(logits))

@pytest.mark.parametrize('mode', ['real', 'fake', 'symbolic'])
@losses
def test_make_fx(make, logits, target, mode):
    loss = make()
    def step(v, target): return torch.autograd.grad(loss(v, target).sum(), v)[0]
    traced = make_fx(step, tracing_mode=mode, _allow_non_fake_inputs=True)(logits.clone().requires_grad_(), target)
    got = traced((logits/2).requires_grad_(), target)
    close(got, value_and_gradient(loss, logits/2, target)[1], rtol=1e-4, atol=1e-6)

@losses
def test_export(make, logits, target):
    loss = make()
    program = torch.export.export(loss, (logits, target)).module()
    close(program(logits/2, target), loss(logits/2, target), rtol=1e-5)

@layers
def test_export_of_a_posterior(make, logits):
    layer = make()
    close(torch.export.export(layer, (logits,)).module()(logits/2), layer(logits/2), rtol=1e-5)

@layers
def test_onnx_without_dynamo_works_or_says_what_does(make, logits):
    onnxruntime = pytest.importorskip('onnxruntime')
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: torch.onnx.export(make(), (logits,), file, dynamo=False, input_names=['z'], opset_version=17)
        except torch.onnx.errors.UnsupportedOperatorError as error: pytest.xfail(str(error))
    session = onnxruntime.InferenceSession(file.getvalue())
    close(torch.from_numpy(session.run(None, {'z': logits.numpy()})[0]), make()(logits), rtol=1e-4, atol=1e-6)

# Devices without float64
class NoFloat64(TorchDispatchMode):
    "What MPS says to float64"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64: raise TypeError(f'float64 in {func}')
        return out

@contextmanager
def without_float64():
    "While this device has none, and goes the way of devices that asl has no kernels for"
    with (mock.patch('asl.ops.checks.has_float64', lambda _: False), NoFloat64(),
            mock.patch('asl.ops.dispatch.backend', lambda *_: 'plain')): yield

def moved_to_it(module):
    "A module that has been moved to a device without float64"
    def move(x):
        if x.dtype == torch.float64: raise TypeError('no float64')
        return x.clone()
    return module._apply(move)

@losses
def test_devices_without_float64(make, logits, target):
    loss = moved_to_it(make())
    with without_float64():
        got = value_and_gradient(loss, logits, target)
        posterior = loss.posterior(logits)
    close(got, value_and_gradient(make(), logits, target), rtol=2e-5, atol=1e-6)
    close(posterior, make().posterior(logits), rtol=2e-5, atol=1e-6)

@pytest.mark.parametrize('settings', [{}, dict(clip=each/9, class_weight=[.1, .2, .3, .4, .5, .6, .7])],
    ids=['numbers', 'tensors'])
def test_heads_and_controllers_without_float64(settings):
    head = moved_to_it(asl.LinearAsymmetricLoss(4, C, **settings))
    x = randn(N, 4).float()
    labels = float_y
    with without_float64():
        value = head(x, labels)
        value.backward()
        controller = AdaptiveGamma(AsymmetricLossMultiLabel())
        controller.update(float_z, labels)
        assert controller.loss.gamma_neg != 4
    want = asl.asymmetric_loss_multi_label(nn.functional.linear(x, head.weight, head.bias), labels, clip=head.loss.clip,
        weight=head.loss.weight)
    close(value, want.detach(), rtol=1e-5)

# The controller
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_controller_moves_in_any_precision_of_the_model(dtype):
    def moved(change):
        controller = AdaptiveGamma(AsymmetricLossMultiLabel(), rate=.01)
        change(controller)
        for _ in range(200): controller.update(float_z.to(dtype), float_y)
        return controller.loss.gamma_neg.item()
    want = moved(nn.Module.eval)
    assert abs(want-4) > .01
    def of_itself(controller): controller.to(dtype)
    def of_the_loss(controller): nn.ModuleList([controller.loss]).to(dtype)
    def of_a_model(controller): nn.ModuleList([controller]).to(dtype)
    for cast in (of_itself, of_the_loss, of_a_model): assert moved(cast) == pytest.approx(want, rel=1e-4)

def test_a_controller_can_be_made_under_a_meta_device():
    with torch.device('meta'): controller = AdaptiveGamma(AsymmetricLossMultiLabel(weight=each))
    controller.update(float_z, float_y)
    assert controller.loss.gamma_neg != 4 and controller.gap.isfinite()

# Classes in another dimension
@pytest.mark.parametrize('reduction', ['none', 'sum', 'mean', 'batchmean'])
@pytest.mark.parametrize('class_dim', [0, 1, 2, -1, -3])
def test_classes_in_any_dimension(class_dim, reduction):
    "Also where the width of a map equals the number of classes"
    g = torch.Generator().manual_seed(3)
    last = torch.randn(3, 4, 5, C, generator=g), (torch.rand(3, 4, 5, C, generator=g) < .3).float()
    moved = [x.movedim(-1, class_dim).contiguous() for x in last]
    settings = dict(gamma_neg=each*4, weight=each, pos_weight=2*each, reduction=reduction)
    want = value_and_gradient(AsymmetricLossMultiLabel(**settings), *last)
    loss = AsymmetricLossMultiLabel(**settings, class_dim=class_dim, thresh=each/2)
    value, gradient = value_and_gradient(loss, *moved)
    if reduction == 'none': value = value.movedim(class_dim, -1)
    close((value, gradient.movedim(class_dim, -1)), want)
    posterior = loss.posterior(moved[0])
    close(posterior.movedim(class_dim, -1), AsymmetricLossMultiLabel(**settings).posterior(last[0]))
    close(loss.decodes(posterior).movedim(class_dim, -1), posterior.movedim(class_dim, -1) > each/2)

def test_a_square_map_does_not_take_its_width_for_the_classes():
    square = randn(2, C, C, C).float()
    labels = (square > 2).float()
    by_class = AsymmetricLossMultiLabel(weight=each, class_dim=1, reduction='none')(square, labels)
    bare = AsymmetricLossMultiLabel(reduction='none')(square, labels)
    close(by_class, bare*each.view(1, C, 1, 1))
    with pytest.raises(ValueError, match='class_dim'): AsymmetricLossMultiLabel(weight=each)(maps, map_labels)
