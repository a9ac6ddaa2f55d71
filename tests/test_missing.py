"The share of labels that was written down: estimates against what was simulated, and their errors against repetition"
import math

import pytest, torch
from torch.testing import assert_close

from asl import elkan_noto, label_frequency
from asl.missing import LabelFrequency

def simulated(images, classes=5, share=.4, chance=.3, seed=0):
    "Labels written down and there, (images, classes)"
    g = torch.Generator().manual_seed(seed)
    there = (torch.rand(images, classes, generator=g) < chance).float()
    return there*(torch.rand(images, classes, generator=g) < torch.as_tensor(share)), there

def test_the_share_of_what_is_there_by_hand():
    written, there = torch.tensor([[1, 0], [0, 0], [1, 0]]), torch.tensor([[1, 1], [1, 0], [1, 1]])
    assert label_frequency(written, there).kept == pytest.approx(2/5)
    of_class = label_frequency(written, there, per_class=True)
    assert_close(of_class.kept, torch.tensor([2/3, 0.]))
    assert isinstance(of_class, LabelFrequency) and of_class.standard_error.dtype == torch.float32
    rest = torch.tensor([1-.8, -.4, 1-.8])                     # of images, Eq. (2)
    clustered = math.sqrt(3/2*rest.square().sum())/5
    jeffreys = math.sqrt(2.5/6*3.5/6/7)
    assert label_frequency(written, there).standard_error == pytest.approx(max(clustered, jeffreys))

def test_unknown_entries_of_either_do_not_count():
    written, there = simulated(50)
    want = label_frequency(written[:40], there[:40])
    for unknown in (0, 1):
        lists = [written.clone(), there.clone()]
        lists[unknown][40:] = -100
        assert label_frequency(*lists) == want
        lists[unknown][40:] = -1
        assert label_frequency(*lists, ignore_index=-1) == want
    y = written.clone()
    y[40:] = -100
    assert elkan_noto(torch.full_like(y, .25), y).kept == pytest.approx(.25)
    p = torch.full_like(y, .25)
    p[40:] = math.nan                                          # of what is not known nothing is asked
    assert elkan_noto(p, y).kept == pytest.approx(.25)

@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_types_of_labels_make_no_difference(dtype):
    written, there = simulated(50)
    assert label_frequency(written.to(dtype), there) == label_frequency(written, there.to(dtype)) \
        == label_frequency(written, there)

def test_images_are_the_first_dimension_and_classes_the_last():
    written, there = simulated(60)
    flat, maps = (label_frequency(written.view(*shape, 5), there.view(*shape, 5), per_class=True)
        for shape in ((60,), (10, 2, 3)))
    assert torch.equal(flat.kept, maps.kept) and not torch.equal(flat.standard_error, maps.standard_error)
    half = torch.full_like(written, .5)
    assert elkan_noto(half.view(10, 2, 3, 5), written.view(10, 2, 3, 5)).kept == pytest.approx(.5)

@pytest.mark.parametrize('per_class', [False, True])
@pytest.mark.parametrize('people', [[.4], [.1, .7]], ids=['all alike', 'two kinds of writers'])
def test_the_standard_error_is_the_spread_of_repeated_checks(people, per_class):
    estimates, errors = [], []
    for seed in range(400):
        who = torch.randint(0, len(people), (60, 1), generator=torch.Generator().manual_seed(1000+seed))
        share = torch.tensor(people)[who]
        found = label_frequency(*simulated(60, share=share, seed=seed), per_class=per_class)
        estimates.append(torch.as_tensor(found.kept).flatten()[0])
        errors.append(torch.as_tensor(found.standard_error).flatten()[0])
    estimates, errors = torch.stack(estimates).double(), torch.stack(errors).double()
    assert estimates.mean().item() == pytest.approx(.4, abs=.02)
    assert errors.mean().item() == pytest.approx(estimates.std().item(), rel=.15)
    assert ((estimates-.4).abs() < 2*errors).double().mean() > .92

def test_nothing_forgotten_in_a_small_check_is_no_certainty():
    ones = torch.ones(3, 1)
    assert label_frequency(ones, ones).kept == 1 and .1 < label_frequency(ones, ones).standard_error < .2
    assert label_frequency(ones[:1], ones[:1]).standard_error > .2
    assert 0 < label_frequency(0*ones, ones).standard_error < .2

def test_a_second_list_counts_the_first_one_as_marked_fish_are_counted():
    _, there = simulated(2000)
    g = torch.Generator().manual_seed(1)
    first, second = (there*(torch.rand(there.shape, generator=g) < share) for share in (.4, .7))
    of_first, of_second = label_frequency(first, second), label_frequency(second, first)
    both = (first*second).sum().item()
    assert of_first.kept == pytest.approx(both/second.sum().item())
    for found, share in ((of_first, .4), (of_second, .7)): assert abs(found.kept-share) < 3*found.standard_error
    petersen = first.sum().item()*second.sum().item()/both     # how many labels there are
    assert petersen == pytest.approx(there.sum().item(), rel=.03)

@pytest.mark.parametrize('doubt', [0., .3])
def test_scores_alone_tell_the_share_where_labels_are_clear_and_too_little_elsewhere(doubt):
    g = torch.Generator().manual_seed(2)
    eta = (torch.rand(20_000, 5, generator=g, dtype=torch.float64) < .3).double()
    eta = eta*(1-doubt) + doubt*torch.rand(eta.shape, generator=g, dtype=torch.float64)*eta
    there = (torch.rand(eta.shape, generator=g) < eta).double()
    written = there*(torch.rand(eta.shape, generator=g) < .4)
    found = elkan_noto(.4*eta, written)
    expected = .4*((eta**2).mean()/eta.mean()).item()          # Eq. (5)
    assert abs(found.kept-expected) < 4*found.standard_error + 1e-12
    assert (expected < .395) == bool(doubt) and 0 <= found.standard_error < .01
    by_class = elkan_noto(.4*eta, written, per_class=True)
    assert_close(by_class.kept, torch.full((5,), expected), rtol=.02, atol=0)
