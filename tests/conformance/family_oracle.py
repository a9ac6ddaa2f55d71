"""The losses of the family in mpmath, as their papers write them: entry by entry, their derivatives as quotients of
differences. Nothing of asl is used here. Papers have losses of a positive and of a negative, of p = sigmoid(z)."""
from functools import cache

import mpmath
from mpmath import exp, inf, log, mpf

STEP = mpf(10)**-30            # of the quotients: far more digits are kept than this costs
FAR = 10**4                    # where an infinite logit's limits have been reached

def digits(z): return 100 if abs(z) < 41 else 700

def p(z): return 1/(1+exp(-z))
def q(z): return 1/(1+exp(z))

# A loss that is detached in part is also given the logit that this part takes for constant

def cross_entropy_pos(z): return -log(p(z))
def cross_entropy_neg(z): return -log(q(z))

def focal_pos(z, gamma=2., alpha=None):
    "Lin et al. 2017, Eq. (5): -alpha_t (1-p_t)**gamma log(p_t)"
    return -(1 if alpha is None else alpha)*q(z)**gamma*log(p(z))

def focal_neg(z, gamma=2., alpha=None):
    return -(1 if alpha is None else 1-mpf(alpha))*p(z)**gamma*log(q(z))

def poly_pos(z, epsilon=2.):
    "Leng et al. 2022, Eq. (6): cross-entropy + epsilon (1-p_t)"
    return -log(p(z)) + epsilon*q(z)

def poly_neg(z, epsilon=2.): return -log(q(z)) + epsilon*p(z)

def generalized_pos(z, k_pos=.7, **_):
    "Zhang and Sabuncu 2018, Eq. (6): (1-p**q)/q, and its limit at q = 0"
    return (1-p(z)**k_pos)/k_pos if k_pos else -log(p(z))

def generalized_neg(z, k_neg=.7, **_): return (1-q(z)**k_neg)/k_neg if k_neg else -log(q(z))

def hill_pos(z, margin=1., gamma=2., **_):
    "Zhang et al. 2021, Eq. (8): -(1-p_m)**gamma log(p_m) with p_m = sigmoid(z-m)"
    return -q(z-margin)**gamma*log(p(z-margin))

def hill_neg(z, lam=1.5, **_):
    "Their Eq. (5): w(p) MSE, with w = lambda - p"
    return (lam-p(z))*p(z)**2

APL = dict(gamma_neg=4., gamma_pos=0., clip=.05, epsilon_1=1., epsilon_2=-2.5, disable_torch_grad_focal_loss=True)

def given(settings, defaults): return [{**defaults, **settings}[name] for name in defaults]

def apl_pos(z, fixed, **settings):
    "Huang et al. 2023: -(log p + epsilon_1 (1-p) + epsilon_2/2 (1-p)**2), times (1-p)**gamma_pos"
    _, gamma, _, first, second, detached = given(settings, APL)
    return -q(fixed if detached else z)**gamma*(log(p(z)) + first*q(z) + mpf(second)/2*q(z)**2)

def apl_neg(z, fixed, **settings):
    "ASL's: -p_m**gamma_neg log(1-p_m) with p_m = max(p-m, 0)"
    gamma, _, m, _, _, detached = given(settings, APL)
    def p_m(z): return p(z)-m if p(z) > m else mpf(0)
    return -p_m(fixed if detached else z)**gamma*log(q(z)+m if p(z) > m else 1)

RAL = {**APL, 'disable_torch_grad_focal_loss': False}

def ral_pos(z, fixed, **settings): return apl_pos(z, fixed, **{**RAL, **settings})

def ral_neg(z, fixed, lam=1.5, **settings):
    "Park et al. 2023, as their code has it: APL's times Hill's, times lambda - 1 + p_m"
    settings = {**RAL, **settings}
    p_m = max(p(z)-settings['clip'], 0)
    return apl_neg(z, fixed, **settings)*(lam-p(z))*p(z)**2*(lam-1+p_m)

@cache
def _value_and_slope(function, z, given):
    settings = dict(given)
    with mpmath.workdps(digits(z)):
        z = mpf(z)
        names = function.__code__.co_varnames[:function.__code__.co_argcount]
        def of(x): return function(x, z, **settings) if 'fixed' in names else function(x, **settings)
        return of(z), (of(z+STEP)-of(z-STEP))/(2*STEP)

def value_and_slope(function, z, **settings):
    "A function of a logit and its derivative there; at infinite logits their limits"
    near = z if abs(z) < inf else mpmath.sign(z)*FAR
    value, slope = _value_and_slope(function, near, tuple(settings.items()))
    if near != z and abs(slope) > 1e-9: value = inf        # it still rises, and goes on
    return value, slope

def _times(a, b): return mpf(0) if a == 0 else a*b

def entry(positive, negative, z, y, *, shift=0., neg_scale=1., smoothing=0., weight=1., pos_weight=1., **settings):
    "Loss of an entry, its derivative by the logit, and the size of what that is the difference of"
    moved = mpf(z)+shift
    of_pos, slope_pos = value_and_slope(positive, moved, **settings)
    of_neg, slope_neg = value_and_slope(negative, neg_scale*moved, **settings)
    y = mpf(y)*(1-mpf(smoothing)) + mpf(smoothing)/2
    present = mpf(weight)*mpf(pos_weight)*y
    absent = mpf(weight)*(1-y)
    loss = _times(present, of_pos) + _times(absent/neg_scale, of_neg)
    slope = present*slope_pos + absent*slope_neg
    return loss, slope, abs(present*slope_pos)+abs(absent*slope_neg)
