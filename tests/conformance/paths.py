"""Every way in which asl computes a loss, each as one entry of a table. A new way is a new entry, and gets every law.
ASL_DEVICE=cuda python -m pytest tests/conformance asks them of a GPU's ways instead, by the kernels that it compiles.

What stands in `lacks` a path does not offer, and then a law asks nothing of it: 'none' (that reduction), 'float64',
'half', 'soft' and 'unknown' targets, 'dtypes' of targets, 'layouts', 'second' derivatives, 'target' gradients,
'raises' (nan instead of an error), and settings by name. What lacks 'slow' is slow, and is asked the values alone;
what lacks 'quick' compiles, and is not asked of each case of a member of the family."""
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from unittest import mock

import pytest

DEVICE = os.environ.get('ASL_DEVICE', 'cpu')
if DEVICE == 'cpu': os.environ['TRITON_INTERPRET'] = '1'   # before anything imports triton
else: os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')       # for deterministic matrix products
import torch
import torch.distributed as dist
from torch.autograd import Function
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import parallelize_module
from triton import language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import asl
import asl.ops.head
from asl.distributed import ClassParallel, class_parallel_loss
from asl.ops import dispatch, multi_label, single_label, tiles

@dataclass(frozen=True)
class Path:
    name:str
    loss:Callable                              # of logits, targets and settings: a tensor to be differentiated
    constants:tuple = ()                       # (module, name, value): what makes the library take this path
    lacks:frozenset = frozenset()
    bare:Callable = asl.asymmetric_loss_multi_label            # the loss that it is a path of

    def has(self, *features:str) -> bool: return not self.lacks & set(features)

    @contextmanager
    def taken(self):
        "While this lasts, the library goes this way"
        with ExitStack() as stack:
            for module, name, value in self.constants: stack.enter_context(mock.patch.object(module, name, value))
            yield self

    def value_and_gradient(self, z, target, **settings):
        "Loss, and gradient of its sum by the logits"
        z = z.detach().clone().requires_grad_()
        with self.taken():
            loss = self.loss(z, target, **settings)
            gradient, = torch.autograd.grad(loss.sum(), z)
        return loss.detach(), gradient

    def __repr__(self): return self.name

# Losses of whole logits
def compiled(loss, backend='aot_eager' if DEVICE == 'cpu' else 'inductor'):
    "A loss by torch.compile; aot_eager traces as the real compiler does, and writes no code"
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    last = []
    def run(*args, **settings):
        now = [str(settings), *[(x.shape, x.stride(), x.dtype) for x in args]]
        if last != now: torch.compiler.reset()                 # each case as a program of its own would have it
        last[:] = now
        return compiled(*args, **settings)
    return run

def transformed(loss):
    "The gradient by torch.func, given back as if autograd had found it"
    def value_and_gradient(z, target, settings):
        value, pullback = torch.func.vjp(lambda z: loss(z, target, **settings), z)
        return value, lambda cotangent: pullback(cotangent)[0]
    return lambda z, target, **settings: _Given.apply(z, value_and_gradient, target, settings)

class _Given(Function):
    "A loss whose gradient something else than autograd computes: value_and_gradient(z, target, settings)"
    @staticmethod
    def forward(ctx, z, value_and_gradient, target, settings):
        with torch.enable_grad(): value, ctx.pullback = value_and_gradient(z.detach(), target, settings)
        return value.detach()
    @staticmethod
    def backward(ctx, cotangent): return ctx.pullback(cotangent), None, None, None

def on_the_device(loss):
    "A loss of logits, targets and settings that are brought to DEVICE, where it stays"
    def there(x): return x.to(DEVICE) if isinstance(x, torch.Tensor) else x
    def run(z, target, **settings):
        return loss(there(z), there(target), **{name: there(value) for name, value in settings.items()}).cpu()
    return run

# Triton's interpreter runs the kernels on a CPU. It cuts bits off where float32 becomes bfloat16; a GPU rounds, as here
_cast_by_interpreter = InterpreterBuilder.cast_impl

def cast_as_a_gpu(self, src, dst_type):
    cuts = src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16
    if not cuts: return _cast_by_interpreter(self, src, dst_type)
    bits = torch.from_numpy(src.data).bfloat16().view(torch.int16).numpy().view('uint16')
    return TensorHandle(bits, dst_type.scalar)

