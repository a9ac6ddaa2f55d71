"From probabilities to decisions: what pages cannot show in a line. Rules, bad input, promises beside MAPIE, metrics"
import json, math, subprocess, sys
from pathlib import Path

import pytest, torch
from torch.testing import assert_close

from asl.calibrate import calibration_error, fit_isotonic, fit_temperature
from asl.decide import OutOfReach, Rule, choose_thresholds, decisions, promise_recall, reached, read_rule

def drawn(n=400, C=4, seed=0):
    "Calibrated probabilities and their labels"
    g = torch.Generator().manual_seed(seed)
    p = (torch.randn(n, C, generator=g)*2-torch.linspace(0, 3, C)).sigmoid()
    return p, (torch.rand(n, C, generator=g) < p).float()

@pytest.mark.parametrize('text, rule', [('f1', ('f', 1)), ('f.5', ('f', .5)), ('f2.0', ('f', 2)),
    ('recall=.9', ('recall', .9)), ('precision=1', ('precision', 1)), ('cost=5', ('cost', 5)),
    ('probability=0', ('probability', 0)), ('top=3', ('top', 3))])
def test_a_rule_is_read(text, rule):
    assert read_rule(text) == rule == read_rule(read_rule(text))

@pytest.mark.parametrize('text', ['', 'f', 'f0', 'F1', 'f1.2.3', 'recall', 'recall=', 'recall=0', 'recall=1.1',
    'recall=-1', 'precision=90', 'cost=0', 'probability=2', 'top=0', 'top=1.5', 'accuracy=.5', 'f1 ', None, 1,
    Rule('f', -1.), Rule('f', math.nan), Rule('g', 1.)])
def test_what_is_no_rule_is_one_line_that_names_them_all(text):
    with pytest.raises(ValueError, match=r'^rule: got .*, needs f1 .*top=3$') as e: read_rule(text)
    assert '\n' not in str(e.value)

p, y = drawn()
BAD = [
    ((p, y*0-100), {}, 'target: got no known label, needs some that were held back'),
    ((p, y*0), {}, 'target: got no positive among the known labels, needs one at least'),
    ((p*0,), {}, 'target: got no probability above 0'),
    ((p*math.nan, y), {}, 'probability: got nan, needs numbers in'),
    ((p*2, y), {}, r'needs numbers in \[0, 1\], such as loss.posterior'),
    ((p.long(), y), {}, 'probability: got torch.int64'),
    ((p[:0], y[:0]), {}, r'probability: got shape \(0, 4\)'),
    ((p[:, 0], y[:, 0]), {}, r'needs \(N, C\)'),
    ((p.tolist(), y), {}, 'probability: got list, needs a tensor'),
    ((p, y[:, :3]), {}, r'target: got shape \(400, 3\), needs \(400, 4\)'),
    ((p, y*2), {}, 'target: got 2'),
    ((p, y), dict(average='weighted'), "average: got 'weighted', needs one of"),
    ((p, y), dict(average='samples'), "average: got 'samples', needs shared=True"),
    ((p, y), dict(rule='recall=.9', average='micro'), "average: got 'micro'"),
    ((p, y), dict(toward='prior'), "toward: got 'prior'"),
    ((p, y), dict(strength=-1.), 'strength: got -1.0, needs'),
    ((p, y), dict(shared=True, strength=2.), 'strength: got 2, needs labels, a threshold for each class'),
    ((p, y), dict(rule='recall=.9', strength=2.), 'strength: got 2, needs'),
    ((p,), dict(strength=2.), 'strength: got 2, needs'),
    ((p.clamp(max=.3),), dict(rule='precision=.9'), r'=0.9, needs less: class 0 \(and 3 more\) reaches 0.3 at'),
    ((p, p < .1), dict(rule='precision=.9', shared=True), 'one threshold reaches'),
]

@pytest.mark.parametrize('args, kwargs, said', BAD, ids=[said[:40] for *_, said in BAD])
def test_bad_input_is_one_clear_line(args, kwargs, said):
    with pytest.raises((ValueError, TypeError), match=said) as e: choose_thresholds(*args, **kwargs)
    assert '\n' not in str(e.value)

