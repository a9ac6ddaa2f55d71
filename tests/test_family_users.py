"What users get beside the losses of the family: weights from counts, corrected targets, frameworks' names, far scores."
import copy, math, pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from asl import ElementwiseLoss, Posterior, class_weights, corrected_targets, family, init_prior_
from asl.ops.elementwise import fractional_power

MEMBERS = [family.CrossEntropy(), family.FocalLoss(), family.PolyLoss(), family.GeneralizedCrossEntropy(),
    family.GeneralizedCrossEntropy(0., .7), family.HillLoss(), family.AsymmetricPolynomialLoss(),
    family.RobustAsymmetricLoss(), ElementwiseLoss(lambda z: F.softplus(-z), lambda z: F.softplus(z)**2)]
members = pytest.mark.parametrize('loss', MEMBERS, ids=lambda loss: type(loss).__name__)
counts = torch.randint(0, 900, (40,), generator=torch.Generator().manual_seed(0))

TIMM = dict(inverse='inv_freq', effective='effective_num', neg_pos='neg_pos')

@pytest.mark.parametrize('ours, theirs', TIMM.items())
@pytest.mark.parametrize('options', [{}, dict(power=.5), dict(cap=3.), dict(beta=.9), dict(power=2., cap=1.)])
def test_class_weights_are_those_of_timm(ours, theirs, options):
    timm = pytest.importorskip('timm.loss.class_weights')
    renamed = {dict(cap='max_weight').get(name, name): value for name, value in options.items()}
    _, expected = timm.compute_class_weights(counts, 900, theirs, **renamed)
    assert_close(class_weights(counts, ours, total=900, **options), expected)
    assert_close(class_weights(counts.tolist(), ours, total=900, **options), expected)

def test_a_class_without_negatives_keeps_a_weight_that_a_posterior_can_read():
    timm = pytest.importorskip('timm.loss.class_weights')
    _, theirs = timm.compute_class_weights([100, 10], 100, 'neg_pos')
    ours = class_weights([100, 10], 'neg_pos', total=100)
    assert theirs[0] == 0 and ours[0] > 0 and ours[1] == theirs[1]
    family.CrossEntropy(pos_weight=ours).posterior(torch.zeros(3, 2))

@pytest.mark.parametrize('arguments, said', [
    (dict(how='neg_pos'), 'total: got None'),
    (dict(how='balanced'), "how: got 'balanced', needs one of"),
    (dict(power=-1.), 'power: got -1.0, needs a finite number >= 0'),
    (dict(cap=0), 'cap: got 0, needs a number > 0, or None'),
    (dict(beta=1.), 'beta: got 1.0, needs a number above 0 and below 1'),
    (dict(total=10), 'counts: got'),
    (dict(counts=[]), 'counts: got shape (0,), needs (C,)'),
    (dict(counts=[[1, 2]]), 'counts: got shape (1, 2), needs (C,)'),
    (dict(counts=[1, math.nan]), 'counts: got nan, needs finite numbers >= 0'),
])
def test_class_weights_refuse_what_cannot_be_meant(arguments, said):
    with pytest.raises(ValueError) as error: class_weights(**dict(counts=[20, 30]) | arguments)
    assert said in str(error.value)

@members
def test_a_class_weight_leaves_the_meaning_and_pos_weight_is_undone(loss):
    z = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None].expand(-1, 2)
    plain = loss.posterior(z)
    weighted, positives = copy.deepcopy(loss), copy.deepcopy(loss)
    weighted.weight = torch.tensor([.1, 7.])
    positives.pos_weight = torch.tensor([10., 10.])
    assert_close(weighted.posterior(z), plain)
    assert_close(positives.posterior(z), plain/(plain + 10*(1-plain)))      # odds divided by 10

def splc(z, y, tau):
    "The rule of the paper, entry by entry"
    return torch.tensor([[1. if t == 1 or 1/(1+math.exp(-s)) > tau else 0. for s, t in zip(*row)]
        for row in zip(z.tolist(), y.tolist())])

