"The head in tiles against the head as a whole: top-k over several tiles of classes, and the loss with its gradients."
import math

import pytest, torch
from torch.autograd import forward_ad
from torch.masked import masked_tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asl import LinearAsymmetricLoss, asymmetric_loss_multi_label, linear_asymmetric_loss
from asl.ops import checks

N, C, D = 40, 83, 8
BUDGET = 2**12                          # bytes: three tiles of rows, six of 16 classes, the least there is
kept = dict(kept=.75 + torch.arange(C).cos()/4)
per_class = dict(gamma_neg=torch.linspace(0, 4, C), clip=torch.linspace(0, .1, C))

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def tiled_head(dtype, settings):
    "A head whose classes are in six tiles, the best of them in any, and its posteriors of some hidden activations"
    head = LinearAsymmetricLoss(D, C, budget=BUDGET, dtype=dtype, **settings)
    with torch.no_grad(): head.weight.normal_()
    hidden = torch.randn(N, D, dtype=dtype)
    return head, hidden, head.loss.posterior(F.linear(hidden.float(), head.weight.float(), head.bias.float()))

@pytest.mark.parametrize('settings', [dict(clip=0.), dict(clip=0., kept=.5), per_class, kept],
    ids=['one setting', 'one share', 'settings per class', 'shares per class'])
@pytest.mark.parametrize('k', [1, 5, 40, C])
def test_the_best_classes_of_many_tiles_are_those_of_the_whole_posterior(settings, k):
    head, hidden, posterior = tiled_head(torch.float32, settings)
    values, classes = head.predict_topk(hidden, k)
    best = posterior.topk(k)
    assert_close(values, best.values)
    assert_close(posterior.gather(1, classes), values)
    assert all(len(set(row)) == k for row in classes.tolist())
    assert len(set(classes[:, 0].div(16, rounding_mode='floor').tolist())) > 3          # they are in many tiles

def test_classes_that_shares_lift_to_certainty_are_not_tied():
    shares = kept['kept']
    head, hidden, posterior = tiled_head(torch.float32, kept)
    _, classes = head.predict_topk(hidden, C)
    assert ((posterior == 1).sum(1) > 1).all()
    bare = LinearAsymmetricLoss(D, C).loss.posterior(F.linear(hidden, head.weight, head.bias))
    ratio = (bare/shares).gather(1, classes)
    assert (ratio.diff(dim=1) <= 0).all()

@pytest.mark.parametrize('settings', [dict(clip=0.), per_class], ids=['one setting', 'settings per class'])
def test_bfloat16_heads_are_ranked_in_float32(settings):
    head, hidden, posterior = tiled_head(torch.bfloat16, settings)
    values, classes = head.predict_topk(hidden.view(4, 10, D), 40)
    assert values.dtype == torch.float32 and values.shape == classes.shape == (4, 10, 40)
    assert_close(values.view(N, 40), posterior.topk(40).values)
    assert_close(posterior.gather(1, classes.view(N, 40)), values.view(N, 40))

@pytest.mark.parametrize('settings', [dict(clip=0.), per_class], ids=['one setting', 'settings per class'])
def test_equal_classes_of_different_tiles_come_once_each(settings):
    head, hidden, _ = tiled_head(torch.float32, settings)
    same = torch.tensor([3, 20, 70, 82])
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.linspace(-2, 0, C))
        head.bias[same] = 30.
    for value in head.loss.buffers():
        if value.ndim: value[same] = value[3].item()
    values, classes = head.predict_topk(hidden, 4)
    assert classes.sort(1).values.eq(same).all()
    assert_close(values, values[:, :1].expand(N, 4), rtol=0, atol=0)

def targets():
    "The same few labels as bool, class indices and sparse tensors"
    index = torch.stack([torch.randperm(C)[:3] for _ in range(N)])
    index[:9, 1:] = -1
    index[5] = -1
    dense = torch.zeros(N, C+1, dtype=torch.bool).scatter_(1, index % (C+1), True)[:, :C]
    sparse = dense.double()
    return dict(dense=dense, index=index, coo=sparse.to_sparse(), csr=sparse.to_sparse_csr())

