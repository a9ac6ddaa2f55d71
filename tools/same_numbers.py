"""Does a change of the code leave every number as it was? `python tools/same_numbers.py COMMIT` computes losses,
gradients, posteriors, heads, trainings and predictions with the package of that commit and with the one here, and
compares their SHA-256, case by case."""
import hashlib, io, json, os, random, subprocess, sys
from argparse import ArgumentParser
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

def sha(*parts):
    "The hash of tensors and bytes, of their types and shapes too"
    import torch
    digest = hashlib.sha256()
    for part in parts:
        if hasattr(part, 'full_tensor'): part = part.full_tensor()         # divided among processes
        if isinstance(part, torch.Tensor):
            if part.is_sparse: part = torch.cat([values.flatten().to(part.dtype)
                for values in (part.coalesce().indices(), part.coalesce().values())])
            digest.update(f'{part.dtype}{tuple(part.shape)}'.encode())
            part = part.detach()
            part = part.contiguous().view(torch.uint8).numpy().tobytes() if part.ndim else repr(part.item()).encode()
        digest.update(part)
    return digest.hexdigest()

def attempt(function, *args, **options):
    "What a case gives, as text: a result, or the error that it raised"
    try: return str(function(*args, **options))
    except Exception as e: return f'{type(e).__name__}: {e}'

def sha_of(function, *args):
    "The hash of what a function returns: a tensor or several"
    result = function(*args)
    return sha(*result) if isinstance(result, tuple) else sha(result)

def sha_of_gradients(loss, tensors, *others):
    "The hash of a loss, and of its gradient with respect to each tensor; others are arguments that need none"
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = loss(*tensors, *others)
    value.sum().backward()
    return sha(value, *[tensor.grad for tensor in tensors])

def many_labels(dtype):
    "Logits of a few labels that are there and many that are easily seen not to be"
    import torch
    for shape, mean in ((7, 9), 0), ((64, 80), -3), ((200, 500), -6), ((2, 3, 40), 1), ((3, 1), 0):
        g = torch.Generator().manual_seed(sum(shape))
        y = (torch.rand(shape, generator=g) < .05).float()
        yield (torch.randn(shape, generator=g)*3 + mean).to(dtype), y, shape[-1]

def one_label(dtype):
    "Logits and classes, near and far, also of pixels; the first is unknown"
    import torch
    shapes = ((40, 300), 2), ((60, 1000), 9), ((5, 7), 3), ((6, 30, 4, 5), 30), ((4, 1), 1)
    for i, (shape, spread) in enumerate(shapes):
        g = torch.Generator().manual_seed(i)
        z = (torch.randn(shape, generator=g)*spread).to(dtype)
        t = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=g)
        t.view(-1)[0] = -100
        yield z, t, shape[1]

def settings(C):
    "Settings of the loss for many labels"
    import torch
    each = torch.linspace(0, 1, C)
    yield {}
    yield dict(gamma_neg=0., gamma_pos=0., clip=0.)
    yield dict(gamma_neg=.5, gamma_pos=.3, clip=.2, disable_torch_grad_focal_loss=True)
    yield dict(gamma_neg=4., gamma_pos=0., clip=.05, disable_torch_grad_focal_loss=True, smoothing=.1, reduction='mean')
    yield dict(gamma_neg=7., gamma_pos=2., clip=.01, eps=1e-3, weight=each, pos_weight=2., reduction='batchmean')
    yield dict(gamma_neg=2+each, gamma_pos=each, clip=.3*each, pos_weight=1+each, reduction='none')
    yield dict(ignore_index=1, reduction='mean')

def settings_one(C):
    "Settings of the loss for one label; the last has no posterior here"
    import torch
    each = torch.linspace(.5, 1.5, C)
    yield {}
    yield dict(eps=0.)
    yield dict(gamma_pos=.5, gamma_neg=2.5, eps=.2, weight=each, reduction='sum')
    yield dict(gamma_pos=each, gamma_neg=4*each, reduction='none')

