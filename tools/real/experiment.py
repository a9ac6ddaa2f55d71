"""Losses on frozen features of real data: every loss at rates up to where it gets worse, all seeds at once.

    python tools/real/experiment.py --out real.jsonl                      all cells that the file lacks; hours
    python tools/real/experiment.py --out real.jsonl --collect benchmarks/real.json      the record that the page reads
    python tools/real/experiment.py --sets scene --ways linear            some of them, printed
    python tools/real/experiment.py --small                               two minutes, printed

A cell is a set, a way, a kind of labels, a length and a loss: one line of the file. Several processes may work at one
file. nbs/15_real.ipynb says what is done and why, and did so before it was.
"""
import argparse, fcntl, json, platform, re, sys, time
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = map(str, (Path(__file__).parent, Path(__file__).parents[2]))
import torch

from losses import LOSSES, loss_of
from measures import measures
from parts import Part, part_of
from train import of_part, priors, trained

SEEDS = 10                              # each has its own division of the groups, first weights and order
RATES = {'linear': [.002, .004, .008, .016, .032], 'mlp': [.0005, .001, .002, .004, .008]}
MOST_RATES = 12                         # of a loss: while its best is at the edge, two more by factors of 2
EPOCHS = dict(scene=40, yeast=40, enron=40, clipart=20, emoji=20, goemotions=10, imdb=10, debtags=10)
FORGETFUL = ['clipart', 'emoji', 'goemotions', 'debtags']
LABELS = ['kept 25', 'generic forgotten', 'kept 50', 'kept 75', 'wrong 10']
LISTS = 'sets', 'ways', 'labels', 'lengths', 'losses'       # options that choose cells, one for each of their fields
MAIN = ['BCE', 'BCE + prior', 'focal + prior', 'ASL', 'ASL + prior', 'ASL (4, 0) + prior', 'Hill + prior']

class Cell(NamedTuple):
    set: str                            # of EPOCHS
    way: str                            # linear or mlp
    labels: str                         # all, or of LABELS
    length: float                       # epochs, times those of EPOCHS
    loss: str                           # of LOSSES

def plan() -> list[Cell]:
    "All cells, the most important first"
    whole = [Cell(name, way, 'all', 1., loss) for way, name, loss in product(RATES, EPOCHS, LOSSES)]
    forgotten = [Cell(name, 'linear', labels, 1., loss) for labels, name, loss in product(LABELS, FORGETFUL, MAIN)]
    lengths = [Cell(name, way, 'all', length, loss)
        for length, way, name, loss in product([.5, 2.], RATES, FORGETFUL, MAIN)]
    return whole + forgotten + lengths

def beyond(means:dict[float, float], n:int=2) -> list[float]:
    "The n rates to try next, beyond the edge at which the best one lies; of mAP by rate"
    best = max(means, key=means.__getitem__)
    if len(means) >= MOST_RATES: return []
    if best == max(means): return [best*2**i for i in range(1, n+1)]
    return [best/2**i for i in range(n, 0, -1)] if best == min(means) else []

class Tried(NamedTuple):
    "Of a rate, all seeds"
    tensors: list[torch.Tensor]
    curve: torch.Tensor                 # (seeds, checks), mAP on validation

def tested(loss:str, part:Part, tensors) -> dict[str, float]:
    "A model on the test part of its seed"
    return measured(loss, part, *(of_part(tensors, [part], 0, 0, which) for which in ('test', 'valid')))

def measured(loss:str, part:Part, z:torch.Tensor, z_valid:torch.Tensor) -> dict[str, float]:
    "Logits for the test and the validation part, (n, C), that a network has after training with this loss"
    posterior = loss_of(loss, priors([part])).posterior
    p, p_valid = (posterior(each[None])[0] for each in (z, z_valid))
    return measures(z, p, part.true[part.test], z_valid, p_valid, part.labels[part.valid] > 0,
        part.labels[part.train].mean(0), part.written)

def run(cell:Cell, parts:list[Part]) -> dict[str, Any]:
    "Train at rates up to where the validation gets worse on both sides; measure the best on the test part"
    tried, rates, seconds = {}, RATES[cell.way], []
    epochs = max(1, round(EPOCHS[cell.set]*cell.length))
    while rates:
        tensors, curves, each = trained(cell.loss, cell.way, epochs, parts, rates)
        seconds.append(each)
        for i, rate in enumerate(rates):
            models = slice(i*len(parts), (i+1)*len(parts))
            tried[rate] = Tried([tensor.detach()[models].clone() for tensor in tensors], curves[i])
        means = {rate: each.curve[:, -1].nan_to_num(0).mean().item() for rate, each in sorted(tried.items())}
        rates = beyond(means)
    best = max(means, key=means.__getitem__)
    tests = [tested(cell.loss, part, [tensor[seed:seed+1] for tensor in tried[best].tensors])
        for seed, part in enumerate(parts)]
    def percent(curve, digits): return [round(100*value, digits) for value in curve.tolist()]
    return dict(cell._asdict(), rate=best, edge=best in (min(means), max(means)), test=tests,
        valid={f'{rate:g}': percent(tried[rate].curve[:, -1], 3) for rate in means},
        curve=[percent(curve, 2) for curve in tried[best].curve], ms=round(1e3*min(seconds), 5))

