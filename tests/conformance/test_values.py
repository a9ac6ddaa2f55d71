"""Laws of the values: loss and gradient of every path at every case are what 50 digits say, in every dtype."""
import pytest, torch
from torch.testing import assert_close

from cases import MANY, ONE, in_dtype
from paths import MULTI, SINGLE, asked_of

FLOATS = {'float64': torch.float64, 'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
DIGITS = {torch.float64: 2e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8+2e-6, torch.float16: 2**-11+2e-6}
SMALLEST = {torch.float64: 1e-290, torch.float32: 1e-30, torch.bfloat16: 1e-30, torch.float16: 1e-7}

def check(got, true, size, digits, smallest):
    "Relative to size; nan and infinities where they belong"
    got = got.double()
    plain = true.isfinite()
    assert_close(got[~plain], true[~plain], rtol=0, atol=0, equal_nan=True)
    off = (got-true)[plain].abs()
    bound = digits*size[plain] + smallest
    if (off <= bound).all(): return
    worst = (off/bound).argmax()
    raise AssertionError(f'off by {(off/(size[plain]+smallest)).max():.1e} where {digits:.0e} is allowed: got '
        f'{got[plain][worst].item()!r}, true {true[plain][worst].item()!r}')

IN_HALF = {             # rounding is all that is new there: some cases do
    'defaults', 'settings per class', 'far logits', 'right at infinity', 'wrong at infinity', 'unknown', 'weights',
    'a masked class', 'masked targets'}

def offered(path, dtype, case):
    "Whether a path computes in a dtype, and is asked to in this case"
    if dtype == torch.float64: return path.has('float64', 'slow')
    return dtype == torch.float32 or path.has('half', 'slow') and case.name in IN_HALF

def asked(table):
    "Each path at each of its cases that it offers, in each dtype"
    return asked_of('path, case, dtype', lambda tables: [pytest.param(path, case, dtype, id=f'{path}-{case}-{name}')
        for path, cases in tables[table] for case in cases if path.has(*case.needs)
        for name, dtype in FLOATS.items() if offered(path, dtype, case)])

VALUES = [(path, MANY) for path in MULTI]
VALUES_OF_ONE = [(path, ONE) for path in SINGLE]

@asked('VALUES')
def test_many_labels(path, case, dtype):
    case = in_dtype(case, dtype)
    true, true_gradient, size = case.true
    factor = 4. if 'large gammas' in case.name else 1.         # rounding of p**gamma
    reduction = 'none' if path.has('none') else 'sum'
    loss, gradient = path.value_and_gradient(case.logits, case.target, **case.settings, reduction=reduction)
    computed = dtype if dtype == torch.float64 else torch.float32
    assert loss.dtype == computed and gradient.dtype == dtype
    if reduction == 'sum': true = true.sum()
    check(loss, true, true, factor*DIGITS[computed], SMALLEST[computed])
    check(gradient, true_gradient, size*factor, DIGITS[dtype], SMALLEST[dtype])

@asked('VALUES_OF_ONE')
def test_one_label(path, case, dtype):
    given = case.logits
    case = in_dtype(case, dtype)
    if not case.logits.isinf().equal(given.isinf()): pytest.skip('too far out for this dtype')
    true, true_gradient, _ = case.true
    reduction = 'none' if path.has('none') else 'sum'
    loss, gradient = path.value_and_gradient(case.logits, case.target, **case.settings, reduction=reduction)
    computed = dtype if dtype == torch.float64 else torch.float32
    assert loss.dtype == computed and gradient.dtype == dtype
    if reduction == 'sum': true = true.sum()
    check(loss, true, true, DIGITS[computed], SMALLEST[computed])
    largest = true_gradient.abs().amax(1, keepdim=True).expand_as(true_gradient)
    check(gradient, true_gradient, largest.nan_to_num(0.), DIGITS[dtype], SMALLEST[dtype])
