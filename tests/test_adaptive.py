"The probability gap and its controller: it goes where it shall from both sides, stays in its bounds, and forgets a nan"
import math

import pytest, torch
from torch.testing import assert_close

from asl import AdaptiveGamma, AsymmetricLossMultiLabel, AsymmetricLossSingleLabel, probability_gap

y = torch.tensor([[1., 0., 0., 0.]]).repeat(50, 1)

def answer(gamma, slope=.05):
    "Logits of a model that answers to gamma_neg: its gap is .1 at 3, and rises by slope with each unit"
    p = .6 + slope*(float(gamma)-3)
    return torch.where(y > 0, math.log(p/(1-p)), 0.)

def steered(loss, slope=.05, steps=400, **settings):
    "The controller after it has steered a model"
    controller = AdaptiveGamma(loss, **settings)
    for _ in range(steps): controller.update(answer(loss.gamma_neg, slope), y)
    return controller

def gap_by_hand(z, y):
    p = z.double().sigmoid()
    return (p[y == 1].mean() - (1-p[y == 0]).mean()).item()

def test_the_gap_is_the_difference_of_two_means():
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert probability_gap(z, y).item() == pytest.approx(gap_by_hand(z, y), abs=1e-6)
    unknown = y.clone()
    unknown[:20, 1] = -100
    z[:20, 1] = math.nan
    known = unknown != -100
    assert probability_gap(z, unknown).item() == pytest.approx(gap_by_hand(z[known], unknown[known]), abs=1e-6)
    assert probability_gap(z.requires_grad_(), unknown).requires_grad is False

def test_soft_labels_count_to_both_means():
    z, soft = torch.tensor([[0., 2.]]), torch.tensor([[.25, 1.]])
    p = z.sigmoid()
    want = (.25*p[0, 0] + p[0, 1])/1.25 - (1-p[0, 0])
    assert_close(probability_gap(z, soft), want)

def test_without_positives_or_negatives_there_is_no_gap():
    z = torch.zeros(2, 3)
    assert probability_gap(z, torch.zeros(2, 3)).isnan() and probability_gap(z, torch.ones(2, 3)).isnan()

@pytest.mark.parametrize('start', [1., 8.])
def test_it_converges_from_both_sides(start):
    loss = AsymmetricLossMultiLabel(gamma_neg=start)
    controller = steered(loss, rate=.5)
    assert loss.gamma_neg.item() == pytest.approx(3, abs=.02)
    assert controller.gap.item() == pytest.approx(.1, abs=.001)
    assert steered(loss, rate=.5, target_gap=.2).gap.item() == pytest.approx(.2, abs=.001)
    assert loss.gamma_neg.item() == pytest.approx(5, abs=.02)

def test_it_stays_in_its_bounds():
    for target_gap, bound in (.9, 6.), (-.9, 2.):
        loss = AsymmetricLossMultiLabel()
        steered(loss, rate=.5, target_gap=target_gap, bounds=(2., 6.))
        assert loss.gamma_neg == bound

def test_a_model_that_answers_the_other_way_ends_at_a_bound():
    loss = AsymmetricLossMultiLabel(gamma_neg=4.)
    steered(loss, slope=-.05, rate=.5)
    assert loss.gamma_neg == 10.

def test_a_step_is_the_rate_times_what_is_missing():
    loss = AsymmetricLossMultiLabel(gamma_neg=5.)
    steered(loss, steps=1, rate=2., target_gap=.3)
    assert loss.gamma_neg.item() == pytest.approx(5 + 2*(.3-.2), abs=1e-6)
    steered(loss, steps=1, rate=0.)
    assert loss.gamma_neg.item() == pytest.approx(5.2, abs=1e-6)

def test_the_gap_is_that_of_averaged_sums():
    loss = AsymmetricLossMultiLabel(gamma_neg=3.)
    controller = AdaptiveGamma(loss, rate=0., momentum=.5)
    assert controller.gap.isnan()
    for gamma in (3., 5.): controller.update(answer(gamma), y)
    assert controller.gap.item() == pytest.approx((.5*.1 + .2)/1.5, abs=1e-6)
    controller.update(answer(3.)[:10], y[:10])                 # a small batch counts less
    assert controller.gap.item() == pytest.approx((.5*(.5*.1 + .2)*50 + .1*10)/(.75*50 + 10), abs=1e-6)

def test_nan_does_not_stay():
    for wrong in math.nan, math.inf:
        loss = AsymmetricLossMultiLabel(gamma_neg=5.)
        controller = steered(loss, steps=3, rate=.5)
        before = loss.gamma_neg.clone()
        broken = answer(5.)
        broken[0, 0] = wrong
        if wrong == math.inf: broken[0, 1] = math.nan
        controller.update(broken, y)
        assert loss.gamma_neg.isfinite() and controller.sums.isfinite().all() and (loss.gamma_neg-before).abs() < .1
    assert steered(loss, rate=.5).gap.item() == pytest.approx(.1, abs=.001)

def test_batches_without_positives_move_nothing_before_there_is_a_gap():
    loss = AsymmetricLossMultiLabel(gamma_neg=5.)
    controller = AdaptiveGamma(loss, rate=.5)
    controller.update(answer(5.), 0*y)
    assert controller.gap.isnan() and loss.gamma_neg == 5.
    controller.update(answer(5.), y)
    assert controller.gap.isfinite() and loss.gamma_neg < 5.

def test_the_loss_keeps_its_gamma_as_a_tensor_of_its_own():
    gamma = torch.tensor(4.)
    loss = AsymmetricLossMultiLabel(gamma_neg=gamma)
    controller = steered(loss, steps=5, rate=.5)
    assert gamma == 4. and loss.gamma_neg != 4. and loss.state_dict()['gamma_neg'] == loss.gamma_neg
    assert set(controller.state_dict()) == {'sums', 'loss.gamma_neg'}
    assert 'target_gap=0.1, rate=0.5, bounds=(0.0, 10.0)' in repr(controller)

@pytest.mark.parametrize('settings, kind, message', [
    (dict(target_gap=1.), ValueError, 'target_gap: got 1'), (dict(target_gap='a'), TypeError, 'target_gap: got str'),
    (dict(rate=-.1), ValueError, 'rate: got -0.1'), (dict(rate=math.inf), ValueError, 'rate: got inf'),
    (dict(momentum=1.), ValueError, 'momentum: got 1'), (dict(bounds=3.), ValueError, 'bounds: got 3'),
    (dict(bounds=(0., 1., 2.)), ValueError, 'bounds: got'), (dict(bounds=(5., 10.)), ValueError, 'bounds: got 5'),
    (dict(bounds=(0., 3.)), ValueError, 'bounds: got 3'), (dict(bounds=(-1., 10.)), ValueError, 'bounds: got -1'),
])
def test_what_cannot_be_meant_is_refused_by_name(settings, kind, message):
    with pytest.raises(kind, match=message): AdaptiveGamma(AsymmetricLossMultiLabel(), **settings)

def test_another_loss_is_refused():
    with pytest.raises(TypeError, match='loss: got AsymmetricLossSingleLabel'):
        AdaptiveGamma(AsymmetricLossSingleLabel())
    with pytest.raises(ValueError, match=r'gamma_neg of shape \(4,\)'):
        AdaptiveGamma(AsymmetricLossMultiLabel(gamma_neg=torch.ones(4)))
    with pytest.raises(ValueError, match='target: got shape'): probability_gap(torch.zeros(2, 3), torch.zeros(2))
