"What scores mean: the probability at which the expected loss is smallest, asked of autograd, and what follows from it"
import math

import pytest, torch
from torch.testing import assert_close

from asl import asymmetric_loss_multi_label as multi, asymmetric_loss_single_label as single
from asl import class_prior, gamma_for_prior, posterior, prior_logit, threshold
from asl.posterior import posterior_single_label

each = torch.linspace(.5, 1.5, 5, dtype=torch.float64)
settings_multi = [{}, dict(gamma_neg=0., gamma_pos=0., clip=0.), dict(gamma_neg=2.5, gamma_pos=.5, clip=.2),
    dict(pos_weight=3.), dict(smoothing=.2), dict(eps=.01, clip=.05),
    dict(gamma_neg=4*each, gamma_pos=each, clip=each/10, pos_weight=each)]
shares = [.4, torch.tensor(.4), each/2]
settings_single = [{}, dict(eps=0.), dict(gamma_pos=0., gamma_neg=0.),
    dict(gamma_pos=.5, gamma_neg=2.5, eps=.3), dict(weight=each), dict(gamma_pos=each, gamma_neg=3*each, weight=each)]

def logits(scale=1.):
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)*scale

def slope(loss, z, target, **settings):
    "The derivative of the loss by each logit"
    z = z.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(z, target, **settings, reduction='sum'), z)[0]

def expected_slope(z, eta, **settings):
    "The derivative of the expected loss where labels are there with probability eta"
    ones = torch.ones_like(z)
    return eta*slope(multi, z, ones, **settings) + (1-eta)*slope(multi, z, 0*ones, **settings)

@pytest.mark.parametrize('settings', settings_multi)
@pytest.mark.parametrize('detach', [False, True])
def test_where_the_expected_loss_does_not_change(settings, detach):
    z = logits(2)
    settings = settings | dict(disable_torch_grad_focal_loss=detach)
    eta = posterior(z, **settings)
    assert eta.shape == z.shape and ((eta >= 0) & (eta <= 1)).all()
    inside = (eta > 0) & (eta < 1)                             # not below the margin, nor surer than smoothing allows
    assert inside.sum() > 10
    assert expected_slope(z, eta, **settings)[inside].abs().max() < 1e-12

def test_the_score_itself_is_not_such_a_probability():
    z = logits(2)
    assert expected_slope(z, z.sigmoid()).abs().max() > .1
    assert_close(posterior(z, gamma_neg=0., gamma_pos=0., clip=0.), z.sigmoid())    # of cross entropy it is

@pytest.mark.parametrize('settings', settings_multi)
def test_to_either_side_the_expected_loss_is_larger(settings):
    z = logits() + 1
    eta = posterior(z, **settings)
    def expected(z):
        there, absent = (multi(z, torch.full_like(z, y), **settings, reduction='none') for y in (1., 0.))
        return eta*there + (1-eta)*absent
    inside = (eta > 0) & (eta < 1)
    for step in (-.1, .1): assert (expected(z+step) > expected(z))[inside].all() and inside.sum() > 20

def test_it_rises_with_the_score_and_is_zero_below_the_margin():
    z = torch.linspace(-12, 12, 400, dtype=torch.float64)
    eta = posterior(z)
    assert (eta.diff() >= 0).all() and eta[-1] > .99
    below = z.sigmoid() <= .05
    assert not eta[below].any() and (eta[~below] > 0).all() and posterior(z, clip=None)[below].all()

@pytest.mark.parametrize('settings', settings_single)
def test_one_label_where_the_expected_loss_does_not_change(settings):
    z = logits(.3)
    eta = posterior_single_label(z, **settings)
    assert_close(eta.sum(1), torch.ones(8, dtype=torch.float64))
    assert (eta > 0).all()
    by_class = [slope(single, z, torch.full((8,), k), **settings) for k in range(5)]
    def expected_slope(p): return sum(p[:, k:k+1]*by_class[k] for k in range(5))
    assert expected_slope(eta).abs().max() < 1e-12 < .001 < expected_slope(z.softmax(1)).abs().max()

