"The step of an optimizer in backward, a tile at a time: against the plain way, whole logits and torch.optim."
import copy, itertools, pickle, subprocess, sys

import pytest, torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from asl import LinearAsymmetricLoss, asymmetric_loss_multi_label
from asl.ops import step as step_module

N, C, D = 24, 83, 8
SMALL, LARGE = 2**12, 2**24             # bytes: several tiles of rows and of classes, or one
SGD, Adam, AdamW, Adagrad = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad
METHODS = {'sgd': (SGD, dict(lr=.02)), 'momentum': (SGD, dict(lr=.02, momentum=.9, weight_decay=.1)),
    'nesterov': (SGD, dict(lr=.02, momentum=.9, nesterov=True)), 'adam': (Adam, dict(lr=.02, weight_decay=.1)),
    'adamw': (AdamW, dict(lr=.02, weight_decay=.1)), 'adagrad': (Adagrad, dict(lr=.1, lr_decay=.01, weight_decay=.1))}
methods = pytest.mark.parametrize('method', METHODS)

class Plain(nn.Module):
    "A head whose logits are whole"
    def __init__(self, head):
        super().__init__()
        self.weight = nn.Parameter(head.weight.detach().clone())
        self.bias = nn.Parameter(head.bias.detach().clone())
        self.reduction = head.loss.reduction
    def forward(self, hidden, target):
        labels = torch.zeros(len(hidden), C).scatter_(1, target, 1.)
        return asymmetric_loss_multi_label(F.linear(hidden, self.weight, self.bias), labels, reduction=self.reduction)

def made(bias=-4., dtype=torch.float64, **options):
    "A head at random; the lower the bias, the fewer entries are active"
    torch.manual_seed(0)
    head = LinearAsymmetricLoss(D, C, dtype=dtype, **dict(budget=SMALL) | options)
    with torch.no_grad():
        head.weight.normal_()
        head.bias.normal_().add_(bias)
    return head

def train(head, method='adamw', steps=50, factor=.3, start=0, body=None, optimizer=None, schedule=None, **options):
    "A network with the head after so many steps, its optimizer and its schedule; a plain head gets gradients"
    cls, numbers = METHODS[method]
    if body is None:
        torch.manual_seed(1)
        body = nn.Linear(5, D, dtype=head.weight.dtype)
    if optimizer is None:
        optimizer = cls([dict(params=body.parameters()), dict(params=head.parameters())], **numbers)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
        if not isinstance(head, Plain): head.step_in_backward(optimizer, **options)
    for i in range(start, start+steps):
        g = torch.Generator().manual_seed(i)
        x = torch.randn(N, 5, generator=g).to(head.weight.dtype)
        target = torch.randint(0, C, (N, 1), generator=g)
        optimizer.zero_grad()
        (factor*head(body(x), target)).backward()
        optimizer.step()
        schedule.step()
    return body, optimizer, schedule

@methods
@pytest.mark.parametrize('bias', [0., -6.], ids=['many active', 'few active'])
def test_after_50_steps_weights_are_those_of_the_plain_way_with_a_schedule(method, bias):
    head = made(bias)
    before = head.weight.detach().clone()
    plain = Plain(head)
    bodies = train(head, method)[0], train(plain, method)[0]
    assert head.weight.grad is None and head.bias.grad is None
    assert not torch.equal(head.weight, before)
    assert_close(list(head.parameters()), list(plain.parameters()), rtol=1e-10, atol=1e-10)
    assert_close(list(bodies[0].parameters()), list(bodies[1].parameters()), rtol=1e-10, atol=1e-10)

@pytest.mark.parametrize('reduction', ['sum', 'mean', 'batchmean'])
def test_every_reduction_and_every_tile_size_give_the_same_weights_as_whole_logits(reduction):
    head = made(reduction=reduction)
    plain = Plain(head)
    train(plain, steps=3)
    for budget, kept in itertools.product((1, SMALL, LARGE), (True, False)):
        tiled = made(reduction=reduction, budget=budget)
        with pytest.MonkeyPatch.context() as patch:
            if not kept: patch.setattr('asl.ops.head._Kept.keep', lambda *_: None)
            train(tiled, steps=3)
        assert_close(list(tiled.parameters()), list(plain.parameters()), rtol=1e-10, atol=1e-12)