def losses():
    "Both losses and their posteriors, with first and second derivatives"
    import torch, asl
    for dtype in torch.float32, torch.float64, torch.bfloat16, torch.float16:
        for i, (z, y, C) in enumerate(many_labels(dtype)):
            for k, s in enumerate(settings(C)):
                loss = asl.AsymmetricLossMultiLabel(**s)
                soft = (y+.3)/1.3 if k < 6 else y                          # the last setting ignores a label of 1
                yield f'many {dtype} {i} {k}', attempt(sha_of_gradients, loss, [z], y)
                yield f'many soft {dtype} {i} {k}', attempt(sha_of_gradients, loss, [z], soft)
                if k < 6: yield f'posterior {dtype} {i} {k}', attempt(sha_of, loss.posterior, z)
        for i, (z, t, C) in enumerate(one_label(dtype)):
            for k, s in enumerate(settings_one(C)):
                loss = asl.AsymmetricLossSingleLabel(**s)
                yield f'one {dtype} {i} {k}', attempt(sha_of_gradients, loss, [z], t)
                if k < 3: yield f'one posterior {dtype} {i} {k}', attempt(sha_of, loss.posterior, z)
    z, y, C = next(many_labels(torch.float64))
    for k, s in enumerate(settings(C)):
        yield f'second derivative {k}', attempt(sha_of_gradients, squared_slope, [z], y, s)

def squared_slope(z, y, s):
    "The gradient of a loss, squared: what has second derivatives"
    import torch, asl
    slope, = torch.autograd.grad(asl.AsymmetricLossMultiLabel(**s)(z, y).sum(), z, create_graph=True)
    return slope.square()

def probabilities():
    "Thresholds, priors and the controller of gamma_neg"
    import torch, asl
    for k, s in enumerate([{}, dict(gamma_neg=2., clip=0.), dict(gamma_pos=0., disable_torch_grad_focal_loss=True),
                           dict(smoothing=.1, pos_weight=3.)]):
        yield f'threshold {k}', attempt(thresholds, s)
    yield 'gamma for prior', attempt(lambda: repr(asl.gamma_for_prior(.03)))
    y = (torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < .2).float()
    yield 'prior', attempt(sha_of, asl.class_prior, y)
    loss = asl.AsymmetricLossMultiLabel()
    yield 'start', attempt(lambda: sha(asl.init_prior_(torch.nn.Linear(3, 6), asl.class_prior(y), loss).bias))
    yield 'controller', attempt(controlled, y)

def thresholds(s):
    "Thresholds and starting logits of two probabilities"
    from asl.posterior import prior_logit, threshold
    return repr([f(p, **s) for f in (threshold, prior_logit) for p in (.1, .4)])

def controlled(y):
    "Where the controller takes gamma_neg in nine batches, and the gap then"
    import torch, asl
    loss = asl.AsymmetricLossMultiLabel()
    controller = asl.AdaptiveGamma(loss)
    g = torch.Generator().manual_seed(0)
    for _ in range(9): controller.update(torch.randn(50, 6, generator=g), y)
    return sha(loss.gamma_neg, controller.gap)

def head_loss(h, W, b=None, *, target, **options):
    "The loss of a head in tiles; without a bias when none is given"
    import asl
    return asl.linear_asymmetric_loss(h, W, b, target, **options)

def heads():
    "Last layer and loss in tiles"
    import torch, asl
    for dtype, bias, compiled in product((torch.float32, torch.float64, torch.bfloat16), (True, False), (False, True)):
        if compiled and dtype != torch.float32: continue
        g = torch.Generator().manual_seed(3)
        h, W, b = (torch.randn(shape, generator=g).to(dtype) for shape in ((20, 8), (3000, 8), (3000,)))
        leaves = [h, W, b-8] if bias else [h, W]
        y = (torch.rand(20, 3000, generator=g) < .01).float()
        listed = torch.randint(0, 3000, (20, 4), generator=g).sort(1).values
        listed[:, 1:][listed[:, 1:] == listed[:, :-1]] = -1
        targets = dict(dense=y, listed=listed, sparse=y.to_sparse(), soft=y*.7)
        options = {}, dict(clip=0., reduction='mean'), dict(gamma_neg=1.5, gamma_pos=.5)
        for (kind, t), (k, s), sparse in product(targets.items(), enumerate(options), (False, True)):
            loss = partial(head_loss, target=t, **s, sparse_grad=sparse, compiled=compiled, budget=2**20)
            yield f'head {dtype} {bias} {compiled} {kind} {k} {sparse}', attempt(sha_of_gradients, loss, leaves)
        torch.manual_seed(0)
        head = asl.LinearAsymmetricLoss(8, 3000, budget=2**18, dtype=dtype)
        with torch.no_grad(): head.weight.copy_(W)
        yield f'top {dtype} {bias} {compiled}', attempt(sha_of, head.predict_topk, h, 7)

