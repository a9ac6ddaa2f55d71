"The losses as modules: the same as the functions, kept, copied, printed and moved like any module of PyTorch"
import copy, io, pickle

import pytest, torch
from torch import nn
from torch.testing import assert_close

from asl import (AsymmetricLossMultiLabel, AsymmetricLossSingleLabel, Posterior, asymmetric_loss_multi_label,
    asymmetric_loss_single_label, class_prior, init_prior_, posterior, prior_logit, threshold)
from asl.posterior import posterior_single_label

each = torch.linspace(.5, 1.5, 5)
multi_settings = dict(gamma_neg=3*each, gamma_pos=.5, clip=.1, disable_torch_grad_focal_loss=True, smoothing=.1,
    weight=each, pos_weight=2.)
single_settings = dict(gamma_pos=.5, gamma_neg=2*each, eps=.2, weight=each)

def data():
    "Logits, (6, 5), labels, (6, 5), and classes, (6,)"
    g = torch.Generator().manual_seed(0)
    z = torch.randn(6, 5, generator=g)
    return z, (torch.rand(6, 5, generator=g) < .4).float(), torch.randint(0, 5, (6,), generator=g)

@pytest.fixture(params=['multi', 'single'])
def loss(request):
    "A loss with settings of every kind, and its targets"
    if request.param == 'multi': return AsymmetricLossMultiLabel(**multi_settings)
    return AsymmetricLossSingleLabel(**single_settings)

def target(loss): return data()[1 if isinstance(loss, AsymmetricLossMultiLabel) else 2]

def test_many_labels_are_the_functions():
    z, y, _ = data()
    for settings in {}, multi_settings, dict(eps=.2, gamma_neg=1.), dict(ignore_index=1, reduction='mean'):
        loss = AsymmetricLossMultiLabel(**settings)
        weight = dict(pos_weight=torch.tensor(2.)) if 'pos_weight' in settings else {}
        assert torch.equal(loss(z, y), asymmetric_loss_multi_label(z, y, **settings | weight))
    link = {name: value for name, value in multi_settings.items() if name != 'weight'}
    loss = AsymmetricLossMultiLabel(**multi_settings)
    assert_close(loss.posterior(z), posterior(z, **link))
    assert_close(loss.activation(z), posterior(z, **link))
    assert_close(loss.threshold(.2), threshold(.2, **link))
    assert_close(loss.prior_logit(.2), prior_logit(.2, **link))
    assert (loss.posterior(z)-posterior(z)).abs().max() > .01

def test_a_share_that_was_written_down_is_no_part_of_the_loss_and_of_all_that_is_said_of_probabilities():
    z, y, _ = data()
    link = {name: value for name, value in multi_settings.items() if name != 'weight'}
    bare = AsymmetricLossMultiLabel(**multi_settings)
    for kept in (.4, each/2):
        loss = AsymmetricLossMultiLabel(**multi_settings, kept=kept, thresh=.5)
        assert torch.equal(loss(z, y), bare(z, y)) and 'kept' not in loss.settings()
        want = posterior(z, **link, kept=kept)
        for ask in (loss.posterior, loss.activation, Posterior(loss)): assert torch.equal(ask(z), want)
        assert torch.equal(loss.decodes(loss.activation(z)), want > .5)
        assert (loss.decodes(loss.activation(z)) != bare.decodes(bare.activation(z))).any()
        assert_close(loss.threshold(.2), threshold(.2, **link, kept=kept))
        assert_close(loss.prior_logit(.2), prior_logit(.2, **link, kept=kept))
        maps = AsymmetricLossMultiLabel(**multi_settings, kept=kept, class_dim=1)
        assert_close(maps.posterior(z.T[None]), want.T[None])
    assert 'kept' not in repr(bare) and 'kept=tensor(5,)' in repr(loss)
    assert 'kept=0.4' in repr(AsymmetricLossMultiLabel(kept=.4))

def test_a_share_per_class_is_a_buffer_that_moves_and_keeps_its_digits():
    loss = AsymmetricLossMultiLabel(kept=each/2)
    assert 'kept' in loss.state_dict() and 'kept' not in AsymmetricLossMultiLabel(kept=.4).state_dict()
    whole = nn.Sequential(nn.Linear(5, 5), Posterior(loss)).half()
    assert torch.equal(loss.kept, each/2)
    assert torch.equal(pickle.loads(pickle.dumps(whole))[1].loss.kept, each/2)
    other = AsymmetricLossMultiLabel(kept=torch.ones(5))
    other.load_state_dict(loss.state_dict())
    z, *_ = data()
    assert torch.equal(other.posterior(z), loss.posterior(z))