def head_about(bias):
    "Hidden activations, weight and bias; the lower the bias, the fewer entries are active"
    g = torch.Generator().manual_seed(1)
    hidden, weight, noise = (torch.randn(shape, generator=g).double() for shape in ((N, D), (C, D), (C,)))
    return [x.requires_grad_() for x in (hidden, weight, noise+bias)]

def whole(target, **settings):
    return lambda *head: asymmetric_loss_multi_label(F.linear(*head), target, **settings)

def tiled(target, budget=BUDGET, **settings):
    return lambda *head: linear_asymmetric_loss(*head, target, budget=budget, **settings)

def value_and_gradients(loss, *inputs):
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]

@pytest.mark.parametrize('kind', ['dense', 'index', 'coo', 'csr'])
@pytest.mark.parametrize('settings', [dict(), dict(smoothing=.1), dict(gamma_neg=.5, gamma_pos=0, clip=0), per_class],
    ids=['defaults', 'smoothing', 'no margin', 'settings per class'])
def test_loss_and_gradients_in_tiles_are_those_of_the_whole_logits(kind, settings):
    of_kind = targets()
    for bias, reduction, sparse_grad in ((0, 'sum', False), (-8, 'mean', True), (-14, 'batchmean', False)):
        want = value_and_gradients(whole(of_kind['dense'], reduction=reduction, **settings), *head_about(bias))
        got = value_and_gradients(tiled(of_kind[kind], reduction=reduction, sparse_grad=sparse_grad, **settings),
            *head_about(bias))
        assert_close([x.to_dense() for x in got], want, rtol=1e-10, atol=1e-12)

@pytest.mark.parametrize('layout', ['clone', 'to_sparse', 'to_sparse_csr'])
def test_soft_and_unknown_labels_in_tiles_count_as_in_the_whole(layout):
    soft = targets()['dense']*torch.rand(N, C).double()
    soft[3, 5:60] = -100
    want = value_and_gradients(whole(soft, reduction='mean'), *head_about(-8))
    got = value_and_gradients(tiled(getattr(soft, layout)(), reduction='mean'), *head_about(-8))
    assert_close(got, want, rtol=1e-10, atol=1e-12)

KINDS = ['dense', 'index', 'coo', 'csr']
BUDGETS = [1, 2**12, 2**14, 2**16, 2**25]       # bytes: tiles of one row and 16 classes, up to one tile

def same(got, want): assert_close([x.to_dense() for x in got], want, rtol=1e-10, atol=1e-12)

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('reduction', ['sum', 'mean', 'batchmean'])
@pytest.mark.parametrize('bias', [0, -8], ids=['many active', 'few active'])
def test_a_loss_does_not_depend_on_the_size_of_tiles(kind, reduction, bias):
    of_kind = targets()
    dense = of_kind['dense'].double()
    if kind != 'index':
        dense *= torch.rand(N, C).double()
        dense[3, ::2] = -100.
        of_kind = dict(dense=dense, coo=dense.to_sparse(), csr=dense.to_sparse_csr())
    want = value_and_gradients(whole(dense, reduction=reduction, **per_class), *head_about(bias))
    for budget in BUDGETS:
        loss = tiled(of_kind[kind], budget, reduction=reduction, **per_class)
        same(value_and_gradients(loss, *head_about(bias)), want)

@pytest.mark.parametrize('ignore_index', [0, 1])
@pytest.mark.parametrize('dtype', [torch.bool, torch.float32, torch.float64])
def test_a_mean_counts_known_labels_and_all_bools_are_known(ignore_index, dtype):
    dense = targets()['dense']
    for bias in (0, -14):
        labels = dense.to(dtype)
        want = value_and_gradients(whole(labels, reduction='mean', ignore_index=ignore_index), *head_about(bias))
        same(value_and_gradients(tiled(labels, reduction='mean', ignore_index=ignore_index), *head_about(bias)), want)