def test_a_precision_out_of_reach_names_its_classes():
    low = p.clone()
    low[:, 1:3] = low[:, 1:3].clamp(max=.3)
    with pytest.raises(OutOfReach) as e: choose_thresholds(low, rule='precision=.9')
    assert e.value.columns == [1, 2] and e.value.best == pytest.approx(.3)

@pytest.mark.parametrize('f', [promise_recall, fit_temperature, fit_isotonic, lambda p, y: reached(p, y, .5)])
@pytest.mark.parametrize('target, said', [(y*0-100, 'no known label'), (y*0, 'no positive'), (y[:, :2], 'shape')])
def test_all_that_learn_from_labels_refuse_such_as_say_nothing(f, target, said):
    with pytest.raises(ValueError, match=said): f(p, target)

def test_all_positive_is_a_choice_and_no_calibration():
    assert (p >= choose_thresholds(p, y*0+1)).all()
    with pytest.raises(ValueError, match='no negative'): fit_temperature(p, y*0+1)
    with pytest.raises(ValueError, match='needs 50'): fit_isotonic(p, y*0+1)

def test_one_class_and_one_image():
    assert choose_thresholds(p[:, :1], y[:, :1]).shape == (1,)
    assert (p[:1] >= choose_thresholds(p[:1], y[:1]*0+1)).all()

@pytest.mark.parametrize('rule', ['f1', 'f2', 'f.5', 'cost=4', 'cost=.2'])
@pytest.mark.parametrize('average', ['macro', 'micro', 'samples'])
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('n', [12, 200])
def test_never_worse_than_a_half_on_the_data_chosen_on(rule, average, shared, n):
    if average == 'samples' and not shared and rule[0] == 'f': pytest.skip('refused')
    for seed in range(3):
        p, y = drawn(n, seed=seed)
        y[torch.rand(y.shape, generator=torch.Generator().manual_seed(seed)) < .2] = -100
        for toward in ('posterior', 'shared'):
            for q in (p**3, p.round(decimals=1), p.bfloat16()):
                t = choose_thresholds(q, y, rule, average, shared=shared, toward=toward)
                chosen, half = (reached(q, y, each, rule, average) for each in (t, .5))
                assert chosen <= half+1e-9 if rule[0] == 'c' else chosen >= half-1e-9

def test_what_float32_cannot_tell_apart_is_still_decided_as_chosen():
    low = torch.tensor(.3)
    high = low.nextafter(torch.tensor(1.))
    p = torch.stack([high, low]).view(2, 1)
    t = choose_thresholds(p, torch.tensor([[1.], [0.]]), strength=0)
    assert t.dtype == torch.float32 and (p >= t).flatten().tolist() == [True, False]

def test_labels_that_are_unknown_are_not_looked_at():
    hidden = y.clone()
    hidden[200:] = -100
    for settings in (dict(strength=0), dict(shared=True), dict(toward='shared'), dict(average='micro', strength=0)):
        t, same = choose_thresholds(p, hidden, **settings), choose_thresholds(p[:200], y[:200], **settings)
        assert reached(p[:200], y[:200], t) == pytest.approx(reached(p[:200], y[:200], same))

def test_strength_goes_from_the_labels_alone_to_the_posterior_alone():
    weak, strong = (choose_thresholds(p, y, strength=strength) for strength in (1e-9, 1e9))
    assert reached(p, y, weak) == pytest.approx(reached(p, y, choose_thresholds(p, y, strength=0)))
    assert_close(strong, choose_thresholds(p))
    shared = choose_thresholds(p, y, toward='shared', strength=1e9)
    one = choose_thresholds(p, y, average='micro', shared=True)
    assert ((p >= shared) == (p >= one)).float().mean() > .99

def test_a_class_without_positives_gets_what_is_shared_or_imagined():
    none = y*torch.tensor([1., 1., 1., 0.])
    assert choose_thresholds(p, none, strength=0)[3] == choose_thresholds(p, none, shared=True)[3]
    assert choose_thresholds(p, none).isfinite().all()

