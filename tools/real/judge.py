"""The judgement on the experiment on real data: who leads, who is behind, and where nobody can tell.

nbs/15_real.ipynb planned it before the first run. Nothing here reads the record; record.py does."""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import f as f_distribution
from scipy.stats import rankdata, studentized_range, t

SURE = .95                              # of intervals, and of Nemenyi's test
TEST, VALID = 25/60, 15/60              # samples judged by, for each that is trained on

class Verdict(NamedTuple):
    "A mean difference, in favour of the first where it is positive, and its interval"
    mean: float
    half: float                         # half the width of the interval; inf of a single value
    n: int                              # seeds or sets

    @property
    def low(self) -> float: return self.mean-self.half

    @property
    def high(self) -> float: return self.mean+self.half

    @property
    def word(self) -> str:
        "What may be said"
        if self.low > 0: return 'leads'
        if self.high < 0: return 'behind'
        return 'no difference seen'

    @property
    def hidden(self) -> float:
        "The largest difference within the interval, either way: what may be there unseen"
        return max(-self.low, self.high)

    @property
    def visible(self) -> float:
        "How large a difference must be to be judged right four times of five"
        if self.n < 2: return float('inf')
        return float(self.half*(1+t.ppf(.8, self.n-1)/t.ppf((1+SURE)/2, self.n-1)))

    def ends(self, digits:int=1) -> str:
        "The interval in words"
        return f'{self.low:+.{digits}f} to {self.high:+.{digits}f}'

    def __str__(self): return f'{self.mean:+.1f} ({self.ends()})'

def interval(mean:float, error:float, n:int) -> Verdict:
    "By Student's t, of the standard error of a mean of n values"
    half = t.ppf((1+SURE)/2, n-1)*error if n > 1 else float('inf')
    return Verdict(float(mean), float(half), n)

def over_seeds(differences:Sequence[float], judged:float=TEST) -> Verdict:
    """Of differences paired by seed. Parts of two seeds overlap, so the variance of their mean is not s^2/J but
    (1/J + judged) s^2, where judged is the ratio of samples judged by to samples trained on (Nadeau and Bengio 2003)"""
    n = len(differences)
    error = ((1/n+judged)*np.var(differences, ddof=1))**.5 if n > 1 else float('inf')
    return interval(np.mean(differences), error, n)

def over_sets(differences:Sequence[float]) -> Verdict:
    "Of one difference a set: what holds of sets like these"
    n = len(differences)
    error = (np.var(differences, ddof=1)/n)**.5 if n > 1 else float('inf')
    return interval(np.mean(differences), error, n)

# Ranks (Demsar 2006)

def mean_ranks(scores:Sequence[Sequence[float]]) -> np.ndarray:
    "Of each column, over the rows; 1 is best, and equals share their ranks"
    return rankdata(-np.asarray(scores), axis=1).mean(0)

def critical_difference(k:int, n:int) -> float:
    "Nemenyi's: by how much mean ranks of k losses over n rows must differ"
    q = studentized_range.ppf(SURE, k, np.inf)/2**.5
    return float(q*(k*(k+1)/(6*n))**.5)

def friedman(ranks:Sequence[float], n:int) -> float:
    "How probable such different mean ranks are if no column is better: Friedman's test as Iman and Davenport mend it"
    k = len(ranks)
    square = 12*n/(k*(k+1))*(np.square(ranks).sum()-k*(k+1)**2/4)
    rest = n*(k-1)-square
    if rest <= 0: return 0.
    return float(f_distribution.sf((n-1)*square/rest, k-1, (k-1)*(n-1)))
