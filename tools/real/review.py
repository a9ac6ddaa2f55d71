"""Which labels are missing or wrong? Noise put in on purpose, and how well it is found again.

    python tools/real/review.py --out benchmarks/review.json      all of it, in minutes
    python tools/real/review.py --sets scene --seeds 1            some of it, printed

Of each set's labels 15 % of the positives are dropped, and so many are added that 5 % of what is written is wrong: of
each class in proportion to it, or anywhere among the absent ones. A linear layer on frozen features judges every sample
out of fold. Within missing labels and within wrong ones, a loss ranks as its posterior does, and so do cleanlab's
self-confidence and normalised margin (Thyagarajan et al. 2022, arXiv 2211.13895, written anew from the paper): of two
classes, both are functions of the posterior of what is written. They differ where both kinds stand in one list, and
where samples are ranked instead of labels.
"""
import argparse, json, sys, time
from pathlib import Path

sys.path[:0] = map(str, (Path(__file__).parent, Path(__file__).parents[2]))
import torch
from torch import Tensor

from asl import AsymmetricLossMultiLabel, class_prior
from asl.training import review
from experiment import machine
from measures import average_precision
from parts import divided

SETS = 'emoji', 'clipart', 'scene', 'yeast', 'goemotions'
LOOP = 'emoji', 'clipart', 'goemotions'
KINDS = 'by class', 'anywhere'         # how wrong labels are added
DROPPED, ADDED = .15, .05
FOLDS = 5
BUDGETS = 200, 1000                    # entries that somebody looks at
TOP = 50, 200
LOSSES = dict(ASL=AsymmetricLossMultiLabel(reduction='batchmean'),
    BCE=AsymmetricLossMultiLabel(0, 0, 0, reduction='batchmean'))

# Noise

def noisy(true:Tensor, kind:str, seed:int):
    "Labels as somebody wrote them, and which entries are wrong, (n, C) bool: dropped, added"
    g = torch.Generator().manual_seed(1000+seed)
    dropped = true & (torch.rand(true.shape, generator=g) < DROPPED)
    share = true.float().mean(0 if kind == 'by class' else None)
    added = ~true & (torch.rand(true.shape, generator=g) < ADDED*share/(1-share))
    return true & ~dropped | added, dropped, added

def folds_of(groups:Tensor, seed:int) -> Tensor:
    "A fold for each sample; no group is in two"
    names, group = groups.unique(return_inverse=True)
    return (torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)) % FOLDS)[group]

# Measures

def auroc(scores:Tensor, wrong:Tensor) -> float:
    "How often a wrong entry stands above a right one; ties count half"
    _, place, count = scores.unique(return_inverse=True, return_counts=True)
    rank = (count.cumsum(0).double()-(count.double()-1)/2)[place]
    n = wrong.sum().item()
    return ((rank[wrong].sum()-n*(n+1)/2)/(n*(len(wrong)-n))).item()

def found(scores:Tensor, wrong:Tensor) -> dict[str, float]:
    "AUROC, precision of the first, and what chance is, in percent"
    order = scores.argsort(descending=True, stable=True)
    numbers = dict(auroc=auroc(scores, wrong), chance=wrong.float().mean().item())
    numbers |= {f'precision_{k}': wrong[order[:k]].float().mean().item() for k in TOP}
    return {name: round(100*value, 2) for name, value in numbers.items()}

def given(p:Tensor, written:Tensor) -> Tensor:
    "The posterior of what is written: cleanlab's self-confidence"
    return torch.where(written, p, 1-p)

def adjusted(p:Tensor, written:Tensor) -> Tensor:
    "The same less its mean over the entries of the class that are written so, as confident learning has it"
    own = given(p, written)
    means = [(own*mask).sum(0)/mask.sum(0).clamp(min=1) for mask in (written, ~written)]
    return own - torch.where(written, *means)

def averaged(scores:Tensor, alpha:float=.8) -> Tensor:
    "A score for each sample: an exponential average from its best class to its worst, which counts most"
    ordered = scores.sort(1, descending=True)[0]
    total = ordered[:, 0]
    for each in ordered.T[1:]: total = alpha*each + (1-alpha)*total
    return total