def in_jax(which):
    "The function of asl.jax"
    import asl.jax, jax
    from jax import numpy as jnp
    def array(x):
        if not isinstance(x, torch.Tensor): return x
        if x.dtype == torch.bfloat16: return jnp.asarray(x.float().numpy()).astype(jnp.bfloat16)
        return jnp.asarray(x.numpy())
    def tensor(x, dtype):
        with jax.enable_x64(True): return torch.tensor(jax.device_get(x.astype(jnp.float64))).to(dtype)
    def value_and_gradient(z, target, settings):
        with jax.enable_x64(True):
            settings = {name: array(value) for name, value in settings.items()}
            @jax.jit                                    # one program of both, as for a step of training
            def both(z):
                value, pullback = jax.vjp(lambda z: getattr(asl.jax, which)(z, array(target), **settings), z)
                return value, pullback(jnp.ones_like(value))[0]
            value, gradient = both(array(z))
        def back(cotangent):
            assert (cotangent == 1).all()
            return tensor(gradient, z.dtype)
        return tensor(value, torch.float64 if z.dtype == torch.float64 else torch.float32), back
    return lambda z, target, **settings: _Given.apply(z, value_and_gradient, target, settings)

# Heads: hidden activations and a weight whose product is the logits, to the last bit
BUDGET = 2**12                                 # bytes: several tiles even of few entries

def as_head(z):
    "Hidden (N, D) and weight (C, D) whose product is z, (N, C)"
    if not len(z): return z.new_zeros(0, 1), z.new_zeros(z.shape[1], 1)+z.sum()
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    return eye, z.mT.contiguous()

def of_rows(loss):
    "A loss summed row by row where logits are infinite: a product of several rows would be inf*0"
    def run(z, target, **settings):
        z, target = z.reshape(-1, z.shape[-1]), target.reshape(-1, target.shape[-1])
        if z.isfinite().all(): return loss(z, target, **settings)
        assert settings.get('reduction', 'sum') == 'sum'
        return sum(loss(row[None], y[None], **settings) for row, y in zip(z, target))
    return run

def listed(target):
    "Class indices (N, K) of the ones, padded with -1"
    found = [row.nonzero().view(-1) for row in target]
    return torch.nn.utils.rnn.pad_sequence([*found, target.new_empty(1, dtype=torch.long)], True, -1)[:-1]

def stored(target, layout):
    "A sparse tensor of all labels that are not 0"
    target = target if target.dtype == torch.bool or target.is_floating_point() else target.float()
    return target.to_sparse() if layout == 'coo' else target.to_sparse_csr()

def head(z, target, *, convert=lambda target: target, weight=None, **settings):
    settings |= dict(class_weight=weight, budget=BUDGET)
    return asl.linear_asymmetric_loss(*as_head(z), None, convert(target), **settings)

@cache
def mesh():
    "This process alone"
    if not dist.is_initialized(): dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh('cpu', (1,))

def divided_head(z, target, **settings):
    "A head whose classes are divided among the processes of a mesh"
    def value_and_gradient(z, target, settings):
        hidden, of_classes = as_head(z)
        settings = dict(settings)
        weight = settings.pop('weight', None)
        whole = asl.LinearAsymmetricLoss(*reversed(of_classes.shape), bias=False, dtype=z.dtype, class_weight=weight,
            budget=BUDGET, **settings)
        with torch.no_grad(): whole.weight.copy_(of_classes)
        divided = parallelize_module(whole, mesh(), ClassParallel())
        value = divided(hidden, target)
        def back(cotangent):
            gradient, = torch.autograd.grad(value, divided.weight, cotangent)
            return gradient.to_local().mT[:len(z)]
        return value, back
    return _Given.apply(z, value_and_gradient, target, settings)

def divided_logits(which, dim):
    "Logits that are divided among the processes of a mesh"
    def run(z, target, **settings):
        logits = DTensor.from_local(z, mesh(), [Shard(dim % z.ndim)], run_check=False)
        return class_parallel_loss(which(**settings), logits, target)
    return run

def on_a_gpu(*args) -> str:
    "What would compute there what is on a CPU here; by Triton's interpreter"
    return 'plain' if dispatch._needs_reference(*args) else 'triton'

def lacking(*features:str) -> frozenset: return frozenset(features)

_HEAD = lacking('none', 'second', 'target', 'dtypes', 'layouts')
_indices = partial(head, convert=listed, target_kind='indices')
PLAIN = ((dispatch, 'backend', lambda *_: 'plain'),)
_TRITON = ((dispatch, 'backend', on_a_gpu), (InterpreterBuilder, 'cast_impl', cast_as_a_gpu))
_TILES = ((tiles, 'kernels_take', lambda logits: logits.dtype != torch.float64),
    (asl.ops.head, 'active_entries', lambda *_: None), *_TRITON[1:])
