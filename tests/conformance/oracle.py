"""What both losses and the posterior are, in 50 digits: the formulas of the paper written down once more, entry by
entry, and at infinite logits their limits. Nothing of asl is used here."""
from functools import cache

import mpmath
from mpmath import inf, mpf

mpmath.mp.dps = 50
ZERO, ONE = mpf(0), mpf(1)

def _sigmoid(z):
    if z in (inf, -inf): return ONE if z > 0 else ZERO
    return 1/(1+mpmath.exp(-z))

def _power(base, gamma): return ONE if gamma == 0 else base**gamma

def _focused(x, log_loss, gamma, most, detach):
    """x**gamma times a loss that is clamped; and what its derivative is made of: the factor of the loss's own
    derivative, and what the derivative of x is multiplied by"""
    clamped = min(log_loss, most)
    focus = _power(x, gamma)
    inner = focus if log_loss <= most else ZERO
    outer = ZERO if detach or gamma == 0 or x == 0 else gamma*_power(x, gamma-1)*clamped
    return _times(focus, clamped), inner, outer

def _times(a, b): return ZERO if a == 0 else a*b

def _softplus(z):
    if z in (inf, -inf): return inf if z > 0 else ZERO
    return mpmath.log1p(mpmath.exp(z)) if z < 0 else z + mpmath.log1p(mpmath.exp(-z))

def _most(eps): return inf if not eps else -mpmath.log(mpf(eps))

@cache
def _positive(z, gamma, eps, detach):
    "L+ of a logit, and minus its derivative"
    p, q = _sigmoid(z), _sigmoid(-z)
    loss, inner, outer = _focused(q, _softplus(-z), gamma, _most(eps), detach)
    return loss, inner*q + _times(p*q, outer)

@cache
def _negative(z, gamma, m, eps, detach):
    "L- of a logit, and its derivative"
    p, q, m = _sigmoid(z), _sigmoid(-z), mpf(m)
    if p <= m: return ZERO, ZERO
    if m == 0: log_loss = _softplus(z)
    else: log_loss = -mpmath.log(q+m) if p-m > .5 else -mpmath.log1p(-(p-m))
    loss, inner, outer = _focused(p-m, log_loss, gamma, _most(eps), detach)
    return loss, inner*(p if m == 0 else p*q/(q+m)) + _times(p*q, outer)

def multi_entry(z, y, gamma_neg=4., gamma_pos=1., clip=.05, eps=None, smoothing=0., weight=1., pos_weight=1.,
        detach=False):
    "Loss of an entry and its derivative by the logit; weight, pos_weight and clip may be None"
    one = [ONE if w is None else mpf(w) for w in (weight, pos_weight)]
    y = mpf(y)*(1-mpf(smoothing)) + mpf(smoothing)/2
    pos, pos_slope = _positive(mpf(z), mpf(gamma_pos), eps or 0., detach)
    neg, neg_slope = _negative(mpf(z), mpf(gamma_neg), clip or 0., eps or 0., detach)
    present, absent = one[0]*one[1]*y, one[0]*(1-y)
    return (_times(present, pos)+_times(absent, neg), absent*neg_slope - present*pos_slope)

def single_row(z, t, gamma_pos, gamma_neg, eps, weight):
    """Loss of a row of logits with the target t, its derivative by each logit, and the size of what is subtracted for
    that; gammas and weights by class. A class whose logit is -inf is masked: it adds nothing"""
    z = [mpf(v) for v in z]
    C, top = len(z), max(z)
    if top == -inf: return mpmath.nan, [mpmath.nan]*C, [mpmath.nan]*C
    if top == inf: z = [ZERO if v == inf else -inf for v in z]
    shift = max(z)
    e = [ZERO if v == -inf else mpmath.exp(v-shift) for v in z]
    total = sum(e)
    p = [v/total for v in e]
    log_p = [-inf if v == 0 else mpmath.log(v) for v in p]
    loss, a = ZERO, []
    for c in range(C):
        share = mpf(weight[c])*((1-mpf(eps) if c == t else ZERO) + mpf(eps)/C)
        if p[c] == 0:
            masked = c != t or share == 0
            loss += ZERO if masked else inf
            a.append(ZERO if masked else -share)
            continue
        rest = sum(v for i, v in enumerate(e) if i != c)/total
        gamma = mpf(gamma_pos[c] if c == t else gamma_neg[c])
        base, slope = (rest, -p[c]) if c == t else (p[c], p[c])
        focus = _power(base, gamma)
        by_log = ZERO if gamma == 0 or base == 0 else gamma*_power(base, gamma-1)*slope*log_p[c]
        loss -= share*focus*log_p[c]
        a.append(-share*(focus + by_log))
    total_a, size = sum(a), sum(map(abs, a))
    return loss, [a[c]-p[c]*total_a for c in range(C)], [abs(a[c])+p[c]*size for c in range(C)]

def posterior_entry(z, gamma_neg=4., gamma_pos=1., clip=.05, pos_weight=1., smoothing=0., detach=False):
    "The probability that a logit means: where the expected loss of an entry is smallest, before smoothing"
    z = max(min(mpf(z), mpf('1e7')), mpf('-1e7'))
    pos = _positive(z, mpf(gamma_pos), 0., detach)[1]*(ONE if pos_weight is None else mpf(pos_weight))
    neg = _negative(z, mpf(gamma_neg), clip or 0., 0., detach)[1]
    eta = neg/(neg+pos)
    return min(max((eta-mpf(smoothing)/2)/(1-mpf(smoothing)), ZERO), ONE)
