"Plain PyTorch: autocast, gradient scaling, compiled steps, activation checkpointing; and the same through accelerate."
import copy
from collections import Counter

import pytest, torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from asl import AsymmetricLossMultiLabel
from common import as_bce, as_ce, chunks, data, grads, losses, net, off, sgd, weights

def autocast_step(model, loss, x, y, dtype, scaler=None, lr=1e-4):
    "One step in mixed precision; the loss, and the change of all weights"
    before, opt = weights(model), torch.optim.SGD(model.parameters(), lr=lr)
    opt.zero_grad()
    with torch.autocast('cpu', dtype=dtype):
        z = model(x)
        assert z.dtype == dtype
        value = loss(z, y)
    if scaler:
        scaler.scale(value).backward()
        scaler.step(opt)
        scaler.update()
    else:
        value.backward()
        opt.step()
    return value.detach(), weights(model)-before

@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, .05), (torch.float16, .01)], ids=['bf16', 'fp16'])
def test_autocast(single, dtype, tolerance):
    x, y = data(single=single, dtype=torch.float32)
    loss = losses(single)(reduction='sum')
    model = net(dtype=torch.float32)
    want = sgd(model, loss, [(x, y)], lr=1e-4)-weights(model)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.**8) if dtype == torch.float16 else None
    value, got = autocast_step(copy.deepcopy(model), loss, x, y, dtype, scaler)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(loss(model(x), y).item(), rel=tolerance)
    assert 1e-5 < off(got, want) < tolerance
    if scaler: assert scaler.get_scale() == 2.**8               # no step was skipped

def test_sums_beyond_float16():
    z, y = torch.full((64, 10), 8., dtype=torch.float16, requires_grad=True), torch.zeros(64, 10)
    with torch.autocast('cpu', dtype=torch.float16):
        value = AsymmetricLossMultiLabel(gamma_neg=0, clip=0)(300*z, y)
        value.backward()
    assert value.dtype == torch.float32 and value.item() == 64*10*2400 > torch.finfo(torch.float16).max
    assert torch.equal(z.grad, torch.full_like(z, 300))

def test_a_scaler_finds_its_scale():
    (x, y), skipped = data(dtype=torch.float32), {}
    for reduction, lr in (('mean', .1), ('sum', 1e-4)):
        model, scaler = net(dtype=torch.float32), torch.amp.GradScaler('cpu')
        loss = AsymmetricLossMultiLabel(reduction=reduction)
        changes = [autocast_step(model, loss, x, y, torch.float16, scaler, lr)[1] for _ in range(8)]
        moved = [o.any().item() for o in changes]
        assert moved == sorted(moved) and moved[-1] and weights(model).isfinite().all()
        skipped[reduction] = moved.count(False)
        assert scaler.get_scale() == 2.**(16-skipped[reduction])
    assert skipped['mean'] == 0 < skipped['sum']                # a sum's gradients are larger: the scale falls first

def sgd_step(model, loss):
    "A step that is one graph: torch.autograd.grad in place of backward, an update in place of an optimizer"
    params = list(model.parameters())
    def step(x, y):
        value = loss(model(x), y)
        with torch.no_grad():
            for p, g in zip(params, torch.autograd.grad(value, params)): p.sub_(g, alpha=.1)
        return value.detach()
    return step

def test_a_whole_step_compiles(single):
    (x, y), loss = data(48, 'uneven', single, torch.float32), losses(single)(reduction='mean')
    eager, compiled = net(dtype=torch.float32), net(dtype=torch.float32)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        steps = sgd_step(eager, loss), torch.compile(sgd_step(compiled, loss), fullgraph=True)
        values = [[step(*batch) for batch in chunks(x, y, 16)] for step in steps]
    torch.testing.assert_close(*values, rtol=1e-5, atol=0)
    before = weights(net(dtype=torch.float32))
    assert off(weights(compiled)-before, weights(eager)-before) < 1e-5

def test_a_step_with_an_optimizer_compiles():
    x, y = data(48, dtype=torch.float32)
    loss = AsymmetricLossMultiLabel(reduction='mean')
    model = net(dtype=torch.float32)
    compiled = copy.deepcopy(model)
    opt = torch.optim.SGD(compiled.parameters(), lr=.1)
    @torch.compile
    def step(x, y):
        loss(compiled(x), y).backward()
        opt.step()
        opt.zero_grad()
    for batch in chunks(x, y, 16): step(*batch)
    assert off(weights(compiled)-weights(model), sgd(model, loss, chunks(x, y, 16))-weights(model)) < 1e-5

