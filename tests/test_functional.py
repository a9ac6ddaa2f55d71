"Both losses as functions: beside their formulas written down naively, PyTorch's losses, and 60 digits for far logits"
import math

import mpmath, pytest, torch
from torch.nn import functional as F
from torch.testing import assert_close

from asl import asymmetric_loss_multi_label as multi, asymmetric_loss_single_label as single

each = torch.linspace(.5, 1.5, 7, dtype=torch.float64)

def seeded(seed=0): return torch.Generator().manual_seed(seed)

def many(dtype=torch.float64):
    "Logits and labels, (9, 7)"
    g = seeded()
    z = torch.randn(9, 7, generator=g, dtype=torch.float64)*2
    return z.to(dtype), (torch.rand(9, 7, generator=g) < .3).double()

def one(*rest, dtype=torch.float64):
    "Logits, (9, 7, ...), and classes, (9, ...)"
    g = seeded(1)
    z = torch.randn(9, 7, *rest, generator=g, dtype=torch.float64)*2
    return z.to(dtype), torch.randint(0, 7, (9, *rest), generator=g)

def value_and_gradient(loss, z, *args, **settings):
    z = z.detach().clone().requires_grad_()
    value = loss(z, *args, **settings)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]

def naive_multi(z, y, gamma_neg=4., gamma_pos=1., clip=.05, eps=0., smoothing=0., weight=1., pos_weight=1.,
        detach=False):
    "The formula as in the paper, elementwise"
    p = torch.sigmoid(z)
    p_m = (p-clip).clamp(min=0)
    y = y*(1-smoothing) + smoothing/2
    easy_pos = p.detach() if detach else p
    easy_neg = p_m.detach() if detach else p_m
    pos = (1-easy_pos)**gamma_pos*torch.log(p.clamp(min=eps))
    neg = easy_neg**gamma_neg*torch.log((1-p_m).clamp(min=eps))
    return -weight*(pos_weight*y*pos + (1-y)*neg)

def naive_single(z, t, gamma_pos=1., gamma_neg=4., eps=.1, weight=None):
    "The formula as in the authors' code, by sample; z is (N, C)"
    C = z.shape[1]
    weight = z.new_ones(C) if weight is None else weight
    p = z.softmax(1)
    hot = F.one_hot(t, C).to(z)
    gamma = hot*gamma_pos + (1-hot)*gamma_neg
    share = hot*(1-eps) + eps/C
    return -(weight*share*(hot*(1-p) + (1-hot)*p)**gamma*torch.log(p)).sum(1)

@pytest.mark.parametrize('settings', [{}, dict(gamma_neg=0., gamma_pos=0., clip=0.),
    dict(gamma_neg=2.5, gamma_pos=.5, clip=.2), dict(gamma_neg=each*4, gamma_pos=each, clip=each/5),
    dict(weight=each, pos_weight=each*2), dict(weight=3., pos_weight=.2), dict(smoothing=.1), dict(smoothing=1.),
    dict(eps=.2), dict(eps=.2, gamma_neg=1., smoothing=.3)])
@pytest.mark.parametrize('detach', [False, True])
def test_many_labels_are_the_formula(settings, detach):
    z, y = many()
    got = value_and_gradient(multi, z, y, **settings, disable_torch_grad_focal_loss=detach, reduction='none')
    assert_close(got, value_and_gradient(naive_multi, z, y, **settings, detach=detach), rtol=1e-10, atol=1e-13)

def test_soft_labels_mix_both_terms():
    z, y = many()
    ones, zeros = torch.ones_like(y), torch.zeros_like(y)
    mixed = .3*multi(z, ones, reduction='none') + .7*multi(z, zeros, reduction='none')
    assert_close(multi(z, .3*ones, reduction='none'), mixed)

@pytest.mark.parametrize('settings', [{}, dict(eps=0.), dict(eps=1.), dict(gamma_pos=0., gamma_neg=0.),
    dict(weight=each), dict(gamma_pos=.5, gamma_neg=2.5, eps=.3), dict(gamma_pos=each, gamma_neg=each*3, weight=each)])
def test_one_label_is_the_formula(settings):
    z, t = one()
    got = value_and_gradient(single, z, t, **settings, reduction='none')
    assert_close(got, value_and_gradient(naive_single, z, t, **settings), rtol=1e-10, atol=1e-13)

@pytest.mark.parametrize('reduction', ['none', 'sum', 'mean'])
@pytest.mark.parametrize('settings', [{}, dict(weight=each), dict(pos_weight=2*each)])
def test_without_focusing_it_is_binary_cross_entropy(reduction, settings):
    z, y = many()
    got = value_and_gradient(multi, z, y, 0., 0., 0., **settings, reduction=reduction)
    assert_close(got, value_and_gradient(F.binary_cross_entropy_with_logits, z, y, **settings, reduction=reduction))
    assert (multi(z, y, 0., .1, 0., **settings) - multi(z, y, 0., 0., 0., **settings)).abs() > .01