@pytest.mark.parametrize('layout', ['to_sparse', 'to_sparse_csr'])
def test_a_mean_counts_what_a_sparse_target_does_not_list(layout):
    dense = targets()['dense']
    unknown = dense.double()
    for target, ignore_index in ((dense, 0), (dense, 1), (unknown, 1), (unknown, -100)):
        settings = dict(reduction='mean', ignore_index=ignore_index)
        want = value_and_gradients(whole(target, **settings), *head_about(-8))
        same(value_and_gradients(tiled(getattr(target, layout)(), **settings), *head_about(-8)), want)
    with pytest.raises(ValueError, match='ignore_index: got 0, needs another number'):
        tiled(getattr(unknown, layout)(), ignore_index=0)(*head_about(0))

@pytest.mark.parametrize('kind', ['dense', 'coo', 'csr'])
@pytest.mark.parametrize('sparse_grad', [False, True], ids=['', 'sparse_grad'])
def test_where_nothing_is_known_a_mean_is_nan_and_gradients_are_zero(kind, sparse_grad):
    nothing = torch.full((N, C), -100.).double()
    target = dict(dense=nothing, coo=nothing.to_sparse(), csr=nothing.to_sparse_csr())[kind]
    for bias in (0, -14):
        f = tiled(target, reduction='mean', sparse_grad=sparse_grad)
        loss, *gradients = value_and_gradients(f, *head_about(bias))
        assert loss.isnan() and not any(gradient.to_dense().any() for gradient in gradients)

@pytest.mark.parametrize('reduction', ['mean', 'batchmean'])
def test_a_mean_of_no_rows_is_nan_and_gradients_are_zero(reduction):
    hidden, weight, bias = head_about(0)
    hidden = hidden[:0].detach().requires_grad_()
    for target in (torch.zeros(0, C), torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, C, dtype=torch.bool)):
        loss, *gradients = value_and_gradients(tiled(target, reduction=reduction), hidden, weight, bias)
        assert loss.isnan() and not any(gradient.any() for gradient in gradients)

SETTINGS = {'defaults': dict(), 'no margin': dict(clip=0.), 'cross-entropy': dict(clip=0., gamma_neg=0, gamma_pos=0),
    'smoothing': dict(smoothing=.1), 'clamped': dict(eps=1e-3), 'settings per class': per_class}

@pytest.mark.parametrize('kind, settings, compiled', [
    *[(kind, settings, False) for kind in KINDS for settings in SETTINGS],
    *[(kind, settings, True) for kind in ('dense', 'index') for settings in ('defaults', 'no margin')]])
def test_infinite_logits_have_their_limits_in_every_tile(kind, settings, compiled):
    of_kind = targets()
    settings = SETTINGS[settings]
    if compiled: torch.compiler.reset()
    for where, bias in ((slice(0, 2), -8), (slice(40, 44), 0)):
        for infinite in (-math.inf, math.inf):
            given = head_about(bias)
            given[2].data[where] = infinite
            want = value_and_gradients(whole(of_kind['dense'], **settings), *given)
            assert not want[0].isnan()
            same(value_and_gradients(tiled(of_kind[kind], compiled=compiled, **settings), *given), want)

@pytest.mark.parametrize('kind', KINDS)
def test_a_masked_class_without_labels_is_as_if_it_were_not_there(kind):
    of_kind = targets()
    dense = of_kind['dense'].clone()
    dense[:, 7] = False
    sparse = dense.double()
    width = dense.sum(1).max()
    index = torch.where(torch.arange(width) < dense.sum(1, keepdim=True), dense.double().topk(width).indices, -1)
    target = dict(dense=dense, index=index, coo=sparse.to_sparse(), csr=sparse.to_sparse_csr())[kind]
    rest = [c for c in range(C) if c != 7]
    hidden, weight, bias = head_about(0)
    bias.data[7] = -math.inf
    for settings in (dict(clip=0.), dict()):
        of_rest = whole(dense[:, rest], **settings)
        def without(h, w, b, of_rest=of_rest): return of_rest(h, w[rest], b[rest])
        got = value_and_gradients(tiled(target, **settings), hidden, weight, bias)
        same(got, value_and_gradients(without, hidden, weight, bias))
        assert not got[2][7].any() and got[3][7] == 0

