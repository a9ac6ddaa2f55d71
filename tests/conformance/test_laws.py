"""Laws of every path: what is counted, which targets are the same, derivatives of derivatives, layouts, determinism."""
import math

import pytest, torch
from torch.testing import assert_close

from cases import C, N, each, per_class, randn, soft, some, t, y, z, zs
from paths import MULTI, SINGLE, asked_of, every, having  # noqa: F401 - the tables

nan = math.nan

def close(got, want, rtol=1e-5, atol=1e-7): assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)

float_z, float_y = z.float(), y.float()

def both_losses(*features):
    "Every path of both losses that offers these features, with logits and targets"
    given = ('MULTI', float_z, float_y), ('SINGLE', zs.float(), t)
    return asked_of('path, logits, target', lambda tables: [pytest.param(path, logits, target, id=f'{path}')
        for table, logits, target in given for path in having(tables[table], *features)])

# What is counted
KNOWN = [(None, lambda y: y), (-100, lambda y: some(y, -100.)), (-1, lambda y: some(y, -1.)), (1, lambda y: y),
    (0, lambda y: y), (.5, lambda y: some(y, .5))]

@pytest.mark.parametrize('ignore_index, change', KNOWN, ids=[str(value) for value, _ in KNOWN])
@every('MULTI', 'unknown', 'unknown 0')
def test_a_mean_is_the_sum_over_what_is_known(path, ignore_index, change):
    "also where most entries are easy and nobody looks at them"
    target = change(y).float()
    settings = {} if ignore_index is None else dict(ignore_index=ignore_index)
    known = target != (-100 if ignore_index is None else ignore_index)
    both = float_z, float_z-8
    sums = [path.value_and_gradient(logits, target, **settings) for logits in both]
    for reduction, count in (('mean', known.sum()), ('batchmean', N)):
        for logits, (total, gradient) in zip(both, sums):
            got = path.value_and_gradient(logits, target, **settings, reduction=reduction)
            close(got, (total/count, gradient/count))
            assert not got[1][~known].any()

@pytest.mark.parametrize('rows', [164, 200])
def test_ignored_easy_entries_are_counted_at_any_size(rows):
    "They were skipped with all that is easy, and the mean was ten times too small from 16384 entries on"
    g = torch.Generator().manual_seed(rows)
    logits, target = torch.randn(rows, 100, generator=g)-6, (torch.rand(rows, 100, generator=g) < .1).float()
    from asl import asymmetric_loss_multi_label as loss
    by_hand = loss(logits, target, reduction='none')[target == 1].mean()
    close(loss(logits, target, ignore_index=0, reduction='mean'), by_hand)

@pytest.mark.parametrize('ignore_index, dtype',
    [(0, torch.bool), (1, torch.bool), (-100, torch.uint8), (257, torch.int8), (10**30, torch.int64)])
@every('MULTI', 'dtypes')
def test_labels_of_a_type_that_cannot_hold_it_are_never_ignored(path, ignore_index, dtype):
    got = path.value_and_gradient(float_z, y.to(dtype), ignore_index=ignore_index, reduction='mean')
    close(got, path.value_and_gradient(float_z, float_y, reduction='mean'))

@every('MULTI', 'dtypes', 'raises')
def test_large_labels_do_not_become_the_ignored_one_by_rounding(path):
    target = y.long()
    target[0, 0] = 2**24
    with pytest.raises((ValueError, RuntimeError), match='needs values in'):
        path.value_and_gradient(float_z, target, ignore_index=2**24+1)

@every('MULTI', 'unknown', settings=[{}, dict(weight=each), dict(gamma_neg=2*each), dict(smoothing=.1),
    dict(shift=each, neg_scale=each)])
def test_where_nothing_is_known_a_mean_is_nan_and_its_gradient_zero(path, settings):
    nothing = torch.full_like(float_y, -100.)
    loss, gradient = path.value_and_gradient(float_z, nothing, reduction='mean', **settings)
    assert loss.isnan() and not gradient.any()
    for reduction in ('sum', 'batchmean'):
        loss, gradient = path.value_and_gradient(float_z, nothing, reduction=reduction, **settings)
        assert loss == 0 and not gradient.any()

@pytest.mark.parametrize('settings', [{}, dict(weight=each), dict(eps=0.)], ids=str)
@every('SINGLE')
def test_where_no_target_is_known_the_same(path, settings):
    loss, gradient = path.value_and_gradient(zs.float(), torch.full_like(t, -100), **settings)
    assert loss.isnan() and not gradient.any()

@pytest.mark.parametrize('eps', [0., .1])
@every('SINGLE')
def test_where_no_target_has_a_weight_the_same(path, eps):
    loss, gradient = path.value_and_gradient(zs.float(), 0*t, weight=torch.tensor([0.]+[1.]*(C-1)), eps=eps)
    assert loss.isnan() and not gradient.any()

