"Class-parallel heads under torchrun, in 2 and 4 processes on a CPU: training, top-k, checkpoints, what dies or hangs."
import os, signal, subprocess, sys, time

import pytest, torch

common = '''
import copy, os, sys, torch, torch.distributed as dist
from datetime import timedelta
from torch import nn
from torch.distributed.checkpoint import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from asl import AsymmetricLossSingleLabel, LinearAsymmetricLoss
from asl.distributed import ClassParallel, class_parallel_loss
W, rank = int(os.environ['WORLD_SIZE']), int(os.environ['RANK'])

class Net(nn.Module):
    def __init__(self, reduction):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 8)).double()
        each = torch.linspace(1, 4, 37)
        self.head = LinearAsymmetricLoss(8, 37, reduction=reduction, gamma_neg=each, dtype=torch.float64)
    def forward(self, x, target): return self.head(self.trunk(x), target)

def train(model, x, target, loss=None):
    "Values of 20 steps, and the weights after them"
    opt, losses = torch.optim.AdamW(model.parameters(), lr=.01), []
    for _ in range(20):
        opt.zero_grad()
        losses.append(model(x, target) if loss is None else loss(model(x), target))
        losses[-1].backward()
        opt.step()
    return torch.stack(losses).detach(), [whole(p.detach()) for p in model.parameters()]

def whole(p): return p.full_tensor() if isinstance(p, DTensor) else p

def data():
    torch.manual_seed(0)
    return torch.randn(24, 10).double(), torch.randint(0, 37, (24, 1))

def agree(got, want): torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
'''

