"Networks on pictures and on collages: the search for a rate, what is resumed, and trainings of a few steps"
import copy, json, math, os, sys
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

TOOLS = Path(__file__).parents[1]/'tools'
sys.path += [str(TOOLS), str(TOOLS/'real')]
import collages, experiment, finetune, networks
from experiment import Cell, claimed
from finetune import lacking
from networks import SHIFT, Training, draws, moved, network, optimizer_of, run
from on_gpu import Graphed
from parts import part_of
from real import data
from real.record import CollageRecord

CELL = Cell('clipart', 'scratch', 'all', 1., 'ASL + prior')
RATES = [.5, 1., 2.]

@pytest.fixture(autouse=True)
def one_thread():
    "Several wait for each other where other programs compute, too"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

@pytest.fixture
def tiny(monkeypatch):
    "A set of 60 pictures of 16 pixels, and batches and epochs so small that a training has four steps"
    g = torch.Generator().manual_seed(0)
    labels = torch.rand(60, 3, generator=g) < .3
    pictures = (labels.float()[:, :, None, None]*255).expand(60, 3, 16, 16).byte()
    found = data.RealSet('clipart', pictures, labels, torch.arange(60), list('abc'), '', '', 60*[''])
    monkeypatch.setattr(networks, 'BATCH', 16)
    monkeypatch.setattr(networks, 'EPOCHS', {way: dict(clipart=2) for way in networks.EPOCHS})
    monkeypatch.setattr(finetune, 'pictures', lambda _: found)
    return found

def part(tiny, seed=0): return part_of(tiny, 'all', seed, lambda x, _: x)

# Pictures

def test_pictures_are_kept_until_the_set_is_built_anew(tmp_path, monkeypatch):
    monkeypatch.setenv('ASL_REAL', str(tmp_path))
    Image.new('RGB', (20, 20), (255, 0, 7)).save(tmp_path/'red.png')
    y = torch.ones(1, 1, dtype=torch.bool)
    found = data.RealSet('emoji', torch.zeros(1, 2), y, torch.zeros(1), ['a'], '', '', ['red.png'])
    torch.save(found._asdict(), tmp_path/'emoji.pt')
    pictures = networks.pictures.__wrapped__
    assert pictures('emoji').features[0, :, 3, 3].tolist() == [255, 0, 7]
    Image.new('RGB', (20, 20), (0, 99, 0)).save(tmp_path/'red.png')
    assert pictures('emoji').features[0, :, 3, 3].tolist() == [255, 0, 7]
    os.utime(tmp_path/'emoji.pt', (2**31, 2**31))
    assert pictures('emoji').features[0, :, 3, 3].tolist() == [0, 99, 0]

@pytest.mark.parametrize('mirror', [False, True])
def test_a_moved_picture_is_the_picture_at_another_place(mirror):
    "White where nothing was, as a paste of Pillow's says"
    g = torch.Generator().manual_seed(0)
    x = torch.randint(255, (50, 3, 8, 8), dtype=torch.uint8, generator=g)
    corners = torch.randint(2*SHIFT+1, (50, 2), generator=g)
    found = moved(x, corners, torch.full((50,), mirror))
    assert found.shape == x.shape and found.dtype == torch.uint8
    for before, after, (down, right) in zip(x, found, corners.tolist()):
        canvas = Image.new('RGB', (8, 8), 'white')
        canvas.paste(Image.fromarray(before.permute(1, 2, 0).numpy()), (SHIFT-right, SHIFT-down))
        wanted = torch.tensor([*canvas.tobytes()], dtype=torch.uint8).view(8, 8, 3).permute(2, 0, 1)
        assert after.equal(wanted.flip(-1) if mirror else wanted)

def test_chance_shifts_all_and_mirrors_half_of_the_pictures_that_may_be(tiny):
    found = draws(CELL._replace(length=50.), part(tiny), 0)
    assert found.corners.unique().tolist() == [*range(2*SHIFT+1)] and found.index.shape == found.mirrored.shape
    assert .45 < found.mirrored.float().mean() < .55
    networks.EPOCHS['scratch']['emoji'] = 2
    assert not draws(CELL._replace(set='emoji'), part(tiny), 0).mirrored.any()

