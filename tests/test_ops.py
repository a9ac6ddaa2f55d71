"""Each loss is computed in several ways: in plain operations, in one pass on a CPU (of active entries or of all), in
a form for compilers, by kernels. All agree, in value and gradient, at settings drawn by chance; and finite differences
confirm first and second derivatives."""
import os, random, subprocess, sys
from functools import partial
from importlib.util import find_spec

import pytest, torch
from torch.testing import assert_close

from asl import asymmetric_loss_multi_label as multi, asymmetric_loss_single_label as single
from asl.ops.common import Settings
from asl.ops.dispatch import backend
from asl.ops.reference import multi_label_reference, single_label_reference

C = 40

def of_class(chance, low, high): return torch.tensor([chance.uniform(low, high) for _ in range(C)], dtype=torch.float64)

def draw_multi(seed, tensors=True):
    "Settings of the loss for many labels"
    chance = random.Random(seed)
    def one_of(*numbers, low=0., high=0.):
        if tensors and high and chance.random() < .3: return of_class(chance, low, high)
        return chance.choice(numbers)
    return dict(gamma_neg=one_of(0., .5, 1., 2., 4., 6.3, high=5.), gamma_pos=one_of(0., .3, 1., 2., high=2.),
        clip=one_of(0., .01, .05, .3, .6, high=.5), eps=one_of(None, None, 1e-8, .05), smoothing=one_of(0., 0., .1),
        disable_torch_grad_focal_loss=one_of(False, True), weight=one_of(None, 2., low=.1, high=2.),
        pos_weight=one_of(None, .5, low=.1, high=2.), reduction=one_of('none', 'sum', 'mean', 'batchmean'))

def draw_single(seed, tensors=True):
    "Settings of the loss for one label"
    chance = random.Random(seed)
    def one_of(*numbers, low=0., high=0.):
        if tensors and high and chance.random() < .3: return of_class(chance, low, high)
        return chance.choice(numbers)
    return dict(gamma_pos=one_of(0., .5, 1., 2., high=2.), gamma_neg=one_of(0., 1., 2.5, 4., high=5.),
        eps=one_of(0., .1, .4, 1.), weight=one_of(None, low=.1, high=2.), reduction=one_of('none', 'sum', 'mean'))

def plain_multi(z, y, reduction='sum', ignore_index=-100, **given):
    "The same in plain operations"
    absent = dict(clip=0., eps=0., weight=1., pos_weight=1.)
    given = {name: absent[name] if value is None else value for name, value in given.items()}
    names = dict(detach='disable_torch_grad_focal_loss')
    s = Settings(**{name: given[names.get(name, name)] for name in Settings._fields})
    return multi_label_reference(z, y, s, ignore_index, reduction)

def plain_single(z, t, gamma_pos=1., gamma_neg=4., eps=.1, weight=None, reduction='mean', ignore_index=-100):
    settings = [value.view(-1, *[1]*(z.ndim-2)) if isinstance(value, torch.Tensor) else value
        for value in (gamma_pos, gamma_neg, eps, 1. if weight is None else weight)]
    return single_label_reference(z, t, settings, ignore_index, reduction)

def labels(seed, rows=30, mean=-1., classes=C):
    "Logits, of which a mean of -6 leaves few active, and labels, some unknown"
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, classes, generator=g, dtype=torch.float64)*3 + mean
    y = (torch.rand(rows, classes, generator=g) < .05).double()
    return z, y.masked_fill(torch.rand(rows, classes, generator=g) < .1, -100)

def classes(seed, *rest, scale=3.):
    "Logits, (30, C, ...), and classes, some unknown"
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(30, C, *rest, generator=g, dtype=torch.float64)*scale
    t = torch.randint(0, C, (30, *rest), generator=g)
    t.view(-1)[3] = -100
    return z, t

def agree(loss, plain, z, target, **settings):
    "The same in value and gradient: in float64 to its last digits, and in float32"
    assert_close(both(loss, z, target, **settings), both(plain, z, target, **settings), rtol=1e-9, atol=1e-12)
    single_precision(loss, plain, z, target, **settings)

def single_precision(loss, plain, z, target, **settings):
    "float32 beside the plain loss of the same logits in float64"
    value, gradient = both(loss, z.float(), target, **settings)
    want = both(plain, z.float().double(), target, **settings)
    assert_close((value.double(), gradient.double()), want, rtol=3e-4, atol=1e-5)

