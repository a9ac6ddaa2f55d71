"""The laws of test_values at random: shapes, logits (infinite, far, at the margin), targets, settings, dtypes and paths
by Hypothesis. A few in CI; `python tests/conformance/test_random.py --minutes 30` goes on for so long, and prints its
seeds."""
import argparse, math, sys, time, traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from paths import MULTI, SINGLE, having  # isort: skip - it has to come before torch imports triton

import torch
from hypothesis import HealthCheck, Phase, assume, given, note, seed, settings, strategies as st

from cases import Many, One
from test_values import DIGITS, SMALLEST, check

QUICK = {'compiler', 'triton', 'jax', 'head, compiled'}        # these take long: only in the long form
PRECISE = st.sampled_from([torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16])
GAMMAS = st.one_of(st.sampled_from([0., .01, .5, 1., 2., 4., 7.]), st.floats(0, 8))
MARGINS = st.one_of(st.sampled_from([0., 1e-6, .05, .5, .9, .999]), st.floats(1e-30, .999))
WEIGHTS = st.one_of(st.sampled_from([1., .2, 3.]), st.floats(1e-3, 1e3))

def tensors(draw, value, C):
    "A number, a tensor of one, or one per class, in float32 or float64"
    kind = draw(st.sampled_from(['number', 'number', '0-dim', 'per class']))
    if kind == 'number': return draw(value)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    if kind == '0-dim': return torch.tensor(draw(value), dtype=dtype)
    return torch.tensor(draw(st.lists(value, min_size=C, max_size=C)), dtype=dtype)

def logits(draw, shape, margin):
    "Ordinary, far, infinite, and close to the margin's own, if that is a number"
    edge = math.log(margin/(1-margin)) if margin else 0.
    close = st.floats(-1, 1).map(lambda off: edge + round(off, 6)**5)
    special = st.sampled_from([math.inf, -math.inf, 0.])
    value = st.one_of(st.floats(-9, 9), st.floats(-9, 9), close, st.floats(-1e4, 1e4), special)
    value = value.map(lambda z: 0. if abs(z) < 1e-30 else z)   # or 50 digits do not tell p from 1/2
    size = math.prod(shape)
    return torch.tensor(draw(st.lists(value, min_size=size, max_size=size)), dtype=torch.float64).view(shape)

@st.composite
def many(draw, paths):
    "A path, and a case of the multi-label loss that it offers"
    path, dtype = draw(st.sampled_from(paths)), draw(PRECISE)
    N, C = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    values = dict(gamma_neg=GAMMAS, gamma_pos=GAMMAS, clip=MARGINS)
    chosen = {name: tensors(draw, value, C) for name, value in values.items()}
    if draw(st.booleans()): chosen['weight'] = tensors(draw, WEIGHTS, C)
    if draw(st.booleans()): chosen['pos_weight'] = tensors(draw, WEIGHTS, C)
    if draw(st.booleans()): chosen['disable_torch_grad_focal_loss'] = True
    if path.has('soft') and draw(st.booleans()): chosen['smoothing'] = draw(st.sampled_from([0., .1, 1.]))
    if path.has('eps') and draw(st.integers(0, 3)) == 0: chosen['eps'] = draw(st.sampled_from([1e-8, 1e-2, .4]))
    label = st.sampled_from([0., 1.])
    if path.has('soft'): label = st.one_of(label, label, st.floats(2**-20, 1, width=32))     # 1-y would be rounded
    if path.has('unknown'): label = st.one_of(label, label, st.just(-100.))
    y = torch.tensor(draw(st.lists(label, min_size=N*C, max_size=N*C)), dtype=torch.float64).view(N, C)
    margin = chosen['clip'] if isinstance(chosen['clip'], float) else 0.
    return path, dtype, Many('random', logits(draw, (N, C), margin), y, chosen)

@st.composite
def one(draw, paths):
    "A path, and a case of the single-label loss"
    path, dtype = draw(st.sampled_from(paths)), draw(PRECISE)
    N, C = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    chosen = {name: tensors(draw, GAMMAS, C) for name in ('gamma_pos', 'gamma_neg')}
    chosen['eps'] = draw(st.sampled_from([0., .1, 1.]))
    if draw(st.booleans()): chosen['weight'] = tensors(draw, WEIGHTS, C)
    t = torch.tensor(draw(st.lists(st.integers(0, C-1) | st.just(-100), min_size=N, max_size=N)))
    value = st.one_of(st.floats(-30, 30), st.floats(-1e4, 1e4), st.just(-math.inf))
    z = torch.tensor(draw(st.lists(value, min_size=N*C, max_size=N*C)), dtype=torch.float64).view(N, C)
    assume(z.isfinite().any(1).all())                          # a row without any class is nan
    return path, dtype, One('random', z, t, chosen)

def usable(path, dtype): return path.has('float64') or dtype != torch.float64

def judge(path, dtype, case):
    "Loss and gradient against what 50 digits say"
    if not usable(path, dtype): dtype = torch.float32
    case = case.rounded(dtype)
    assume(case.true[1].nan_to_num(0.).abs().max() < torch.finfo(dtype).max)
    note(f'{path}, {dtype}: z={case.logits.tolist()}, target={case.target.tolist()}, {case.settings}')
    reduction = 'none' if path.has('none') and not case.logits.isinf().any() else 'sum'
    loss, gradient = path.value_and_gradient(case.logits, case.target, **case.settings, reduction=reduction)
    true, true_gradient, size = case.true
    if reduction == 'sum': true = true.sum()
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    biggest = max(float(torch.as_tensor(case.settings.get(name, 1.)).max()) for name in ('gamma_neg', 'gamma_pos'))
    rounding = max(1., biggest/4)
    if path.name == 'jax' and isinstance(case, One): rounding = max(4., rounding)      # in float32, if logits are
    check(loss, true, true.abs(), rounding*DIGITS[computed], 10*SMALLEST[computed])
    if isinstance(case, One): size = size.amax(1, keepdim=True).expand_as(size)
    check(gradient, true_gradient, size, rounding*DIGITS[dtype], 10*SMALLEST[dtype])

def quick(paths): return [path for path in paths if path.name not in QUICK]

few = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@few
@given(many(quick(having(MULTI))))
def test_many_labels_at_random(drawn): judge(*drawn)

@few
@given(one(quick(having(SINGLE))))
def test_one_label_at_random(drawn): judge(*drawn)

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=30)
    parser.add_argument('--seed', type=int, default=int(time.time()), help='of the first round; others follow')
    parser.add_argument('--examples', type=int, default=300, help='of each loss in a round')
    options = parser.parse_args()
    long = settings(max_examples=options.examples, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink])
    start, rounds, failed = time.time(), 0, 0
    while time.time()-start < 60*options.minutes:
        number = options.seed+rounds
        for name, drawn in (('many labels', many(MULTI)), ('one label', one(SINGLE))):
            try: seed(number)(long(given(drawn)(lambda drawn: judge(*drawn))))()
            except Exception:
                failed += 1
                print(f'seed {number}, {name}:', traceback.format_exc(), sep='\n', flush=True)
        rounds += 1
    print(f'seeds {options.seed} to {options.seed+rounds-1}, up to {options.examples} examples of each loss: '
        f'{2*rounds-failed} passed, {failed} failed')
    return failed > 0

if __name__ == '__main__': sys.exit(main())