@pytest.mark.parametrize('scale', [0., 5., 100.])
def test_one_label_sums_to_one_however_far_the_logits(scale):
    for dtype in torch.float32, torch.float64, torch.bfloat16:
        eta = posterior_single_label(logits(scale).to(dtype))
        assert ((eta >= 0) & (eta <= 1)).all()
        assert_close(eta.sum(1), torch.ones(8, dtype=eta.dtype))

def test_one_label_without_focusing_and_smoothing_is_softmax():
    z = logits()
    assert_close(posterior_single_label(z, 0., 0., 0.), z.softmax(1))
    assert (posterior_single_label(z) - z.softmax(1)).abs().max() > .01
    pixels = z.view(2, 4, 5, 1).transpose(1, 2)                # (2, 5, 4, 1)
    assert_close(posterior_single_label(pixels).transpose(1, 2).reshape(8, 5), posterior_single_label(z))

@pytest.mark.parametrize('settings', settings_multi)
@pytest.mark.parametrize('probability', [.001, .3, .8])
def test_threshold_and_prior_logit_undo_the_posterior(settings, probability):
    z = prior_logit(probability, **settings)
    per_class = any(isinstance(value, torch.Tensor) for value in settings.values())
    assert isinstance(z, torch.Tensor if per_class else float)
    z = torch.as_tensor(z, dtype=torch.float64)
    score = torch.as_tensor(threshold(probability, **settings), dtype=torch.float64)
    tolerance = 1e-5 if per_class else 1e-9                    # a tensor is float32 for a number
    assert_close(z.sigmoid(), score, rtol=tolerance, atol=0)
    assert_close(posterior(z, **settings), torch.full_like(z, probability), rtol=20*tolerance, atol=0)

def test_probabilities_per_class():
    prior = torch.tensor([.01, .2, .7])
    z = prior_logit(prior)
    assert z.dtype == torch.float32 and z.shape == (3,)
    assert_close(posterior(z), prior, rtol=1e-4, atol=0)
    assert_close(threshold(prior), torch.tensor([threshold(p) for p in prior.tolist()]), rtol=1e-5, atol=0)

def test_a_score_has_a_ceiling_without_focusing_of_positives():
    ceiling = dict(gamma_pos=0., disable_torch_grad_focal_loss=True)
    most = posterior(torch.tensor([1e4], dtype=torch.float64), **ceiling).item()
    assert most == pytest.approx(.95**4/(.95**4+.05))
    assert prior_logit(most-1e-3, **ceiling) > 0
    with pytest.raises(ValueError, match=f'prior: got 0.99, needs less than {most:.6g}'): prior_logit(.99, **ceiling)
    with pytest.raises(ValueError, match='probability: got 0.99'): threshold(.99, **ceiling)

def test_class_prior_counts_what_is_known():
    y = torch.tensor([[1., 0, 1], [1, 0, -100], [0, 0, -100], [.5, 1, -100]])
    assert_close(class_prior(y), torch.tensor([3/5, 1.5/5, 1.5/2]))
    assert_close(class_prior(y, add=0), torch.tensor([2.5/4, 1/4, 1.]))
    assert_close(class_prior(y[:, :2].view(2, 2, 2)), class_prior(y[:, :2]))
    assert_close(class_prior(y[:2, :2].bool()), class_prior(y[:2, :2].long()))
    with pytest.raises(ValueError, match='no known entry in class 2'): class_prior(y[1:])
    with pytest.raises(ValueError, match='target: got -100'): class_prior(y, ignore_index=-1)

@pytest.mark.parametrize('settings', [{}, dict(clip=0.), dict(gamma_pos=.3), dict(pos_weight=2.), dict(smoothing=.01),
    dict(disable_torch_grad_focal_loss=True)])
def test_with_gamma_for_prior_the_undecided_score_means_the_prior(settings):
    gamma = gamma_for_prior(.03, **settings)
    assert isinstance(gamma, float) and gamma > 0
    undecided = torch.zeros(1, dtype=torch.float64)
    assert posterior(undecided, gamma_neg=gamma, **settings).item() == pytest.approx(.03, rel=1e-9)
    of_classes = gamma_for_prior(torch.tensor([.01, .03]), **settings)
    assert of_classes[1].item() == pytest.approx(gamma, rel=1e-5) and of_classes[0] > of_classes[1]

