"""Many models trained at once on frozen features: one per rate and seed, rate by rate"""
import math, time

import torch
from torch import Tensor

from losses import loss_of
from measures import average_precision
from parts import Part

HIDDEN = 256                            # units of the MLP
WEIGHT_DECAY = .01
CHECKED = 10                            # times that validation is looked at in a run
LARGE = 8000                            # training samples from which batches are of 256 instead of 64

def drawn(shape:tuple[int, int], bound:float, seeds:range, stream:int) -> Tensor:
    "Uniform numbers up to the bound, (seeds, *shape): those of a seed do not depend on the others"
    generators = [torch.Generator().manual_seed(100*seed+stream) for seed in seeds]
    return torch.stack([torch.empty(shape).uniform_(-bound, bound, generator=g) for g in generators])

def network(sizes:list[int], start:Tensor|None, n_rates:int, seeds:range) -> list[Tensor]:
    "Weights (M, in, out) and biases (M, 1, out) as PyTorch draws them; the last bias is the start, if any"
    tensors = []
    for layer, shape in enumerate(zip(sizes, sizes[1:])):
        weight = drawn(shape, shape[0]**-.5, seeds, layer)
        bias = drawn((1, shape[1]), shape[0]**-.5, seeds, 50+layer)
        if layer == len(sizes)-2 and start is not None: bias = start
        tensors += [each.repeat(n_rates, 1, 1).requires_grad_() for each in (weight, bias)]
    return tensors

def logits(tensors:list[Tensor], x:Tensor) -> Tensor:
    "(M, B, C) of x (M, B, d)"
    for i in range(0, len(tensors), 2):
        if i: x = x.relu()
        x = torch.baddbmm(tensors[i+1], x, tensors[i])
    return x

class AdamW:
    "Of M models, each with its own rate; torch.optim's has one for all"
    def __init__(self, tensors, rates):
        self.tensors, self.rates, self.step_count = tensors, rates, 0
        self.means = [torch.zeros_like(each) for each in tensors]
        self.squares = [torch.zeros_like(each) for each in tensors]
    @torch.no_grad()
    def step(self, gradients, factor):
        self.step_count += 1
        rate = self.rates*factor
        for x, g, mean, square in zip(self.tensors, gradients, self.means, self.squares):
            mean.lerp_(g, .1)
            square.mul_(.999).addcmul_(g, g, value=.001)
            size = (square/(1-.999**self.step_count)).sqrt_().add_(1e-8)
            x.mul_(1-rate*WEIGHT_DECAY).addcdiv_(mean*(-rate/(1-.9**self.step_count)), size)

def cycle(step:int, steps:int) -> float:
    "One cycle: a tenth of the steps up, then down as a cosine"
    if step < .1*steps: return (step+1)/(.1*steps+1)
    return .5*(1+math.cos(math.pi*(step/steps-.1)/.9))

def priors(parts:list[Part]) -> Tensor:
    "Shares of the positives in training, (seeds, 1, C); half a sample where there is none"
    return torch.stack([part.labels[part.train].mean(0, keepdim=True).clamp(min=.5/len(part.train)) for part in parts])

def batches(parts:list[Part], epochs:int):
    "How many there are, and an iterator of the indices of each, (seeds, B): in every epoch another order"
    n = min(len(part.train) for part in parts)
    size = 256 if n >= LARGE else 64
    generators = [torch.Generator().manual_seed(200+seed) for seed in range(len(parts))]
    def orders():
        for _ in range(epochs):
            chosen = [part.train[torch.randperm(len(part.train), generator=g)[:n]]
                for part, g in zip(parts, generators)]
            yield from torch.stack(chosen)[:, :n//size*size].split(size, 1)
    return epochs*(n//size), orders()

def trained(loss:str, way:str, epochs:int, parts:list[Part], rates:list[float]):
    "Tensors of M models, validation mAP (rates, seeds, CHECKED) while they were trained, seconds of a step of a model"
    prior = priors(parts)
    row = loss_of(loss, prior.repeat(len(rates), 1, 1))
    start = loss_of(loss, prior).starts_at
    d, C = parts[0].features.shape[1], parts[0].labels.shape[1]
    sizes = [d, C] if way == 'linear' else [d, HIDDEN, C]
    tensors = network(sizes, None if start is None else start(prior), len(rates), range(len(parts)))
    optimizer = AdamW(tensors, torch.tensor(rates).repeat_interleave(len(parts)).view(-1, 1, 1))
    steps, indices = batches(parts, epochs)
    checks = {round(steps*(i+1)/CHECKED) for i in range(CHECKED)}
    curve, seconds = [], 0.
    for step, index in enumerate(indices):
        began = time.process_time()
        x, y = (torch.stack([getattr(part, name)[i] for part, i in zip(parts, index)]).repeat(len(rates), 1, 1)
            for name in ('features', 'labels'))
        optimizer.step(torch.autograd.grad(row.loss(logits(tensors, x), y), tensors), cycle(step, steps))
        seconds += time.process_time()-began
        if step+1 in checks: curve.append(valid_maps(tensors, parts, len(rates)))
    return tensors, torch.stack(curve, -1), seconds/steps/len(tensors[0])

@torch.no_grad()
def of_part(tensors, parts, seed, rate, which):
    "Logits of one model on a part, validation or test"
    here = rate*len(parts)+seed
    return logits([each[here:here+1] for each in tensors], parts[seed].features[getattr(parts[seed], which)][None])[0]

def valid_maps(tensors, parts, n_rates) -> Tensor:
    "mAP on the validation part by the labels as they are written, (rates, seeds)"
    return torch.tensor([[average_precision(of_part(tensors, parts, seed, rate, 'valid'),
        parts[seed].labels[parts[seed].valid] > 0).nanmean() for seed in range(len(parts))] for rate in range(n_rates)])
