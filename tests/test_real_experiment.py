"The experiment on real data: its losses mean what they say, its parts share no group, what is recorded can be told"
import json, math, sys
from pathlib import Path

import pytest, torch
from sklearn.metrics import average_precision_score
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).parents[1]/'tools'/'real'))
import experiment
from experiment import Cell, beyond
from losses import LOSSES, loss_of
from measures import average_precision, descending
from parts import corrupted, divided, part_of, written_share
from train import trained

C = 4

class Data:
    def __init__(self, n=300):
        g = torch.Generator().manual_seed(0)
        self.features = torch.randn(n, 6, generator=g)
        self.labels = torch.rand(n, C, generator=g) < torch.tensor([.5, .3, .1, .05])
        self.groups = torch.arange(n)//3

@pytest.mark.parametrize('name', [name for name in LOSSES if name not in ('two-way', 'ZLPR', 'DB')])
def test_a_posterior_is_where_both_sides_pull_alike_and_a_start_is_its_prior(name):
    prior = torch.tensor([.5, .3, .1, .05]).view(1, 1, C)
    row = loss_of(name, prior)
    z = torch.linspace(-6, 6, C).view(1, 1, C).requires_grad_()
    up, down = (torch.autograd.grad(row.loss(z, torch.full_like(z, label)), z)[0] for label in (1., 0.))
    assert_close(row.posterior(z).detach(), down/(down-up), rtol=1e-4, atol=1e-6)
    if row.starts_at: assert_close(row.posterior(row.starts_at(prior)), prior, rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize('name', LOSSES)
def test_models_that_are_trained_together_are_trained_as_alone(name):
    parts = [part_of(Data(), 'all', seed) for seed in range(2)]
    together, _, _ = trained(name, 'linear', 1, parts, [.01, .1])
    alone, _, _ = trained(name, 'linear', 1, parts[:1], [.1])
    assert_close(together[0][2:3], alone[0], rtol=1e-4, atol=1e-5)         # models: rate by rate, seed by seed

def test_parts_share_no_group_and_have_their_share():
    groups = Data().groups
    parts = divided(groups, 3)
    assert sorted(torch.cat(parts).tolist()) == list(range(300))
    names = [set(groups[part].tolist()) for part in parts]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert [len(each) for each in names] == [60, 15, 25]
    assert not torch.equal(parts[0], divided(groups, 4)[0])

@pytest.mark.parametrize('kind, share', [('all', 1.), ('kept 25', .25), ('generic forgotten', .5)])
def test_so_many_labels_are_written(kind, share):
    labels = torch.rand(20_000, C, generator=torch.Generator().manual_seed(1)) < torch.tensor([.5, .3, .1, .01])
    written = corrupted(labels, kind, torch.Generator().manual_seed(2))
    assert not (written & ~labels).any()
    assert abs(written.sum()/labels.sum()-share) < .01
    of_class = written_share(labels, kind)
    assert_close(written.float().sum(0)/labels.sum(0), of_class, rtol=0, atol=.05)
    if kind.startswith('generic'): assert of_class.tolist() == sorted(of_class.tolist()) and of_class[-1] == 1

def test_wrong_labels_are_a_tenth_of_each_class():
    labels = torch.rand(50_000, C, generator=torch.Generator().manual_seed(1)) < torch.tensor([.2, .1, .05, .02])
    added = corrupted(labels, 'wrong 10', torch.Generator().manual_seed(2)) & ~labels
    assert_close(added.float().sum(0)/labels.sum(0), .1*(1-labels.float().mean(0)), rtol=0, atol=.02)

def test_rates_go_on_until_the_best_is_inside():
    assert beyond({1.: 3, 2.: 4, 4.: 5}) == [8., 16.]
    assert beyond({1.: 5, 2.: 4, 4.: 3}) == [.25, .5]
    assert beyond({1.: 3, 2.: 5, 4.: 4}) == []
    assert beyond({2.**i: i for i in range(experiment.MOST_RATES)}) == []

def test_a_cell_is_run_recorded_and_collected(tmp_path, monkeypatch):
    cell = Cell('scene', 'linear', 'all', 1., 'ASL + prior')
    monkeypatch.setitem(experiment.EPOCHS, 'scene', 2)
    result = experiment.run(cell, [part_of(Data(), 'all', seed) for seed in range(2)])
    assert experiment.cell_of(result) == cell and len(result['test']) == 2
    rates = sorted(map(float, result['valid']))
    assert result['rate'] in rates and result['edge'] == (result['rate'] in (rates[0], rates[-1]))
    means = {rate: sum(result['valid'][f'{rate:g}']) for rate in rates}
    assert means[result['rate']] == max(means.values())
    lines = tmp_path/'real.jsonl'
    lines.write_text(json.dumps(result | dict(machine=experiment.machine()))+'\n')
    assert experiment.done(lines) == {cell}
    experiment.collect(lines, tmp_path/'real.json')
    record = json.loads((tmp_path/'real.json').read_text())
    assert record['cells'][0]['test']['mAP'] == [round(test['mAP'], 2) for test in result['test']]
    again = tmp_path/'again.jsonl'
    for _ in range(2): experiment.restore(tmp_path/'real.json', again)
    experiment.collect(again, tmp_path/'again.json')
    assert len(again.read_text().splitlines()) == 1
    assert (tmp_path/'again.json').read_text() == (tmp_path/'real.json').read_text()

# Measures

@pytest.mark.parametrize('change', [lambda z: z, lambda z: (3*z).round()/3, lambda z: z*1e30, lambda z: z*1e-42,
    torch.zeros_like, lambda z: -0.*z])
def test_the_order_of_scores_is_that_of_a_stable_sort(change):
    for shape in ((7, 300), (1, 2000), (4, 1)):
        z = change(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        assert descending(z).equal(z.argsort(dim=1, descending=True, stable=True))

def test_average_precision_is_that_of_scikit_learn():
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(500, 5, generator=g), torch.rand(500, 5, generator=g) < .1
    y[:, 4] = False
    found = average_precision(z, y)
    assert found[:4].tolist() == pytest.approx([average_precision_score(y[:, c], z[:, c]) for c in range(4)], rel=1e-5)
    assert found[4].isnan()
    z[0] = math.inf
    y[0] = True
    assert average_precision(z, y)[4] == 1.
