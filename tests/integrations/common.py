"Tiny data, models and comparisons for the tests beside this file."
import copy, os, signal, subprocess, sys, time

import torch
from torch import nn

from asl import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel
from asl.training.digits import digit_collages

as_bce = dict(gamma_neg=0, gamma_pos=0, clip=0)         # at these settings the loss is binary cross entropy
as_ce = dict(gamma_neg=0, gamma_pos=0, eps=0)           # and here, cross entropy

def data(n=64, ignore=None, single=False, dtype=torch.float64):
    "Images and targets of n collages; ignore='uneven' makes entries unknown, many in some images and none in others"
    images, targets, _ = digit_collages(n=n, n_classes=10, seed=1)
    y = targets.argmax(1) if single else targets.to(dtype)
    if not ignore: return images.to(dtype), y
    share = torch.linspace(0, .9, n).view(-1, *[1]*(y.ndim-1))
    return images.to(dtype), y.masked_fill(torch.rand(y.shape, generator=seeded(2)) < share, -100)

def losses(single): return AsymmetricLossSingleLabel if single else AsymmetricLossMultiLabel

def seeded(seed): return torch.Generator().manual_seed(seed)

def net(seed=0, dtype=torch.float64):
    "A perceptron of 10 classes: the same seed, the same weights"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.GELU(), nn.Linear(16, 10)).to(dtype)

def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()

def grads(model): return torch.cat([p.grad.flatten() for p in model.parameters()]).clone()

def off(a, b):
    "Largest difference, relative to the largest of b"
    return ((a-b).abs().max()/b.abs().max()).item()

def sgd(model, loss, batches, lr=.1):
    "The plain loop that frameworks are compared with; the weights it ends with"
    model = copy.deepcopy(model)
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    for x, y in batches:
        opt.zero_grad()
        loss(model(x), y).backward()
        opt.step()
    return weights(model)

def chunks(x, y, size): return list(zip(x.split(size), y.split(size)))

def run(args, timeout=100, **env):
    "A command that finds this folder, in a process group of its own which ends when time is up; what it printed"
    env['PYTHONPATH'] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    p = subprocess.Popen(list(map(str, args)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=os.environ | dict(OMP_NUM_THREADS='1') | env)
    try: out, _ = p.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        raise AssertionError(f'not done in {timeout} s: {p.communicate()[0]}') from None
    assert p.returncode == 0, out
    return out

def spawn(worker, folder, world=2, timeout=100):
    "What worker(rank, world), a function of a test file, returns in each of world processes joined by gloo"
    ctx = torch.multiprocessing.spawn(_join, (worker, str(folder), world), nprocs=world, join=False)
    end = time.time()+timeout
    try:
        while not ctx.join(timeout=1): assert time.time() < end, f'not done in {timeout} s'
    finally:
        for p in ctx.processes: p.kill()
    return [torch.load(folder/f'{rank}.pt') for rank in range(world)]

def _join(rank, worker, folder, world):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world)
    torch.save(worker(rank, world), f'{folder}/{rank}.pt')
    torch.distributed.destroy_process_group()