@pytest.mark.parametrize('reduction', ['none', 'sum', 'mean'])
@pytest.mark.parametrize('eps', [0., .1])
@pytest.mark.parametrize('weight', [None, each])
def test_without_focusing_it_is_cross_entropy(reduction, eps, weight):
    z, t = one(2, 3)
    t[0] = -100
    got = value_and_gradient(single, z, t, 0., 0., eps, weight=weight, reduction=reduction)
    want = value_and_gradient(F.cross_entropy, z, t, label_smoothing=eps, weight=weight, reduction=reduction)
    assert_close(got, want)

def test_the_reductions_of_many_labels():
    z, y = many()
    y[0] = -100
    elements = multi(z, y, reduction='none')
    assert elements.shape == z.shape and not elements[0].any()
    assert_close(multi(z, y), elements.sum())
    assert_close(multi(z, y, reduction='mean'), elements.sum()/(8*7))              # over the known ones
    assert_close(multi(z, y, reduction='batchmean'), elements.sum()/9)
    assert_close(multi(z.view(3, 3, 7), y.view(3, 3, 7), reduction='batchmean'), elements.sum()/9)

def test_the_reductions_of_one_label():
    z, t = one()
    t[:2] = -100
    samples = single(z, t, reduction='none', weight=each)
    assert samples.shape == t.shape and not samples[:2].any()
    assert_close(single(z, t, reduction='sum', weight=each), samples.sum())
    assert_close(single(z, t, weight=each), samples.sum()/each[t[2:]].sum())

@pytest.mark.parametrize('ignore_index', [-100, -1, 1])
def test_what_is_ignored_has_no_loss_and_no_gradient_not_even_of_nan(ignore_index):
    z, y = many()
    unknown = torch.rand(y.shape, generator=seeded(2)) < .3
    if ignore_index == 1: unknown = y == 1
    y = y.masked_fill(unknown, ignore_index)
    value, gradient = value_and_gradient(multi, z.masked_fill(unknown, math.nan), y, ignore_index=ignore_index)
    clean, of_clean = value_and_gradient(multi, z, y, ignore_index=ignore_index)
    assert_close((value, gradient), (clean, of_clean))
    assert not gradient[unknown].any() and gradient[~unknown].any()

def test_classes_that_are_ignored_have_no_loss_and_no_gradient_not_even_of_nan():
    z, t = one()
    t[3] = -100
    z[3] = math.nan
    value, gradient = value_and_gradient(single, z, t)
    assert value.isfinite() and not gradient[3].any() and gradient.isfinite().all()

def test_nan_where_it_counts_stays_nan():
    z, y = many()
    z[2, 3] = math.nan
    got = multi(z, y, reduction='none').isnan()
    assert got[2, 3] and got.sum() == 1
    z, t = one()
    z[2, 3] = math.nan
    assert single(z, t, reduction='none').isnan().nonzero().tolist() == [[2]]

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision(dtype):
    (z, y), (x, t) = many(dtype), one(dtype=dtype)
    for loss, logits, target in (multi, z, y), (single, x, t):
        value, gradient = value_and_gradient(loss, logits, target)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert gradient.dtype == dtype
        assert_close(value.double(), loss(logits.double(), target), rtol=1e-6, atol=0)

@pytest.mark.parametrize('kind', [torch.bool, torch.int64, torch.uint8, torch.float16])
def test_labels_of_any_kind(kind):
    z, y = many()
    assert multi(z, y.to(kind)) == multi(z, y)

def test_classes_of_any_integer_kind():
    z, t = one()
    assert single(z, t.to(torch.uint8)) == single(z, t.int()) == single(z, t)

def exact_multi(z, y, gamma_neg=4, gamma_pos=1, clip=.05):
    "The loss of one entry with 60 digits"
    with mpmath.workdps(60):
        p = 1/(1+mpmath.exp(-mpmath.mpf(z)))
        p_m = max(p-mpmath.mpf(clip), mpmath.mpf(0))
        return -(1-p)**gamma_pos*mpmath.log(p) if y else -p_m**gamma_neg*mpmath.log(1-p_m)

margin = math.log(.05/.95)

@pytest.mark.parametrize('y, z', [(1, 30.), (1, 12.), (1, -80.), (1, -1e4), (0, 90.), (0, 12.), (0, margin+.01),
    (0, margin+1e-4)])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 3e-6), (torch.float64, 1e-11)])
def test_far_logits_and_the_margin_are_exact(y, z, dtype, tolerance):
    logit = torch.tensor([[z]], dtype=dtype)
    got, want = multi(logit, torch.tensor([[float(y)]])).item(), exact_multi(logit.item(), y)
    assert want > 0 and abs(got/want-1) < tolerance
    no_margin = multi(logit, torch.tensor([[float(y)]]), clip=0.).item()
    assert abs(no_margin/exact_multi(logit.item(), y, clip=0)-1) < tolerance

