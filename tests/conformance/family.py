"""The members of the family, and how a loss becomes one: a `Member` has every path and every case, and `laws` are those
of this folder, for the module that asks for them. A loss of one's own goes the same way, as in test_own_member."""
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib import import_module
from typing import Any

import torch

import family_oracle as oracle
import paths
from asl import family
from asl.linear import linear_loss
from asl.ops import tiles
from cases import C, Case, far, hard, masked, near, needing, one_of_each, randn, right, soft, some, wrong, y, z
from paths import ASYMMETRIC, BUDGET, Path, lacking

each = torch.linspace(.5, 1.5, C)

@dataclass(frozen=True, eq=False)
class Member:
    "A loss of the family: how it is made of settings, and its two functions in mpmath; parameters to try it with"
    name:str
    make:Callable[..., Any]
    positive:Callable[..., Any]
    negative:Callable[..., Any]
    parameters:tuple[dict, ...] = ({},)
    exported:bool = True               # not where PyTorch takes the derivative: no exporter follows that

    def __repr__(self): return self.name

    def loss(self, z, target, **settings): return self.make(**settings)(z, target)

COMMON = dict(shift=0., neg_scale=1., smoothing=0., weight=1., pos_weight=1.)

@dataclass(frozen=True, eq=False, repr=False)
class Entries(Case):
    "Of a member"
    member:Any = None

    @cached_property
    def true(self):
        "Loss of each entry, its gradient, and the size of what that is a difference of; float64"
        names = COMMON | {name: None for name in self.settings if name not in ('ignore_index', 'reduction')}
        out = torch.zeros(3, *self.logits.shape, dtype=torch.float64)
        for place in self.known.nonzero().tolist():
            place = tuple(place)
            given = {name: self.of(name, default, place[-1]) for name, default in names.items()}
            found = oracle.entry(self.member.positive, self.member.negative, self.logits[place].item(),
                self.target[place].item(), **given)
            for row, value in zip(out, found): row[place] = float(value)
        return out

# Paths
def compiled(make):
    "By torch.compile, the module as it is"
    def run(z, target, **settings):
        torch.compiler.reset()
        return torch.compile(make(**settings), backend='aot_eager', fullgraph=True)(z, target)
    return run

def head(make, z, target, convert=lambda target: target, target_kind=None, compiled=False, **settings):
    "A head in tiles"
    if compiled: torch.compiler.reset()                        # after eight losses the compiler would stop to compile
    return linear_loss(*paths.as_head(z), None, convert(target), make(**settings), target_kind=target_kind,
        budget=BUDGET, compiled=compiled)

@cache
def traced_tile():
    "What a compiled head computes its tiles with, traced as for the real compiler, which takes long"
    return torch.compile(tiles._all_at_once, backend='aot_eager', dynamic=True)

TRACED = ((tiles, '_compiled_at_once', traced_tile),)

def paths_of(member:Member) -> list[Path]:
    "Every way in which a loss of the family is computed"
    loss, a_head = member.loss, partial(head, member.make)
    def tiled(**given): return paths.of_rows(partial(a_head, **given))
    def of(name, loss, constants=(), *lacks):
        return Path(f'{member}, {name}', loss, constants, ASYMMETRIC | lacking(*lacks), member.loss)
    of_heads = 'none', 'second', 'target', 'dtypes', 'layouts'
    return paths.on_this_device([
        of(paths.DEVICE, loss),
        of('in blocks', loss, paths.BLOCKS),
        of('plain', loss, paths.PLAIN),
        of('torch.func', paths.transformed(loss), (), 'second', 'target', 'raises'),
        of('compiler', compiled(member.make), (), 'second', 'target', 'quick', 'infinite', 'half'),
        of('head, dense', tiled(), (), *of_heads),
        of('head, indices', tiled(convert=paths.listed, target_kind='indices'), (), *of_heads, 'soft', 'unknown',
            'raises'),
        of('head, COO', tiled(convert=partial(paths.stored, layout='coo')), (), *of_heads, 'unknown 0'),
        of('head, CSR', tiled(convert=partial(paths.stored, layout='csr')), (), *of_heads, 'unknown 0'),
        of('head, compiled', tiled(compiled=True), TRACED, *of_heads, 'slow', 'quick', 'infinite'),
    ])

# Cases
moved = torch.cat([(randn(4, C, seed=21)*64).round()/64, far[:2]])     # what moves them is exact
labels = torch.cat([hard(4, C, seed=24), one_of_each[:2]])
moves = dict(shift=torch.linspace(-3, 3, C), neg_scale=torch.tensor([.5, 1., 2., 4., 1., .25, 2.]))
weights = dict(weight=each.round(decimals=1), pos_weight=3*each)
unknown = some(soft(6, C, seed=22).round(decimals=2), -100., seed=23)