@pytest.mark.parametrize('settings', [{}, dict(weight=each), dict(eps=0.)], ids=str)
@every('SINGLE')
def test_a_mean_is_weighted_by_the_classes_of_the_targets(path, settings):
    target = torch.where(torch.arange(N) % 3 == 0, -100, t)
    total, gradient = path.value_and_gradient(zs.float(), target, **settings, reduction='sum')
    weight = settings.get('weight', torch.ones(C))[target[target >= 0]].sum()
    close(path.value_and_gradient(zs.float(), target, **settings), (total/weight, gradient/weight))

@pytest.mark.parametrize('shape', [(0, 5), (0, 1), (3, 0), (0, 0)], ids=str)
@every('MULTI')
def test_an_empty_batch(path, shape):
    if not shape[1] and 'head' in path.name: pytest.skip('a head has classes')
    empty = torch.zeros(shape)
    loss, gradient = path.value_and_gradient(empty, empty)
    assert loss == 0 and gradient.shape == shape
    assert path.value_and_gradient(empty, empty, reduction='mean')[0].isnan()

# Targets that mean the same
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]

@pytest.mark.parametrize('dtype', [torch.bool, *INTEGERS, torch.float16, torch.bfloat16, torch.float64], ids=str)
@every('MULTI', 'dtypes')
def test_labels_of_any_type(path, dtype):
    close(path.value_and_gradient(float_z, y.to(dtype)), path.value_and_gradient(float_z, float_y))

@pytest.mark.parametrize('dtype', INTEGERS, ids=str)
@every('SINGLE')
def test_class_indices_of_any_integer_type(path, dtype):
    close(path.value_and_gradient(zs.float(), t.to(dtype)), path.value_and_gradient(zs.float(), t))

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@every('MULTI', 'soft')
def test_labels_that_rounding_took_beyond_0_and_1_are_0_and_1(path, dtype):
    step = torch.finfo(dtype).eps
    off = torch.where(y == 1, 1+2*step, -2*step).to(dtype)
    want = path.value_and_gradient(float_z, float_y, reduction='mean')
    close(path.value_and_gradient(float_z, off, reduction='mean'), want)

@pytest.mark.parametrize('wrong', [1.0001, -.0001, 2., -1., nan, math.inf])
@every('MULTI', 'soft', 'raises')
def test_other_labels_are_refused(path, wrong):
    target = float_y.clone()
    target[2, 3] = wrong
    with pytest.raises((ValueError, RuntimeError), match='needs values in'): path.value_and_gradient(float_z, target)

@pytest.mark.parametrize('wrong', [C, -1, 2**40, -101])
@every('SINGLE', 'raises')
def test_other_classes_are_refused(path, wrong):
    target = t.clone()
    target[2] = wrong
    with pytest.raises((ValueError, RuntimeError), match='needs class indices in'):
        path.value_and_gradient(zs.float(), target)

# Derivatives of derivatives, and by targets
SETTINGS = [{}, dict(clip=0., gamma_pos=0.), per_class, dict(weight=each, smoothing=.1), dict(eps=1e-3),
    dict(shift=each-2, neg_scale=each, pos_weight=3*each)]

def second(loss, logits, *args):
    "A product with the Hessian"
    logits = logits.clone().requires_grad_()
    first, = torch.autograd.grad(loss(logits*1, *args), logits, create_graph=True)
    return torch.autograd.grad((first*torch.arange(1., first.numel()+1).view_as(first)).sum(), logits)[0]

@every('MULTI', 'second', settings=SETTINGS)
def test_second_derivatives_are_those_of_the_formula(path, settings):
    "torch.func, which differentiates the reference, is what they are compared with"
    settings = {name: v.double() if isinstance(v, torch.Tensor) else v for name, v in settings.items()}
    def gradient(v): return torch.func.grad(lambda v: path.bare(v, y, **settings))(v)
    direction = torch.arange(1., z.numel()+1).view_as(z).double()
    want = torch.func.vjp(gradient, z)[1](direction)[0]
    double = torch.float64 if path.has('float64') else torch.float32
    with path.taken(): got = second(lambda v: path.loss(v, y, **settings), z.to(double))
    close(got.double(), want, rtol=1e-9 if double == torch.float64 else 1e-4, atol=1e-5)

@every('MULTI', 'second')
def test_temporaries_have_second_derivatives_too(path):
    "Nothing but the loss holds logits and labels here: gradient penalties, MAML and Hessians are written like this"
    x, weight = randn(N, 4).float(), torch.nn.Parameter(randn(4, C, seed=9).float())
    def penalty(weight, keep):
        logits, labels = (x@weight)*1, float_y.clone()
        loss = path.loss(logits, labels)
        if not keep: del logits, labels
        gradient, = torch.autograd.grad(loss, weight, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), weight)[0]
    with path.taken(): close(penalty(weight, keep=False), penalty(weight, keep=True))