@pytest.mark.parametrize('kind', ['index', 'bool', 'sparse'])
def test_every_kind_of_target_and_settings_per_class_take_the_step(kind):
    each = dict(gamma_neg=torch.linspace(0, 4, C), clip=torch.linspace(0, .1, C))
    heads = [made(**each), made(**each)]
    hidden = torch.randn(N, D, dtype=torch.float64)
    index = torch.randint(0, C, (N, 1))
    labels = torch.zeros(N, C, dtype=torch.bool).scatter_(1, index, True)
    target = dict(index=index, bool=labels, sparse=labels.double().to_sparse())[kind]
    optimizers = [AdamW(head.parameters(), lr=.1) for head in heads]
    heads[0].step_in_backward(optimizers[0])
    for head, optimizer in zip(heads, optimizers):
        for _ in range(3):
            optimizer.zero_grad()
            head(hidden, target).backward()
            optimizer.step()
    assert_close(*[list(head.parameters()) for head in heads], rtol=1e-10, atol=1e-12)

# bfloat16
def distance(head, true):
    return sum((p.double()-q.double()).norm()**2 for p, q in zip(head.parameters(), true.parameters())).sqrt().item()

def head_alone(head, method, lr, step=True, **options):
    "A head after 50 steps on what it sees; plain or not"
    cls, numbers = METHODS[method]
    optimizer = cls(head.parameters(), **numbers | dict(lr=lr))
    if step: head.step_in_backward(optimizer, **options)
    for i in range(50):
        g = torch.Generator().manual_seed(i)
        hidden = torch.randn(N, D, generator=g).bfloat16().to(head.weight.dtype)
        optimizer.zero_grad()
        head(hidden, torch.randint(0, C, (N, 1), generator=g)).backward()
        optimizer.step()
    return head, optimizer

AT_RANDOM = dict(rounding='stochastic')
SMALL_STEPS = dict(momentum=1e-4, adamw=1e-3, adagrad=1e-3)
LARGE_STEPS = dict(momentum=.02, adamw=.02, adagrad=.1)

@pytest.mark.parametrize('method, lr, options', [
    *[(method, lr, dict()) for rates in (SMALL_STEPS, LARGE_STEPS) for method, lr in rates.items()],
    *[(method, lr, dict(state_dtype=torch.bfloat16)) for method, lr in SMALL_STEPS.items()],
    ('momentum', 1e-4, AT_RANDOM), ('adamw', 1e-3, AT_RANDOM)])
def test_bfloat16_is_no_further_from_float32_than_plain_bfloat16(method, lr, options):
    start = made(dtype=torch.bfloat16)
    true, _ = head_alone(copy.deepcopy(start).float(), method, lr, step=False)
    plain, _ = head_alone(copy.deepcopy(start), method, lr, step=False)
    ours, optimizer = head_alone(start, method, lr, **options)
    assert distance(ours, true) <= distance(plain, true)
    dtypes = {s.dtype for name, s in optimizer.state[start.weight].items() if name not in ('step', 'compensation')}
    assert dtypes == {options.get('state_dtype', torch.float32)}

@pytest.mark.parametrize('rounding', ['stochastic', 'kahan'])
def test_steps_below_the_last_digit_add_up(rounding):
    head = LinearAsymmetricLoss(D, C, dtype=torch.bfloat16)
    optimizer = SGD(head.parameters(), lr=1e-4, weight_decay=1.)
    head.step_in_backward(optimizer, rounding=rounding)
    with torch.no_grad(): head.weight.fill_(1.)
    for _ in range(100):
        head(torch.zeros(1, D, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.long)).backward()
        optimizer.step()
    assert head.weight.double().mean().item() == pytest.approx((1-1e-4)**100, abs=2**-9)

# Checkpoints
def bytes_of(head, optimizer):
    return [head.weight, head.bias, *[optimizer.state[p][k] for p in head.parameters() for k in optimizer.state[p]]]