def test_corrected_targets_are_those_of_the_papers_rule():
    g = torch.Generator().manual_seed(1)
    z = torch.randn(20, 9, generator=g)*3
    y = (torch.rand(20, 9, generator=g) < .3).float()
    for tau in (0., .3, .6, 1.): assert_close(corrected_targets(z, y, tau), splc(z, y, tau))
    assert (corrected_targets(z, y) != y).any()
    assert torch.equal(corrected_targets(z.half(), y), corrected_targets(z.half().float(), y))

@members
def test_targets_can_be_corrected_by_what_a_loss_means(loss):
    z = torch.linspace(-9, 9, 40)[:, None]
    unknown = corrected_targets(z, torch.zeros_like(z), .6, 'unknown', loss)
    assert torch.equal(unknown == -100, loss.posterior(z) > .6)
    assert loss(z, unknown).isfinite()

def test_soft_and_unknown_targets_stay_and_maps_have_their_classes_where_the_loss_has():
    z = torch.full((2, 3, 4, 4), 5.)
    y = torch.zeros_like(z)
    y[0, 0] = .2
    y[0, 1] = -100
    loss = family.HillLoss(class_dim=1, pos_weight=torch.tensor([1., 1., 1e4]))
    found = corrected_targets(z, y, .5, loss=loss)
    assert (found[0, 0] == .2).all() and (found[0, 1] == -100).all()
    assert (found[1, :2] == 1).all() and (found[:, 2] == 0).all()

@members
def test_fastai_and_hugging_face_find_what_they_call(loss):
    head = nn.Linear(5, 3)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(2))
    init_prior_(head, .2, loss)
    assert_close(loss.posterior(head.bias), torch.full((3,), .2))
    z = head(x)
    assert_close(loss.activation(z), loss.posterior(z))
    assert torch.equal(loss.decodes(loss.activation(z)), loss.posterior(z) > .5)
    assert_close(Posterior(loss)(z), loss.posterior(z))

@pytest.mark.parametrize('loss', MEMBERS[:-1], ids=lambda loss: type(loss).__name__)
def test_members_print_their_parameters_and_can_be_copied_and_pickled(loss):
    again = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
    assert repr(again) == repr(loss) and all(f'{name}=' in repr(loss) for name in loss.own)
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again(z, (z > 0).float()), loss(z, (z > 0).float()))

@members
def test_what_a_score_means_does_not_fall_however_far_out(loss):
    z = torch.cat([-torch.logspace(6, 0, 400), torch.logspace(0, 6, 400)]).double()
    posterior = loss.posterior(z)
    assert (posterior.diff() >= -1e-9).all() and posterior[0] < 1e-6 and posterior[-1] > 1-1e-6
    for probability in (1e-9, .5, 1-1e-9):
        found = torch.tensor(loss.prior_logit(probability), dtype=torch.float64)
        assert_close(loss.posterior(found).item(), probability, rtol=1e-6, atol=1e-9)

@pytest.mark.parametrize('exponent', [.05, .3, .5, .7, .95, 1.5, 2.3, 4.])
def test_a_power_by_root_and_exponential_is_as_exact_as_a_power(exponent):
    z = torch.linspace(-80/max(exponent, 1), 20, 4001)
    exact = z.double().sigmoid()**exponent
    got = fractional_power(z.sigmoid(), F.softplus(-z), exponent)
    assert ((got-exact)/exact).abs().max() < 2e-6

def test_parameters_out_of_range_are_refused_by_name():
    for make in (lambda: family.FocalLoss(-1.), lambda: family.FocalLoss(alpha=1.), lambda: family.PolyLoss(-2.),
            lambda: family.GeneralizedCrossEntropy(k_neg=2.), lambda: family.HillLoss(lam=1.),
            lambda: family.HillLoss(margin=math.inf), lambda: family.AsymmetricPolynomialLoss(clip=1.),
            lambda: family.RobustAsymmetricLoss(epsilon_2=math.nan), lambda: family.RobustAsymmetricLoss(lam=0.)):
        with pytest.raises(ValueError, match='^[a-z_0-9]+: got .*, needs a'): make()
    with pytest.raises(TypeError, match='has no argument gama'): family.FocalLoss(gama=2.)