def both(loss, z, target, **settings):
    "Loss and gradient, of a sum weighted unevenly where each entry has its loss"
    z = z.detach().clone().requires_grad_()
    value = loss(z, target, **settings)
    weights = torch.linspace(.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    return value.detach(), torch.autograd.grad((value*weights).sum(), z)[0]

@pytest.mark.parametrize('seed', range(24))
def test_one_pass_is_the_plain_loss(seed):
    settings, (z, y) = draw_multi(seed), labels(seed)
    agree(multi, plain_multi, z, y, **settings)
    with torch.no_grad(): assert_close(multi(z, y, **settings), plain_multi(z, y, **settings), rtol=1e-9, atol=1e-12)

@pytest.mark.parametrize('mean', [-6., 0.], ids=['few are active', 'many are active'])
@pytest.mark.parametrize('settings', [{}, dict(reduction='none'), dict(clip=.2, gamma_neg=2.5, reduction='mean'),
    dict(smoothing=.1), dict(clip=torch.linspace(.01, .3, 1000).double(), weight=torch.linspace(0, 1, 1000))])
def test_a_large_batch_in_blocks_is_the_plain_loss(mean, settings):
    z, y = labels(0, 400, mean, 1000)
    settings = dict(gamma_neg=4., gamma_pos=1., clip=.05, eps=None, smoothing=0., weight=None, pos_weight=None,
        disable_torch_grad_focal_loss=False) | settings
    agree(multi, plain_multi, z, y, **settings)

@pytest.mark.parametrize('seed', range(24))
def test_row_by_row_is_the_plain_loss(seed):
    settings = draw_single(seed)
    z, t = classes(seed, *[3]*(seed % 2), scale=30. if seed % 3 == 0 else 3.)
    agree(single, plain_single, z, t, **settings)
    with torch.no_grad(): assert_close(single(z, t, **settings), plain_single(z, t, **settings), rtol=1e-9, atol=1e-12)

@pytest.mark.parametrize('scale', [1., 20., 200.])
@pytest.mark.parametrize('settings', [{}, dict(eps=0.), dict(gamma_neg=2.), dict(gamma_neg=2.5)])
def test_many_classes_row_by_row_are_the_plain_loss(scale, settings):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(50, 1000, generator=g)*scale
    t = torch.randint(0, 1000, (50,), generator=g)
    got = [part.double() for part in both(single, z, t, **settings)]
    assert_close(got, both(plain_single, z.double(), t, **settings), rtol=1e-4, atol=1e-7)

@pytest.mark.parametrize('seed', range(3))
def test_the_form_for_compilers_is_the_plain_loss(seed):
    for loss, plain, settings, (z, target) in ((multi, plain_multi, draw_multi(seed, seed > 0), labels(seed)),
            (single, plain_single, draw_single(seed, seed > 0), classes(seed))):
        torch.compiler.reset()
        agree(torch.compile(loss, fullgraph=True, backend='aot_eager'), plain, z, target, **settings)

def test_gradients_are_those_of_finite_differences():
    z, y = labels(0, 3, 0.)
    z, y = z[:, :5].contiguous().requires_grad_(), y[:, :5].contiguous()
    x, t = classes(0)
    x, t = x[:4, :5].div(3).contiguous().requires_grad_(), t[:4] % 5
    for f, logits in ((lambda z: multi(z, y, clip=.1), z), (lambda x: single(x, t), x)):
        assert torch.autograd.gradcheck(f, logits) and torch.autograd.gradgradcheck(f, logits)

@pytest.mark.parametrize('seed', range(8))
def test_second_derivatives_are_those_of_plain_operations(seed):
    for loss, plain, settings, (z, target) in ((multi, plain_multi, draw_multi(seed), labels(seed)),
            (single, plain_single, draw_single(seed), classes(seed))):
        z.requires_grad_()
        curvature = []
        for f in loss, plain:
            slope, = torch.autograd.grad(f(z, target, **settings).sum(), z, create_graph=True)
            curvature.append(torch.autograd.grad(slope.square().sum(), z)[0])
        assert_close(*curvature, rtol=1e-8, atol=1e-12)

def test_second_derivatives_need_the_logits_as_they_were():
    z, y = labels(0)
    z.requires_grad_()
    loss = multi(z, y)
    y.mul_(1)
    with pytest.raises(RuntimeError, match='as they were'): torch.autograd.grad(loss, z, create_graph=True)

@pytest.mark.parametrize('mean', [-6., 0.])
def test_backward_twice_and_scaled(mean):
    z, y = labels(0, 200, mean, 200)
    for loss, logits, target in (multi, z, y), (single, *classes(0)):
        logits.requires_grad_()
        value = loss(logits, target)
        first, = torch.autograd.grad(value, logits, retain_graph=True)
        again, = torch.autograd.grad(3*value, logits, retain_graph=True)
        last, = torch.autograd.grad(.5*value, logits)
        assert_close(again, 3*first)
        assert_close(last, .5*first)

def test_transforms_of_functions():
    (z, y), (x, t) = labels(0), classes(0)
    for loss, logits, target in (multi, z, y), (single, x, t):
        logits.requires_grad_()
        value = loss(logits, target)
        gradient, = torch.autograd.grad(value, logits)
        logits = logits.detach()
        assert_close(torch.func.grad(loss)(logits, target), gradient)
        of_logits = partial(loss, target=target)
        assert_close(torch.func.jvp(of_logits, (logits,), (torch.ones_like(logits),)), (value.detach(), gradient.sum()))
    y = y.masked_fill(y < 0, 0)
    assert_close(torch.func.vmap(multi)(z, y).sum(), multi(z, y))

def test_a_setting_may_have_a_gradient():
    z, y = labels(0)
    gamma = torch.tensor(3., dtype=torch.float64, requires_grad=True)
    multi(z, y, gamma_neg=gamma).backward()
    step = 1e-6
    slope = (multi(z, y, gamma_neg=3+step) - multi(z, y, gamma_neg=3-step))/(2*step)
    assert_close(gamma.grad, slope, rtol=1e-6, atol=0)

def test_which_backend_computes():
    z, y = labels(0)
    numbers = Settings(4., 1., .05, 0., 0., 1., 1., False)
    assert backend(z, y, numbers) == 'cpu'
    assert backend(z[:0], y[:0], numbers) == 'plain'
    assert backend(z, y, numbers._replace(gamma_neg=torch.ones(C))) == 'cpu'
    assert backend(z, y, numbers._replace(gamma_neg=torch.ones(C, requires_grad=True))) == 'plain'
    assert backend(z.to('meta'), y.to('meta'), numbers) == 'plain'
    seen = []
    torch.func.vmap(lambda z: seen.append(backend(z, z, numbers)) or z)(z)
    assert seen == ['plain']

interpreted = '''
import torch
from test_ops import classes, draw_multi, draw_single, labels, plain_multi, plain_single, single_precision
from asl.ops import gpu
from asl.ops.common import Settings

def multi(z, y, reduction='sum', **given):
    absent = dict(clip=0., eps=0., weight=1., pos_weight=1.)
    given = {name: absent[name] if value is None else value for name, value in given.items()}
    given['detach'] = given.pop('disable_torch_grad_focal_loss')
    given = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    return gpu.multi_label(z, y, Settings(**given), -100, reduction)

def single(z, t, gamma_pos, gamma_neg, eps, weight, reduction):
    settings = [value.view(-1, *[1]*(z.ndim-2)) if isinstance(value, torch.Tensor) else value
        for value in (gamma_pos, gamma_neg, eps, 1. if weight is None else weight)]
    return gpu.single_label(z, t, settings, -100, reduction)

for seed in range(4):
    single_precision(multi, plain_multi, *labels(seed), **draw_multi(seed))
    single_precision(single, plain_single, *classes(seed), **draw_single(seed))
print('all agree')
'''

@pytest.mark.skipif(find_spec('triton') is None, reason='needs Triton')
def test_the_kernels_by_tritons_interpreter_are_the_plain_loss():
    here = os.path.dirname(__file__)
    environment = os.environ | dict(TRITON_INTERPRET='1', PYTHONPATH=os.pathsep.join([here, *sys.path]))
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', interpreted], env=environment, capture_output=True,
        text=True, timeout=120)
    assert result.stdout == 'all agree\n', result.stderr

@pytest.mark.parametrize('dtype', [torch.float32, torch.bool, torch.int8, torch.bfloat16])
def test_compiled_the_formula_is_computed_once_whatever_the_labels_are(dtype):
    from torch._inductor.compile_fx import compile_fx
    graphs = []
    def keep(graph, _inputs, **_options):
        graphs.append(str(graph.graph))
        return graph.forward
    def backend(graph, inputs): return compile_fx(graph, inputs, inner_compile=keep)
    torch.compiler.reset()
    logits = torch.linspace(-6, 6, 40).view(4, 10).requires_grad_()
    labels = torch.eye(4, 10).to(dtype)
    with torch._inductor.config.patch(force_disable_caches=True):
        torch.compile(multi, backend=backend, fullgraph=True)(logits, labels).backward()
    assert [graph.count('aten.exp.') for graph in graphs] == [1, 0]         # of forward and of backward
    gradient = logits.grad.clone()
    logits.grad = None
    multi(logits, labels).backward()
    torch.testing.assert_close(gradient, logits.grad)
