"What every path has to get right: logits, targets and settings by name, and what 50 digits say of them."
import math
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import torch
from mpmath import mpf

import oracle

N, C = 6, 7
inf, nan = math.inf, math.nan
each = torch.linspace(.5, 1.5, C)              # one value per class

def seeded(seed): return torch.Generator().manual_seed(seed)

def randn(*shape, seed=0, scale=4.): return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)*scale

def hard(*shape, seed=1, share=.3): return (torch.rand(shape, generator=seeded(seed)) < share).double()

def soft(*shape, seed=2): return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)

def some(y, value, seed=3, share=.3): return torch.where(torch.rand(y.shape, generator=seeded(seed)) < share, value, y)

@dataclass(frozen=True, eq=False)
class Case:
    "Logits are rounded to a dtype before anybody computes with them"
    name:str
    logits:torch.Tensor
    target:torch.Tensor
    settings:dict[str,Any] = field(default_factory=dict)
    needs:frozenset = frozenset()              # features that a path has to offer

    def __repr__(self): return self.name

    def rounded(self, dtype): return replace(self, logits=self.logits.to(dtype))

    def of(self, name, default, c):
        "A setting at a class"
        value = self.settings.get(name, default)
        if isinstance(value, torch.Tensor) and value.ndim: value = value[c]
        return value.item() if isinstance(value, torch.Tensor) else value

    @cached_property
    def known(self):
        if self.target.dtype == torch.bool: return torch.ones_like(self.target)
        return self.target != self.settings.get('ignore_index', -100)

class Many(Case):
    "Of the multi-label loss"
    @cached_property
    def true(self):
        "Loss of each entry, its gradient, and the size of what that is a difference of; float64"
        names = dict(gamma_neg=4., gamma_pos=1., clip=.05, eps=None, smoothing=0., weight=1., pos_weight=1.)
        detach = self.settings.get('disable_torch_grad_focal_loss', False)
        out = torch.zeros(3, *self.logits.shape, dtype=torch.float64)
        for place in self.known.nonzero().tolist():
            place = tuple(place)
            z, y = self.logits[place].item(), min(max(float(self.target[place].item()), 0.), 1.)
            given = {name: self.of(name, default, place[-1]) for name, default in names.items()}
            loss, gradient = oracle.multi_entry(z, y, **given, detach=detach)
            bare = given | dict(smoothing=0.)
            both = [oracle.multi_entry(z, label, **bare, detach=detach)[1] for label in (0., 1.)]   # times the weights
            s = given['smoothing']
            y = y*(1-s) + s/2
            out[(0, *place)] = float(loss)
            out[(1, *place)] = float(gradient)
            out[(2, *place)] = float(abs((1-mpf(y))*both[0]) + abs(mpf(y)*both[1]))
        return out

class One(Case):
    "Of the single-label loss"
    @cached_property
    def true(self):
        "Loss of each row, (N, ...), gradient of each logit and the size of what that is a difference of, (N, C, ...)"
        C = self.logits.shape[1]
        given = {name: [self.of(name, default, c) for c in range(C)]
            for name, default in dict(gamma_pos=1., gamma_neg=4., weight=1.).items()}
        if self.settings.get('weight') is None: given['weight'] = [1.]*C
        z = self.logits.movedim(1, -1)
        loss = torch.zeros(self.target.shape, dtype=torch.float64)
        gradient, size = (torch.zeros(z.shape, dtype=torch.float64) for _ in range(2))
        for place in self.known.nonzero().tolist():
            place = tuple(place)
            value, slopes, sizes = oracle.single_row(z[place].tolist(), self.target[place].item(), **given,
                eps=self.settings.get('eps', .1))
            loss[place] = float(value)
            gradient[place] = torch.tensor([float(slope) for slope in slopes], dtype=torch.float64)
            size[place] = torch.tensor([float(each) for each in sizes], dtype=torch.float64)
        return loss, gradient.movedim(-1, 1), size.movedim(-1, 1)

def needing(*features): return frozenset(features)