def divided():
    "Losses and heads whose classes are divided, in a group of one process"
    import torch, torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import parallelize_module
    import asl
    from asl.distributed import ClassParallel, class_parallel_loss, class_parallel_topk
    with TemporaryDirectory() as folder:
        dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=0, world_size=1)
        mesh = dist.init_device_mesh('cpu', (1,))
        g = torch.Generator().manual_seed(0)
        z = torch.randn(12, 30, generator=g)*3
        y = (torch.rand(12, 30, generator=g) < .2).float()
        t = torch.randint(0, 30, (12,), generator=g)
        mean = asl.AsymmetricLossMultiLabel(reduction='mean')
        for name, loss, target in (('many', asl.AsymmetricLossMultiLabel(), y), ('mean', mean, y),
                ('one', asl.AsymmetricLossSingleLabel(), t)):
            logits = distribute_tensor(z, mesh, [Shard(1)])
            yield f'divided {name}', attempt(sha_of_gradients, partial(class_parallel_loss, loss), [logits], target)
        yield 'divided top', attempt(sha_of, class_parallel_topk, distribute_tensor(z, mesh, [Shard(1)]), 5)
        torch.manual_seed(0)
        head = asl.LinearAsymmetricLoss(8, 30)
        parallelize_module(head, mesh, ClassParallel())
        h = torch.randn(12, 8, generator=g)
        yield 'divided head', attempt(sha_of_gradients, head, [h], y)
        yield 'divided head top', attempt(sha_of, head.predict_topk, h, 5)
        dist.destroy_process_group()

def compiled():
    "Both losses by torch.compile"
    import torch, asl
    for dtype in torch.float32, torch.float64, torch.bfloat16:
        z, y, C = list(many_labels(dtype))[1]
        t = y.argmax(1)
        for k, s in enumerate(settings(C)):
            torch._dynamo.reset()
            loss = torch.compile(asl.AsymmetricLossMultiLabel(**s), fullgraph=True)
            yield f'compiled many {dtype} {k}', attempt(sha_of_gradients, loss, [z], y)
        for k, s in enumerate([{}, dict(eps=0.), dict(gamma_pos=.5, gamma_neg=2.5, reduction='sum')]):
            torch._dynamo.reset()
            loss = torch.compile(asl.AsymmetricLossSingleLabel(**s), fullgraph=True)
            yield f'compiled one {dtype} {k}', attempt(sha_of_gradients, loss, [z], t)

def kernels():
    "Both losses by Triton's interpreter"
    import torch
    try: from asl.ops import gpu
    except ImportError: from asl import triton as gpu
    try: from asl.ops.common import Settings
    except ImportError: from asl.fused import _Settings as Settings
    z, y, _ = list(many_labels(torch.float32))[1]
    of_class = torch.linspace(0, 4, 80)
    many = ((4., 1., .05, 0., 0., 1., 1., False), (.5, 2.5, .2, 1e-3, .1, 1., 2., True),
        (of_class, 1., 0., 0., 0., torch.linspace(0, 1, 80), 1., False))
    for (k, s), reduction in product(enumerate(many), ('none', 'mean')):
        loss = attempt(sha_of_gradients, gpu.multi_label, [z], y, Settings(*s), -100, reduction)
        yield f'kernel many {k} {reduction}', loss
    for (k, s), reduction in product(enumerate([(1., 4., .1, 1.), (.5, 2.5, 0., 1.)]), ('none', 'mean')):
        loss = attempt(sha_of_gradients, gpu.single_label, [z], y.argmax(1), s, -100, reduction)
        yield f'kernel one {k} {reduction}', loss

def in_jax():
    "Both losses and the posterior in JAX"
    import jax, torch, numpy as np
    from asl import jax as ours
    z, y, _ = list(many_labels(torch.float32))[1]
    z = z.numpy()
    y = y.numpy()
    def value_and_gradient(f): return sha(*[np.asarray(array).tobytes() for array in jax.value_and_grad(f)(z)])
    functions = dict(many=lambda z: ours.asymmetric_loss_multi_label(z, y),
        one=lambda z: ours.asymmetric_loss_single_label(z, y.argmax(1)), posterior=lambda z: ours.posterior(z).sum())
    for name, f in functions.items(): yield f'jax {name}', attempt(value_and_gradient, f)