# One training

def one(cell, part, seed, rate, kind=Training):
    "What came of one training"
    return run(cell, {seed: part}, [(rate, seed)], kind)[0]

@pytest.mark.parametrize('way', networks.EPOCHS)
def test_a_network_of_each_way_trains_and_is_measured(tiny, monkeypatch, way):
    import timm
    monkeypatch.setattr(networks, 'pretrained', lambda: timm.create_model('tf_efficientnet_lite0', num_classes=0))
    line = one(CELL._replace(way=way), part(tiny), 0, .01)
    assert json.loads(json.dumps(line)) == line and (line['rate'], line['seed']) == (.01, 0)
    assert 0 < line['test']['mAP'] <= 100 and line['ms'] > 0

def test_a_training_is_repeated_to_the_bit_and_learns(tiny):
    line, again = (one(CELL, part(tiny), 0, .05) for _ in range(2))
    assert line['test'] == again['test'] and line['curve'] == again['curve']
    assert len(line['curve']) == 4                          # steps, of which none is looked at twice
    assert one(CELL, part(tiny), 1, .05)['curve'] != line['curve']
    assert one(CELL._replace(length=8.), part(tiny), 0, .05)['curve'][-1] > 90

def test_trainings_side_by_side_do_not_touch_each_other(tiny):
    parts = [part(tiny, seed) for seed in range(2)]
    asked = [(.05, 0), (.05, 1), (.1, 0)]
    for line, (rate, seed) in zip(run(CELL, parts, asked), asked):
        alone = one(CELL, parts[seed], seed, rate)
        assert (line['seed'], line['rate'], line['curve'], line['test']) == (seed, rate, alone['curve'], alone['test'])

class Rehearsed(Graphed):
    "What a GPU repeats by itself, here by Python"
    device, fixed = 'cpu', dict(fused=True)
    def record(self): self.warm_up()
    def learn(self, _): self.advance()
    def logits(self, which): return Training.logits(self, which)
    clock, machine = Training.clock, Training.machine

def test_the_step_that_a_gpu_repeats_is_the_one_of_a_cpu(tiny, monkeypatch):
    "From the same start, after warming up. In float64: Adam makes much of gradients that are zero but for rounding"
    cell, found = CELL._replace(length=4., loss='ASL'), part(tiny)
    double = network('scratch', 3).double()
    monkeypatch.setattr(networks, 'network', lambda *_: copy.deepcopy(double))
    monkeypatch.setattr(networks, 'as_input', lambda x, before=networks.as_input: before(x).double())
    start, here, there = (kind(cell, found, 0, .01) for kind in (Training, Training, Rehearsed))
    torch.testing.assert_close(there.net.state_dict(), start.net.state_dict(), rtol=0, atol=0)
    for step in range(here.steps):
        for each in (here, there): each.learn(step)
    assert not torch.allclose(here.logits('test'), start.logits('test'), atol=.1)
    torch.testing.assert_close(there.logits('test'), here.logits('test'), rtol=1e-6, atol=1e-6)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_learns_what_a_cpu_learns(tiny):
    cell, parts = CELL._replace(length=4.), [part(tiny, seed) for seed in range(2)]
    asked = [(.01, 0), (.01, 1)]
    for here, there in zip(run(cell, parts, asked), run(cell, parts, asked, Graphed)):
        assert here['curve'] == pytest.approx(there['curve'], abs=2.) and there['curve'][-1] > there['curve'][0]

def test_losses_of_a_seed_start_alike_but_for_the_last_bias(tiny):
    first = {loss: Training(CELL._replace(loss=loss), part(tiny), 0, .01).net.state_dict() for loss in finetune.LOSSES}
    for loss, weights in first.items():
        other = {name for name, value in weights.items() if not value.equal(first['BCE'][name])}
        assert other == ({f'{len(network("scratch", 3))-1}.bias'} if 'prior' in loss else set())

def test_the_head_has_a_rate_of_its_own():
    net = network('scratch', 5)
    body, head = optimizer_of(net, .1, 3).param_groups
    assert (body['peak'], head['peak']) == (.1, .1*3)
    assert [tuple(each.shape) for each in head['params']] == [(5, 128), (5,)]
    assert len(body['params'])+2 == len(list(net.parameters()))

