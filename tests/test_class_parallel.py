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

for settings in (dict(clip=0.), dict(gamma_neg=each, clip=each/40), dict(kept=1-each/5)):
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

limits = '''
import math
from torch.autograd import grad
from torch.distributed.tensor import distribute_tensor
from asl import AsymmetricLossMultiLabel
torch.manual_seed(0)
mesh = init_device_mesh('cpu', (W,))
N, D = 6, 8

def check(loss, C, target, masked, certain):
    "Divided logits, some of them infinite, against whole ones"
    z = torch.randn(N, C).double()
    for column in masked: z[:, column] = -math.inf
    for column in certain: z[:, column] = math.inf
    one = z.clone().requires_grad_()
    want = loss(one, target)
    divided = distribute_tensor(z, mesh, [Shard(1)]).requires_grad_()
    got = class_parallel_loss(loss, divided, target)
    agree = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)
    agree(got, want)
    agree(grad(got.sum(), divided)[0].full_tensor(), grad(want.sum(), one)[0])

each = torch.linspace(.5, 2, 11).double()
for C in (11, 3):
    t = torch.full((N,), C-1)
    for settings in (dict(), dict(eps=0.), dict(gamma_pos=0., gamma_neg=0., weight=each[:C])):
        loss = AsymmetricLossSingleLabel(reduction='none', **settings)
        for masked, certain in (([0], []), ([C-1], []), ([], [C-1]), ([], [0]), ([0], [1, C-1]), (range(C), [])):
            check(loss, C, t, masked, certain)
    maps, of_maps = torch.randn(2, C, 3, 4).double(), torch.randint(0, C, (2, 3, 4))
    loss = AsymmetricLossSingleLabel(weight=each[:C], gamma_neg=each[:C], gamma_pos=each[:C])
    agree(class_parallel_loss(loss, distribute_tensor(maps, mesh, [Shard(1)]), of_maps), loss(maps, of_maps))
    y = torch.zeros(N, C).bool()
    y[:, C-1] = True
    for settings in (dict(), dict(clip=0.)):
        for masked, certain in (([0], []), ([C-1], []), ([], [C-1]), ([], [0]), ([0], [1, C-1])):
            check(AsymmetricLossMultiLabel(**settings), C, y, masked, certain)

def head_and_gradients(head, hidden, target):
    hidden = hidden.clone().requires_grad_()
    loss = head(hidden, target)
    return [loss.detach(), *map(whole, grad(loss, [*head.parameters(), hidden]))]

def compare(C, target, bias=0., **settings):
    "A divided head against a whole one"
    head = LinearAsymmetricLoss(D, C, dtype=torch.float64, budget=2**12, **settings)
    with torch.no_grad(): head.bias[-1] = bias
    hidden = torch.randn(N, D).double()
    divided = parallelize_module(copy.deepcopy(head), mesh, ClassParallel())
    want = head_and_gradients(head, hidden, target)
    got = head_and_gradients(divided, hidden, target)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, equal_nan=True)
    return want

for C in (37, 3):
    head = LinearAsymmetricLoss(D, C)
    with torch.no_grad(): head.bias[1:] = -math.inf                    # all but one class are masked, and still classes
    values, classes = parallelize_module(head, mesh, ClassParallel()).predict_topk(torch.randn(N, D), C)
    assert classes.sort().values.equal(torch.arange(C).expand(N, C)) and not classes[:, 0].any()
    y = (torch.rand(N, C) < .3).double()
    unknown = y.masked_fill(torch.rand(N, C) < .2, -100.)
    for target in (y.bool(), y, unknown, unknown.to_sparse(), y.to_sparse()):
        for bias in (0., -math.inf, math.inf): compare(C, target, bias, reduction='mean', clip=0.)
    compare(C, y.bool(), reduction='mean', ignore_index=0)
    compare(C, y.bool().to_sparse(), reduction='mean', ignore_index=1)
    compare(C, y, reduction='mean', ignore_index=0)
    compare(C, y.long(), reduction='mean', target_kind='labels')
    loss, *gradients = compare(C, torch.full((N, C), -100.), reduction='mean')
    assert loss.isnan() and not any(g.any() for g in gradients)
    z = distribute_tensor(torch.randn(N, C), mesh, [Shard(1)]).requires_grad_()
    multi = AsymmetricLossMultiLabel(reduction='mean', ignore_index=0)
    torch.testing.assert_close(class_parallel_loss(multi, z, y.bool()), multi(z.full_tensor(), y.bool()))
    for target in (y.bool(), y):
        target = distribute_tensor(target, mesh, [Shard(0)])
        torch.testing.assert_close(class_parallel_loss(multi, z, target), multi(z.full_tensor(), target.full_tensor()))
    nothing = class_parallel_loss(AsymmetricLossMultiLabel(reduction='mean'), z, torch.full((N, C), -100.))
    assert nothing.isnan() and not grad(nothing, z)[0].full_tensor().any()
    multi.class_dim = 0
    for call, says in ((lambda: class_parallel_loss(multi, z, y), 'class_dim=0'),
            (lambda: class_parallel_loss(loss_of_many, z, y.requires_grad_()), 'target.detach()')):
        loss_of_many = AsymmetricLossMultiLabel()
        try: call()
        except ValueError as e: assert says in str(e), e
        else: assert False
print('done')
dist.destroy_process_group()
'''

def test_infinite_logits_and_counts_are_those_of_one_process(tmp_path): passes(limits, tmp_path, 2)

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
    print(f'step {step}\\n', end='', flush=True)        # in one piece: both processes write here
'''

@pytest.mark.parametrize('fault, says', [
    ('os.kill(os.getpid(), signal.SIGKILL)', 'SIGKILL'),
    ('time.sleep(1000)', 'imed out'),
], ids=['killed', 'hanging'])
def test_a_process_that_dies_or_hangs_ends_all_with_its_reason(tmp_path, fault, says):
    code, out, took = run(faulty.replace('FAULT', fault), tmp_path, 2)
    assert code and says in out and 'step 4' in out and 'step 5' not in out and took < 40, out
