"""The parts of a set for a seed: what is trained on, and what people wrote of it"""
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SHARES = .6, .15, .25                   # of the groups: training, validation, test
DIMS = 128                              # principal components of the training features

def share_kept(y:Tensor, overall:float) -> Tensor:
    "Of each class the share that is written: the less the more common it is, and so much of all"
    n = y.sum(0).float().clamp(min=1)
    low, high = 0., float(n.max())
    for _ in range(60):
        a = (low+high)/2
        kept = (a/n.sqrt()).clamp(max=1)
        if (kept*n).sum()/n.sum() < overall: low = a
        else: high = a
    return kept

def written_share(y:Tensor, kind:str) -> Tensor:
    "The share of the positives of each class that is written down, (C,)"
    if kind.startswith('kept'): return torch.full(y.shape[1:], float(kind.split()[1])/100)
    return share_kept(y, .5) if kind == 'generic forgotten' else torch.ones(y.shape[1])

def corrupted(y:Tensor, kind:str, generator:torch.Generator) -> Tensor:
    "Labels (n, C), bool, as they are written down"
    drawn = torch.rand(y.shape, generator=generator)
    if kind == 'wrong 10': return y | (drawn < .1*y.float().mean(0))       # of each class a tenth more, at random
    return y & (drawn < written_share(y, kind))

class Part(NamedTuple):
    features: Tensor                    # (n, d), standardised by the training part
    train: Tensor                       # indices
    valid: Tensor
    test: Tensor
    labels: Tensor                      # (n, C) as written, float
    true: Tensor                        # (n, C) bool
    written: Tensor                     # (C,): of each class the share of the positives that is written

def divided(groups:Tensor, seed:int, shares:tuple[float, ...]=SHARES) -> list[Tensor]:
    "Indices of the three parts; no group is in two"
    names, group = groups.unique(return_inverse=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(names)).scatter_(0, order, torch.arange(len(names)).float())/len(names)
    share = place[group]
    return [((low <= share) & (share < high)).nonzero().view(-1)
        for low, high in ((0, shares[0]), (shares[0], shares[0]+shares[1]), (shares[0]+shares[1], 2))]

def components(x:Tensor, train:Tensor) -> Tensor:
    "The first principal components of the training features, of mean square 1"
    x = x-x[train].mean(0)
    if x.shape[1] <= DIMS: x = x/x[train].std(0).clamp(min=1e-6)
    else:
        directions = torch.linalg.eigh((x[train].mT@x[train]).double()).eigenvectors[:, -DIMS:].float()
        x = x@directions
    return x/x[train].square().mean().sqrt()

def part_of(data, labels:str, seed:int, prepared:Callable=components, shares:tuple[float, ...]=SHARES) -> Part:
    "Of a RealSet; its features are prepared as they are for a linear layer, if nothing else is said"
    train, valid, test = divided(data.groups, seed, shares)
    written = corrupted(data.labels, labels, torch.Generator().manual_seed(1000+seed))
    return Part(prepared(data.features, train), train, valid, test, written.float(), data.labels,
        written_share(data.labels, labels))
