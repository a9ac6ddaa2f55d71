"""From probabilities to decisions on real sets: thresholds, promises and calibration, each on data it has not seen.

    python tools/real/decisions.py --out benchmarks/decisions.json        all of it, some minutes
    python tools/real/decisions.py --sets scene --splits 20               some of it, printed

A linear layer on frozen features is trained on 30 % of a set's groups, with ASL and with cross-entropy, both from the
prior, at the rates that experiment.py found. From 50 % labels are drawn to choose by, 20 % judge. Needs the sets that
data.py builds; with --mapie also MAPIE.
"""
import argparse, json, time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from data import load
from experiment import EPOCHS, machine
from losses import loss_of
from parts import Part, part_of
from train import of_part, priors, trained

from asl.calibrate import calibration_error, fit_isotonic, fit_temperature
from asl.decide import choose_thresholds, decisions, promise_recall, reached

SETS = 'goemotions', 'imdb', 'clipart', 'emoji', 'scene', 'yeast'
LOSSES = 'ASL + prior', 'BCE + prior'
SHARES = .3, .5, .2                     # of the groups: trained on, chosen by, judged by
SEEDS = 5
POSITIVES = 5, 20, 100, 1000            # in the labels to choose by, of a class, on average
STRENGTHS = 5, 10, 20, 50, 100
AVERAGES = 'macro', 'micro'
PROMISED = 'goemotions', 'imdb'         # sets with enough left to judge a promise by

def rates() -> dict[tuple[str, str], float]:
    "Of each set and loss, the best rate of a linear layer on record"
    record = json.loads((Path(__file__).parents[2]/'benchmarks/real.json').read_text())
    return {(cell['set'], cell['loss']): cell['rate'] for cell in record['cells']
        if (cell['way'], cell['labels'], cell['length']) == ('linear', 'all', 1)}

class Side:
    "Scores, posteriors and labels of one part of a set"
    def __init__(self, z:Tensor, posterior, y:Tensor):
        self.z, self.p, self.y = z, posterior(z[None])[0], y

def models(name:str, loss:str, parts:list[Part]):
    "Of each seed, what the model says of the part to choose by and of that to judge by"
    tensors, *_ = trained(loss, 'linear', EPOCHS[name], parts, [rates()[name, loss]])
    posterior = loss_of(loss, priors(parts)).posterior
    for seed, part in enumerate(parts):
        yield [Side(of_part(tensors, parts, seed, 0, which).detach(), posterior, part.true[getattr(part, which)])
            for which in ('valid', 'test')]

def drawn(side:Side, positives:int, seed:int) -> tuple[Tensor, Tensor]|None:
    "Posteriors and labels of so many images that a class has so many positives, on average; None, if there are too few"
    n = round(positives/side.y.float().mean().item())
    if n > len(side.y): return None
    index = torch.randperm(len(side.y), generator=torch.Generator().manual_seed(seed))[:n]
    return side.p[index], side.y[index]

# Thresholds

def chosen(average:str, p:Tensor, y:Tensor) -> dict[str, Tensor]:
    "Thresholds by name, from the labels that were drawn"
    choose = partial(choose_thresholds, p, y, 'f1', average)
    return {'labels, shared': choose(shared=True), 'labels, per class': choose(strength=0),
        'shrunk to shared': choose(toward='shared'), 'shrunk to posterior': choose()}

def percent(value:float|Tensor, digits:int=2) -> float: return round(100*float(value), digits)

def thresholds(held:Side, judge:Side, seed:int) -> list[dict]:
    "F1 on the part to judge by, by way and number of positives; beside it that on the data chosen by"
    return [row for average in AVERAGES for row in thresholds_of(average, held, judge, seed)]

def thresholds_of(average:str, held:Side, judge:Side, seed:int) -> list[dict]:
    "The same of one average"
    rows = []
    def f1(p, y, t): return percent(reached(p, y, t, 'f1', average))
    def keep(positives, way, test, **more):
        rows.append(dict(average=average, positives=positives, way=way, test=test, **more))
    keep(0, '.5', f1(judge.p, judge.y, .5))
    for way, shared in (('posterior', False), ('posterior, shared', True)):
        keep(0, way, f1(judge.p, judge.y, choose_thresholds(held.p, average=average, shared=shared)))
    for positives in POSITIVES:
        sample = drawn(held, positives, seed)
        if sample is None: continue
        for way, t in chosen(average, *sample).items():
            keep(positives, way, f1(judge.p, judge.y, t), chosen=f1(*sample, t), half=f1(*sample, .5))
        warmer = fit_temperature(*sample)
        t = choose_thresholds(warmer(held.p), average=average)
        keep(positives, 'temperature, then posterior', f1(warmer(judge.p), judge.y, t))
    return rows

