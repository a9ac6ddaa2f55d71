"""Networks that see pictures of 64 pixels, and one training of them: what finetune.py searches rates for"""
import copy, os, time
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiment import Cell, machine, measured
from losses import loss_of
from measures import average_precision
from parts import Part
from train import CHECKED, WEIGHT_DECAY, cycle, priors

SIDE = 64                               # pixels: emoji have no more, and a training ends within minutes
SHIFT = 4                               # pixels, in training: as far as a picture is moved in each direction
MIRRORED = ['clipart']                  # sets of which half the pictures are, in training; emoji are signs
BATCH = 64
CHANNELS = 16, 32, 64, 128              # the network of nbs/11_compare.ipynb for 16 pixels, and a block more
HEAD = {'fine-tuned': 3, 'scratch': 1, 'scratch Lite0': 1}         # the last layer's rate, times that of the others
# Fine-tuning no longer gains much at the end; from scratch it still does, therefore cells of twice the length
EPOCHS = {
    'fine-tuned': dict(clipart=8, emoji=16),
    'scratch': dict(clipart=24, emoji=40),
    'scratch Lite0': dict(clipart=8)}   # as fine-tuned: the weights at the start are all that differs

# Pictures

@cache
def pictures(name:str):
    "A set with pictures (n, 3, SIDE, SIDE), uint8, for features; they are kept beside it"
    from data import load
    from real.features import as_tensor, square
    from real.sources import cache as folder
    data = load(name)
    path = folder()/f'{name}-{SIDE}.pt'
    if not path.exists() or path.stat().st_mtime < (folder()/f'{name}.pt').stat().st_mtime:
        values = [as_tensor(square(file, SIDE)) for file in data.items]
        part = path.with_suffix(f'.{os.getpid()}')
        torch.save(torch.stack([((each+1)*127.5).round().byte() for each in values]), part)
        part.rename(path)               # whole, or not there
    return data._replace(features=torch.load(path, weights_only=True))

def moved(x:Tensor, corners:Tensor, mirrored:Tensor) -> Tensor:
    """Pictures (B, 3, S, S) cut out of themselves with a white border: corners (B, 2), from 0 to 2*SHIFT, say where;
    from right to left those that are mirrored, (B,) bool"""
    side = torch.arange(x.shape[-1], device=x.device)
    rows = corners[:, :1] + side
    columns = corners[:, 1:] + torch.where(mirrored[:, None], side.flip(0), side)
    sample, channel = (torch.arange(n, device=x.device) for n in x.shape[:2])
    padded = F.pad(x, [SHIFT]*4, value=255)
    return padded[sample[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]

def as_input(x:Tensor) -> Tensor:
    "Pictures as a network wants them: from -1 to 1, and on a CPU with channels last, which is faster there"
    layout = torch.contiguous_format if x.is_cuda else torch.channels_last
    return (x/127.5-1).contiguous(memory_format=layout)

# Networks

def convolutions(channels:tuple[int, ...], n_classes:int, norm:bool=True) -> nn.Module:
    "3x3 convolutions, half the side after each but the last; an average over the picture, and a linear layer"
    layers = []
    for i, (before, after) in enumerate(zip((3, *channels), channels)):
        if i: layers.append(nn.MaxPool2d(2))
        layers += [nn.Conv2d(before, after, 3, padding=1), *[nn.BatchNorm2d(after)]*norm, nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], n_classes)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)

@cache
def pretrained() -> nn.Module:
    "EfficientNet-Lite0 as frozen features have it, read and checked once"
    from data import load               # noqa: F401  brings the folder of `real` into the path
    from real.features import lite0
    return lite0()

def network(way:str, n_classes:int) -> nn.Module:
    "A network of one of the ways; what is random comes from PyTorch's generator"
    if way == 'scratch': return convolutions(CHANNELS, n_classes)
    if way == 'fine-tuned':
        net = copy.deepcopy(pretrained()).requires_grad_()
        net.reset_classifier(n_classes)
    else:
        import timm
        net = timm.create_model('tf_efficientnet_lite0', num_classes=n_classes)
    return net.to(memory_format=torch.channels_last)

def head_of(net:nn.Module) -> nn.Linear:
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]

@torch.no_grad()
def logits(net:nn.Module, x:Tensor) -> Tensor:
    "(n, C) of pictures (n, 3, S, S), uint8. Those of a network that broke are finite, too: they can be measured"
    net.eval()
    found = torch.cat([net(as_input(each)) for each in x.split(256)])
    net.train()
    return found.nan_to_num(0., 50., -50.).cpu()

# One training

