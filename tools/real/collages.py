"""Why does ASL lead on digit collages? Against BCE, both from the prior: one thing changed at a time, at all rates.

    python tools/real/collages.py --out collages.jsonl                    what the file lacks; an hour or two
    python tools/real/collages.py --out collages.jsonl --collect benchmarks/real_collages.json      the page's record
    python tools/real/collages.py --situations plain/long --seeds 1       some of it, printed

The network is that of nbs/11_compare.ipynb, trained as there. Both losses run at the same rates: eight of them, each
twice the one before, and more while either is best at an edge. Trained on `fit`; `valid` chooses, `test` judges.
Each training is a line of the file. Several processes may work at one file.
"""
import argparse, time
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiment import append, beyond, claimed, lines_of, machine, write_record
from networks import convolutions, head_of
from losses import Row, loss_of
from measures import average_precision
from train import CHECKED

from asl.training.digits import Collages, digit_collages
from asl.training.trainer import Trainer

LOSSES = 'BCE + prior', 'ASL + prior'
RATES = [.00125*2**i for i in range(8)]                 # to .16; 11_compare has .006, .02 and .06
CHANNELS = 16, 32, 64
BATCH = 64
KNOWN_EPOCHS, KNOWN_RATE = 12, .01                      # of what a pretrained network learned before

class Situation(NamedTuple):
    epochs: int = 12
    norm: bool = True                                   # batch norm
    mean: bool = False                                  # is the loss a mean over the classes, instead of their sum?
    epsilon: float = 1e-8                               # Adam's
    pretrained: bool = False                            # on other collages of the same glyphs, with 20 classes

SITUATIONS = {
    'plain': Situation(),
    'long': Situation(epochs=48),
    'no norm': Situation(norm=False),
    'no norm, long': Situation(norm=False, epochs=48),
    'pretrained': Situation(pretrained=True),
    'mean': Situation(mean=True),
    'mean, small epsilon': Situation(mean=True, epsilon=1e-12),
    'small epsilon': Situation(epsilon=1e-12),
    'no norm, mean': Situation(norm=False, mean=True),
    'no norm, mean, small epsilon': Situation(norm=False, mean=True, epsilon=1e-12),
    'no norm, small epsilon': Situation(norm=False, epsilon=1e-12),
    'pretrained, long': Situation(pretrained=True, epochs=48)}

