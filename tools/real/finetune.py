"""Losses on networks that see the pictures themselves, at 64 pixels: fine-tuned from ImageNet, and from scratch.

    python tools/real/finetune.py --out real.jsonl                        all cells that the file lacks; hours
    python tools/real/finetune.py --out real.jsonl --sets clipart --ways scratch --losses 'BCE + prior,ASL + prior'

Cells, rules and records are those of experiment.py, and the file may be the same; experiment.py --collect has both.
Each training is a line of real.runs.jsonl as soon as it is over, so that a stopped process loses one at most. Several
processes may work at one file. Needs the sets that `python tools/real/data.py clipart emoji` builds.
"""
import copy, os, time
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiment import (
    MOST_RATES, Cell, append, beyond, cell_of, chosen, claimed, command_line, done, lines_of, machine, measured, shown)
from losses import loss_of
from measures import average_precision
from parts import Part, part_of
from train import CHECKED, WEIGHT_DECAY, cycle, priors

SEEDS = 3
SIDE = 64                               # pixels: emoji have no more, and a training ends within minutes
SHIFT = 4                               # pixels, in training: as far as a picture is moved in each direction
MIRRORED = ['clipart']                  # sets of which half the pictures are, in training; emoji are signs
BATCH = 64
CHANNELS = 16, 32, 64, 128              # the network of nbs/11_compare.ipynb for 16 pixels, and a block more
HEAD = {'fine-tuned': 3, 'scratch': 1, 'scratch Lite0': 1}         # the last layer's rate, times that of the others
RATES = {'fine-tuned': [.0005, .001, .002], 'scratch': [.005, .01, .02], 'scratch Lite0': [.001, .002, .004]}
# Fine-tuning no longer gains much at the end; from scratch it still does, therefore cells of twice the length
EPOCHS = {
    'fine-tuned': dict(clipart=8, emoji=16),
    'scratch': dict(clipart=24, emoji=40),
    'scratch Lite0': dict(clipart=8)}   # as fine-tuned: the weights at the start are all that differs
LOSSES = ['BCE + prior', 'ASL + prior', 'BCE', 'ASL (4, 0) + prior']

def plan() -> list[Cell]:
    "All cells, the most important first"
    whole = [Cell(name, way, 'all', 1., loss) for way in EPOCHS for name, loss in product(EPOCHS[way], LOSSES)]
    lengths = [Cell('clipart', 'scratch', 'all', length, loss) for length, loss in product([.5, 2.], LOSSES[:2])]
    return whole + lengths

# Pictures

@cache
def pictures(name:str):
    "A set with pictures (n, 3, SIDE, SIDE), uint8, for features; they are kept beside it"
    from data import load
    from real.features import as_tensor, square
    from real.sources import cache as folder
    data = load(name)
    path = folder()/f'{name}-{SIDE}.pt'
    if not path.exists() or path.stat().st_mtime < (folder()/f'{name}.pt').stat().st_mtime:
        values = [as_tensor(square(file, SIDE)) for file in data.items]
        part = path.with_suffix(f'.{os.getpid()}')
        torch.save(torch.stack([((each+1)*127.5).round().byte() for each in values]), part)
        part.rename(path)               # whole, or not there
    return data._replace(features=torch.load(path, weights_only=True))

def moved(x:Tensor, mirror:bool, generator:torch.Generator) -> Tensor:
    "Pictures (B, 3, S, S), shifted at random, white where nothing was; half of them mirrored, if any"
    side = x.shape[-1]
    corners = torch.randint(2*SHIFT+1, (len(x), 2), generator=generator).tolist()
    padded = F.pad(x, [SHIFT]*4, value=255)
    found = torch.stack([each[:, i:i+side, j:j+side] for each, (i, j) in zip(padded, corners)])
    if mirror:
        which = torch.rand(len(x), generator=generator) < .5
        found[which] = found[which].flip(-1)
    return found

def as_input(x:Tensor) -> Tensor:
    "Pictures as a network wants them: from -1 to 1, and with channels last, which is faster"
    return (x/127.5-1).contiguous(memory_format=torch.channels_last)

# Networks

