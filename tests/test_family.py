"""What scores of the family's losses mean: posteriors beside a numerical minimiser, and what follows from them. Values
and gradients are in tests/conformance/test_members.py."""
import math, random

import pytest, torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from asl import AsymmetricLossMultiLabel, LinearAsymmetricLoss, Posterior, init_prior_
from asl.family import (AsymmetricPolynomialLoss, CrossEntropy, ElementwiseLoss, FocalLoss, GeneralizedCrossEntropy,
    HillLoss, PolyLoss, RobustAsymmetricLoss)

rng = random.Random(7)
C = 5
each = torch.linspace(.5, 1.5, C, dtype=torch.float64)

def between(low, high): return rng.uniform(low, high)

def asymmetric():
    return dict(gamma_neg=between(1, 6), gamma_pos=between(0, 2), clip=between(.001, .2), epsilon_1=between(-1, 1),
        epsilon_2=between(-3, 0))

def own(**common): return ElementwiseLoss(lambda z: F.softplus(-z), lambda z: z.sigmoid()*F.softplus(z), **common)

DRAWN = [
    (CrossEntropy, {}),
    *[(FocalLoss, dict(gamma=between(0, 5), alpha=between(.1, .9))) for _ in range(2)],
    *[(PolyLoss, dict(epsilon=between(-1, 5))) for _ in range(2)],
    *[(GeneralizedCrossEntropy, dict(k_pos=k, k_neg=k)) for k in (between(.05, .4), between(.4, .7))],
    *[(HillLoss, dict(lam=between(1.5, 3), margin=between(0, 2), gamma=between(1.5, 3))) for _ in range(2)],
    *[(AsymmetricPolynomialLoss, asymmetric() | dict(disable_torch_grad_focal_loss=False)) for _ in range(2)],
    *[(RobustAsymmetricLoss, asymmetric() | dict(lam=between(1.5, 3))) for _ in range(2)],
    (own, {}),
]
names = [f'{i}-{make.__name__}' for i, (make, _) in enumerate(DRAWN)]
drawn = pytest.mark.parametrize('make, parameters', DRAWN, ids=names)
COMMON = dict(shift=each-1, neg_scale=.9+each/5, pos_weight=2*each, smoothing=.04, kept=each/2)

def by_minimising(loss, target):
    "Where the loss of labels whose mean is target, (C,), is smallest: the best of a grid, then golden sections"
    def expected(z): return loss(z, target.expand_as(z))
    grid = torch.linspace(-30, 30, 601, dtype=torch.float64)
    best = grid[expected(grid[:, None].expand(-1, C)).argmin(0)]
    low, high = best-.1, best+.1
    ratio = (math.sqrt(5)-1)/2
    for _ in range(60):
        left, right = high-ratio*(high-low), low+ratio*(high-low)
        better = expected(left) < expected(right)
        high, low = torch.where(better, right, high), torch.where(better, low, left)
    return (low+high)/2

@pytest.mark.parametrize('common', [{}, COMMON], ids=['bare', 'moved'])
@drawn
def test_a_posterior_is_the_probability_whose_expected_loss_is_smallest_there(make, parameters, common):
    """The minimiser is found of values alone, which near a minimum know it to half their digits: so expected losses are
    compared, in float64, and posteriors to 1e-6"""
    plain = make(**parameters, **{name: value for name, value in common.items() if name not in ('kept', 'smoothing')},
        reduction='none')
    loss = make(**parameters, **common)
    probability = torch.linspace(.12, .6, C, dtype=torch.float64)
    mean = probability
    if common: mean = probability*common['kept']*(1-common['smoothing'])+common['smoothing']/2
    z = by_minimising(plain, mean)
    assert (z.abs() < 25).all()
    assert_close(loss.posterior(z[None])[0], probability, rtol=0, atol=1e-6)

@drawn
def test_threshold_and_prior_logit_undo_the_posterior(make, parameters):
    for common in ({}, COMMON):
        loss = make(**parameters, **common)
        for p in (.03, .3, .45):
            logit = torch.as_tensor(loss.prior_logit(p), dtype=torch.float64)
            score = torch.as_tensor(loss.threshold(p), dtype=torch.float64)
            assert_close(loss.posterior(logit.expand(1, C)), torch.full((1, C), p).double(), rtol=2e-5, atol=1e-7)
            assert_close(logit.sigmoid(), score, rtol=1e-5, atol=0)
            number = not common
            assert isinstance(loss.prior_logit(p), float) is isinstance(loss.threshold(p), float) is number

@pytest.mark.parametrize('loss, score', [
    (CrossEntropy(), .5), (FocalLoss(), .5), (PolyLoss(), .5), (GeneralizedCrossEntropy(), .5),
    (AsymmetricPolynomialLoss(disable_torch_grad_focal_loss=False), .6704), (AsymmetricPolynomialLoss(), .7632),
    (RobustAsymmetricLoss(), .7149), (HillLoss(), .9371)], ids=lambda x: type(x).__name__)