def test_weights_that_overflow_give_infinite_logits_and_the_right_gradient():
    hidden = torch.full((2, 1), 10., requires_grad=True)
    weight = torch.tensor([[3e38], [-3e38], [1.]], requires_grad=True)
    right = torch.tensor([[1, 0, 0], [1, 0, 1]]) == 1
    def head(h, w, target=right): return linear_asymmetric_loss(h, w, None, target, clip=0.)
    def last(w): return asymmetric_loss_multi_label(hidden@w.t(), right[:, 2:], clip=0.)
    loss, *gradients = value_and_gradients(head, hidden, weight)
    want, of_last = value_and_gradients(last, weight[2:])
    assert_close((loss, gradients[1][2:]), (want, of_last))
    assert not gradients[1][:2].any() and gradients[0].isfinite().all()
    assert head(hidden, weight, ~right) == math.inf

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('settings', ['defaults', 'no margin', 'smoothing'])
def test_deterministic_algorithms_are_enough(kind, settings):
    of_kind = targets()
    settings = SETTINGS[settings]
    for bias in (0, -4, -8, -14):
        want = value_and_gradients(tiled(of_kind[kind], **settings), *head_about(bias))
        torch.use_deterministic_algorithms(True)
        try: got = value_and_gradients(tiled(of_kind[kind], **settings), *head_about(bias))
        finally: torch.use_deterministic_algorithms(False)
        assert_close(got, want, rtol=0, atol=0)