def test_below_the_margin_there_is_nothing():
    z = torch.tensor([[margin-1e-4, -5., -1e4, -1e30]])
    value, gradient = value_and_gradient(multi, z, torch.zeros(1, 4))
    assert value == 0 and not gradient.any()
    assert multi(torch.tensor([[margin+1e-4]]), torch.zeros(1, 1), gamma_neg=1.) > 0

@pytest.mark.parametrize('logits', [[40., 0., 1.], [12., 0., 3.], [-50., 0., 1.]])
def test_one_certain_label_is_exact(logits):
    z = torch.tensor([logits], dtype=torch.float64)
    with mpmath.workdps(60):
        powers = [mpmath.exp(mpmath.mpf(logit)) for logit in logits]
        p = powers[0]/sum(powers)
        want = -(1-p)*mpmath.log(p)
    assert abs(single(z, torch.tensor([0]), eps=0.).item()/want-1) < 1e-12

z, y = many()
x, t = one()
TYPE, VALUE = TypeError, ValueError
bad = [
    (multi, ([1.], y), {}, TYPE, 'input: got list'),
    (multi, (z, [1.]), {}, TYPE, 'target: got list'),
    (multi, (z.long(), y), {}, TYPE, 'input: got torch.int64'),
    (multi, (z, y+0j), {}, TYPE, 'target: got torch.complex'),
    (multi, (z[0, 0], y[0, 0]), {}, VALUE, 'input: got shape'),
    (multi, (z, y[:4]), {}, VALUE, r'target: got shape \(4, 7\), needs \(9, 7\)'),
    (multi, (z, y.to('meta')), {}, VALUE, 'target: got device meta'),
    (multi, (z, y+.5), {}, VALUE, 'target: got 1.5'),
    (multi, (z, -y), {}, VALUE, 'target: got -1.*ignore_index=-1'),
    (multi, (z, y*math.nan), {}, VALUE, 'target: got nan'),
    (multi, (z, y), dict(reduction='max'), VALUE, "reduction: got 'max'"),
    (multi, (z, y), dict(gamma_neg=-1.), VALUE, 'gamma_neg: got -1'),
    (multi, (z, y), dict(gamma_neg=math.nan), VALUE, 'gamma_neg: got nan'),
    (multi, (z, y), dict(gamma_neg=None), TYPE, 'gamma_neg: got NoneType'),
    (multi, (z, y), dict(gamma_pos=math.inf), VALUE, 'gamma_pos: got inf'),
    (multi, (z, y), dict(clip=1.), VALUE, 'clip: got 1'),
    (multi, (z, y), dict(clip=-.1), VALUE, 'clip: got -0.1'),
    (multi, (z, y), dict(eps=1.1), VALUE, 'eps: got 1.1'),
    (multi, (z, y), dict(smoothing=-.1), VALUE, 'smoothing: got -0.1'),
    (multi, (z, y), dict(smoothing=1.1), VALUE, 'smoothing: got 1.1'),
    (multi, (z, y), dict(smoothing=each), TYPE, 'smoothing: got Tensor'),
    (multi, (z, y), dict(weight='a'), TYPE, 'weight: got str'),
    (multi, (z, y), dict(weight=each.to('meta')), VALUE, 'weight: got device meta'),
    (multi, (z, y), dict(gamma_neg=each[:3]), VALUE, r'gamma_neg: got shape \(3,\)'),
    (multi, (z, y), dict(gamma_neg=-each), VALUE, 'gamma_neg: got -0.5'),
    (multi, (z, y), dict(pos_weight=each*math.nan), VALUE, 'pos_weight: got nan'),
    (single, (x[0], t), {}, VALUE, 'input: got shape'),
    (single, (x, t[:3]), {}, VALUE, 'target: got shape'),
    (single, (x, t.double()), {}, TYPE, 'target: got torch.float64'),
    (single, (x, t > 3), {}, TYPE, 'target: got torch.bool'),
    (single, (x, t*0+7), {}, VALUE, 'target: got 7'),
    (single, (x, t*0-1), {}, VALUE, 'target: got -1'),
    (single, (x, t), dict(reduction='batchmean'), VALUE, 'reduction'),
    (single, (x, t), dict(eps=1.5), VALUE, 'eps: got 1.5'),
    (single, (x, t), dict(gamma_pos=-1), VALUE, 'gamma_pos: got -1'),
    (single, (x, t), dict(weight=each[:2]), VALUE, 'weight: got shape'),
]

@pytest.mark.parametrize('loss, args, settings, kind, message', bad)
def test_what_cannot_be_meant_is_refused_by_name(loss, args, settings, kind, message):
    with pytest.raises(kind, match=message): loss(*args, **settings)

def test_what_is_at_the_edge_is_not_refused():
    for settings in dict(clip=None), dict(clip=0), dict(smoothing=1), dict(gamma_neg=0), dict(eps=1.), dict(weight=0.):
        assert multi(z, y, **settings).isfinite()
    for settings in dict(eps=0), dict(eps=1), dict(gamma_pos=0), dict(weight=None):
        assert single(x, t, **settings).isfinite()
    assert multi(z[:0], y[:0]) == 0