def order(part:Part, epochs:int, seed:int):
    "Indices of each batch, (BATCH,): in every epoch another order; what is left over is left out"
    generator = torch.Generator().manual_seed(200+seed)
    for _ in range(epochs):
        shuffled = part.train[torch.randperm(len(part.train), generator=generator)]
        yield from shuffled[:len(shuffled)//BATCH*BATCH].split(BATCH)

class Draws(NamedTuple):
    "What chance decides in a training, step by step"
    index: Tensor                       # (steps, BATCH), of samples
    corners: Tensor                     # (steps, BATCH, 2), for `moved`
    mirrored: Tensor                    # (steps, BATCH), bool

def draws(cell:Cell, part:Part, seed:int) -> Draws:
    generator = torch.Generator().manual_seed(300+seed)
    epochs = max(1, round(EPOCHS[cell.way][cell.set]*cell.length))
    steps = []
    for index in order(part, epochs, seed):
        corners = torch.randint(2*SHIFT+1, (len(index), 2), generator=generator)
        mirrored = torch.zeros(len(index)).bool()
        if cell.set in MIRRORED: mirrored = torch.rand(len(index), generator=generator) < .5
        steps.append((index, corners, mirrored))
    return Draws(*map(torch.stack, zip(*steps)))

def optimizer_of(net:nn.Module, rate:float, of_head:float, **options) -> torch.optim.Optimizer:
    "AdamW with a `peak` rate for each group of parameters; that of the head is `of_head` times the others'"
    head = list(head_of(net).parameters())
    body = [each for each in net.parameters() if all(each is not other for other in head)]
    groups = [dict(params=body, peak=rate), dict(params=head, peak=rate*of_head)]
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, **options)

class Training:
    "A network that learns by one loss, at one peak rate; a seed decides all that is random"
    def __init__(self, cell:Cell, part:Part, seed:int, rate:float):
        torch.manual_seed(seed)
        self.cell, self.part, self.seed, self.rate = cell, part, seed, rate
        self.features, self.labels = part.features, part.labels
        self.net = network(cell.way, part.labels.shape[1]).train()
        prior = priors([part])
        row = loss_of(cell.loss, prior)
        if row.starts_at is not None: head_of(self.net).bias.data = row.starts_at(prior).view(-1)
        self.loss = row.loss
        self.prepare()
        self.draws = draws(cell, part, seed)
        self.steps = len(self.draws.index)
        self.curve:list[float] = []     # mAP on the validation part by the labels as they are written, in percent

    def prepare(self):
        "What a step needs besides, where it will be computed"
        self.optimizer = optimizer_of(self.net, self.rate, HEAD[self.cell.way])

    def update(self, factor, index:Tensor, corners:Tensor, mirrored:Tensor):
        "One step on a batch, at `factor` times the peak rate"
        for group in self.optimizer.param_groups: group['lr'] = group['peak']*factor
        x = as_input(moved(self.features[index], corners, mirrored))
        self.optimizer.zero_grad()
        self.loss(self.net(x)[None], self.labels[index][None]).backward()
        self.optimizer.step()

    def learn(self, step:int): self.update(cycle(step, self.steps), *(each[step] for each in self.draws))

    def logits(self, which:str) -> Tensor:
        "Of the training, validation or test part"
        return logits(self.net, self.features[getattr(self.part, which)])

    def check(self):
        written = self.part.labels[self.part.valid] > 0
        self.curve.append(round(100*average_precision(self.logits('valid'), written).nanmean().item(), 3))

    clock = staticmethod(time.process_time)
    machine = staticmethod(machine)

def run(cell:Cell, parts:list[Part], asked:list[tuple[float, int]], kind:type[Training]=Training) -> list[dict]:
    """Trainings at these rates with these seeds, side by side, each measured on the test part of its seed; whether that
    counts is decided on the validation part. ms: of a step of one of them"""
    began = time.process_time()
    trainings = [kind(cell, parts[seed], seed, rate) for rate, seed in asked]
    steps, clock = trainings[0].steps, kind.clock
    ends = sorted({round(steps*(i+1)/CHECKED) for i in range(CHECKED)}-{0})
    seconds = 0.
    for start, end in zip([0, *ends], ends):
        before = clock()
        for step in range(start, end):
            for each in trainings: each.learn(step)
        seconds += clock()-before
        for each in trainings: each.check()
    tests = [measured(cell.loss, each.part, each.logits('test'), each.logits('valid')) for each in trainings]
    whole = time.process_time()-began
    common = dict(ms=round(1e3*seconds/steps/len(asked), 2), cpu_s=round(whole/len(asked), 1), machine=kind.machine())
    return [dict(cell._asdict(), seed=each.seed, rate=each.rate, curve=each.curve, test=test, **common)
        for each, test in zip(trainings, tests)]