def cases_of(member:Member) -> list[Entries]:
    "What every path of a member has to get right"
    def case(name, logits, target, settings, *needs):
        return Entries(name, logits, target, settings, needing(*needs), member)
    logits = torch.where(unknown == -100, torch.nan, moved)
    def moved_case(i, parameters, *needs):
        return case(f'parameters {i}, moved and weighted', moved, labels, parameters | moves | weights, *needs)
    def soft_case(i, parameters):
        return case(f'parameters {i}, soft, unknown and smoothed', logits, unknown, parameters | moves | weights |
            dict(smoothing=.125), 'soft', 'unknown', 'quick')
    first, *others = member.parameters
    return [
        case('defaults', torch.cat([z, far[:2], near[:2]]), torch.cat([y, one_of_each[:2], one_of_each[:2]]), first),
        *[moved_case(i, parameters, *['quick'][:i > 1]) for i, parameters in enumerate(others, 1)],
        soft_case(0, first), *[soft_case(i, parameters) for i, parameters in enumerate(others, 1)][-1:],
        case('right at infinity', masked, right, first, 'quick'),
        case('wrong at infinity', masked, wrong, first, 'infinite'),
        case('moved, right at infinity', masked, right, first | moves | weights, 'quick'),
    ]

# Members
rng = random.Random(20)
def between(low, high): return round(rng.uniform(low, high), 3)

def asymmetric(detached):
    return dict(gamma_neg=between(0, 6), gamma_pos=between(0, 3), clip=between(.001, .4), epsilon_1=between(-2, 1),
        epsilon_2=between(-4, 0), disable_torch_grad_focal_loss=detached)

MEMBERS = [
    Member('cross-entropy', family.CrossEntropy, oracle.cross_entropy_pos, oracle.cross_entropy_neg),
    Member('focal', family.FocalLoss, oracle.focal_pos, oracle.focal_neg, ({}, dict(gamma=between(0, 1)),
        dict(gamma=between(1, 5), alpha=between(.1, .9)), dict(gamma=0., alpha=.25))),
    Member('poly', family.PolyLoss, oracle.poly_pos, oracle.poly_neg, ({}, dict(epsilon=between(-1, 0)),
        dict(epsilon=between(0, 5)), dict(epsilon=-1.))),
    Member('generalised', family.GeneralizedCrossEntropy, oracle.generalized_pos, oracle.generalized_neg, ({},
        dict(k_pos=between(.01, .5), k_neg=between(.5, 1)), dict(k_pos=1., k_neg=0.))),
    Member('Hill', family.HillLoss, oracle.hill_pos, oracle.hill_neg, ({},
        dict(lam=between(1.5, 3), margin=2.5, gamma=between(0, 4)), dict(margin=-.25, gamma=0.))),
    Member('APL', family.AsymmetricPolynomialLoss, oracle.apl_pos, oracle.apl_neg, ({}, asymmetric(False),
        asymmetric(True), dict(clip=0., disable_torch_grad_focal_loss=False))),
    Member('RAL', family.RobustAsymmetricLoss, oracle.ral_pos, oracle.ral_neg, ({}, asymmetric(True) | dict(lam=2.),
        asymmetric(False) | dict(lam=between(1.5, 3)), dict(clip=0.))),
]

# Laws
OF_EXPORTS = 'test_export', 'test_export_of_a_posterior', 'test_jit_trace_of_a_posterior', \
    'test_onnx_without_dynamo_works_or_says_what_does'
MODULES = 'test_values', 'test_laws', 'test_modules'

def losses_of(member:Member) -> dict:
    "The tables of test_modules: how a loss is made, logits, labels"
    many = z.float(), y.float()
    maps = randn(2, C, 3, 5).float(), (randn(2, C, 3, 5, seed=4) > 3).float()
    all_of_it = dict(shift=each/4, neg_scale=.9+each/5, smoothing=.1, weight=each/2, pos_weight=2*each, kept=each/9)
    return {
        f'{member}, tensors': (partial(member.make, **all_of_it), *many),
        f'{member}, maps': (partial(member.make, shift=-1., weight=each, class_dim=1, reduction='batchmean'), *maps),
    }

SHORT = {paths.DEVICE}

def laws(*members:Member, short:Iterable[Member]=()) -> dict[str, Any]:
    """Every law of this folder for these members: tables and tests, for the globals of a module of tests.

    Every path is asked for values; for all else those that do not compile, which the asymmetric loss's tests ask, and
    of members in `short` a few.
    """
    of = {member: paths_of(member) for member in members}
    def asked(member, path):
        in_short = path.name.removeprefix(f'{member}, ') in SHORT
        return path.has('quick') and (in_short or member not in short)
    tables = dict(SINGLE=[])
    tables['MULTI'] = [path for member in members for path in of[member] if asked(member, path)]
    tables['VALUES'] = [(path, cases) for member in members for cases in [cases_of(member)] for path in of[member]]
    tables['LOSSES'] = {name: row for member in members for name, row in losses_of(member).items()}
    tests = {name: test for module in MODULES for name, test in vars(import_module(module)).items()
        if hasattr(test, 'law') and test.law(tables | dict(VALUES_OF_ONE=[]))[1]}
    if not all(member.exported for member in members):
        tests = {name: test for name, test in tests.items() if name not in OF_EXPORTS}
    return tables | tests
