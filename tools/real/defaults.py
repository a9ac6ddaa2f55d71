"""How asl_train does with few images and known weights: what its defaults for these rest on.

    python tools/real/defaults.py --out defaults.jsonl                    all runs that the file lacks; an hour
    python tools/real/defaults.py --out defaults.jsonl --collect benchmarks/defaults.json

A run is the command itself: EfficientNet-Lite0 with its ImageNet weights, on 400 pictures with the 25 commonest labels
of a set, judged on 400 others of other groups. A seed is another choice of pictures, another head and another order.
Needs the sets that `python tools/real/data.py clipart emoji` builds.
"""
import argparse, csv, json, sys, tempfile, time
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = map(str, (Path(__file__).parent, Path(__file__).parents[2]))
import torch

from experiment import append, lines_of, machine, write_record
from parts import divided

SEEDS = 3
IMAGES = 400                            # to train on, and as many to judge on
CLASSES = 25
SETS = 'clipart', 'emoji'
SIDE = 64                               # pixels: emoji have no more

class Run(NamedTuple):
    set: str                            # of SETS
    freeze: str                         # --freeze
    lr: float                           # --lr
    layer_decay: float|None             # --layer_decay
    epochs: int                         # --epochs
    seed: int

SETTINGS = [                            # freeze, lr, layer_decay, epochs
    ('0', .001, None, 20), ('3', .001, None, 20), ('head', .001, None, 20), ('0', .001, None, 10),
    ('3', .001, None, 10), ('0', .001, None, 5), ('3', .001, None, 5), ('head', .001, None, 5),
    ('0', .003, None, 20), ('0', .001, .75, 20)]

def plan() -> list[Run]:
    return [Run(name, *setting, seed) for seed, setting, name in product(range(SEEDS), SETTINGS, SETS)]

def write_tables(name:str, seed:int, folder:Path) -> tuple[Path, Path]:
    "Pictures to train on, and those to judge on, as CSV files"
    from data import load
    data = load(name)
    commonest = data.labels.sum(0).topk(CLASSES).indices.sort().values.tolist()
    parts = divided(data.groups, seed)
    paths = folder/'train.csv', folder/'valid.csv'
    for path, part in zip(paths, (parts[0], parts[2])):
        chosen = part[torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))][:IMAGES].tolist()
        with open(path, 'w', newline='') as file:
            rows = csv.writer(file)
            rows.writerow(['file', *(data.classes[c] for c in commonest)])
            rows.writerows([data.items[i], *data.labels[i, commonest].int().tolist()] for i in chosen)
    return paths

def weights_file(folder:Path) -> Path:
    "Lite0's weights by the names of timm's model"
    import timm
    from real.features import as_timm_names, lite0_weights
    from safetensors.torch import save_file
    weights = as_timm_names(timm.create_model('tf_efficientnet_lite0'), lite0_weights())
    path = folder/'lite0.safetensors'
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path

def result_of(run:Run, folder:Path) -> dict[str, Any]:
    "Train, and read what the run folder says"
    from asl.train import train
    labels, valid = write_tables(run.set, run.seed, folder)
    options = {name: value for name, value in run._asdict().items() if name != 'set' and value is not None}
    began = time.process_time()
    with open(folder/'log', 'w') as log, redirect_stdout(log):
        out = train(labels, valid=valid, images='/', model='tf_efficientnet_lite0', weights=weights_file(folder),
            size=SIDE, batch_size=64, threads=1, workers=0, device='cpu', out=folder/'runs', **options)
    records = [json.loads(line) for line in (out/'metrics.jsonl').read_text().splitlines()]
    return dict(run._asdict(), curve=[round(record['mAP'], 3) for record in records],
        cpu_s=round(time.process_time()-began, 1), machine=machine())

def run_of(line:dict) -> Run: return Run(*(line[name] for name in Run._fields))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='append to this file, and skip what it has')
    parser.add_argument('--collect', type=Path, help='instead of running, write the lines of --out as one JSON')
    options = parser.parse_args()
    have = {run_of(line): line for line in lines_of(options.out)}
    if options.collect:
        found = [have[run] for run in plan() if run in have]
        return write_record(options.collect, 'python tools/real/defaults.py --out defaults.jsonl', found)
    for run in plan():
        if run in have: continue
        with tempfile.TemporaryDirectory() as folder: result = result_of(run, Path(folder))
        append(options.out, result)
        print(*run, f"mAP {result['curve'][-1]:.2f}, {result['cpu_s']:.0f} s", flush=True)

if __name__ == '__main__': main()