def strengths(held:Side, judge:Side, seed:int) -> list[dict]:
    "Macro F1 by how much is imagined"
    rows = []
    for positives in POSITIVES[:3]:
        sample = drawn(held, positives, seed)
        if sample is None: continue
        for toward, strength in product(('posterior', 'shared'), STRENGTHS):
            t = choose_thresholds(*sample, strength=strength, toward=toward)
            rows.append(dict(positives=positives, toward=toward, strength=strength,
                test=percent(reached(judge.p, judge.y, t))))
    return rows

# Calibration

def errors(p:Tensor, y:Tensor) -> dict[str, float]:
    "Errors of probabilities, in percent"
    found = dict(ECE=calibration_error(p, y, average='micro'), ECE_class=calibration_error(p, y),
        ECE_mass=calibration_error(p, y, binning='mass'), Brier=(p-y.float()).square().mean(),
        entropy=F.binary_cross_entropy(p.clamp(1e-6, 1-1e-6), y.float()))
    return {measure: percent(value, 3) for measure, value in found.items()}

def mended(p:Tensor, y:Tensor) -> dict[str, Any]:
    "What is fitted to labels, by name"
    found = {'temperature': fit_temperature(p, y, bias=False), 'temperature, bias': fit_temperature(p, y),
        'per class': fit_temperature(p, y, per_class=True)}
    try: found['isotonic'] = fit_isotonic(p, y, least=20)
    except ValueError: pass                             # no class has so many
    return found

def calibration(held:Side, judge:Side, seed:int) -> list[dict]:
    "The errors of what is said, raw and mended by labels of all held-back images or of a few"
    rows = [dict(positives=0, way=way, **errors(p, judge.y))
        for way, p in (('score', judge.z.sigmoid()), ('posterior', judge.p))]
    for positives in (20, 'all'):
        sample = (held.p, held.y) if positives == 'all' else drawn(held, positives, seed)
        if sample is None: continue
        rows += [dict(positives=positives, way=way, **errors(module(judge.p), judge.y))
            for way, module in mended(*sample).items()]
    return rows

# Promises

def naive(p:Tensor, y:Tensor) -> Tensor:
    "The highest threshold that reaches the recall on the labels at hand"
    return choose_thresholds(p, y, 'recall=.9', 'samples', shared=True)

def mapie(p:Tensor, y:Tensor) -> Tensor:
    "MAPIE's, in its usual steps of .01"
    from mapie.risk_control import MultiLabelClassificationController
    controller = MultiLabelClassificationController(lambda x: x, method='rcps', target_level=.9, confidence_level=.95)
    controller.calibrate(p.double().numpy(), y.long().numpy())
    return torch.full((p.shape[1],), controller.best_predict_param.item()).nextafter(torch.tensor(2.))

class Plan(NamedTuple):
    "A promise to look at: by so many images, of so common classes"
    way: str
    images: int
    promise: Callable[[Tensor, Tensor], Tensor]
    average: str = 'samples'
    least: float = 0.

PLANS = [
    Plan('images', 1000, promise_recall),
    Plan('images, naive', 1000, naive),
    # of a class that 2 % of the images have, 3000 images show 29, all but surely
    Plan('classes', 3000, partial(promise_recall, per_class=True), 'macro', .02)]
BESIDE_MAPIE = [Plan('images, 300', 300, promise_recall), Plan('images, 300, MAPIE', 300, mapie)]