def test_a_network_that_broke_can_be_measured(tiny):
    assert one(CELL, part(tiny), 0, float('inf'))['test']['mAP'] > 0

# The search for the rate

def searched(best, seeds=3, rates=RATES):
    "Rates and seeds in the order in which they run, where a seed's best rate is 2**best[seed]"
    runs = {}
    while more := lacking(runs, rates, seeds):
        rate, seed = more[0]
        assert (rate, seed) not in runs
        runs[rate, seed] = dict(curve=[50-abs(torch.tensor(rate).log2().item()-best[seed])], test={}, ms=1., cpu_s=1.,
            machine={})
    return runs

def test_seed_0_searches_and_all_run_its_best_rate_and_the_neighbours():
    runs = searched([0, 0, 0])
    assert list(runs)[:3] == [(.5, 0), (1., 0), (2., 0)] and len(runs) == 9
    result = finetune.summary(CELL, runs, 3)
    assert result['rate'] == 1 and not result['edge'] and list(result['valid']) == ['0.5', '1', '2']

@pytest.mark.parametrize('place', [-4, 3])
def test_the_search_goes_on_beyond_the_edge(place):
    runs = searched([place]*3)
    result = finetune.summary(CELL, runs, 3)
    assert result['rate'] == 2.**place and not result['edge'] and len(result['valid']) == 3
    assert len(result['sought']) == (7 if place < 0 else 6) and len(result['test']) == 3
    assert len(runs) == len(result['sought'])+6             # the other seeds run three rates

def test_all_seeds_decide_not_the_first():
    result = finetune.summary(CELL, searched([0, 2, 2]), 3)
    assert result['rate'] == 2 or result['rate'] == 4
    assert not result['edge']
    assert all(len(values) == 3 for values in result['valid'].values())

def test_a_search_that_never_turns_ends_and_says_so():
    runs = searched([99]*3)
    assert len({rate for rate, _ in runs}) <= experiment.MOST_RATES
    assert not lacking(runs, RATES, 3) and finetune.summary(CELL, runs, 3)['edge']

# Files

class Killed(Exception): pass

def test_what_was_run_is_not_run_again(tiny, tmp_path, monkeypatch):    # noqa: ARG001 - tiny replaces the sets
    out = tmp_path/'real.jsonl'
    count = []
    def run(cell, _, asked, kind):
        if len(count) == 4: raise Killed
        (rate, seed), = asked
        assert kind is Training
        count.append((rate, seed))
        line = dict(cell._asdict(), seed=seed, rate=rate, curve=[50-rate/100], test=dict.fromkeys(
            ['mAP', 'OF1', 'OF1_posterior', 'ECE', 'ECE_posterior'], 1.), ms=1., cpu_s=1., machine={})
        return [line]
    monkeypatch.setattr(finetune, 'run', run)
    monkeypatch.setitem(finetune.RATES, 'scratch', [8., 16., 32.])
    for module in (experiment, finetune): monkeypatch.setattr(module, 'MOST_RATES', 5)
    other = CELL._replace(loss='BCE')
    with pytest.raises(Killed): finetune.work([CELL, other], 2, out)
    assert not out.exists() and len((tmp_path/'real.runs.jsonl').read_text().splitlines()) == 4
    lost = count.copy()
    while not experiment.done(out) >= {CELL, other}:
        count.clear()
        try: finetune.work([CELL, other], 2, out)
        except Killed: pass
        lost += count
    assert len(lost) == 2*len(set(lost))                    # of two cells, none twice
    count.clear()
    finetune.work([CELL, other], 2, out)
    assert not count and len(out.read_text().splitlines()) == 2
    experiment.collect(out, tmp_path/'real.json')
    assert [each['loss'] for each in json.loads((tmp_path/'real.json').read_text())['cells']] == ['ASL + prior', 'BCE']

def test_a_cell_that_another_process_has_is_left_to_it(tmp_path, monkeypatch):
    out = tmp_path/'real.jsonl'
    monkeypatch.setattr(finetune, 'pictures', lambda _: pytest.fail('was run'))
    with claimed(out, CELL): finetune.work([CELL], 1, out)

