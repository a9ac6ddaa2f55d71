"""Losses on networks that see the pictures themselves, at 64 pixels: fine-tuned from ImageNet, and from scratch.

    python tools/real/finetune.py --out real.jsonl                        all cells that the file lacks; hours
    python tools/real/finetune.py --out real.jsonl --sets clipart --ways scratch --losses 'BCE + prior,ASL + prior'

Cells, rules and records are those of experiment.py, and the file may be the same; experiment.py --collect has both.
Each training is a line of real.runs.jsonl as soon as it is over, so that a stopped process loses one at most. Several
processes may work at one file. Needs the sets that `python tools/real/data.py clipart emoji` builds. `--gpu 15` lets a
GPU have 15 trainings at once.
"""
from itertools import product
from pathlib import Path
from typing import Any

import torch

from experiment import MOST_RATES, Cell, append, beyond, cell_of, chosen, claimed, command_line, done, lines_of, shown
from networks import EPOCHS, Training, pictures, run
from parts import part_of

SEEDS = 3
RATES = {'fine-tuned': [.0005, .001, .002], 'scratch': [.005, .01, .02], 'scratch Lite0': [.001, .002, .004]}
LOSSES = ['BCE + prior', 'ASL + prior', 'BCE', 'ASL (4, 0) + prior']

def plan() -> list[Cell]:
    "All cells, the most important first"
    whole = [Cell(name, way, 'all', 1., loss) for way in EPOCHS for name, loss in product(EPOCHS[way], LOSSES)]
    lengths = [Cell('clipart', 'scratch', 'all', length, loss) for length, loss in product([.5, 2.], LOSSES[:2])]
    return whole + lengths

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

def work(cells:list[Cell], seeds:int, out:Path|None, kind:type[Training]=Training, together:int=1):
    "Run what the file lacks, cell by cell, so many trainings at once"
    for cell in cells:
        lock = claimed(out, cell)
        if lock is None or cell in done(out): continue
        data = pictures(cell.set)
        parts = [part_of(data, cell.labels, seed, lambda x, _: x) for seed in range(seeds)]
        runs = runs_in(side_file(out), cell)
        while missing := lacking(runs, RATES[cell.way], seeds):
            for line in run(cell, parts, missing[:together], kind):
                append(side_file(out), line)
                runs[line['rate'], line['seed']] = line
                print(f"{' | '.join(map(str, cell))} | rate {line['rate']:g} | seed {line['seed']} | valid "
                    f"{line['curve'][-1]:.2f} | test {line['test']['mAP']:.2f} | {line['cpu_s']:.0f} s", flush=True)
        result = summary(cell, runs, seeds)
        append(out, result)
        print(shown(result), flush=True)

def main():
    parser = command_line(__doc__, SEEDS)
    parser.add_argument('--gpu', type=int, default=0, metavar='N', help='on a GPU, N trainings at once')
    options = parser.parse_args()
    torch.set_num_threads(1)
    kind = Training
    if options.gpu: from on_gpu import Graphed as kind
    work(chosen(plan(), options), options.seeds, options.out, kind, options.gpu or 1)

if __name__ == '__main__': main()