def test_activation_checkpointing(single):
    (x, y), loss = data(32, 'uneven', single), losses(single)()
    again = lambda f, *args: checkpoint(f, *args, use_reentrant=False)
    ways = dict(none=lambda m: loss(m(x), y), block=lambda m: loss(m[3](again(m[:3], x)), y),
        loss=lambda m: again(loss, m(x), y), all=lambda m: again(lambda x, y: loss(m(x), y), x, y))
    found, calls = {}, []
    for name, way in ways.items():
        model = net()
        count = Counter()
        def counted(module, _, count=count): count[module] += 1
        hooks = [m.register_forward_pre_hook(counted) for m in (model[1], loss)]
        way(model).backward()
        for h in hooks: h.remove()
        found[name] = grads(model)
        calls.append((count[model[1]], count[loss]))
    assert calls == [(1, 1), (2, 1), (1, 2), (2, 2)]            # it was computed again
    for name in ('block', 'loss', 'all'): assert torch.equal(found[name], found['none'])

@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip('accelerate')
    def make(**kwargs):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        return accelerate.Accelerator(cpu=True, **kwargs)
    yield make
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)

def accelerated(accelerator, loss, x, y, size, dtype=torch.float64, count=None):
    "The model after an epoch of accelerate's loop, the change of its weights, and the dtype of its losses"
    model = net(dtype=dtype)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), size)
    model, opt, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=.1), loader)
    before, dtypes = weights(model), set()
    for i, (x, y) in enumerate(loader):
        with accelerator.accumulate(model):
            with accelerator.autocast(): value = loss(model(x), y)
            each = accelerator.gradient_accumulation_steps
            if count: value = value*each/count[i//each]
            accelerator.backward(value)
            opt.step()
            opt.zero_grad()
        dtypes.add(value.dtype)
    return model, weights(model)-before, dtypes

def test_accelerate_accumulates(accelerator, single):
    mean, total = (losses(single)(reduction=r) for r in ('mean', 'sum'))
    for n, ignore in ((64, None), (58, None), (64, 'uneven')):
        x, y = data(n, ignore, single)
        large = sgd(net(), mean, chunks(x, y, 16))-weights(net())
        four = accelerator(gradient_accumulation_steps=4)
        as_is = accelerated(four, mean, x, y, 4)[1]
        if n == 64 and not ignore: assert off(as_is, large) < 1e-6
        else: assert off(as_is, large) > .01                    # accelerate divides by 4, however many entries count
        counts = [(o != -100).sum().item() for o in y.split(16)]
        assert off(accelerated(four, total, x, y, 4, count=counts)[1], large) < 1e-6

def test_a_swap_in_accelerate_changes_nothing_else(accelerator, single):
    theirs = F.cross_entropy if single else F.binary_cross_entropy_with_logits
    degenerate = losses(single)(reduction='mean', **(as_ce if single else as_bce))
    (x, y), found = data(58, single=single), {}
    for name, loss in dict(theirs=theirs, ours=degenerate, asl=losses(single)(reduction='mean')).items():
        a = accelerator()
        model, change, dtypes = accelerated(a, loss, x, y, 16)
        loader = a.prepare(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16))
        with torch.no_grad(): gathered = [a.gather_for_metrics((model(x), y)) for x,y in loader]
        z, seen = (torch.cat(o) for o in zip(*gathered))
        assert torch.equal(seen, y) and z.shape == (58, 10) and dtypes == {torch.float64}
        found[name] = change
    assert off(found['ours'], found['theirs']) < 1e-6 < .01 < off(found['asl'], found['theirs'])

def test_accelerate_in_bf16(accelerator, single):
    (x, y), loss = data(single=single, dtype=torch.float32), losses(single)(reduction='mean')
    full, mixed = (accelerated(accelerator(mixed_precision=p), loss, x, y, 16, torch.float32) for p in ('no', 'bf16'))
    assert mixed[2] == {torch.float32} and 1e-4 < off(mixed[1], full[1]) < .05