@every('MULTI', 'target', settings=SETTINGS)
def test_targets_have_a_gradient_where_they_ask_for_one(path, settings):
    "The loss is linear in them: the difference of both terms"
    target = torch.where(y == 1, 1., soft(N, C)*(soft(N, C, seed=5) < .7)).float().requires_grad_()     # also 0 and 1
    with path.taken():
        gradient, = torch.autograd.grad(path.loss(float_z, target, **settings), target)
        both = [torch.full_like(float_y, label) for label in (1., 0.)]
        ones, zeros = (path.loss(float_z, labels, **settings, reduction='none') for labels in both)
    close(gradient, ones-zeros, rtol=1e-4, atol=1e-6)
    logits = float_z.clone().requires_grad_()
    with path.taken(): both = torch.autograd.grad(path.loss(logits, target, **settings), (logits, target))
    close(both[1], gradient, rtol=1e-4, atol=1e-6)
    close(both[0], path.value_and_gradient(float_z, target.detach(), **settings)[1], rtol=1e-4, atol=1e-6)

@every('SINGLE', 'second')
def test_second_derivatives_of_one_label(path):
    from asl import asymmetric_loss_single_label as loss
    def gradient(v): return torch.func.grad(lambda v: loss(v, t))(v)
    want = torch.func.vjp(gradient, zs)[1](torch.arange(1., zs.numel()+1).view_as(zs).double())[0]
    double = torch.float64 if path.has('float64') else torch.float32
    with path.taken(): got = second(lambda v: path.loss(v, t), zs.to(double))
    close(got.double(), want, rtol=1e-9 if double == torch.float64 else 1e-4, atol=1e-5)

@both_losses('second')
def test_many_gradients_at_once(path, logits, target):
    logits = logits.clone().requires_grad_()
    with path.taken():
        loss = path.loss(logits, target, reduction='none')
        chosen = torch.eye(loss.numel())[:4].view(4, *loss.shape)
        got, = torch.autograd.grad(loss, logits, chosen, is_grads_batched=True, retain_graph=True)
        want = torch.stack([torch.autograd.grad(loss, logits, one, retain_graph=True)[0] for one in chosen])
    close(got, want)

# Infinite logits, derived
@every('MULTI', 'second')
def test_infinite_logits_on_the_right_side_leave_no_mark_on_derivatives(path):
    logits = float_z.clone()
    logits[:, 2], logits[:, 5] = -math.inf, math.inf
    target = float_y.clone()
    target[:, 2], target[:, 5] = 0, 1
    with path.taken(): got = second(lambda v: path.loss(v, target), logits)
    rest = [0, 1, 3, 4, 6]
    logits[:, [2, 5]] = 0.
    with path.taken(): want = second(lambda v: path.loss(v[:, rest], target[:, rest]), logits)
    assert not got[:, [2, 5]].any()
    assert got.isfinite().all() and (got[:, rest] != 0).any() and (want[:, rest] != 0).any()

# Layouts
LAYOUTS = dict(transposed=lambda x: x.mT.contiguous().mT, sliced=lambda x: x.repeat_interleave(2, -1)[..., ::2],
    expanded=lambda x: x[:1].expand(x.shape), reversed_rows=lambda x: x.flip(0)[torch.arange(len(x)-1, -1, -1)])

@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
@every('MULTI', 'layouts')
def test_any_strides(path, layout):
    logits, target = layout(float_z), layout(float_y)
    close(path.value_and_gradient(logits, target), path.value_and_gradient(logits.contiguous(), target.contiguous()))
    close(path.value_and_gradient(logits, float_y), path.value_and_gradient(logits.contiguous(), float_y))

@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
@every('SINGLE', 'layouts')
def test_any_strides_of_one_label(path, layout):
    logits = layout(zs.float())
    close(path.value_and_gradient(logits, t), path.value_and_gradient(logits.contiguous(), t))

# Determinism
@every('MULTI')
def test_deterministic_algorithms_are_the_same(path):
    plain = path.value_and_gradient(float_z-3, float_y)
    torch.use_deterministic_algorithms(True)
    try: again = [path.value_and_gradient(float_z-3, float_y) for _ in range(2)]
    finally: torch.use_deterministic_algorithms(False)
    close(again[0], plain)
    assert_close(again[1], again[0], rtol=0, atol=0)

@both_losses()
def test_nothing_is_written_to(path, logits, target):
    logits, target = logits.clone(), target.clone()
    before = logits.clone(), target.clone()
    path.value_and_gradient(logits, target)
    assert_close((logits, target), before, rtol=0, atol=0)
    assert torch.is_grad_enabled()