z, y = randn(N, C), hard(N, C)
edge = math.log(.05/.95)
far = torch.tensor([-1e4, -300., -90., -20., 20., 90., 1e4], dtype=torch.float64).expand(N, C)
near = edge + torch.tensor([-1e-2, -1e-6, 0., 1e-7, 1e-4, 1e-2, 1.], dtype=torch.float64).expand(N, C)
one_of_each = torch.tensor([[1., 0.]]).repeat(3, 4)[:, :C].repeat(2, 1).double()
one_of_each[::2] = 1-one_of_each[::2]
per_class = dict(gamma_neg=torch.tensor([0., .3, 1., 2., 4., 7., 2.5]),
    gamma_pos=torch.tensor([0., 2., .5, 1., 0., 3., 1.]),
    clip=torch.tensor([0., .01, .05, .2, .5, .9, .999]))
masked = z.clone()
masked[:, 2] = -inf
masked[:, 5] = inf
right = torch.where(masked == inf, 1., torch.where(masked == -inf, 0., y))
wrong = torch.where(masked == inf, 0., torch.where(masked == -inf, 1., y))
sides = torch.tensor([0., 1., 0., 1., 0., 1., 0.]).double().expand(N, C)

MANY = [
    Many('defaults', z, y),
    Many('cross-entropy', z, y, dict(gamma_neg=0., gamma_pos=0., clip=0.)),
    Many('focal', z, y, dict(gamma_neg=2., gamma_pos=2., clip=None)),
    Many('small gammas', z, y, dict(gamma_neg=.3, gamma_pos=.01, clip=.2)),
    Many('large gammas', z, y, dict(gamma_neg=30., gamma_pos=17., clip=.01)),
    Many('detached', z, y, dict(gamma_pos=0., disable_torch_grad_focal_loss=True)),
    Many('clamped', z, y, dict(eps=1e-2), needing('eps')),
    Many('clamped and detached', z, y, dict(eps=.2, gamma_neg=1., disable_torch_grad_focal_loss=True), needing('eps')),
    Many('smoothed', z, y, dict(smoothing=.1)),
    Many('soft labels', z, soft(N, C), {}, needing('soft')),
    Many('soft and smoothed', z, soft(N, C), dict(smoothing=.3, clip=0.), needing('soft')),
    Many('weights', z, y, dict(weight=each, pos_weight=3*each)),
    Many('one weight', z, y, dict(weight=3., pos_weight=.2)),
    Many('settings per class', z, y, per_class),
    Many('settings and weights per class', z, y, dict(per_class, weight=each, pos_weight=3*each)),
    Many('settings per class, detached', z, y, dict(per_class, disable_torch_grad_focal_loss=True)),
    Many('settings as tensors', z, y, {name: torch.tensor(value) for name, value in dict(gamma_neg=3.5, gamma_pos=.5,
        clip=.97, weight=2., pos_weight=.5).items()}),
    Many('a large margin', randn(N, C, scale=9.), y, dict(clip=.999)),
    Many('a large margin as a tensor', randn(N, C, scale=9.), y, dict(clip=torch.tensor(.999, dtype=torch.float64))),
    Many('far logits', far, one_of_each),
    Many('far logits without a margin', far, one_of_each, dict(gamma_neg=.5, gamma_pos=.5, clip=0.)),
    Many('at the margin', near, one_of_each, dict(gamma_neg=1.)),
    Many('unknown', z, some(y, -100.), {}, needing('unknown')),
    Many('unknown is -1', z, some(y, -1.), dict(ignore_index=-1), needing('unknown')),
    Many('unknown is 0', z-3, y, dict(ignore_index=0), needing('unknown', 'unknown 0')),
    Many('unknown is 1', z-3, y, dict(ignore_index=1), needing('unknown')),
    Many('unknown and smoothed', z, some(y, -100.), dict(smoothing=.2, weight=each), needing('unknown')),
    Many('unknown logits are nan', torch.where(some(y, -100.) == -100, nan, z), some(y, -100.), {}, needing('unknown')),
    Many('mostly easy', z-9, hard(N, C, share=.05)),
    Many('one class', z[:, :1], y[:, :1]),
    Many('one entry', z[:1, :1], y[:1, :1]),
    Many('right at infinity', masked, right),
    Many('wrong at infinity', masked, wrong),
    Many('masked negatives', torch.where(masked == inf, z, masked), torch.where(masked == -inf, 0., y)),
    Many('masked negatives without a margin', torch.where(masked == inf, z, masked), torch.where(masked == -inf, 0., y),
        dict(clip=0., gamma_neg=1.)),
    Many('masked negatives, clamped', torch.where(masked == inf, z, masked), torch.where(masked == -inf, 0., y),
        dict(eps=1e-8), needing('eps')),
    Many('certain positives', torch.where(masked == -inf, z, masked), torch.where(masked == inf, 1., y)),
    Many('right at infinity without a margin', masked, right, dict(clip=0., gamma_neg=2.)),
    Many('wrong at infinity without a margin', masked, wrong, dict(clip=0., gamma_pos=0., weight=each)),
    Many('wrong at infinity, large gammas', masked, wrong, dict(clip=0., gamma_neg=9., gamma_pos=9., pos_weight=50.)),
    Many('right at infinity, no margin as a tensor', masked, right, dict(clip=torch.zeros(C))),
    Many('wrong at infinity, no margin as a tensor', masked, wrong, dict(clip=torch.zeros(()), gamma_neg=0.)),
    Many('clamped at infinity', masked, sides, dict(eps=1e-3, clip=0.), needing('eps')),
    Many('between at infinity', masked, soft(N, C), dict(clip=torch.tensor(.1)), needing('soft')),
    Many('unknown at infinity', masked, some(y, -100., share=1.), {}, needing('unknown')),
]