_SEARCH = ((multi_label, 'SEARCH_FROM', 0), (multi_label, 'MOST_ACTIVE', 2.))
BLOCKS = ((multi_label, 'CACHE_ENTRIES', 16),)
_multi, _single = asl.asymmetric_loss_multi_label, asl.asymmetric_loss_single_label

MULTI = [
    Path(DEVICE, _multi),
    Path('cpu in blocks', _multi, BLOCKS),
    Path('cpu, easy ones skipped', _multi, _SEARCH),
    Path('cpu, easy ones skipped, in blocks', _multi, _SEARCH+BLOCKS),
    Path('plain', _multi, PLAIN),
    Path('torch.func', transformed(_multi), (), lacking('second', 'target', 'raises')),
    Path('compiler', compiled(_multi), (), lacking('second', 'target')),
    Path('triton', _multi, _TRITON, lacking('float64')),
    Path('jax', in_jax('asymmetric_loss_multi_label'), (), lacking('eps', 'second', 'target', 'raises', 'layouts')),
    Path('head, dense', of_rows(head), (), _HEAD),
    Path('head, indices', of_rows(_indices), (), _HEAD | {'soft', 'unknown', 'raises'}),
    Path('head, COO', of_rows(partial(head, convert=partial(stored, layout='coo'))), (), _HEAD | {'unknown 0'}),
    Path('head, CSR', of_rows(partial(head, convert=partial(stored, layout='csr'))), (), _HEAD | {'unknown 0'}),
    Path('head, compiled', of_rows(partial(head, compiled=True)), (), _HEAD | {'slow'}),
    Path('head, triton', of_rows(head), _TILES, _HEAD | {'float64'}),
    Path('head, triton, indices', of_rows(_indices), _TILES, _HEAD | {'float64', 'soft', 'unknown', 'raises'}),
    Path('divided head', of_rows(divided_head), (), _HEAD),
    Path('divided logits', divided_logits(asl.AsymmetricLossMultiLabel, -1), (), lacking('none', 'second', 'target')),
]

SINGLE = [
    Path(DEVICE, _single),
    Path('cpu in blocks', _single, ((single_label, 'BLOCK_ENTRIES', 16),)),
    Path('cpu in float32', _single, ((single_label, 'FLOAT32_ABOVE', 0),)),
    Path('plain', _single, PLAIN),
    Path('torch.func', transformed(_single), (), lacking('second', 'raises')),
    Path('compiler', compiled(_single), (), lacking('second')),
    Path('triton', _single, _TRITON, lacking('float64')),
    Path('jax', in_jax('asymmetric_loss_single_label'), (), lacking('second', 'raises', 'layouts')),
    Path('divided logits', divided_logits(asl.AsymmetricLossSingleLabel, 1), (), lacking('none', 'second')),
]

def of_the_device(paths:Iterable[Path]) -> list[Path]:
    """Those of the paths that DEVICE has: no CPU, interpreter or mesh is part of them. Wrong values would stop a GPU's
    program for good, so nobody asks for them there"""
    there = [path for path in paths if not (path.constants or path.name == 'jax' or 'divided' in path.name)]
    return [replace(path, loss=on_the_device(path.loss), lacks=path.lacks | {'raises'}) for path in there]

def on_this_device(paths:list[Path]) -> list[Path]:
    "Those of the paths that there are here"
    return paths if DEVICE == 'cpu' else of_the_device(paths)

ASYMMETRIC = lacking('gamma_neg', 'gamma_pos', 'clip', 'eps')          # what others of the family have not by class
FAMILY = lacking('shift', 'neg_scale')                                 # what the asymmetric loss has not
MULTI = [replace(path, lacks=path.lacks | FAMILY) for path in on_this_device(MULTI)]
SINGLE = on_this_device(SINGLE)

def having(paths:Iterable[Path], *features:str) -> list[Path]:
    "The paths that offer all of these features"
    return [path for path in paths if path.has(*features)]

# A law is a test with an attribute `law`: from the tables of a module to what it is asked of there
def asked_of(names:str, rows:Callable):
    "A law with these parameters; rows of the tables, each a pytest.param"
    def mark(test):
        test.law = lambda tables: (names, rows(tables))
        return test
    return mark

def every(table:str, *features:str, settings:Iterable[dict]|None=None):
    "A law of every path of a table that offers these features, and is not slow; at each of the settings that it takes"
    def of(path): return [pytest.param(path, id=f'{path}')] if settings is None else [
        pytest.param(path, given, id=f'{path}-{i}') for i, given in enumerate(settings) if path.has(*given)]
    return asked_of('path' if settings is None else 'path, settings',
        lambda tables: [row for path in having(tables[table], 'slow', *features) for row in of(path)])
