"Two processes on the CPU: when the average of their gradients is that of one process, and what to do when it is not."
import copy, sys
from functools import partial

import pytest, torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from asl import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel
from common import data, grads, net, off, run, sgd, spawn, weights

weight = torch.linspace(.5, 2, 10).double()
kinds = [('multi', 'sum'), ('multi', 'mean'), ('multi', 'batchmean'), ('single', 'sum'), ('single', 'mean')]
hard = 'plain', 'ignored', 'weighted', 'ignored and weighted'
cases = [(*kind, extra) for kind in kinds for extra in hard]

def case(kind, reduction, extra):
    "The loss and the data of a case"
    loss = (AsymmetricLossSingleLabel if kind == 'single' else AsymmetricLossMultiLabel)(reduction=reduction,
        weight=weight if 'weighted' in extra else None)
    return loss, *data(32, 'uneven' if 'ignored' in extra else None, kind == 'single')

def counted(loss, y):
    "What the loss's 'mean' divides by"
    known = y != -100
    return known.sum() if loss.weight is None or y.ndim > 1 else loss.weight[y[known]].sum()

def right(model, loss, x, y):
    "The gradient of the mean over all processes: a sum here, the count everywhere, and DDP's average taken back"
    total = copy.copy(loss)
    total.reduction = 'sum'
    n = counted(loss, y)
    dist.all_reduce(n)
    return total(model(x), y)*dist.get_world_size()/n

def shard(rank, world, x, y): return x.chunk(world)[rank], y.chunk(world)[rank]

def backward(model, loss, x, y):
    loss(model(x), y).backward()
    return grads(model)

def averaged(rank, world):
    "Gradients by DDP, as they come and by the remedy, of each case"
    out = {}
    for key in cases:
        loss, x, y = case(*key)
        x, y = shard(rank, world, x, y)
        out[key] = backward(DistributedDataParallel(net()), loss, x, y)
        if key[1] == 'mean':
            model = DistributedDataParallel(net())
            right(model, loss, x, y).backward()
            out[key, 'right'] = grads(model)
    return out

sharded_cases = [('multi', 'mean', 'plain'), ('multi', 'mean', 'ignored'), ('single', 'mean', 'ignored and weighted')]

def sharded(rank, world):
    "The weights after three steps of a sharded model"
    from torch.distributed.fsdp import fully_shard
    torch.distributed.device_mesh.init_device_mesh('cpu', (world,))
    out = {}
    for key in sharded_cases:
        loss, *batch = case(*key)
        model = net()
        for layer in (model[1], model[3], model): fully_shard(layer)
        assert all(isinstance(p, DTensor) and p.to_local().shape[0] == p.shape[0]//world for p in model.parameters())
        steps(model, partial(right, model, loss), *shard(rank, world, *batch))
        out[key] = torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])
    return out

def steps(model, loss, x, y):
    opt = torch.optim.AdamW(model.parameters(), lr=.01)
    for _ in range(3):
        opt.zero_grad()
        loss(x, y).backward()
        opt.step()

def both(rank, world): return averaged(rank, world), sharded(rank, world)

@pytest.fixture(scope='module')
def processes(tmp_path_factory): return spawn(both, tmp_path_factory.mktemp('two'))

@pytest.mark.parametrize('kind, reduction, extra', cases)
def test_ddp(processes, kind, reduction, extra):
    (ddp, _), (other, _) = processes
    key = kind, reduction, extra
    one = backward(net(), *case(*key))
    assert torch.equal(ddp[key], other[key])
    factor = 2 if reduction == 'sum' else 1
    differs = reduction == 'mean' and ('ignored' in extra or kind == 'single' and 'weighted' in extra)
    if differs: assert off(ddp[key], one) > .001
    else: assert off(factor*ddp[key], one) < 1e-12
    if reduction == 'mean': assert off(ddp[key, 'right'], one) < 1e-12

@pytest.mark.parametrize('key', sharded_cases)
def test_fsdp(processes, key):
    (loss, *batch), model = case(*key), net()
    before = weights(model)
    steps(model, lambda x, y: loss(model(x), y), *batch)
    assert off(processes[0][1][key]-before, weights(model)-before) < 1e-6

script = '''
import sys, torch
from asl import AsymmetricLossMultiLabel
from common import data, weights
from test_lightning import Lit, loader, trainer
for reduction in ('mean', 'sum'):
    lit = Lit(AsymmetricLossMultiLabel(reduction=reduction))
    lit.lr = .1 if reduction=='mean' else 1e-4
    t = trainer(strategy='ddp', devices=2, epochs=3)
    t.fit(lit, loader(*data(), size=32))
    torch.save((weights(lit.net), t.global_step), f'{sys.argv[1]}/{reduction}-{t.global_rank}.pt')
'''

def test_lightning(tmp_path):
    pytest.importorskip('lightning')
    (tmp_path/'script.py').write_text(script)
    run([sys.executable, tmp_path/'script.py', tmp_path])
    for reduction, lr in (('mean', .1), ('sum', 1e-4/2)):         # a sum is averaged over the processes: half of it
        (got, steps), (other, _) = (torch.load(tmp_path/f'{reduction}-{rank}.pt') for rank in (0, 1))
        want = sgd(net(), AsymmetricLossMultiLabel(reduction=reduction), [data()]*3, lr=lr)
        assert steps == 3 and torch.equal(got, other) and off(got-weights(net()), want-weights(net())) < 1e-6