def convolutions(channels:tuple[int, ...], n_classes:int, norm:bool=True) -> nn.Module:
    "3x3 convolutions, half the side after each but the last; an average over the picture, and a linear layer"
    layers = []
    for i, (before, after) in enumerate(zip((3, *channels), channels)):
        if i: layers.append(nn.MaxPool2d(2))
        layers += [nn.Conv2d(before, after, 3, padding=1), *[nn.BatchNorm2d(after)]*norm, nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], n_classes)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)

@cache
def pretrained() -> nn.Module:
    "EfficientNet-Lite0 as frozen features have it, read and checked once"
    from data import load               # noqa: F401  brings the folder of `real` into the path
    from real.features import lite0
    return lite0()

def network(way:str, n_classes:int) -> nn.Module:
    "A network of one of the ways; what is random comes from PyTorch's generator"
    if way == 'scratch': return convolutions(CHANNELS, n_classes)
    if way == 'fine-tuned':
        net = copy.deepcopy(pretrained()).requires_grad_()
        net.reset_classifier(n_classes)
    else:
        import timm
        net = timm.create_model('tf_efficientnet_lite0', num_classes=n_classes)
    return net.to(memory_format=torch.channels_last)

def head_of(net:nn.Module) -> nn.Linear:
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]

@torch.no_grad()
def logits(net:nn.Module, x:Tensor) -> Tensor:
    "(n, C) of pictures (n, 3, S, S), uint8. Those of a network that broke are finite, too: they can be measured"
    net.eval()
    found = torch.cat([net(as_input(each)) for each in x.split(256)])
    net.train()
    return found.nan_to_num(0., 50., -50.)

# One training

def order(part:Part, epochs:int, seed:int):
    "Indices of each batch, (BATCH,): in every epoch another order; what is left over is left out"
    generator = torch.Generator().manual_seed(200+seed)
    for _ in range(epochs):
        shuffled = part.train[torch.randperm(len(part.train), generator=generator)]
        yield from shuffled[:len(shuffled)//BATCH*BATCH].split(BATCH)

def optimizer_of(net:nn.Module, rate:float, of_head:float) -> torch.optim.Optimizer:
    "AdamW with a `peak` rate for each group of parameters; that of the head is `of_head` times the others'"
    head = list(head_of(net).parameters())
    body = [each for each in net.parameters() if all(each is not other for other in head)]
    groups = [dict(params=body, peak=rate), dict(params=head, peak=rate*of_head)]
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)