def test_even_odds(loss, score): assert loss.threshold() == pytest.approx(score, abs=6e-5)

def test_where_a_link_falls_there_is_no_posterior():
    bump = ElementwiseLoss(lambda z: F.softplus(-z), lambda z: F.softplus(z) + 3*torch.exp(-(z-2)**2))
    for ask in (lambda: bump.posterior(torch.zeros(3)), lambda: bump.threshold(), lambda: bump.prior_logit(.1)):
        with pytest.raises(ValueError, match=r'the probability falls, or is none, at a logit: got \S+, needs'): ask()
    assert bump(torch.zeros(1, 3), torch.ones(1, 3)).isfinite()            # a loss it is
    try: bump.posterior(torch.zeros(3))
    except ValueError as error: where = float(str(error).split('got ')[1].split(',')[0])
    assert 1 < where < 4

@drawn
def test_a_model_starts_where_scores_mean_priors(make, parameters):
    prior = torch.tensor([.02, .1, .2, .3, .4])
    loss = make(**parameters, kept=.8)
    head = init_prior_(nn.Linear(4, C), prior, loss)
    assert_close(loss.posterior(head.bias.detach()), prior/.8, rtol=1e-4, atol=1e-6)

@drawn
def test_posteriors_as_a_layer_and_what_fastai_asks(make, parameters):
    loss = make(**parameters, thresh=.3, kept=each.float()/2)
    z = torch.randn(6, C, generator=torch.Generator().manual_seed(0))*3
    eta = loss.posterior(z)
    assert ((eta >= 0) & (eta <= 1)).all()
    assert torch.equal(Posterior(loss)(z), eta) and torch.equal(loss.activation(z), eta)
    assert torch.equal(loss.decodes(eta), eta > .3)
    infinite = torch.tensor([[-math.inf]*C, [math.inf]*C, [-1e4]*C, [1e4]*C])
    ends = loss.posterior(infinite)
    assert ends.isfinite().all()
    assert_close(ends[:2], ends[2:])
    assert loss.posterior(torch.full((1, C), math.nan)).isnan().all()

@pytest.mark.parametrize('common', [{}, dict(kept=each/2), dict(shift=each, neg_scale=.9+each/5, pos_weight=each)],
    ids=['bare', 'kept', 'moved'])
@drawn
def test_the_most_probable_classes_of_a_head(make, parameters, common):
    common = {name: value.float().repeat(40) for name, value in common.items()}
    loss = make(**parameters, **common)
    torch.manual_seed(0)
    head = LinearAsymmetricLoss(8, 40*C, loss=loss, budget=2**14)
    hidden = torch.randn(7, 8)
    eta = loss.posterior(F.linear(hidden, head.weight, head.bias))
    values, classes = head.predict_topk(hidden, 9)
    best = eta.topk(9).values
    assert_close(values, best.detach(), rtol=1e-5, atol=1e-6)
    assert_close(eta.gather(1, classes), best, rtol=1e-5, atol=1e-6)

def test_the_asymmetric_loss_as_two_functions_is_the_asymmetric_loss():
    "With the numbers that the family's own machinery makes of it"
    from asl.ops.reference import _terms
    def side(i): return lambda z: _terms(z, 4., 1., .05)[i]
    family, asl = ElementwiseLoss(side(0), side(1)), AsymmetricLossMultiLabel()
    z = torch.linspace(-9, 9, 60, dtype=torch.float64).view(12, 5)
    y = (torch.arange(60).view(12, 5) % 3 == 0).double()
    assert_close(family(z, y), asl(z, y), rtol=1e-12, atol=0)
    above = z.sigmoid() > .06
    assert_close(family.posterior(z)[above], asl.posterior(z)[above], rtol=1e-9, atol=1e-12)

def test_a_loss_of_ones_own_works_where_saved_tensors_are_packed_and_in_inference_mode():
    "As activation offloading and checkpoints do it; what they pack is what is kept, not what the derivative needs"
    loss = own()
    z = torch.randn(4, C, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.ones(4, C)
    expected, = torch.autograd.grad(loss(z, y), z)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x): value = loss(z, y)
    found, = torch.autograd.grad(value, z)
    assert torch.equal(found, expected) and len(packed) == 1
    with torch.inference_mode():
        assert_close(loss(z, y), value.detach(), rtol=0, atol=0)
        assert loss.posterior(z*1).isfinite().all()

def test_a_constant_function_pulls_nowhere():
    loss = ElementwiseLoss(lambda z: F.softplus(-z), lambda z: torch.ones_like(z))
    z = torch.zeros(1, C, requires_grad=True)
    loss(z, torch.zeros(1, C)).backward()
    assert not z.grad.any()
