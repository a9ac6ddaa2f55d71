"The head in tiles against the head as a whole: top-k over several tiles of classes, and the loss with its gradients."
import pytest, torch
from torch.nn import functional as F
from torch.testing import assert_close

from asl import LinearAsymmetricLoss, asymmetric_loss_multi_label, linear_asymmetric_loss

N, C, D = 40, 83, 8
BUDGET = 2**12                          # bytes: three tiles of rows, six of 16 classes, the least there is
per_class = dict(gamma_neg=torch.linspace(0, 4, C), clip=torch.linspace(0, .1, C))

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def tiled_head(dtype, settings):
    "A head whose classes are in six tiles, the best of them in any, and its posteriors of some hidden activations"
    head = LinearAsymmetricLoss(D, C, budget=BUDGET, dtype=dtype, **settings)
    with torch.no_grad(): head.weight.normal_()
    hidden = torch.randn(N, D, dtype=dtype)
    return head, hidden, head.loss.posterior(F.linear(hidden.float(), head.weight.float(), head.bias.float()))

@pytest.mark.parametrize('settings', [dict(clip=0.), per_class], ids=['one setting', 'settings per class'])
@pytest.mark.parametrize('k', [1, 5, 40, C])
def test_the_best_classes_of_many_tiles_are_those_of_the_whole_posterior(settings, k):
    head, hidden, posterior = tiled_head(torch.float32, settings)
    values, classes = head.predict_topk(hidden, k)
    best = posterior.topk(k)
    assert_close(values, best.values)
    assert_close(posterior.gather(1, classes), values)
    assert all(len(set(row)) == k for row in classes.tolist())
    assert len(set(best.indices[:, 0].div(16, rounding_mode='floor').tolist())) > 3     # they are in many tiles

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

def tiled(target, **settings):
    return lambda *head: linear_asymmetric_loss(*head, target, budget=BUDGET, **settings)

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