def steps(net:nn.Module, row:Row, data:Collages, epochs:int, rate:float, seed:int, scale=1., epsilon=1e-8):
    "The trainer after each step"
    x = data.images.contiguous(memory_format=torch.channels_last)
    def loss(z, y): return row.loss(z[None], y[None])*scale
    trainer = Trainer(net.train(), loss, epochs*-(-len(x)//BATCH), rate)
    for group in trainer.opt.param_groups: group['eps'] = epsilon
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(BATCH):
            trainer.step(x[index], data.targets[index])
            yield trainer

def prior_of(data:Collages) -> Tensor:
    "Shares of positives, (1, 1, C)"
    return data.targets.mean(0).clamp(min=.5/len(data.targets)).view(1, 1, -1)

@cache
def learned(norm:bool, seed:int) -> dict[str, Tensor]:
    "Weights, but the head's, of a network that knows collages with a tenth of positives, where both losses do alike"
    data = digit_collages('fit', seed=100+seed, n_classes=20)
    torch.manual_seed(100+seed)
    net = convolutions(CHANNELS, 20, norm)
    for _ in steps(net, loss_of('BCE', prior_of(data)), data, KNOWN_EPOCHS, KNOWN_RATE, 100+seed): pass
    head = len(net)-1
    return {name: value for name, value in net.state_dict().items() if not name.startswith(f'{head}.')}

def started(situation:Situation, row:Row, prior:Tensor, seed:int) -> nn.Module:
    "The network before the first step; of a seed all are the same, but for the last bias"
    torch.manual_seed(seed)
    net = convolutions(CHANNELS, prior.shape[-1], situation.norm)
    if situation.pretrained: net.load_state_dict(learned(situation.norm, seed), strict=False)
    if row.starts_at is not None: head_of(net).bias.data = row.starts_at(prior).view(-1)
    return net

def gradients(trainer:Trainer) -> Tensor:
    "How large the gradient of each weight has been of late, by Adam's average of squares, (weights,)"
    states = trainer.opt.state.values()
    return torch.cat([(each['exp_avg_sq']/(1-.999**trainer.done)).sqrt().flatten() for each in states])

def mean_ap(trainer:Trainer, data:Collages) -> float:
    return round(100*average_precision(trainer.logits(data, 500), data.targets > 0).nanmean().item(), 3)

def run(name:str, loss:str, rate:float, seed:int) -> dict[str, Any]:
    "One training; gradients are those after half of it, beside them the share that is below ten times Adam's epsilon"
    began = time.process_time()
    situation = SITUATIONS[name]
    train, valid, test = (digit_collages(split, seed=seed) for split in ('fit', 'valid', 'test'))
    prior = prior_of(train)
    row = loss_of(loss, prior)
    net = started(situation, row, prior, seed)
    scale = 1/prior.shape[-1] if situation.mean else 1.
    curve, line = [], dict(situation=name, loss=loss, rate=rate, seed=seed)
    for trainer in steps(net, row, train, situation.epochs, rate, seed, scale, situation.epsilon):
        if trainer.done*CHECKED//trainer.steps > len(curve): curve.append(mean_ap(trainer, valid))
        if trainer.done == trainer.steps//2:
            sizes = gradients(trainer)
            small = (sizes < 10*situation.epsilon).float().mean().item()
            line |= dict(gradient=float(f'{sizes.median():.3g}'), small=round(100*small, 2))
    return line | dict(valid=curve[-1], test=mean_ap(trainer, test), curve=[round(value, 1) for value in curve],
        cpu_s=round(time.process_time()-began, 1), machine=machine())

Runs = dict[tuple[str, float, int], dict]               # by loss, rate and seed

def means_of(runs:Runs, loss:str, part:str) -> dict[float, float]:
    "mAP on a part by rate, mean of the seeds"
    values = {}
    for (name, rate, _), line in sorted(runs.items()):
        if name == loss: values.setdefault(rate, []).append(line[part])
    return {rate: sum(each)/len(each) for rate, each in values.items()}

def lacking(runs:Runs, seeds:int) -> list[tuple[str, float, int]]:
    "What to run next; nothing, if each loss gets worse on both sides"
    def missing(rates): return [key for key in product(LOSSES, rates, range(seeds)) if key not in runs]
    tried = sorted({*RATES, *(rate for _, rate, _ in runs)})
    more = missing(tried)
    if more: return more
    return missing(sorted({rate for loss in LOSSES for rate in beyond(means_of(runs, loss, 'valid'), 1)}))

def shown(name:str, runs:Runs) -> str:
    "A table of test mAP by rate; a star where validation is best"
    valid, test = ([means_of(runs, loss, part) for loss in LOSSES] for part in ('valid', 'test'))
    def number(i, rate): return f"{test[i][rate]:.1f}{'*'*(rate == max(valid[i], key=valid[i].__getitem__))}"
    lines = [f'| {name}: rate | {" | ".join(LOSSES)} | difference |', '|---'*4+'|']
    lines += [f'| {rate:g} | {number(0, rate)} | {number(1, rate)} | {test[1][rate]-test[0][rate]:+.1f} |'
        for rate in test[0]]
    return '\n'.join(lines)

def runs_in(path:Path|None, name:str) -> Runs:
    "What was run of a situation"
    return {(line['loss'], line['rate'], line['seed']): line for line in lines_of(path) if line['situation'] == name}

OF_A_SEED = 'seed', 'valid', 'test', 'curve', 'gradient', 'small', 'cpu_s'

def collect(lines:Path, path:Path):
    "The trainings of a file as one JSON, a line for each situation, loss and rate, with a list of what each seed gave"
    cells:dict[tuple, dict] = {}
    order = [*SITUATIONS]
    def place(line): return order.index(line['situation']), line['loss'], line['rate'], line['seed']
    for line in sorted(lines_of(lines), key=place):
        common = {name: value for name, value in line.items() if name not in OF_A_SEED}
        cell = cells.setdefault(place(line)[:3], common | {name: [] for name in OF_A_SEED})
        for name in OF_A_SEED: cell[name].append(line[name])
    situations = {name: situation._asdict() for name, situation in SITUATIONS.items()}
    write_record(path, 'python tools/real/collages.py --out collages.jsonl', [*cells.values()], situations=situations)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='append to this file, and skip what it has')
    names = '/'.join(SITUATIONS)
    parser.add_argument('--situations', default=names, help=f'only these, / between (default: {names})')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--collect', type=Path, help='instead of running, write what --out has as one JSON')
    options = parser.parse_args()
    if options.collect: return collect(options.out, options.collect)
    torch.set_num_threads(1)
    for name in options.situations.split('/'):
        lock = claimed(options.out, (name,))
        if lock is None: continue
        runs = runs_in(options.out, name)
        while keys := lacking(runs, options.seeds):
            line = run(name, *keys[0])
            append(options.out, line)
            runs[keys[0]] = line
            print(f"{name} | {line['loss']} | rate {line['rate']:g} | seed {line['seed']} | "
                f"valid {line['valid']:.1f} | test {line['test']:.1f} | {line['cpu_s']:.0f} s", flush=True)
        print(shown(name, runs), flush=True)

if __name__ == '__main__': main()