def draw_discs(folder):
    "Pictures of coloured discs, and a CSV that names their colours"
    from PIL import Image, ImageDraw
    colours = dict(red='#d03030', green='#30a030', blue='#3050d0', brown='#805030')
    chance = random.Random(0)
    rows = ['file,labels']
    for i in range(60):
        chosen = chance.sample(sorted(colours), chance.randint(1, 2))
        picture = Image.new('RGB', (40, 30), 'white')
        for k, colour in enumerate(chosen):
            ImageDraw.Draw(picture).ellipse((2+18*k, 4+i % 7, 18+18*k, 20+i % 7), fill=colours[colour])
        picture.save(folder/f'{i}.png')
        rows.append(f"{i}.png,{'|'.join(chosen)}")
    (folder/'labels.csv').write_text('\n'.join(rows)+'\n')

def kept(run):
    "The hash of what a training leaves"
    names = 'metrics.jsonl', 'result.json', 'best.safetensors', 'last.safetensors', 'map.png', 'reliability.png'
    return sha(*[(run/name).read_bytes() for name in names])

def predicted(run, folder, **options):
    "The hash of what asl_predict writes about nine pictures"
    from asl.predict import predict
    predict(run, [folder/f'{i}.png' for i in range(9)], out=folder/'out', force=True, **options)
    return sha((folder/'out').read_bytes().replace(str(folder).encode(), b''))

def trainings():
    "Runs of asl_train, and what asl_predict makes of them"
    from asl.train import train
    with TemporaryDirectory() as tmp, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        folder = Path(tmp)
        draw_discs(folder)
        own = dict(labels=folder/'labels.csv', images=folder, model='conv3', size=32, epochs=3, batch_size=16,
            workers=0, threads=1)
        trained = dict(digits=dict(epochs=2, classes=20), adaptive=dict(epochs=1, classes=10, adaptive=True),
            focal=dict(epochs=1, classes=10, loss='focal', opt='lamb', sched='cosine'), own=own,
            parts=own | dict(accumulate=2, ema=0., no_prior=True))
        runs = {}
        for name, options in trained.items():
            runs[name] = train(**options, out=folder/'runs', name=name)
            yield f'run {name}', attempt(kept, runs[name])
        for options in dict(format='csv'), dict(format='json', threshold=.2), dict(format='table', top=2, last=True):
            yield f'predict {options}', attempt(predicted, runs['own'], folder, **options)

def probe():
    "All cases, computed with the package that is imported here"
    import torch
    torch.set_num_threads(1)
    usual = losses, probabilities, heads, divided, compiled, in_jax, trainings
    parts = [kernels] if os.environ.get('TRITON_INTERPRET') else usual
    return {name: result for part in parts for name, result in part()}

def run(tree, **environment):
    "The cases, in a process of its own, with the package of a tree"
    code = f"""import sys, json
sys.path[:0] = [{str(tree)!r}, {str(Path(__file__).parent)!r}]
import asl
assert asl.__file__.startswith({str(tree)!r})
from same_numbers import probe
json.dump(probe(), open(sys.argv[1], 'w'))"""
    with TemporaryDirectory() as folder:
        out = Path(folder)/'out.json'
        command = [sys.executable, '-W', 'ignore', '-c', code, out]
        subprocess.run(command, cwd=folder, check=True, env=os.environ | environment)
        return json.loads(out.read_text())

def everything(tree):
    "All cases of a tree, those of Triton's interpreter too"
    return run(tree) | run(tree, TRITON_INTERPRET='1')

def main(commit):
    here = Path(__file__).resolve().parents[1]
    with TemporaryDirectory() as folder:
        before = Path(folder).resolve()/'before'
        subprocess.run(['git', 'worktree', 'add', '-q', '--detach', before, commit], cwd=here, check=True)
        try: was = everything(before)
        finally: subprocess.run(['git', 'worktree', 'remove', '--force', before], cwd=here, check=True)
    now = everything(here)
    off = [name for name in was if was[name] != now.get(name)]
    for name in off: print(f'{name}: {was[name][:120]} -> {now.get(name, "missing")[:300]}')
    print(f'{len(was)-len(off)} passed, {len(off)} failed')
    return bool(off)

if __name__ == '__main__':
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('commit', help='of git: the code that was')
    sys.exit(main(parser.parse_args().commit))
