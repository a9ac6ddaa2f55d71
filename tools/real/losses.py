"""The losses of the experiment on real data: of many models at once, each with its posterior and its start"""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.loss import DistributionBalancedLoss, PolyBinaryCrossEntropy, TwoWayLoss, ZlprLoss
from torch import Tensor
from torch.nn import functional as F

from asl import AsymmetricLossMultiLabel


class Row(NamedTuple):
    "What is minimised, of logits and labels (M, B, C): of M models, each a mean over its batch"
    loss: Callable[[Tensor, Tensor], Tensor]
    posterior: Callable[[Tensor], Tensor] = torch.sigmoid      # what a logit means
    starts_at: Callable[[Tensor], Tensor]|None = None          # the logits that mean some priors, to start from

def mean_of_batch(total:Callable) -> Callable:
    "From a loss of (N, C) that is summed"
    return lambda z, y: total(z.flatten(0, 1), y.flatten(0, 1))/z.shape[1]

def mean_of_models(mean:Callable) -> Callable:
    "From a loss of (N, C) that is a mean over N"
    return lambda z, y: mean(z.flatten(0, 1), y.flatten(0, 1))*len(z)

def one_by_one(losses:list[Callable]) -> Callable:
    "From losses of (B, C) that are means over the batch, one per model"
    return lambda z, y: sum(loss(*each) for loss, *each in zip(losses, z, y))

def inverse(posterior:Callable, p:Tensor) -> Tensor:
    "The logits that mean p, by bisection"
    low = torch.full_like(p, -30.)
    high = -low
    for _ in range(60):
        middle = (low+high)/2
        below = posterior(middle) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low

def asymmetric(with_prior:bool, gamma_neg:float, gamma_pos:float, clip:float, detach:bool=False) -> Row:
    loss = AsymmetricLossMultiLabel(gamma_neg, gamma_pos, clip, reduction='sum', disable_torch_grad_focal_loss=detach)
    return Row(mean_of_batch(loss), loss.posterior, loss.prior_logit if with_prior else None)

def hill(z, y):
    "arXiv 2112.07368: a focal loss of the logit less 1 for positives; the pull on a negative falls again above p = 1/2"
    pos = torch.sigmoid(1-z)**2 * F.softplus(1-z)
    p = torch.sigmoid(z)
    return (y*pos + (1-y)*(1.5-p)*p**2).sum()

def hill_posterior(z):
    "Where the expected Hill loss is smallest: G-/(G- + G+)"
    z = z.clamp(-60, 60)
    up = 2*F.logsigmoid(1-z) + (torch.sigmoid(1-z) + 2*torch.sigmoid(z-1)*F.softplus(1-z)).log()
    return torch.sigmoid(math.log(3) + 2*F.logsigmoid(z) + 2*F.logsigmoid(-z) - up)

def poly_posterior(z):
    "The same of timm's poly loss, whose epsilon is 2"
    p = torch.sigmoid(z)
    return (p + 2*p*(1-p))/(1 + 4*p*(1-p))

def weighted(prior:Tensor) -> Row:
    "Cross-entropy, positives weighted by the root of the odds against them"
    weight = ((1-prior)/prior).sqrt()
    def loss(z, y): return F.binary_cross_entropy_with_logits(z, y, pos_weight=weight, reduction='sum')/z.shape[1]
    return Row(loss, lambda z: torch.sigmoid(z-weight.log()), lambda p: (p/(1-p)).log()+weight.log())

def balanced(prior:Tensor) -> Row:
    "timm's distribution-balanced loss (arXiv 2007.09654) with its own settings"
    n = 10**6                                                  # samples: the loss needs but the shares
    return Row(one_by_one([DistributionBalancedLoss(n*each[0], n, reduction='batchmean') for each in prior]))

LOSSES: dict[str, Row|Callable[[Tensor], Row]] = {             # or of the priors of M models, (M, 1, C)
    'BCE': asymmetric(False, 0., 0., 0.),
    'BCE + prior': asymmetric(True, 0., 0., 0.),
    'focal': asymmetric(False, 2., 2., 0.),
    'focal + prior': asymmetric(True, 2., 2., 0.),
    'ASL': asymmetric(False, 4., 1., .05),
    'ASL + prior': asymmetric(True, 4., 1., .05),
    'ASL (4, 0)': asymmetric(False, 4., 0., .05, detach=True),
    'ASL (4, 0) + prior': asymmetric(True, 4., 0., .05, detach=True),
    'Hill': Row(mean_of_batch(hill), hill_posterior),
    'Hill + prior': Row(mean_of_batch(hill), hill_posterior, lambda p: inverse(hill_posterior, p)),
    'poly + prior': Row(mean_of_batch(PolyBinaryCrossEntropy(reduction='sum')), poly_posterior,
        lambda p: inverse(poly_posterior, p)),
    'weighted BCE + prior': weighted,
    'two-way': lambda prior: Row(one_by_one(len(prior)*[TwoWayLoss()])),
    'ZLPR': Row(mean_of_models(ZlprLoss())),
    'DB': balanced,
}

def loss_of(name:str, prior:Tensor) -> Row:
    "A loss for M models, whose training labels have these priors, (M, 1, C)"
    entry = LOSSES[name]
    return entry if isinstance(entry, Row) else entry(prior)