def machine() -> dict[str, str]:
    lines = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
    cpu = lines[0].split(':')[1].strip() if lines else platform.machine()
    return dict(cpu=cpu, python=platform.python_version(), torch=torch.__version__, date=str(date.today()))

def lines_of(path:Path|None) -> list[dict]:
    "What a file of lines holds; nothing, if there is no such file"
    return [] if path is None or not path.exists() else [*map(json.loads, path.read_text().splitlines())]

def append(path:Path|None, line:dict):
    if path is None: return
    with open(path, 'a') as file: file.write(json.dumps(line)+'\n')

def cell_of(line:dict) -> Cell: return Cell(*(line[name] for name in Cell._fields))

def done(path:Path|None) -> set[Cell]:
    "The cells that a file has"
    return set(map(cell_of, lines_of(path)))

def claimed(path:Path|None, group:tuple) -> Any:
    "Whether no other process works at these cells of the file: a lock to hold, or None"
    if path is None: return True
    lock = open(path.with_name('.'+path.stem+'-'.join(map(str, group)).replace(' ', '_')+'.lock'), 'w')
    try: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: return None
    return lock

def shown(result:dict) -> str:
    "One line of what came out"
    def mean(name): return sum(test[name] for test in result['test'])/len(result['test'])
    names = 'mAP', 'OF1', 'OF1_posterior', 'ECE', 'ECE_posterior'
    return ' | '.join([*(f'{result[name]}' for name in Cell._fields), f"rate {result['rate']:g}",
        *(f'{name} {mean(name):.2f}' for name in names), f"{result['cpu_s']:.0f} s"])

def work(cells:list[Cell], seeds:int, out:Path|None):
    "Run what the file lacks, set by set"
    from data import load
    for group in dict.fromkeys(cell[:4] for cell in cells):
        lock = claimed(out, group)
        left = [cell for cell in cells if cell[:4] == group and cell not in done(out)]
        if lock is None or not left: continue
        name, _, labels, _ = group
        data = load(name)
        parts = [part_of(data, labels, seed) for seed in range(seeds)]
        for cell in left:
            began = time.process_time()
            result = run(cell, parts)
            result |= dict(seeds=seeds, cpu_s=round(time.process_time()-began, 1), machine=machine())
            append(out, result)
            print(shown(result), flush=True)

def write_record(path:Path, command:str, cells:list[dict], **more):
    "Cells as one JSON, a line each; machines, which many have in common, stand once"
    machines:list[dict] = []
    for each in cells:
        if each['machine'] not in machines: machines.append(each['machine'])
        each['machine'] = machines.index(each['machine'])
    whole = dict(command=command, machines=machines, **more)
    text = ',\n'.join(json.dumps(each, separators=(',', ':')) for each in cells)
    path.write_text(json.dumps(whole, indent=1)[:-2] + ',\n "cells": [\n' + text + '\n]}\n')

def collect(lines:Path, path:Path):
    "The cells of a file of lines as one JSON, in the order of the plan"
    cells = {cell_of(line): line for line in lines_of(lines)}
    planned = plan()
    others = sorted(cells.keys()-set(planned))     # of finetune.py
    found = [cells[cell] for cell in planned+others if cell in cells]
    for each in found:                  # measures by name, each with its seeds
        tests = each['test']
        each['test'] = {name: [round(test[name], 2) for test in tests] for name in tests[0]}
    write_record(path, 'python tools/real/experiment.py --out real.jsonl', found)

def restore(path:Path, lines:Path):
    "The inverse, but for rounding: to the file of lines what it lacks of a record, so that a run can go on from that"
    record = json.loads(path.read_text())
    have = done(lines)
    for cell in record['cells']:
        if cell_of(cell) in have: continue
        tests = [dict(zip(cell['test'], values)) for values in zip(*cell['test'].values())]
        append(lines, cell | dict(test=tests, machine=record['machines'][cell['machine']]))

def command_line(about:str, seeds:int) -> argparse.ArgumentParser:
    "What both programs are told"
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='append to this file, and skip what it has')
    for name in LISTS: parser.add_argument('--'+name, help='only these, commas between')
    parser.add_argument('--seeds', type=int, default=seeds)
    return parser

def chosen(cells:list[Cell], options:argparse.Namespace) -> list[Cell]:
    "Those that the command line asks for"
    asked = [getattr(options, name) for name in LISTS]
    def wanted(value, only):
        if only is None: return True
        name = f'{value:g}' if isinstance(value, float) else value
        return name in re.split(',(?! )', only)                 # a comma in the name of a loss has a space behind it
    return [cell for cell in cells if all(map(wanted, cell, asked))]

def main():
    parser = command_line(__doc__, SEEDS)
    parser.add_argument('--collect', type=Path, help='instead of running, write the lines of --out as one JSON')
    parser.add_argument('--restore', type=Path, help='the inverse: append to --out what it lacks of such a JSON')
    parser.add_argument('--small', action='store_true', help='scene and yeast, linear, three seeds')
    options = parser.parse_args()
    if options.collect: return collect(options.out, options.collect)
    if options.restore: return restore(options.restore, options.out)
    if options.small: options.sets, options.ways, options.lengths, options.seeds = 'scene,yeast', 'linear', '1', 3
    torch.set_num_threads(1)
    work(chosen(plan(), options), options.seeds, options.out)

if __name__ == '__main__': main()