@pytest.mark.parametrize('layout', ['clone', 'to_sparse', 'to_sparse_csr'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_labels_that_rounding_moved_out_of_their_range_are_0_and_1(layout, dtype):
    dense = targets()['dense'].to(dtype)
    step = torch.finfo(dtype).eps
    moved = torch.where(dense > 0, torch.tensor(1+2*step, dtype=dtype), -3*step)
    for bias in (0, -8):
        want = value_and_gradients(tiled(dense), *head_about(bias))
        same(value_and_gradients(tiled(getattr(moved, layout)()), *head_about(bias)), want)
    with pytest.raises(ValueError, match='needs values in'): tiled(getattr(moved+9*step, layout)())(*head_about(0))

def test_a_target_or_a_setting_that_requires_grad_is_refused_with_the_cure():
    dense = targets()['dense'].double()
    learned = torch.full((C,), 2.).double().requires_grad_()
    for name, given in dict(target=dict(target=dense.clone().requires_grad_()),
            gamma_neg=dict(target=dense, gamma_neg=learned),
            class_weight=dict(target=dense, class_weight=learned)).items():
        loss = tiled(**given)
        with pytest.raises(ValueError, match=rf'{name}: got a tensor that requires grad.*{name}.detach\(\).*F.linear'):
            loss(*head_about(0))
        with torch.no_grad(): assert loss(*head_about(0)).isfinite()

class _Sums(TorchDispatchMode):
    "Notes the matrices that a product is written or added to"
    def __init__(self):
        super().__init__()
        self.found = []
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        added_to = args[0] if op.overloadpacket == torch.ops.aten.addmm_ else (kwargs or {}).get('out')
        if added_to is not None: self.found.append(added_to)
        return op(*args, **kwargs or {})

@pytest.mark.parametrize('rows, classes', [(6, 1), (1, 6), (1, 1), (6, 5)])
@pytest.mark.parametrize('budget', [2**12, 2**20])
def test_sums_of_one_row_have_its_length_as_stride(rows, classes, budget):
    """A column that was transposed is a row whose stride is 1. Its gradient had that stride too, and a product that was
    added to it failed on an H100 (PyTorch 2.11: CUBLAS_STATUS_INVALID_VALUE)"""
    hidden, weight = (torch.randn(D, size).t().clone(memory_format=torch.preserve_format) for size in (rows, classes))
    for single in (hidden, weight): assert len(single) > 1 or single.stride(0) == 1
    with _Sums() as sums:
        linear_asymmetric_loss(hidden.requires_grad_(), weight.requires_grad_(), None, torch.ones(rows, classes),
            clip=0., budget=budget).backward()
    assert len(sums.found) >= 3
    for matrix in sums.found: assert not matrix.is_contiguous() or matrix.stride(0) >= matrix.shape[1]

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_whoever_asks_for_derivatives_of_derivatives_is_told_what_it_was(dtype):
    head = [x.detach().to(dtype).requires_grad_() for x in head_about(0)]
    f = tiled(targets()['index'])
    loss = f(*head)
    def says(what): return pytest.raises(RuntimeError, match=f'loss: {what} needs the logits whole; use')
    with says('create_graph=True'): torch.autograd.grad(loss, head, create_graph=True)
    with says('is_grads_batched=True'): torch.autograd.grad(loss, head, loss.new_ones(3), is_grads_batched=True)
    with says('torch.func'): torch.func.grad(f)(*head)
    with says('torch.func'): torch.func.vmap(lambda h: f(h, *head[1:]))(head[0][None])
    with says('forward-mode differentiation'), forward_ad.dual_level():
        f(forward_ad.make_dual(head[0], torch.ones_like(head[0])), *head[1:])

@pytest.mark.parametrize('classes', [1, 2])
def test_integers_that_may_be_indices_or_labels_have_to_be_named(classes):
    hidden, weight, bias = (x.detach() for x in head_about(0))
    hidden, weight, bias = hidden[:2], weight[:classes], bias[:classes]
    target = torch.tensor([[0, 1], [1, 0]])[:, :classes] if classes == 2 else torch.tensor([[0], [0]])
    def loss(**given): return linear_asymmetric_loss(hidden, weight, bias, target, **given)
    with pytest.raises(ValueError, match="target_kind='indices' or target_kind='labels'"): loss()
    logits = F.linear(hidden, weight, bias)
    assert_close(loss(target_kind='labels'), asymmetric_loss_multi_label(logits, target))
    assert_close(loss(target_kind='indices'), asymmetric_loss_multi_label(logits, torch.ones(2, classes)))
    layer = LinearAsymmetricLoss(D, classes, target_kind='labels', dtype=torch.float64)
    want = asymmetric_loss_multi_label(F.linear(hidden, layer.weight, layer.bias), target)
    assert_close(layer(hidden, target), want)

@pytest.mark.parametrize('dtype', [torch.long, torch.int8, torch.uint8])
def test_integer_labels_of_many_classes_are_labels_if_so_named(dtype):
    dense = targets()['dense'].to(dtype)
    if dtype != torch.uint8: dense[3, :60] = -100
    for bias in (0, -8):
        want = value_and_gradients(whole(dense, reduction='mean'), *head_about(bias))
        same(value_and_gradients(tiled(dense, reduction='mean', target_kind='labels'), *head_about(bias)), want)
    with pytest.raises(ValueError, match='target_kind="labels"'): tiled(dense.abs().clamp(max=1))(*head_about(0))

class NoFloat64(TorchDispatchMode):
    "As a device without float64"
    def __torch_dispatch__(self, func, _, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64: raise TypeError(f'{func}: float64')
        return out

@pytest.mark.parametrize('kind', KINDS)
def test_a_device_without_float64_has_the_head(kind, monkeypatch):
    target = targets()[kind]
    if target.layout != torch.strided: target = target.float()
    for bias in (0, -8):
        head = [x.detach().float().requires_grad_() for x in head_about(bias)]
        settings = dict(reduction='mean', gamma_neg=torch.linspace(0, 4, C), clip=torch.linspace(0, .1, C))
        want = value_and_gradients(tiled(target, **settings), *head)
        with monkeypatch.context() as patch, NoFloat64():
            patch.setattr(checks, 'has_float64', lambda _: False)
            got = value_and_gradients(tiled(target, **settings), *head)
        assert_close(got, want, rtol=1e-4, atol=1e-6)

def refused():
    "Calls that cannot be meant, and what is said of them"
    index = torch.zeros(2, 1, dtype=torch.long)
    labels = torch.zeros(2, 5)
    hidden, weight = torch.randn(2, 4), torch.randn(5, 4)
    nested = torch.nested.nested_tensor([torch.zeros(3), torch.zeros(5)])
    def loss(target=index, hidden=hidden, **given):
        return lambda: linear_asymmetric_loss(hidden, weight, None, target, **given)
    layer = LinearAsymmetricLoss(4, 5)
    return [
        (loss(budget='1MB'), 'budget: got str, needs a positive whole number of bytes'),
        (loss(budget=-5), 'budget: got -5, needs a positive whole number of bytes'),
        (loss(budget=0), 'budget: got 0, needs a positive whole number of bytes'),
        (loss(budget=True), 'budget: got bool, needs a positive whole number of bytes'),
        (loss(budget=1e6), 'budget: got float, needs a positive whole number of bytes'),
        (lambda: LinearAsymmetricLoss(4, 5, budget='1MB'), 'budget: got str'),
        (lambda: layer.predict_topk(hidden, True), 'k: got bool, needs a whole number from 1 to 5'),
        (lambda: layer.predict_topk(hidden, '2'), 'k: got str, needs a whole number from 1 to 5'),
        (lambda: layer.predict_topk(hidden, 2.), 'k: got float, needs a whole number from 1 to 5'),
        (lambda: layer.predict_topk(hidden, 6), 'k: got 6, needs a whole number from 1 to 5'),
        (loss(target_kind='index'), "target_kind: got 'index', needs 'indices', 'labels' or None"),
        (lambda: LinearAsymmetricLoss(4, 5, target_kind=3), "target_kind: got 3, needs"),
        (loss(labels, target_kind='indices'), 'target: got torch.float32.*needs integer class indices'),
        (loss(labels.to_sparse(), target_kind='indices'), 'target: got torch.float32.*needs integer class indices'),
        (loss(index, target_kind='labels'), r'target: got shape \(2, 1\), needs \(2, 5\)'),
        (loss(index+7, target_kind='indices'), 'target: got 7, needs class indices'),
        (loss(labels.long()+2, target_kind='labels'), r'target: got 2, needs values in \[0, 1\]'),
        (loss(masked_tensor(labels, labels == 0)), 'target: got a MaskedTensor'),
        (loss(nested), 'target: got a nested tensor'),
        (loss(hidden=hidden.to_sparse()), 'hidden: got layout torch.sparse_coo, needs a dense tensor'),
        (loss(labels.to_sparse_csc()), 'target: got .*sparse_csc'),
        (loss([[1], [2]]), 'target: got list, needs a tensor'),
        (loss(labels, ignore_index=None), 'ignore_index: got NoneType'),
        (loss(ignore_index='x'), 'ignore_index: got str'),
        (loss(class_weight='abc'), 'class_weight: got str'),
        (loss(class_weight=-1), 'class_weight: got -1'),
        (loss(pos_weight=math.inf), 'pos_weight: got inf'),
        (loss(eps=True), 'eps: got bool'),
    ]

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('number', range(28))
def test_calls_that_cannot_be_meant_are_refused_in_one_line(number):
    call, says = refused()[number]
    with pytest.raises((TypeError, ValueError), match=says) as e: call()
    assert '\n' not in str(e.value)