def loss_of_entries(p:Tensor, written:Tensor, loss) -> Tensor:
    "The loss of what is written, at the logits that mean p"
    grid = torch.linspace(-30, 30, 20_001)
    place = torch.searchsorted(loss.posterior(grid[:, None])[:, 0].contiguous(), p).clamp(max=len(grid)-1)
    each = AsymmetricLossMultiLabel(loss.gamma_neg, loss.gamma_pos, loss.clip, reduction='none')
    return each(grid[place], written.float())

def ours(p:Tensor, written:Tensor) -> Tensor:
    "Missing and wrong labels in turn, as the page shows them: the rank within the own kind, less is more suspect"
    share = class_prior(written.float())
    rank = torch.empty(p.shape)
    for mask, scores in ((~written, p), (written, share/p.clamp(min=1e-9))):
        own = scores[mask]
        rank[mask] = own.argsort(descending=True, stable=True).argsort().float()
    return rank

def in_sample(x:Tensor, y:Tensor, loss) -> Tensor:
    "Posteriors of a layer that was trained on all, penalised as the third step"
    x = review.components(x)
    head = review._new_head(x, y, loss)
    for penalty in review.PENALTIES[:4]: review._taught(x, y, loss, penalty, head)
    with torch.no_grad(): return loss.posterior(head(x))

# Finding

def rankings(p:dict[str, Tensor], known:dict[str, Tensor], written:Tensor) -> dict:
    "Scores by list and name; the highest are the most suspect"
    share = class_prior(written.float())
    lists = {each: {} for each in ('missing', 'wrong', 'both', 'samples')}
    for loss, own in p.items():
        lists['missing'] |= {f'{loss} posterior': own, f'{loss} posterior/share': own/share,
            f'{loss} adjusted': -adjusted(own, written), f'{loss} posterior, in sample': known[loss]}
        lists['wrong'] |= {f'{loss} share/posterior': share/own.clamp(min=1e-9), f'{loss} 1-posterior': 1-own,
            f'{loss} adjusted': -adjusted(own, written),
            f'{loss} share/posterior, in sample': share/known[loss].clamp(min=1e-9)}
        lists['both'] |= {f'{loss} in turn': -ours(own, written), f'{loss} self-confidence': -given(own, written),
            f'{loss} adjusted': -adjusted(own, written), f'{loss} loss': loss_of_entries(own, written, LOSSES[loss])}
        lists['samples'] |= {f'{loss} first in turn': -ours(own, written).amin(1),
            f'{loss} least self-confidence': -given(own, written).amin(1),
            f'{loss} averaged self-confidence': -averaged(given(own, written)),
            f'{loss} averaged, adjusted': -averaged(adjusted(own, written)),
            f'{loss} loss': loss_of_entries(own, written, LOSSES[loss]).sum(1)}
    return lists

def finding(data, kind:str, seed:int) -> dict:
    "How well each score finds what was done to a set"
    written, dropped, added = noisy(data.labels, kind, seed)
    y = written.float()
    fold = folds_of(data.groups, seed)
    p = {name: review.out_of_fold(data.features, y, fold, loss) for name, loss in LOSSES.items()}
    known = {name: in_sample(data.features, y, loss) for name, loss in LOSSES.items()}
    lists = rankings(p, known, written)
    wrong = dict(missing=dropped, wrong=added, both=dropped | added)
    among = dict(missing=~written, wrong=written, both=torch.ones_like(written))
    rows = {name: {score: found(values[among[name]], mask[among[name]]) for score, values in lists[name].items()}
        for name, mask in wrong.items()}
    rows['samples'] = {score: found(values, (dropped | added).any(1)) for score, values in lists['samples'].items()}
    return rows

def omissions(data, seed:int) -> dict:
    "How well real omissions are found: what another vocabulary says of emoji and this one does not"
    fold = folds_of(data.groups, seed)
    absent = ~data.labels & data.in_second
    rows = {}
    for name, loss in LOSSES.items():
        p = review.out_of_fold(data.features, data.labels.float(), fold, loss)
        rows |= {f'{name} posterior': found(p[absent], data.second[absent]),
            f'{name} posterior/share': found((p/data.labels.float().mean(0))[absent], data.second[absent])}
    return rows

# Correcting