def test_a_bias_starts_at_the_labels_as_they_are_written():
    _, y, _ = data()
    knowing, bare = AsymmetricLossMultiLabel(kept=.8), AsymmetricLossMultiLabel()
    prior = class_prior(y)
    biases = [init_prior_(nn.Linear(3, 5), prior, loss).bias for loss in (knowing, bare)]
    assert torch.equal(*biases)
    assert_close(knowing.posterior(biases[0]), prior/.8, rtol=1e-4, atol=0)

def test_one_label_is_the_functions():
    z, _, t = data()
    for settings in {}, single_settings, dict(reduction='sum'), dict(ignore_index=1):
        assert torch.equal(AsymmetricLossSingleLabel(**settings)(z, t), asymmetric_loss_single_label(z, t, **settings))
    loss = AsymmetricLossSingleLabel(**single_settings)
    assert_close(loss.posterior(z), posterior_single_label(z, **single_settings))
    assert torch.equal(loss.activation(z), loss.posterior(z))

def test_the_order_of_timms_arguments():
    loss = AsymmetricLossMultiLabel(2, .5, .1, 1e-8, True)
    assert loss.settings() == AsymmetricLossMultiLabel(gamma_neg=2, gamma_pos=.5, clip=.1, eps=1e-8,
        disable_torch_grad_focal_loss=True).settings()
    assert AsymmetricLossSingleLabel(.5, 3, .2, 'sum').settings() == dict(gamma_pos=.5, gamma_neg=3, eps=.2,
        reduction='sum', weight=None, ignore_index=-100)

def test_tensors_are_buffers_and_numbers_are_attributes(loss):
    assert not list(loss.parameters())
    names = {'gamma_neg', 'weight'} | ({'pos_weight'} if 'pos_weight' in loss.settings() else set())
    assert dict(loss.named_buffers()).keys() == loss.state_dict().keys() == names
    assert loss.gamma_pos == .5
    assert loss.double().gamma_neg.dtype == torch.float64
    assert all(buffer.device.type == 'meta' for buffer in loss.to('meta').buffers())

def test_a_weight_of_a_number_is_a_buffer_too():
    loss = AsymmetricLossMultiLabel(weight=2.)
    assert isinstance(loss.weight, torch.Tensor) and loss.weight.ndim == 0 and list(loss.state_dict()) == ['weight']
    z, y, _ = data()
    assert_close(loss(z, y), 2*AsymmetricLossMultiLabel()(z, y))
    assert not AsymmetricLossMultiLabel().state_dict()