zs, t = randn(N, C, seed=5), torch.randint(0, C, (N,), generator=seeded(6))
maps, tm = randn(2, C, 2, 3, seed=7), torch.randint(0, C, (2, 2, 3), generator=seeded(8))
without = zs.clone()
without[:, 3] = -inf
t_without = torch.where(t == 3, 4, t)
certain = zs.clone()
certain[:, 3] = inf

ONE = [
    One('defaults', zs, t),
    One('cross-entropy', zs, t, dict(gamma_pos=0., gamma_neg=0., eps=0.)),
    One('smoothed cross-entropy', zs, t, dict(gamma_pos=0., gamma_neg=0., eps=.2)),
    One('no smoothing', zs, t, dict(eps=0.)),
    One('all smoothing', zs, t, dict(eps=1.)),
    One('small gammas', zs, t, dict(gamma_pos=.3, gamma_neg=.5)),
    One('weights', zs, t, dict(weight=each)),
    One('settings per class', zs, t, dict(gamma_pos=each, gamma_neg=3*each, weight=each)),
    One('far logits', zs*30, t),
    One('very far logits', zs*1e3, t),
    One('all far out', zs*4+3e8, t),
    One('all far below', zs*4-3e8, t),
    One('equal logits', torch.zeros(N, C, dtype=torch.float64), t),
    One('maps', maps, tm),
    One('unknown', zs, torch.where(torch.arange(N) % 3 == 0, -100, t)),
    One('unknown is 2', zs, torch.where(torch.arange(N) % 3 == 0, 2, t), dict(ignore_index=2, weight=each)),
    One('unknown logits are nan', torch.where((torch.arange(N) % 3 == 0)[:, None], nan, zs),
        torch.where(torch.arange(N) % 3 == 0, -100, t)),
    One('one class', zs[:, :1], 0*t),
    One('a masked class', without, t_without),
    One('a masked class, no focusing', without, t_without, dict(gamma_pos=0., gamma_neg=0.)),
    One('a masked class, weights', without, t_without, dict(weight=each, gamma_neg=.5)),
    One('masked targets', without, torch.full_like(t, 3), dict(eps=0.)),
    One('masked targets, smoothed', without, torch.full_like(t, 3)),
    One('a certain target', certain, torch.full_like(t, 3)),
    One('a certain other', certain, t_without, dict(eps=0.)),
]

@cache
def in_dtype(case, dtype):
    "The case with rounded logits; what is true of it is computed once"
    return case.rounded(dtype)
