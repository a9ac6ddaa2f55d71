"""What the models are judged by, in percent"""
import numpy as np
import torch
from torch import Tensor

from asl.training.score import best_of1, ece, of1

def descending(scores:Tensor) -> Tensor:
    """Of each line of (C, n) the places from the highest score to the lowest, of equals in order; scores are finite.

    What argsort says, in half of its time: NumPy sorts whole numbers faster, here a score above its place."""
    bits = (scores.float()+0.).contiguous().view(torch.int32)                     # +0. makes -0. the same as 0.
    rising = torch.where(bits < 0, bits^0x7fffffff, bits).long()                  # in the order of the scores
    places = torch.arange(scores.shape[1])
    return torch.from_numpy(np.sort((((-1-rising) << 32) | places).numpy(), -1)) & 0xffffffff

def average_precision(scores:Tensor, y:Tensor) -> Tensor:
    "Of each class, (C,); nan where none is positive. scores and y, bool, are (n, C)"
    finite = bool(scores.isfinite().all())
    order = descending(scores.mT) if finite else scores.mT.argsort(dim=1, descending=True, stable=True)
    hits = y.mT.gather(1, order).float()
    found = hits.cumsum(1)
    precision = found/torch.arange(1, len(y)+1)
    return (precision*hits).sum(1)/found[:, -1]

def ece_by_class(p:Tensor, y:Tensor) -> float:
    "The calibration error of each class, averaged"
    return sum(map(ece, p.mT.contiguous(), y.mT.contiguous()))/p.shape[1]

def brier_skill(p:Tensor, y:Tensor, prior:Tensor) -> float:
    "By how much the squared error is below that of the prior of each class: 1 is perfect, 0 knows but the prior"
    y = y.float()
    return 1-((p-y).square().sum()/(prior-y).square().sum()).item()

def class_f1(p:Tensor, y:Tensor, threshold=.5) -> float:
    "F1 of each class with a positive, averaged"
    decided = p >= threshold
    f1 = 2*(decided & y).sum(0)/(decided.sum(0)+y.sum(0)).clamp(min=1)
    return f1[y.any(0)].mean().item()

def measures(z, p, y, z_valid, p_valid, y_valid, prior, written) -> dict[str, float]:
    """Of logits z and posterior p against the labels y that are true, (n, C); thresholds are from the validation part.

    prior (C,) is the share of positives in training, which also says what rare and common are. written (C,) is the
    share of the true ones that was written there: what ends in _kept is of the posterior divided by it."""
    s = torch.sigmoid(z)
    ap = average_precision(z, y)
    order = prior.argsort()
    third = len(order)//3
    _, threshold = best_of1(torch.sigmoid(z_valid), y_valid.float())
    _, threshold_p = best_of1(p_valid, y_valid.float())
    kept = (p/written).clamp(max=1)
    numbers = dict(mAP=ap.nanmean(), mAP_rare=ap[order[:third]].nanmean(), mAP_common=ap[order[-third:]].nanmean(),
        micro_mAP=average_precision(z.reshape(-1, 1), y.reshape(-1, 1))[0],
        precision_5=y.gather(1, z.topk(min(5, z.shape[1])).indices).float().mean(),
        best_OF1=best_of1(s, y.float())[0], OF1_valid=of1(s, y, threshold), OF1_valid_posterior=of1(p, y, threshold_p),
        said=p.mean(), share=y.float().mean())
    for name, said in (('', s), ('_posterior', p), ('_kept', kept)):
        sure = said > .01
        numbers |= {'OF1'+name: of1(said, y), 'CF1'+name: class_f1(said, y), 'ECE'+name: ece(said, y),
            'ECE_sure'+name: ece(said[sure], y[sure]), 'ECE_class'+name: ece_by_class(said, y),
            'brier'+name: brier_skill(said, y, prior)}
    return {name: round(100*float(value), 4) for name, value in numbers.items()}