def promise(plan:Plan, side:Side, splits:int) -> dict:
    "Of random splits, how often a recall of .9 that was promised with confidence .95 is there in the rest"
    some = side.y.any(1)
    common = side.y[some].float().mean(0) > plan.least
    p, y = side.p[some][:, common], side.y[some][:, common]
    recalls, labels, seconds = [], [], 0.
    for split in range(splits):
        order = torch.randperm(len(p), generator=torch.Generator().manual_seed(split))
        here, rest = order[:plan.images], order[plan.images:]
        began = time.process_time()
        t = plan.promise(p[here], y[here])
        seconds += time.process_time()-began
        taken = decisions(p[rest], t)
        labels.append(taken.sum(1).float().mean())
        share = (taken & y[rest]).sum(0)/y[rest].sum(0)
        if plan.average == 'samples': share = torch.tensor([reached(p[rest], y[rest], t, 'recall=.9', 'samples')])
        recalls.append(share)
    found = torch.stack(recalls)                        # (splits, classes or 1)
    kept = (found >= .9).float().mean(0)
    return dict(way=plan.way, images=plan.images, rest=len(rest), splits=splits, classes=len(kept),
        kept=round(kept.mean().item(), 4), least=round(kept.min().item(), 4), recall=round(found.mean().item(), 4),
        spread=round(found.std(0).mean().item(), 4), labels=round(torch.stack(labels).mean().item(), 3),
        ms=round(1e3*seconds/splits, 2))

def whole(sides) -> Side:
    "Both parts of one model, which it was not trained on"
    held, judge = sides
    both = Side.__new__(Side)
    both.z, both.p, both.y = (torch.cat([getattr(held, each), getattr(judge, each)]) for each in ('z', 'p', 'y'))
    return both

# All

SEED_ROWS = 'test', 'chosen', 'half', 'ECE', 'ECE_class', 'ECE_mass', 'Brier', 'entropy'

def gathered(rows:list[dict]) -> list[dict]:
    "The seeds of a cell in one row, each measure a list"
    cells:dict[tuple, dict] = {}
    for row in rows:
        key = {name: value for name, value in row.items() if name not in (*SEED_ROWS, 'seed')}
        measured = [name for name in SEED_ROWS if name in row]
        cell = cells.setdefault(tuple(key.values()), key | {name: [] for name in measured})
        for name in measured: cell[name].append(row[name])
    return [*cells.values()]

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='write the record to this file')
    parser.add_argument('--sets', default=','.join(SETS), help='only these, commas between')
    parser.add_argument('--splits', type=int, default=200, help='of the promises (default: 200)')
    parser.add_argument('--mapie', action='store_true', help='hold the promises against those of MAPIE')
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    found:dict[str, list] = dict(thresholds=[], strengths=[], calibration=[], promises=[])
    for name, loss in product(options.sets.split(','), LOSSES):
        data = load(name)
        parts = [part_of(data, 'all', seed, shares=SHARES) for seed in range(SEEDS)]
        sides = [*models(name, loss, parts)]
        for part in (thresholds, strengths, calibration):
            for seed, (held, judge) in enumerate(sides):
                found[part.__name__] += [dict(set=name, loss=loss, seed=seed) | row for row in part(held, judge, seed)]
        if name in PROMISED and loss == LOSSES[0]:
            plans = PLANS+BESIDE_MAPIE*(options.mapie and name == PROMISED[0])
            found['promises'] += [dict(set=name) | promise(plan, whole(sides[0]), options.splits) for plan in plans]
        print(f'{name} | {loss} | {time.process_time()-began:.0f} s', flush=True)
    write(options, found, time.process_time()-began)

def write(options, found, seconds):
    "The record, a cell a line"
    command = 'python tools/real/decisions.py --mapie --out benchmarks/decisions.json'
    about = dict(command=command, machine=versions(), seeds=SEEDS, shares=SHARES, cpu_s=round(seconds))
    lines = [f' {json.dumps(name)}: {json.dumps(value)}' for name, value in about.items()]
    for name, rows in found.items():
        cells = gathered(rows) if name != 'promises' else rows
        body = ',\n'.join(json.dumps(cell, separators=(',', ':')) for cell in cells)
        lines.append(f' {json.dumps(name)}: [\n{body}\n]')
    if options.out: options.out.write_text('{\n'+',\n'.join(lines)+'\n}\n')

def versions() -> dict[str, str]:
    "The machine, and what computes on it"
    from importlib.metadata import PackageNotFoundError, version
    found = machine()
    for package in ('scikit-learn', 'mapie'):
        try: found[package] = version(package)
        except PackageNotFoundError: pass
    return found

if __name__ == '__main__': main()