@pytest.mark.parametrize('settings', settings_multi)
def test_labels_that_were_all_written_down_change_no_bit(settings):
    for z in (logits(2), logits(2).float(), logits(2).half()):
        assert torch.equal(posterior(z, **settings, kept=1.), posterior(z, **settings))
        assert torch.equal(posterior(z, **settings, kept=1), posterior(z, **settings))
        assert torch.equal(posterior(z, **settings, kept=torch.ones(5)), posterior(z, **settings))
    for ask in (threshold, prior_logit):
        found, want = (torch.as_tensor(ask(.3, **settings, **kept)) for kept in (dict(kept=1.), {}))
        assert torch.equal(found, want)

@pytest.mark.parametrize('kept', shares, ids=['number', 'scalar', 'per class'])
@pytest.mark.parametrize('settings', settings_multi)
def test_what_was_written_is_divided_by_the_share_that_was_and_is_at_most_1(settings, kept):
    for z in (logits(2), logits(2).float(), logits(2).bfloat16(), logits()[:0]):
        written, there = posterior(z, **settings), posterior(z, **settings, kept=kept)
        assert there.dtype == written.dtype and there.shape == written.shape
        assert_close(there, (written/kept).clamp(max=1).to(written.dtype), rtol=1e-6, atol=0)
    assert (posterior(logits(2), **settings, kept=kept) == 1).any()

@pytest.mark.parametrize('kept', shares, ids=['number', 'scalar', 'per class'])
@pytest.mark.parametrize('settings', settings_multi)
def test_threshold_and_prior_logit_undo_the_division(settings, kept):
    for p in (.01, .3, .9):
        z = torch.as_tensor(prior_logit(p, **settings, kept=kept), dtype=torch.float64)
        assert_close(posterior(z, **settings, kept=kept), torch.full_like(z, p), rtol=2e-4, atol=0)
        want = torch.as_tensor(kept, dtype=torch.float64)*p
        assert_close(z.float(), prior_logit(want, **settings).float(), rtol=1e-5, atol=1e-6)
        score = torch.as_tensor(threshold(p, **settings, kept=kept), dtype=torch.float64)
        assert_close(score, z.sigmoid(), rtol=1e-5, atol=0)
    assert isinstance(threshold(.5, kept=.4), float) and threshold(.5, kept=.4) == threshold(.2) < threshold(.5)
    assert threshold(torch.tensor([.5, .1]), kept=torch.tensor([.4, 1.])).shape == (2,)

def test_the_share_makes_up_for_labels_left_out():
    "Where the expected loss of incomplete labels rests, the posterior with kept is the probability of all"
    z = logits(2)
    there = posterior(z, kept=each/2)
    inside = (there > 0) & (there < 1)
    assert expected_slope(z, there*each/2)[inside].abs().max() < 1e-12 < expected_slope(z, there)[inside].abs().max()

def test_ceilings_and_floors_are_those_of_all_labels():
    settings = dict(gamma_pos=0., disable_torch_grad_focal_loss=True)
    most = posterior(torch.tensor([1e4], dtype=torch.float64), **settings).item()
    assert most < .99 and isinstance(prior_logit(.99, **settings, kept=.9), float)
    with pytest.raises(ValueError, match='prior: got 0.999, needs less than 0.99'):
        prior_logit(.999, **settings, kept=most/.99)
    least = prior_logit(.1, gamma_neg=0.)
    assert prior_logit(.2, gamma_neg=0., kept=.5) == pytest.approx(least)
    with pytest.raises(ValueError, match='prior: got 0.05, needs at least 0.08'):
        prior_logit(.05, gamma_neg=0., kept=.5)
    gamma = gamma_for_prior(.05, kept=.4)
    assert gamma == gamma_for_prior(.05*.4) and posterior(torch.zeros(1), gamma, kept=.4).item() == pytest.approx(.05)

