"""Trainings of networks.py on a GPU, many at once: one alone leaves most of it idle, waiting for Python at each layer.

A step is a CUDA graph, which reads from tables what chance has drawn for it; each training has a stream of its own.
Numbers are float32 throughout, as on a CPU; only the order of sums differs."""
import time

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from networks import HEAD, Training, optimizer_of
from train import cycle

WARM = 3                                # steps before one is recorded: kernels are compiled and chosen in them
copies = WeakTensorKeyDictionary()      # on the device, of features and labels: rates and seeds share them

def on_device(x:Tensor, device:str) -> Tensor:
    if x not in copies: copies[x] = x.to(device)
    return copies[x]

class Graphed(Training):
    "A training whose steps a GPU repeats by itself"
    device, fixed = 'cuda', dict(fused=True, capturable=True)
    def __init__(self, cell, part, seed, rate):
        super().__init__(cell, part, seed, rate)
        factors = torch.tensor([cycle(step, self.steps) for step in range(self.steps)])
        self.tables = [each.to(self.device) for each in (factors, *self.draws)]
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.record()

    def prepare(self):
        torch.backends.cudnn.allow_tf32 = False
        self.net.to(self.device, memory_format=torch.contiguous_format)
        self.features, self.labels = (on_device(each, self.device) for each in (self.features, self.labels))
        rate = torch.tensor(0., device=self.device)
        self.optimizer = optimizer_of(self.net, self.rate, HEAD[self.cell.way], lr=rate, **self.fixed)

    def advance(self):
        "The next step, whose number the device knows"
        self.update(*(table.index_select(0, self.step)[0] for table in self.tables))
        self.step += 1

    @torch.no_grad()
    def undo(self, weights:dict[str, Tensor]):
        "Back to the start, where the graph will find everything"
        for name, value in self.net.state_dict().items(): value.copy_(weights[name])
        for state in self.optimizer.state.values():
            for value in state.values(): value.zero_()
        self.step.zero_()

    def warm_up(self):
        weights = {name: value.clone() for name, value in self.net.state_dict().items()}
        for _ in range(WARM): self.advance()
        self.undo(weights)

    def record(self):
        "A step as a graph; nothing has been learned after it"
        torch.cuda.synchronize()
        torch.cuda.empty_cache()        # graphs of trainings that are over leave their memory only then
        self.stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            self.warm_up()
            self.stream.synchronize()
            self.graph.capture_begin()
            self.advance()
            self.graph.capture_end()

    def learn(self, _):
        with torch.cuda.stream(self.stream): self.graph.replay()

    def logits(self, which):
        with torch.cuda.stream(self.stream): return super().logits(which)

    @staticmethod
    def clock():
        "Seconds, when all is done that was asked for"
        torch.cuda.synchronize()
        return time.perf_counter()

    @staticmethod
    def machine(): return Training.machine() | dict(gpu=torch.cuda.get_device_name())