@methods
@pytest.mark.parametrize('dtype, options', [(torch.float32, {}), (torch.bfloat16, {}),
    (torch.bfloat16, dict(rounding='stochastic')), (torch.float32, dict(state_dtype=torch.bfloat16))])
def test_a_resumed_run_has_the_same_bytes(tmp_path, method, dtype, options):
    whole = made(dtype=dtype)
    _, want, _ = train(whole, method, 6, **options)
    half = made(dtype=dtype)
    saved = dict(zip(('body', 'optimizer', 'schedule'), train(half, method, 3, **options)))
    torch.save(dict(head=half.state_dict(), **{k: v.state_dict() for k, v in saved.items()}), tmp_path/'run')
    found = torch.load(tmp_path/'run')

    head = made(dtype=dtype, bias=3.)
    body, optimizer, schedule = train(head, method, 1, **options)
    head.load_state_dict(found['head'])
    for what, name in ((body, 'body'), (optimizer, 'optimizer'), (schedule, 'schedule')):
        what.load_state_dict(found[name])
    train(head, method, 3, start=3, body=body, optimizer=optimizer, schedule=schedule)
    assert_close(bytes_of(head, optimizer), bytes_of(whole, want), rtol=0, atol=0)

def test_a_run_goes_from_one_way_to_the_other_and_back():
    want = Plain(made())
    train(want, steps=9)
    head = made()
    parts = train(head, steps=3)
    rest = dict(zip(('body', 'optimizer', 'schedule'), parts))
    head.step_in_backward(None)
    train(head, steps=3, start=3, **rest)
    assert head.weight.grad is not None
    rest['optimizer'].zero_grad()
    head.step_in_backward(rest['optimizer'])
    train(head, steps=3, start=6, **rest)
    assert_close(list(head.parameters()), list(want.parameters()), rtol=1e-10, atol=1e-10)

def test_a_copy_is_an_ordinary_head():
    head = made()
    optimizer = AdamW(head.parameters(), lr=.1)
    head.step_in_backward(optimizer)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert other.stepping is None
        case(other).backward()
        assert other.weight.grad is not None
    assert torch.equal(head.weight, made().weight)

# What moves, and what does not
def case(head):
    g = torch.Generator().manual_seed(5)
    return head(torch.randn(N, D, generator=g).to(head.weight.dtype), torch.randint(0, C, (N, 1), generator=g))

def stepping_head(method='adamw', **options):
    head = made()
    cls, numbers = METHODS[method]
    optimizer = cls(head.parameters(), **numbers)
    head.step_in_backward(optimizer, **options)
    return head, optimizer

def same_as_new(head): return all(torch.equal(p, q) for p, q in zip(head.parameters(), made().parameters()))

def test_what_is_no_training_moves_nothing():
    head, _ = stepping_head()
    with torch.no_grad(): case(head)
    case(head)                                             # a loss without a backward
    hidden = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, C, (N, 1))
    of_input, = torch.autograd.grad(head(hidden, target), hidden)
    want, = torch.autograd.grad(made()(hidden, target), hidden)
    assert_close(of_input, want, rtol=1e-10, atol=1e-12)
    head(hidden, target).backward(inputs=[hidden])
    assert same_as_new(head)
    case(head).backward()
    assert not same_as_new(head)

def test_a_frozen_weight_stays_and_its_bias_moves():
    head = made()
    head.weight.requires_grad_(False)
    optimizer = AdamW([head.bias], lr=.1)
    head.step_in_backward(optimizer)
    case(head).backward()
    assert torch.equal(head.weight, made().weight) and not torch.equal(head.bias, made().bias)

@methods
def test_lazy_leaves_classes_without_an_active_entry_alone(method):
    cls, numbers = METHODS[method]
    head = made(-9., sparse_grad=True)
    hidden = torch.randn(N, D, dtype=torch.float64)
    target = torch.randint(0, C, (N, 1))
    head(hidden, target).backward()
    active = torch.zeros(C, dtype=torch.bool)
    active[head.weight.grad._indices()[0]] = True
    assert 0 < active.sum() < C
    heads = []
    for lazy in (True, False):
        head = made(-9.)
        optimizer = cls(head.parameters(), **numbers)
        head.step_in_backward(optimizer, lazy=lazy)
        for _ in range(2):
            head(hidden, target).backward()
            optimizer.step()
        heads.append(head)
    before = made(-9.)
    assert torch.equal(heads[0].weight[~active], before.weight[~active])
    first = heads[0].weight[active], heads[1].weight[active]
    assert not torch.equal(first[0], before.weight[active])
    assert_close(*first, rtol=1e-10, atol=1e-12)
    if method == 'sgd': assert_close(heads[0].weight, heads[1].weight, rtol=0, atol=0)