def test_recall_is_reached_by_the_highest_threshold_and_precision_by_the_lowest():
    for rule in ('recall=.7', 'precision=.6'):
        t = choose_thresholds(p, y, rule)
        for c in range(4):
            value = reached(p[:, c:c+1], y[:, c:c+1], t[c:c+1], rule)
            assert value >= float(rule.split('=')[1])-1e-6
            others = p[:, c][p[:, c] > t[c]].unique() if rule[0] == 'r' else p[:, c][p[:, c] < t[c]].unique()
            beyond = others[others > p[p[:, c] >= t[c], c].min()] if rule[0] == 'r' else others
            assert all(reached(p[:, c:c+1], y[:, c:c+1], at, rule) < float(rule.split('=')[1]) for at in beyond)

def test_the_top_of_an_image_is_so_many_ties_or_not():
    same = torch.full((3, 5), .7)
    assert decisions(same, .5, top=2).sum(1).tolist() == [2, 2, 2]
    assert decisions(same, .8, top=2).sum() == 0 and decisions(same, .5, top=9).all()
    for top in (0, 1.5, True):
        with pytest.raises((ValueError, TypeError), match='top'): decisions(same, .5, top=top)

# Promises

def test_a_promise_for_a_class_is_the_exact_order_statistic():
    g = torch.Generator().manual_seed(0)
    kept = 0
    for _ in range(400):                                # recall of a threshold t is 1-t, known exactly
        t = promise_recall(torch.rand(60, 1, generator=g), torch.ones(60, 1), per_class=True)
        kept += t.item() <= .1
    from scipy.stats import binom
    exact = binom.sf(1, 60, .1)                         # one may be missed of 60, by the binomial sum
    assert binom.cdf(1, 60, .1) <= .05 < binom.cdf(2, 60, .1)
    low, high = binom.interval(.999, 400, exact)
    assert low <= kept <= high

def test_too_few_are_refused_and_a_promise_of_all_is():
    few = y*0
    few[:28] = 1
    said = 'got 28 known positives in class 0, needs 29 for recall 0.9 with confidence 0.95'
    with pytest.raises(ValueError, match=said):
        promise_recall(p, few, per_class=True)
    few[:29] = 1
    assert promise_recall(p, few, per_class=True).tolist() == pytest.approx(p[:29].amin(0).tolist())
    with pytest.raises(ValueError, match='got 10 images with a label'): promise_recall(p[:10], y[:10]*0+1)
    for value in (0, 1, 90, True):
        with pytest.raises((ValueError, TypeError), match='recall'): promise_recall(p, y, recall=value)
    with pytest.raises(ValueError, match='labels of 0 and 1'): promise_recall(p, y*.5)

def test_risks_and_p_values_are_those_of_mapie():
    mapie = pytest.importorskip('mapie.risk_control')
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
    from asl.decide import _p_value
    risk = torch.linspace(0, .3, 40, dtype=torch.float64)
    theirs = compute_hoeffding_bentkus_p_value(risk.numpy(), 300, .1)[:, 0]
    below = risk <= .1                                  # above, MAPIE's Hoeffding term is 1 as well
    assert_close(_p_value(risk, 300, .1)[below], torch.from_numpy(theirs)[below], rtol=1e-6, atol=1e-12)
    some = y.any(1)
    here, there = p[some].double(), y[some].long()
    grid = torch.linspace(.01, .99, 99).double().numpy()
    controller = mapie.MultiLabelClassificationController(lambda x: x, method='rcps', rcps_bound='hoeffding',
        target_level=.7, confidence_level=.9, predict_params=grid)
    controller.calibrate(here.numpy(), there.numpy())
    bound = controller.best_predict_param.item()        # Hoeffding's alone, in steps of .01: no higher than ours
    ours = promise_recall(p, y, .7, .9)[0].item()
    assert bound <= ours+.01 and ours-bound < .1
    r_hat = 1-reached(p, y, bound, 'recall=.7', 'samples')
    at = int((torch.from_numpy(grid)-bound).abs().argmin())
    assert controller.r_hat[at] == pytest.approx(r_hat, abs=1e-6)