def test_a_loss_with_a_comma_is_chosen_by_its_name():
    options = experiment.command_line('', 3).parse_args(['--losses', 'BCE,ASL (4, 0) + prior', '--ways', 'scratch'])
    found = experiment.chosen(finetune.plan(), options)
    assert {cell.loss for cell in found} == {'BCE', 'ASL (4, 0) + prior'}
    assert {cell.way for cell in found} == {'scratch'}

# Collages

def test_both_losses_run_the_same_rates_until_both_get_worse():
    peaks = {'BCE + prior': -8, 'ASL + prior': -2}
    runs = {}
    while keys := collages.lacking(runs, 2):
        loss, rate, seed = keys[0]
        value = -abs(torch.tensor(rate).log2().item()-peaks[loss])
        runs[keys[0]] = dict(valid=value, test=value+seed)
    tried = {loss: set(collages.means_of(runs, loss, 'valid')) for loss in peaks}
    assert tried['BCE + prior'] == tried['ASL + prior'] and len(runs) == 4*len(tried['BCE + prior'])
    assert min(tried['ASL + prior']) < 2**-8 < 2**-2 < max(tried['ASL + prior'])
    assert '*' in collages.shown('plain', runs)

def test_a_situation_trains_and_is_resumed(tmp_path, monkeypatch):
    situation = collages.Situation(epochs=1, mean=True, epsilon=1.)
    monkeypatch.setattr(collages, 'SITUATIONS', dict(tiny=situation))
    monkeypatch.setattr(collages, 'digit_collages', lambda *a, **k: collages.Collages(*TINY(*a, **k)))
    line = collages.run('tiny', 'ASL + prior', .01, 0)
    assert line['valid'] > 0 and line['small'] == 100.      # of gradients below ten times an epsilon of 1
    experiment.append(tmp_path/'c.jsonl', line)
    assert collages.runs_in(tmp_path/'c.jsonl', 'tiny') == {('ASL + prior', .01, 0): line}
    assert collages.runs_in(tmp_path/'c.jsonl', 'other') == {}

def test_the_record_has_what_each_seed_gave_and_knows_what_is_whole(tmp_path):
    out = tmp_path/'c.jsonl'
    best = {'BCE + prior': .02, 'ASL + prior': .04}
    for loss, rate, seed in product(best, (.01, .02, .04, .08), (1, 0)):
        value = 50-abs(math.log2(rate/best[loss]))+seed
        experiment.append(out, dict(situation='plain', loss=loss, rate=rate, seed=seed, gradient=.1, small=0.,
            valid=value, test=value+10*(loss == 'ASL + prior'), curve=[value], cpu_s=1., machine=dict(cpu='one')))
    experiment.append(out, dict(experiment.lines_of(out)[0], situation='long'))
    collages.collect(out, tmp_path/'c.json')
    found = CollageRecord(tmp_path/'c.json', seeds=2)
    assert found.best('plain', 'BCE + prior')['test'] == [50, 51] and found.chosen('plain', 'ASL + prior') == .04
    assert found.lead('plain').tolist() == [10, 10] and found.machines == [dict(cpu='one')]
    assert found.whole('plain', *best) and not found.whole('long', *best) and not found.whole('mean', *best)
    assert not CollageRecord(tmp_path/'c.json', seeds=3).whole('plain', *best)

def TINY(split, seed=0, n_classes=80):
    from asl.training.digits import digit_collages
    return digit_collages(split, 128, seed, n_classes)

def test_networks_without_norm_and_with_known_weights(monkeypatch):
    monkeypatch.setattr(collages, 'digit_collages', TINY)
    monkeypatch.setattr(collages, 'KNOWN_EPOCHS', 1)
    train = TINY('fit')
    prior = collages.prior_of(train)
    row = collages.loss_of('BCE + prior', prior)
    def start(**settings): return collages.started(collages.Situation(**settings), row, prior, 0)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in start(norm=False))
    new, known = start().state_dict(), start(pretrained=True).state_dict()
    alike = {name for name in new if new[name].equal(known[name])}
    assert alike == {'13.weight', '13.bias'}