def test_a_derivative_with_a_share():
    z = torch.tensor([-2., .3, 5.], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: posterior(z, kept=.4), z)
    assert torch.autograd.grad(posterior(z, kept=.4)[2], z)[0].eq(0).all()
    assert posterior(torch.tensor([math.nan]), kept=.4).isnan().all()
    infinite = torch.tensor([-math.inf, math.inf])
    assert posterior(infinite, kept=.4).tolist() == [0., 1.] == posterior(infinite, kept=2.**-126).tolist()

def test_dtypes():
    z = logits()
    for dtype in torch.bfloat16, torch.float16, torch.float32, torch.float64:
        eta = posterior(z.to(dtype))
        assert eta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(eta.double(), posterior(z.to(dtype).double()), rtol=1e-5, atol=1e-7)

@pytest.mark.parametrize('ask, kind, message', [
    (lambda: posterior([1.]), TypeError, 'input: got list'),
    (lambda: posterior(torch.ones(2).long()), TypeError, 'input: got torch.int64'),
    (lambda: posterior(torch.ones(2), smoothing=1.), ValueError, 'smoothing: got 1'),
    (lambda: posterior(torch.ones(2), pos_weight=0.), ValueError, 'pos_weight: got 0'),
    (lambda: posterior(torch.ones(2), kept=0.), ValueError, r'kept: got 0.0, needs a number in \(0, 1\]'),
    (lambda: posterior(torch.ones(2), kept=-.1), ValueError, 'kept: got -0.1'),
    (lambda: posterior(torch.ones(2), kept=1.1), ValueError, 'kept: got 1.1'),
    (lambda: posterior(torch.ones(2), kept=math.nan), ValueError, 'kept: got nan'),
    (lambda: posterior(torch.ones(2), kept=1e-40), ValueError, 'kept: got 1e-40'),
    (lambda: posterior(torch.ones(2), kept=True), TypeError, 'kept: got bool'),
    (lambda: posterior(torch.ones(2), kept=None), TypeError, 'kept: got NoneType'),
    (lambda: posterior(torch.ones(2), kept=torch.tensor([.5, 0.])), ValueError, 'kept: got 0, needs'),
    (lambda: posterior(torch.ones(2), kept=torch.zeros(2).half()), ValueError, 'kept: got 0, needs'),
    (lambda: posterior(torch.ones(2), kept=torch.ones(3)), ValueError, r'kept: got shape \(3,\)'),
    (lambda: threshold(.5, kept=0.), ValueError, 'kept: got 0'),
    (lambda: prior_logit(.5, kept=2), ValueError, 'kept: got 2'),
    (lambda: posterior(torch.ones(2), eps=.1), ValueError, 'clip: got 0.05, needs at least eps=0.1'),
    (lambda: posterior(torch.ones(2), gamma_neg=-1.), ValueError, 'gamma_neg: got -1'),
    (lambda: posterior(torch.ones(2), gamma_neg=torch.ones(3)), ValueError, r'gamma_neg: got shape \(3,\)'),
    (lambda: prior_logit(0.), ValueError, 'prior: got 0, needs a number above 0'),
    (lambda: prior_logit(torch.tensor([.1, 1.])), ValueError, 'prior: got 1, needs a number above 0 and below 1'),
    (lambda: threshold(math.nan), ValueError, 'probability: got nan'),
    (lambda: gamma_for_prior(.1, clip=.5), ValueError, 'clip: got 0.5'),
    (lambda: gamma_for_prior(.9), ValueError, 'prior: got 0.9, needs at most'),
    (lambda: posterior_single_label(torch.ones(2)), ValueError, 'input: got shape'),
    (lambda: posterior_single_label(torch.ones(2, 3), eps=1.), ValueError, 'eps: got 1'),
    (lambda: posterior_single_label(torch.ones(2, 3), weight=torch.tensor([1., 0., 1.])), ValueError, 'weight: got 0'),
])
def test_what_no_score_can_be_read_with_is_refused_by_name(ask, kind, message):
    with pytest.raises(kind, match=message): ask()