def run(program, folder, processes, timeout=60):
    "Exit code, what was printed, and how long it took"
    path = folder/'program.py'
    path.write_text(common+program)
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(sys.path))
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)]
    start = time.time()
    p = subprocess.Popen([*torchrun, str(path), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=env, start_new_session=True)
    try: out, _ = p.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        raise AssertionError(f'not done in {timeout} s: {p.communicate()[0]}') from None
    return p.returncode, out, time.time()-start

def passes(program, folder, processes):
    code, out, _ = run(program, folder, processes)
    assert not code and out.count('done') == processes, out

one_mesh = '''
mesh = init_device_mesh('cpu', (W,), mesh_dim_names=('tp',))
x, target = data()
for reduction in ('sum', 'mean', 'batchmean'):
    net = Net(reduction)
    losses, weights = train(copy.deepcopy(net), x, target)
    def sharded(layout):
        out = parallelize_module(copy.deepcopy(net), mesh['tp'], dict(head=ClassParallel(input_layouts=layout)))
        fully_shard(out.trunk, mesh=mesh)
        return out
    same, own = sharded(Replicate()), sharded(Shard(0))
    got, trained = train(same, x, target)
    agree(got, losses)
    agree(trained, weights)
    averaged = sharded(Shard(0))
    averaged(x.chunk(W)[rank], target.chunk(W)[rank]).backward()
    one = copy.deepcopy(net)
    one(x, target).backward()
    agree([whole(p.grad) for p in averaged.trunk.parameters()], [p.grad/W for p in one.trunk.parameters()])
    agree([whole(p.grad) for p in averaged.head.parameters()], [p.grad for p in one.head.parameters()])
    own.trunk.set_gradient_divide_factor(1.)
    got, trained = train(own, x.chunk(W)[rank], target.chunk(W)[rank])
    agree(got, losses)
    agree(trained, weights)
print('done')
dist.destroy_process_group()
'''

def test_training_on_one_mesh_is_that_of_one_process(tmp_path): passes(one_mesh, tmp_path, 4)

two_meshes = '''
mesh = init_device_mesh('cpu', (2, 2), mesh_dim_names=('dp', 'tp'))
mine = lambda o: o.chunk(2)[mesh['dp'].get_local_rank()]
x, target = data()
for reduction in ('sum', 'mean', 'batchmean'):
    net = Net(reduction)
    one, sharded = copy.deepcopy(net), parallelize_module(copy.deepcopy(net), mesh['tp'], dict(head=ClassParallel()))
    for part in (sharded.trunk, sharded.head):
        fully_shard(part, mesh=mesh['dp'])
        if reduction=='sum': part.set_gradient_divide_factor(1.)
    losses, weights = train(one, x, target)
    got, trained = train(sharded, mine(x), mine(target))
    agree(trained, weights)
    dist.all_reduce(got, group=mesh['dp'].get_group())
    agree(got if reduction=='sum' else got/2, losses)
hidden = one.trunk(x)
try: sharded.head.predict_topk(hidden, 5)
except ValueError as e: assert 'register_fsdp_forward_method' in str(e)
else: assert False
register_fsdp_forward_method(sharded.head, 'predict_topk')
(p, at), (want_p, want_at) = sharded.head.predict_topk(hidden, 5), one.head.predict_topk(hidden, 5)
agree(p, want_p)
assert torch.equal(at, want_at)

class Logits(nn.Sequential):
    def __init__(self): super().__init__(nn.Linear(10, 8), nn.GELU(), nn.Linear(8, 37))
net, loss = Logits().double(), AsymmetricLossSingleLabel()
by_class = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
sharded = parallelize_module(copy.deepcopy(net), mesh['tp'], {'2': by_class})
fully_shard(sharded, mesh=mesh['dp'])
losses, weights = train(net, x, target[:,0], loss)
got, trained = train(sharded, mine(x), mine(target[:,0]), lambda z, t: class_parallel_loss(loss, z, t))
agree(trained, weights)
print('done')
dist.destroy_process_group()
'''

def test_training_on_two_meshes_is_that_of_one_process(tmp_path): passes(two_meshes, tmp_path, 4)

several_tiles = '''
torch.manual_seed(0)
mesh = init_device_mesh('cpu', (W,))
C, each = 83, torch.linspace(0, 4, 83)

def check(head, hidden, k, layout):
    "Top-k of the divided head, against the whole posterior"
    posterior = head.loss.posterior(nn.functional.linear(hidden.float(), head.weight.float(), head.bias.float()))
    divided = parallelize_module(copy.deepcopy(head), mesh, ClassParallel(input_layouts=layout))
    mine = lambda x: x if layout == Replicate() else x.chunk(W)[rank]
    values, classes = divided.predict_topk(mine(hidden), k)
    torch.testing.assert_close(values, mine(posterior).topk(k).values)
    torch.testing.assert_close(mine(posterior).gather(1, classes), values)
    assert all(len(set(row)) == k for row in classes.tolist())
    return classes

for settings in (dict(clip=0.), dict(gamma_neg=each, clip=each/40)):
    for dtype, layout in ((torch.float32, Replicate()), (torch.bfloat16, Shard(0))):
        head = LinearAsymmetricLoss(8, C, budget=2**12, dtype=dtype, **settings)      # tiles of 16 classes
        with torch.no_grad(): head.weight.normal_()
        for k in (1, 20, 50, C): check(head, torch.randn(24, 8, dtype=dtype), k, layout)
    ties = torch.tensor([3, 20, 40, 50, 82])           # of different tiles, and of both processes
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.linspace(-2, 0, C))
        head.bias[ties] = 30.
    for value in head.loss.buffers():
        if value.ndim: value[ties] = value[3].item()
    assert check(head, torch.randn(24, 8, dtype=dtype), 5, Replicate()).sort(1).values.eq(ties).all()
print('done')
dist.destroy_process_group()
'''

def test_the_best_classes_of_several_tiles_in_each_process_are_those_of_the_whole_posterior(tmp_path):
    passes(several_tiles, tmp_path, 2)

checkpoint = '''
torch.manual_seed(0)
mesh = init_device_mesh('cpu', (W,))
head = LinearAsymmetricLoss(8, 37, gamma_neg=torch.linspace(1, 4, 37))
divided = parallelize_module(copy.deepcopy(head), mesh, ClassParallel())
assert list(divided.state_dict())==list(head.state_dict())
assert all(len(v.to_local())<len(v) for v in divided.state_dict().values())
save(divided.state_dict(), checkpoint_id=f'{sys.argv[1]}/saved')
print('done')
dist.destroy_process_group()
'''

def test_a_checkpoint_of_two_processes_fits_one_that_knows_nothing_of_them(tmp_path):
    from torch.distributed.checkpoint import load
    from asl import LinearAsymmetricLoss
    passes(checkpoint, tmp_path, 2)
    torch.manual_seed(0)
    want, head = (LinearAsymmetricLoss(8, 37, gamma_neg=torch.linspace(1, 4, 37)) for _ in range(2))
    state = head.state_dict()
    load(state, checkpoint_id=str(tmp_path/'saved'), no_dist=True)
    head.load_state_dict(state)
    torch.testing.assert_close([*head.state_dict().values()], [*want.state_dict().values()], rtol=0, atol=0)

faulty = '''
import signal, time
dist.init_process_group('gloo', timeout=timedelta(seconds=3))
head = parallelize_module(LinearAsymmetricLoss(8, 100), init_device_mesh('cpu', (W,)), ClassParallel())
for step in range(1, 100):
    if step==5 and rank==1: FAULT
    head(torch.randn(4, 8, requires_grad=True), torch.zeros(4, 1, dtype=torch.long)).backward()
    print('step', step, flush=True)
'''

@pytest.mark.parametrize('fault, says', [
    ('os.kill(os.getpid(), signal.SIGKILL)', 'SIGKILL'),
    ('time.sleep(1000)', 'imed out'),
], ids=['killed', 'hanging'])
def test_a_process_that_dies_or_hangs_ends_all_with_its_reason(tmp_path, fault, says):
    code, out, took = run(faulty.replace('FAULT', fault), tmp_path, 2)
    assert code and says in out and 'step 4' in out and 'step 5' not in out and took < 40, out