def test_the_record_keeps_its_promises():
    from scipy.stats import binom
    record = json.loads((Path(__file__).parents[1]/'benchmarks/decisions.json').read_text())
    ours = [cell for cell in record['promises'] if 'naive' not in cell['way'] and 'MAPIE' not in cell['way']]
    assert len(ours) >= 4
    for cell in ours:
        low, _ = binom.interval(.95, cell['splits'], .95)
        assert cell['splits'] == 200 and cell['kept']*200 >= low

# Calibration

def test_a_temperature_keeps_the_order_and_needs_one():
    warmer = fit_temperature(p**2, y)
    assert warmer.temperature > 1
    order = p[:, 0].argsort()
    assert (warmer(p**2)[order, 0].diff() >= 0).all()
    with pytest.raises(ValueError, match='an order that says nothing'): fit_temperature(1-p, y)
    assert fit_temperature(p**2, y, bias=False).bias == 0

def test_modules_are_saved_and_exported_with_a_model(tmp_path):
    for module in (fit_temperature(p, y, per_class=True), fit_isotonic(p, y, least=10)):
        torch.save(module.state_dict(), tmp_path/'module.pt')
        again = type(module)(*(torch.zeros_like(buffer) for buffer in module.buffers()))
        again.load_state_dict(torch.load(tmp_path/'module.pt'))
        assert_close(again(p), module(p), rtol=0, atol=0)
        assert module(p).dtype == torch.float32 and module(p.bfloat16()).dtype == torch.float32
        exported = torch.export.export(module, (p,)).module()
        assert_close(exported(p), module(p))

def test_an_error_of_what_nobody_knows_is_nan_and_counts_nothing():
    hidden = y.clone()
    hidden[:, 0] = -100
    each = calibration_error(p, hidden, average='none')
    assert each[0].isnan() and each[1:].isfinite().all()
    assert_close(calibration_error(p, hidden), each[1:].mean())
    for binning in ('width', 'mass'):
        assert calibration_error(p, y*0-100, binning=binning).isnan()

def test_an_error_does_not_depend_on_the_order_of_images():
    order = torch.randperm(len(p))
    tied = p.round(decimals=1)
    for binning in ('width', 'mass'):
        shuffled = calibration_error(tied[order], y[order], binning=binning)
        assert_close(shuffled, calibration_error(tied, y, binning=binning))

def test_the_metric_is_that_of_all_data_over_processes(tmp_path):
    pytest.importorskip('torchmetrics')
    code = """if 1:
        import sys, torch, torch.distributed as dist
        from asl.metrics import MultilabelCalibrationError
        rank = int(sys.argv[1])
        dist.init_process_group('gloo', init_method='file://'+sys.argv[2], rank=rank, world_size=2)
        g = torch.Generator().manual_seed(0)
        p = torch.rand(100, 3, generator=g)
        y = (torch.rand(100, 3, generator=g) < p**2).int()
        mine = slice(0, 30) if rank == 0 else slice(30, 100)
        pairs = [[MultilabelCalibrationError(3, binning=binning) for _ in range(2)] for binning in ('width', 'mass')]
        values = []
        for part, _ in pairs:
            part.update(p[mine], y[mine])
            values.append(part.compute())
        dist.destroy_process_group()
        for value, (_, whole) in zip(values, pairs):
            whole.update(p, y)
            assert abs(value-whole.compute()) < 1e-6, value"""
    runs = [subprocess.Popen([sys.executable, '-c', code, str(rank), str(tmp_path/'meet')]) for rank in range(2)]
    assert [run.wait(180) for run in runs] == [0, 0]

def test_importing_is_light():
    heavy = 'sklearn', 'scipy', 'torchmetrics', 'mapie'
    code = f'import sys, asl.decide, asl.calibrate; print({set(heavy)} & {{*sys.modules}})'
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip() == 'set()'
    import asl
    assert 'choose_thresholds' not in asl.__all__
