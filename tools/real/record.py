"""The records of the experiments on real data and on collages, asked for numbers by set, way, loss and so on"""
import copy, json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .judge import Verdict, over_seeds, over_sets

WAYS = 'linear', 'mlp'
Seeds = np.ndarray                      # one number a seed
Block = tuple[str, str]                 # set, way

class Record:
    "What was run so far. Whatever is asked for and was not run is None"
    def __init__(self, path:Path|str):
        found = json.loads(Path(path).read_text(encoding='utf-8'))
        self.machines: list[dict] = found['machines']
        self.command: str = found['command']
        self.cells = {tuple(cell[name] for name in ('set', 'way', 'labels', 'length', 'loss')): cell
            for cell in found['cells']}

    def __or__(self, other:'Record') -> 'Record':
        "The same, but for the cells that another record has as well: those are the other's"
        merged = copy.copy(self)
        merged.cells = self.cells | other.cells
        return merged

    def cell(self, block:Block, loss:str, labels='all', length=1.) -> dict|None:
        return self.cells.get((*block, labels, length, loss))

    def test(self, measure:str, block:Block, loss:str, labels='all', length=1.) -> Seeds|None:
        "A measure on the test part"
        cell = self.cell(block, loss, labels, length)
        return np.array(cell['test'][measure]) if cell else None

    def rates(self, block:Block, loss:str) -> list[float]:
        "All that were tried"
        cell = self.cell(block, loss)
        return sorted(map(float, cell['valid'])) if cell else []

    def at_rate(self, rate:float, block:Block, loss:str) -> Seeds|None:
        "mAP on the validation part at a rate"
        cell = self.cell(block, loss)
        seeds = cell['valid'].get(f'{rate:g}') if cell else None
        return None if seeds is None else np.array(seeds)

    def curve(self, block:Block, loss:str) -> np.ndarray|None:
        "(seeds, moments): the same at the chosen rate, while it learns"
        cell = self.cell(block, loss)
        return np.array(cell['curve']) if cell else None

    def less(self, loss:str, rival:str, measure='mAP', of_rival=None, labels='all', length=1.):
        "How a measure of a loss differs from one of its rival, a function of the block"
        def difference(block):
            return minus(self.test(measure, block, loss, labels, length),
                self.test(of_rival or measure, block, rival, labels, length))
        return difference

    def less_at_rate(self, loss:str, rival:str, rate:Callable[[Block], float|None]):
        "How their validation mAP differs, both at the rate of a block"
        def difference(block):
            here = rate(block)
            return None if here is None else minus(self.at_rate(here, block, loss), self.at_rate(here, block, rival))
        return difference

    def drop(self, loss:str, factor:float):
        "What a loss loses if its rate is its best one times a factor; in validation mAP"
        def difference(block):
            cell = self.cell(block, loss)
            if not cell: return None
            return minus(self.at_rate(cell['rate'], block, loss), self.at_rate(factor*cell['rate'], block, loss))
        return difference

class CollageRecord:
    "What was run so far of collages.py"
    def __init__(self, path:Path|str, seeds:int=3):
        found = json.loads(Path(path).read_text(encoding='utf-8'))
        self.machines: list[dict] = found['machines']
        self.command: str = found['command']
        self.situations: dict[str, dict] = found['situations']
        self.seeds = seeds
        self.cells:dict[tuple[str, str], dict[float, dict]] = {}       # by situation and loss, and then by rate
        for cell in found['cells']: self.cells.setdefault((cell['situation'], cell['loss']), {})[cell['rate']] = cell

    def whole(self, name:str, *losses:str) -> bool:
        "Has each loss been run by every seed, up to where it gets worse on both sides?"
        for loss in losses:
            cells = self.cells.get((name, loss), {})
            if len(cells) < 3 or any(len(cell['seed']) < self.seeds for cell in cells.values()): return False
            if self.chosen(name, loss) in (min(cells), max(cells)): return False
        return True

    def means(self, name:str, loss:str, part='test') -> dict[float, float]:
        "mAP by rate, mean of the seeds"
        return {rate: float(np.mean(cell[part])) for rate, cell in sorted(self.cells[name, loss].items())}

    def chosen(self, name:str, loss:str) -> float:
        "The rate with the best mean on the validation part"
        valid = self.means(name, loss, 'valid')
        return max(valid, key=valid.__getitem__)

    def best(self, name:str, loss:str) -> dict:
        "The cell of that rate"
        return self.cells[name, loss][self.chosen(name, loss)]

    def lead(self, name:str, loss='ASL + prior', rival='BCE + prior') -> Seeds:
        "The difference in test mAP, each at its own best rate"
        return np.array(self.best(name, loss)['test'])-np.array(self.best(name, rival)['test'])

Difference = Callable[[Block], Seeds|None]

def minus(a:Seeds|None, b:Seeds|None) -> Seeds|None:
    return None if a is None or b is None else a-b

def both(a:Difference, b:Difference) -> Difference:
    "The one less the other, where both are known"
    return lambda block: minus(a(block), b(block))

def by_block(difference:Difference, sets, ways=WAYS, **judged) -> dict[Block, Verdict]:
    "The judgement on each set and way of which there is one"
    blocks = {(name, way): difference((name, way)) for way in ways for name in sets}
    return {block: over_seeds(seeds, **judged) for block, seeds in blocks.items() if seeds is not None}

def by_set(difference:Difference, sets, ways=WAYS) -> dict[str, float]:
    "The mean difference of each set, its ways averaged"
    means = {}
    for name in sets:
        found = [np.nanmean(seeds) for way in ways if (seeds := difference((name, way))) is not None]
        if found: means[name] = float(np.mean(found))
    return means

def overall(difference:Difference, sets, ways=WAYS) -> Verdict|None:
    "The judgement over sets"
    means = [*by_set(difference, sets, ways).values()]
    return over_sets(means) if means else None

class PrintedRecord:
    "Of real_gpu.json one set and way: mAP of each training, and the rate that validation chose for each loss"
    def __init__(self, path, block:Block):
        whole = json.loads(Path(path).read_text())
        def of_block(rows): return [row for row in rows if (row['set'], row['way']) == block]
        self.rates = {row['loss']: row['rate'] for row in of_block(whole['means'])}
        self.runs = {(row['loss'], row['rate'], row['seed']): row for row in of_block(whole['runs'])}
        self.seeds = sorted({seed for _, _, seed in self.runs})

    def maps(self, loss:str, part:str='test', rate:float|None=None):
        "By seed, at the chosen rate if none is said"
        return np.array([self.runs[loss, rate or self.rates[loss], seed][part] for seed in self.seeds])

    def less(self, loss:str, rival:str) -> Verdict:
        "The judgement on the difference, each at its own rate"
        return over_seeds(self.maps(loss)-self.maps(rival))