# Refusals
def scaled(factor):
    def backward(head): (case(head)*factor).backward()
    return backward

def two_losses(head): (case(head)+case(head)).backward()

def old_loss(head):
    old = case(head)
    case(head).backward()
    head.stepping.optimizer.step()
    old.backward()

def accumulated(head):
    for _ in range(2): case(head).backward()

def twice(head):
    loss = case(head)
    loss.backward(retain_graph=True)
    loss.backward()

def penalty(head):
    (case(head)+head.weight.norm()).backward()
    head.stepping.optimizer.step()

def replaced(head):
    head.weight = nn.Parameter(head.weight.detach().clone())
    case(head)

def group_changed(head):
    head.stepping.optimizer.param_groups[0]['amsgrad'] = True
    case(head).backward()

REFUSED = {scaled(65536.): 'GradScaler.*bfloat16', scaled(float('nan')): 'finite number; nothing has moved',
    two_losses: 'several of its losses.*call it once', old_loss: 'moved since this loss',
    twice: 'moved since this loss',
    accumulated: 'optimizer.step.. after each', penalty: 'weight: got a gradient from elsewhere.*weight_decay',
    replaced: 'weight: is another tensor', group_changed: 'amsgrad: got True, needs False'}

@pytest.mark.parametrize('call', REFUSED, ids=lambda call: call.__qualname__)
def test_what_would_need_the_gradient_is_refused_in_one_line(call):
    head, _ = stepping_head()
    with pytest.raises((RuntimeError, ValueError), match=REFUSED[call]) as e: call(head)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('call', [two_losses, scaled(65536.), group_changed], ids=lambda call: call.__qualname__)
def test_nothing_has_moved_where_a_backward_is_refused(call):
    head, _ = stepping_head()
    with pytest.raises((RuntimeError, ValueError)): call(head)
    assert same_as_new(head)

def test_a_gradient_that_is_asked_for_is_refused():
    head, _ = stepping_head()
    with pytest.raises(RuntimeError, match='its gradient was asked for.*step_in_backward.None'):
        torch.autograd.grad(case(head), head.weight)
    hidden = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    loss = head(hidden, torch.zeros(N, 1, dtype=torch.long))
    with pytest.raises(RuntimeError, match='create_graph=True'): torch.autograd.grad(loss, hidden, create_graph=True)
    assert same_as_new(head)

def test_a_weight_that_others_wrote_to_is_refused():
    head, _ = stepping_head()
    loss = case(head)
    with torch.no_grad(): head.weight.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'): loss.backward()

def unmade(error, message, head=None, optimizer=None, **options):
    def call():
        given = head or made()
        given.step_in_backward(optimizer(given) if optimizer else AdamW(given.parameters()), **options)
    return pytest.param(call, error, message, id=message[:20])

@pytest.mark.parametrize('call, error, message', [
    unmade(TypeError, 'optimizer: got RMSprop', optimizer=lambda h: torch.optim.RMSprop(h.parameters())),
    unmade(ValueError, 'optimizer: got none of whose params is the weight', optimizer=lambda h: AdamW([h.bias])),
    unmade(ValueError, 'amsgrad: got True', optimizer=lambda h: AdamW(h.parameters(), amsgrad=True)),
    unmade(ValueError, 'dampening: got 0.5', optimizer=lambda h: SGD(h.parameters(), momentum=.9, dampening=.5)),
    unmade(ValueError, "rounding: got 'up'", rounding='up'),
    unmade(ValueError, 'state_dtype: got torch.float16', state_dtype=torch.float16),
    unmade(TypeError, 'weight: got torch.float16', head=LinearAsymmetricLoss(D, C, dtype=torch.float16)),
    unmade(ValueError, 'sparse_grad: got True', head=LinearAsymmetricLoss(D, C, sparse_grad=True)),
    unmade(TypeError, 'seed: got float', seed=.5),
])
def test_an_optimizer_a_head_or_an_option_that_cannot_be_meant_is_refused(call, error, message):
    with pytest.raises(error, match=message) as e: call()
    assert '\n' not in str(e.value)