def corrected(written:Tensor, true:Tensor, looks) -> Tensor:
    "Labels after somebody has looked at these entries"
    y = written.clone()
    rows, columns = looks
    y[rows, columns] = true[rows, columns]
    return y

def looks_of(p:Tensor, written:Tensor, budget:int, how:str, generator):
    "Entries to look at, half of them written absent: as the page shows them, by self-confidence, or at random"
    chosen = []
    share = class_prior(written.float())
    for mask, in_page in ((~written, p), (written, share/p.clamp(min=1e-9))):
        scores = dict(page=in_page, confidence=1-given(p, written)).get(how)
        if scores is None: scores = torch.rand(p.shape, generator=generator)
        place = mask.flatten().nonzero()[:, 0]
        chosen.append(place[scores[mask].argsort(descending=True, stable=True)[:budget//2]])
    place = torch.cat(chosen)
    return place//p.shape[1], place % p.shape[1]

def score_of(data, labels:Tensor, train:Tensor, test:Tensor, fold:Tensor) -> float:
    "mAP of true labels in the test part, of an ASL layer that these labels of the training part have taught"
    loss = LOSSES['ASL']
    y = torch.cat([labels.float(), torch.full((len(test), labels.shape[1]), -100.)])
    x = data.features[torch.cat([train, test])]
    last = torch.cat([fold, torch.full((len(test),), FOLDS)])       # the test part is a fold that teaches nothing
    p = review.out_of_fold(x, y, last, loss)[len(train):]
    return 100*average_precision(p, data.labels[test]).nanmean().item()

def loop(data, seed:int) -> dict:
    "What it is worth to correct what is found, in mAP of a test part without noise"
    train, valid, test = divided(data.groups, seed)
    train = torch.cat([train, valid])
    true = data.labels[train]
    written, *_ = noisy(true, 'by class', seed)
    fold = folds_of(data.groups[train], seed)
    def value(labels): return score_of(data, labels, train, test, fold)
    rows = {'as written': dict(mAP=value(written)), 'all corrected': dict(mAP=value(true))}
    for name, loss in LOSSES.items():
        p = review.out_of_fold(data.features[train], written.float(), fold, loss)
        for how in ('page', 'confidence', 'random')[:3 if name == 'ASL' else 1]:
            for budget in BUDGETS:
                g = torch.Generator().manual_seed(seed)
                looks = looks_of(p, written, budget, how, g)
                label = f"{how if how == 'random' else f'{name} {how}'}, {budget} looks"
                right = (written != true)[looks].sum().item()
                rows[label] = dict(mAP=value(corrected(written, true, looks)), found=right)
    return {name: {measure: round(number, 2) for measure, number in row.items()} for name, row in rows.items()}

# All of it

def cells(sets, seeds):
    "What there is to do: a name, and a function of the set and a seed"
    for seed in range(seeds):
        for name in sets:
            for kind in KINDS: yield name, f'found, added {kind}', seed, lambda data, s, k=kind: finding(data, k, s)
            if name == 'emoji': yield name, 'omissions', seed, omissions
            if name in LOOP and not seed: yield name, 'loop', seed, loop      # takes the longest

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sets', default=','.join(SETS))
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--out', type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    from data import load
    began = time.process_time()
    kept = {}
    lines = []
    for name, what, seed, do in cells(options.sets.split(','), options.seeds):
        if name not in kept: kept = {name: load(name)}
        start = time.process_time()
        line = dict(set=name, what=what, seed=seed, rows=do(kept[name], seed))
        lines.append(line)
        print(f'{name}, {what}, seed {seed}: {time.process_time()-start:.0f} s', flush=True)
        if options.out: write_record(options, lines, began)
        else: print(json.dumps(line['rows'], indent=1))

def write_record(options, lines, began):
    "What is done so far"
    record = dict(command=f'python tools/real/review.py --sets {options.sets} --seeds {options.seeds}',
        machine=machine(), cpu_s=round(time.process_time()-began), dropped=DROPPED, added=ADDED, folds=FOLDS)
    text = ',\n'.join(json.dumps(line) for line in lines)
    options.out.write_text(json.dumps(record, indent=1)[:-2] + ',\n "cells": [\n' + text + '\n]}\n')

if __name__ == '__main__': main()
