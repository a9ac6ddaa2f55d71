"""What the losses of asl.family take of a CPU, forward and backward: `python tools/family_speed.py OUT.json`. In one
pass and compiled, in turns with what one would write by hand, also compiled, and with PyTorch's own cross-entropy."""
import json, sys, time
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from asl import AsymmetricLossMultiLabel, family
from asl.benchmark.measure import machine, raced_versions
from asl.benchmark.race import inputs, quartiles, race, warm_up

SIZE = 512, 9605
PYTORCH = 'F.binary_cross_entropy_with_logits'

def summed(of_positive, of_negative):
    "A loss as one writes it, of the loss of a positive and of a negative at logits and scores"
    def loss(z, y):
        p = torch.sigmoid(z)
        return (y*of_positive(z, p) + (1-y)*of_negative(z, p)).sum()
    return loss

def log_p(z, _p): return F.softplus(-z)
def log_q(z, _p): return F.softplus(z)
def focal_positive(z, p): return (1-p)**2*F.softplus(-z)
def focal_negative(z, p): return p**2*F.softplus(z)
def poly_positive(z, p): return F.softplus(-z) + 2*(1-p)
def poly_negative(z, p): return F.softplus(z) + 2*p
def power_positive(_z, p): return (1-p**.7)/.7
def power_negative(_z, p): return (1-(1-p)**.7)/.7
def hill_positive(z, _p): return torch.sigmoid(1-z)**2*F.softplus(1-z)
def hill_negative(_z, p): return (1.5-p)*p**2
def polynomial_positive(z, p): return F.softplus(-z) - (1-p) + 1.25*(1-p)**2

def asymmetric_positive(z, p): return (1-p)*F.softplus(-z)

def asymmetric_negative(_z, p):
    p_m = (p-.05).clamp(min=0)
    return -p_m**4*torch.log1p(-p_m)

def squared(z, _p): return F.softplus(z)**2

def robust_negative(z, p): return asymmetric_negative(z, p)*(1.5-p)*p**2*(.5+(p-.05).clamp(min=0))

BY_HAND = {
    'ElementwiseLoss': summed(log_p, squared),
    'CrossEntropy': summed(log_p, log_q),
    'FocalLoss': summed(focal_positive, focal_negative),
    'AsymmetricLossMultiLabel': summed(asymmetric_positive, asymmetric_negative),
    'PolyLoss': summed(poly_positive, poly_negative),
    'GeneralizedCrossEntropy': summed(power_positive, power_negative),
    'HillLoss': summed(hill_positive, hill_negative),
    'AsymmetricPolynomialLoss': summed(polynomial_positive, asymmetric_negative),
    'RobustAsymmetricLoss': summed(polynomial_positive, robust_negative),
}

def made(name):
    "The loss of a name, with its default settings; ElementwiseLoss of two functions"
    if name == 'ElementwiseLoss': return family.ElementwiseLoss(lambda z: F.softplus(-z), lambda z: F.softplus(z)**2)
    return AsymmetricLossMultiLabel() if name == 'AsymmetricLossMultiLabel' else getattr(family, name)()

def pytorch(z, y): return F.binary_cross_entropy_with_logits(z, y, reduction='sum')

def contestants():
    "Losses of logits and labels by name and way"
    torch._dynamo.config.recompile_limit = 100   # each loss is a function of its own, and compiled once
    compiled = partial(torch.compile, fullgraph=True, dynamic=False)
    out = {(PYTORCH, 'eager'): pytorch, (PYTORCH, 'compiled'): compiled(pytorch)}
    for name, by_hand in BY_HAND.items():
        out[name, 'by hand'] = by_hand
        out[name, 'by hand, compiled'] = compiled(by_hand)
        out[name, 'one pass'] = made(name)
        out[name, 'compiled'] = compiled(made(name))
    return out

def milliseconds(loss, z, y):
    "What forward and backward take of a CPU, whoever else works on it, after an untimed call"
    for _ in range(2):
        z.grad = None
        start = time.process_time()
        loss(z, y).backward()
        end = time.process_time()
    return 1e3*(end-start)

def main(out, repeats=9):
    torch.set_num_threads(1)
    warm_up()
    z, y = inputs('multi', SIZE)
    losses = contestants()
    samples = race(losses, repeats, lambda loss: milliseconds(loss, z, y), lambda: print('.', end='', flush=True))
    rows = [dict(loss=name, way=way, ms=quartiles(times)) for (name, way), times in samples.items()]
    record = dict(command='python tools/family_speed.py', date=str(date.today()), size=SIZE, threads=1,
        clock='process_time', **machine(torch.device('cpu')), versions=raced_versions(), rows=rows)
    Path(out).write_text(json.dumps(record).replace('{"loss"', '\n{"loss"')+'\n', encoding='utf-8')
    for row in rows: print(f"{row['loss']:36}{row['way']:18}", row['ms'])

if __name__ == '__main__': main(*sys.argv[1:2], *map(int, sys.argv[2:]))