@pytest.mark.parametrize('copied', [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_is_its_own(loss, copied):
    other = copied(loss)
    z, y = data()[0], target(loss)
    assert repr(other) == repr(loss) and torch.equal(other(z, y), loss(z, y))
    other.weight.mul_(2)
    assert not torch.equal(other.weight, loss.weight)

def test_a_state_goes_through_a_file(loss):
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = type(loss)(**{name: torch.ones_like(buffer) for name, buffer in loss.named_buffers()})
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.gamma_neg, loss.gamma_neg) and torch.equal(other.weight, loss.weight)
    with pytest.raises(RuntimeError, match='gamma_neg'): type(loss)().load_state_dict(loss.state_dict())

def test_repr_names_what_was_set():
    assert repr(AsymmetricLossMultiLabel()) == ('AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05, '
        'disable_torch_grad_focal_loss=False, smoothing=0.0, reduction=sum, ignore_index=-100)')
    shown = repr(AsymmetricLossMultiLabel(gamma_neg=each, pos_weight=2.5, clip=None))
    assert 'gamma_neg=tensor(5,)' in shown and 'pos_weight=2.5' in shown and 'clip' not in shown
    assert repr(AsymmetricLossSingleLabel()) == ('AsymmetricLossSingleLabel(gamma_pos=1, gamma_neg=4, eps=0.1, '
        'reduction=mean, ignore_index=-100)')

@pytest.mark.parametrize('make, message', [
    (lambda: AsymmetricLossMultiLabel(gamma_neg=-1), 'gamma_neg: got -1'),
    (lambda: AsymmetricLossMultiLabel(clip=1.), 'clip: got 1'),
    (lambda: AsymmetricLossMultiLabel(reduction='all'), "reduction: got 'all'"),
    (lambda: AsymmetricLossMultiLabel(gamma_neg=each, weight=each[:3]), r'weight: got shape \(3,\)'),
    (lambda: AsymmetricLossMultiLabel(gamma_pos=each-1), 'gamma_pos: got -0.5'),
    (lambda: AsymmetricLossMultiLabel(thresh=1.1), 'thresh: got 1.1'),
    (lambda: AsymmetricLossMultiLabel(thresh=each), 'thresh: got 1.25'),
    (lambda: AsymmetricLossSingleLabel(eps=-.1), 'eps: got -0.1'),
    (lambda: AsymmetricLossSingleLabel(reduction='batchmean'), "reduction: got 'batchmean'"),
])
def test_a_setting_is_refused_when_it_is_given(make, message):
    with pytest.raises(ValueError, match=message): make()

def test_a_changed_setting_counts():
    z, y, _ = data()
    loss = AsymmetricLossMultiLabel()
    loss.gamma_neg = 1.
    assert torch.equal(loss(z, y), asymmetric_loss_multi_label(z, y, gamma_neg=1.))
    loss.gamma_neg = -1.
    with pytest.raises(ValueError, match='gamma_neg: got -1'): loss(z, y)

def test_decodes_labels_above_a_threshold_and_the_most_probable_class():
    p = torch.tensor([[.2, .5, .6], [.9, .05, .05]])
    assert AsymmetricLossMultiLabel().decodes(p).tolist() == [[False, False, True], [True, False, False]]
    assert AsymmetricLossMultiLabel(thresh=.1).decodes(p).tolist() == [[True]*3, [True, False, False]]
    of_class = AsymmetricLossMultiLabel(thresh=torch.tensor([.1, .5, .7]))
    assert of_class.decodes(p).tolist() == [[True, False, False], [True, False, False]]
    assert 'thresh' in dict(of_class.named_buffers()) and 'thresh' not in of_class.settings()
    assert AsymmetricLossSingleLabel().decodes(p).tolist() == [2, 0]
    assert AsymmetricLossSingleLabel.y_int and not hasattr(AsymmetricLossMultiLabel, 'y_int')

def test_posterior_as_a_layer(loss):
    z = data()[0]
    layer = Posterior(loss)
    assert torch.equal(nn.Sequential(nn.Identity(), layer)(z), loss.posterior(z))
    assert set(layer.state_dict()) == {f'loss.{name}' for name in loss.state_dict()}

def test_a_head_starts_where_its_scores_mean_the_prior():
    loss, y = AsymmetricLossMultiLabel(), data()[1]
    head, prior = nn.Linear(3, 5), class_prior(y)
    weight = head.weight.clone()
    assert init_prior_(head, prior, loss) is head
    assert_close(loss.posterior(head(torch.zeros(1, 3))), prior[None], rtol=1e-4, atol=0)
    assert torch.equal(head.weight, weight) and head.bias.requires_grad
    assert_close(init_prior_(nn.Conv2d(3, 5, 1), .1, loss).bias, torch.full((5,), loss.prior_logit(.1)))

@pytest.mark.parametrize('head, prior, loss, kind, message', [
    (nn.Linear(3, 5, bias=False), .1, AsymmetricLossMultiLabel(), ValueError, 'head: got Linear'),
    (nn.ReLU(), .1, AsymmetricLossMultiLabel(), ValueError, 'head: got ReLU'),
    (nn.Linear(3, 5), torch.full((4,), .1), AsymmetricLossMultiLabel(), ValueError, r'prior: got shape \(4,\)'),
    (nn.Linear(3, 5), .1, AsymmetricLossSingleLabel(), TypeError, 'loss: got AsymmetricLossSingleLabel'),
    (nn.Linear(3, 5), 1., AsymmetricLossMultiLabel(), ValueError, 'prior: got 1'),
])
def test_a_start_that_cannot_be_meant_is_refused_by_name(head, prior, loss, kind, message):
    with pytest.raises(kind, match=message): init_prior_(head, prior, loss)