def trained(cell:Cell, part:Part, seed:int, rate:float) -> tuple[nn.Module, list[float], float]:
    "A network, validation mAP (CHECKED numbers) while it was trained, seconds of a step"
    torch.manual_seed(seed)
    net = network(cell.way, part.labels.shape[1]).train()
    prior = priors([part])
    row = loss_of(cell.loss, prior)
    if row.starts_at is not None: head_of(net).bias.data = row.starts_at(prior).view(-1)
    optimizer = optimizer_of(net, rate, HEAD[cell.way])
    generator = torch.Generator().manual_seed(300+seed)
    epochs = max(1, round(EPOCHS[cell.way][cell.set]*cell.length))
    steps = epochs*(len(part.train)//BATCH)
    checks = {round(steps*(i+1)/CHECKED) for i in range(CHECKED)}
    curve, seconds = [], 0.
    for step, index in enumerate(order(part, epochs, seed)):
        began = time.process_time()
        for group in optimizer.param_groups: group['lr'] = group['peak']*cycle(step, steps)
        x = as_input(moved(part.features[index], cell.set in MIRRORED, generator))
        optimizer.zero_grad()
        row.loss(net(x)[None], part.labels[index][None]).backward()
        optimizer.step()
        seconds += time.process_time()-began
        if step+1 in checks: curve.append(valid_map(net, part))
    return net, curve, seconds/steps

def valid_map(net:nn.Module, part:Part) -> float:
    "mAP on the validation part by the labels as they are written, in percent"
    z = logits(net, part.features[part.valid])
    return round(100*average_precision(z, part.labels[part.valid] > 0).nanmean().item(), 3)

def run(cell:Cell, part:Part, seed:int, rate:float) -> dict[str, Any]:
    "One training, measured on the test part; whether that counts is decided on the validation part"
    began = time.process_time()
    net, curve, seconds = trained(cell, part, seed, rate)
    z, z_valid = (logits(net, part.features[getattr(part, which)]) for which in ('test', 'valid'))
    return dict(cell._asdict(), seed=seed, rate=rate, curve=curve, test=measured(cell.loss, part, z, z_valid),
        ms=round(1e3*seconds, 2), cpu_s=round(time.process_time()-began, 1), machine=machine())

# The search for the rate

Runs = dict[tuple[float, int], dict]    # by rate and seed

def means_of(runs:Runs, seeds:int) -> dict[float, float]:
    "Mean validation mAP of the rates that all seeds have"
    rates = sorted(rate for rate, seed in runs if seed == 0)
    return {rate: sum(runs[rate, seed]['curve'][-1] for seed in range(seeds))/seeds
        for rate in rates if all((rate, seed) in runs for seed in range(seeds))}

def lacking(runs:Runs, rates:list[float], seeds:int) -> list[tuple[float, int]]:
    """Which (rate, seed) to run next; nothing, if the best rate is known and not at an edge.

    Seed 0 looks where to search: at the first rates, and one beyond the edge while the best lies there. Then all seeds
    run the best rate and its neighbours, and those of whichever is the best of their mean."""
    means = means_of(runs, seeds)
    if not means:
        first = means_of(runs, 1)
        next_rates = [rate for rate in rates if rate not in first] or beyond(first, 1)
        if next_rates: return [(rate, 0) for rate in next_rates]
        means = first
    best = max(means, key=means.__getitem__)
    tried = {rate for rate, _ in runs}
    near = [rate for rate in (best, best/2, 2*best) if rate in tried or len(tried) < MOST_RATES]
    wanted = [(rate, seed) for rate in near for seed in range(seeds)]
    return [each for each in wanted if each not in runs]

def summary(cell:Cell, runs:Runs, seeds:int) -> dict[str, Any]:
    "The cell's record, as experiment.py has it; besides, `sought`: validation mAP of seed 0 at all rates that it tried"
    means = means_of(runs, seeds)
    best = max(means, key=means.__getitem__)
    of_best = [runs[best, seed] for seed in range(seeds)]
    return dict(cell._asdict(), rate=best, edge=best in (min(means), max(means)),
        test=[each['test'] for each in of_best],
        valid={f'{rate:g}': [runs[rate, seed]['curve'][-1] for seed in range(seeds)] for rate in means},
        sought={f'{rate:g}': value for rate, value in means_of(runs, 1).items()},
        curve=[[round(value, 2) for value in each['curve']] for each in of_best],
        ms=min(each['ms'] for each in runs.values()), seeds=seeds,
        cpu_s=round(sum(each['cpu_s'] for each in runs.values()), 1), machine=of_best[-1]['machine'])

# Files

def side_file(out:Path|None) -> Path|None:
    "The file of single runs beside that of cells"
    return out and out.with_suffix('.runs.jsonl')

def runs_in(path:Path|None, cell:Cell) -> Runs:
    "What was run of a cell"
    return {(line['rate'], line['seed']): line for line in lines_of(path) if cell_of(line) == cell}

def work(cells:list[Cell], seeds:int, out:Path|None):
    "Run what the file lacks, cell by cell"
    for cell in cells:
        lock = claimed(out, cell)
        if lock is None or cell in done(out): continue
        data = pictures(cell.set)
        parts = [part_of(data, cell.labels, seed, lambda x, _: x) for seed in range(seeds)]
        runs = runs_in(side_file(out), cell)
        while missing := lacking(runs, RATES[cell.way], seeds):
            rate, seed = missing[0]
            line = run(cell, parts[seed], seed, rate)
            append(side_file(out), line)
            runs[rate, seed] = line
            print(f"{' | '.join(map(str, cell))} | rate {rate:g} | seed {seed} | valid {line['curve'][-1]:.2f} | "
                f"test {line['test']['mAP']:.2f} | {line['cpu_s']:.0f} s", flush=True)
        result = summary(cell, runs, seeds)
        append(out, result)
        print(shown(result), flush=True)

def main():
    options = command_line(__doc__, SEEDS).parse_args()
    torch.set_num_threads(1)
    work(chosen(plan(), options), options.seeds, options.out)

if __name__ == '__main__': main()