def test_a_backward_that_an_error_ended_is_told_until_a_checkpoint_is_loaded():
    head, optimizer = stepping_head()
    saved = copy.deepcopy(head.state_dict()), copy.deepcopy(optimizer.state_dict())
    step_rows = step_module.step_rows
    calls = []
    def fails(*args):
        calls.append(args)
        if len(calls) == 3: raise KeyboardInterrupt
        step_rows(*args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, 'step_rows', fails)
        with pytest.raises(KeyboardInterrupt): case(head).backward()
    for call in (lambda: case(head), optimizer.step, optimizer.state_dict):
        with pytest.raises(RuntimeError, match='of 83 classes those before 32 have moved.*load a checkpoint'): call()
    with torch.no_grad(): case(head)
    head.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    case(head).backward()
    other, _ = stepping_head()
    case(other).backward()
    assert_close(list(head.parameters()), list(other.parameters()), rtol=0, atol=0)

def test_no_gradient_of_the_weight_is_ever_made():
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    class Largest(TorchDispatchMode):
        "Notes the largest tensor that is made"
        most = 0
        def __torch_dispatch__(self, func, _, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x._base is None]
            inputs = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, torch.Tensor)}
            new = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)
                and x.untyped_storage().data_ptr() not in inputs]
            if sizes and new: self.most = max(self.most, *new)
            return out
    head = LinearAsymmetricLoss(64, 2000, budget=2**17)
    optimizer = AdamW(head.parameters())
    head.step_in_backward(optimizer)
    def step():
        head(torch.randn(16, 64), torch.randint(0, 2000, (16, 1))).backward()
        optimizer.step()
    with Largest() as largest: step()
    assert 0 < largest.most < head.weight.numel()/4
    head.step_in_backward(None)
    with Largest() as largest: step()
    assert largest.most >= head.weight.numel()

DIVIDED = """
import copy, os, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module
from asl import LinearAsymmetricLoss
from asl.distributed import ClassParallel, Replicate, Shard
W, rank = int(os.environ['WORLD_SIZE']), int(os.environ['RANK'])
mesh = init_device_mesh('cpu', (W,), mesh_dim_names=('tp',))
torch.manual_seed(0)
for C, reduction, layout in ((23, 'mean', Replicate()), (1, 'sum', Replicate()), (1, 'mean', Shard(0))):
    one = LinearAsymmetricLoss(8, C, reduction=reduction, dtype=torch.float64, target_kind='indices')
    divided = parallelize_module(copy.deepcopy(one), mesh['tp'], ClassParallel(input_layouts=layout))
    def mine(x): return x if layout == Replicate() else x.chunk(W)[rank]
    optimizers = [torch.optim.AdamW(head.parameters(), lr=.1) for head in (one, divided)]
    divided.step_in_backward(optimizers[1])
    for _ in range(4):
        hidden, target = torch.randn(24, 8).double(), torch.randint(0, C, (24, 1))
        for head, optimizer, of in ((one, optimizers[0], lambda x: x), (divided, optimizers[1], mine)):
            optimizer.zero_grad()
            (.3*head(of(hidden), of(target))).backward()
            optimizer.step()
    assert all(p.grad is None for p in divided.parameters())
    for p, q in zip(divided.parameters(), one.parameters()):
        torch.testing.assert_close(p.full_tensor(), q.detach(), rtol=1e-10, atol=1e-12)
dist.destroy_process_group()
"""

def test_a_head_divided_among_processes_takes_the_step_of_one_process(tmp_path):
    "also where a process has no class"
    (tmp_path/'program.py').write_text(DIVIDED)
    args = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', 'program.py']
    out = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert out.returncode == 0, out.stderr[-3000:]
