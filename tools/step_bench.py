"""What the step in backward saves and takes, beside gradient and `torch.optim`: `python tools/step_bench.py OUT.json`.
One process a size for memory; for time both ways in turns in one process, in CPU time of one thread. And a
training on made texts with 100 000 labels, with and without."""
import json, re, statistics, subprocess, sys, time
from datetime import date
from pathlib import Path

import torch
from torch import nn

from asl import LinearAsymmetricLoss, init_prior_
from asl.benchmark.measure import machine, raced_versions
from asl.benchmark.race import easy_mean

CLASSES, FEATURES, ROWS = 670_091, 256, 256
CLASSES_TIMED = 200_000                 # enough: nothing of that is in a cache
DTYPES = 'float32', 'bfloat16'
EASY = 0., .9, .99, .999
WAYS = 'gradient', 'in backward'
OPTIONS = {'lazy': dict(lazy=True), 'stochastic': dict(rounding='stochastic')}
REPEATS = 5

def optimizer_of(method, parameters):
    "An optimizer whose steps are so small that what is easy stays easy"
    if method == 'adamw': return torch.optim.AdamW(parameters, lr=1e-9, fused=True)
    return torch.optim.SGD(parameters, lr=1e-9, momentum=.9, fused=True)

def made(way, method, dtype, easy, classes=CLASSES):
    "A head with its optimizer, which has its states; what it sees and its labels"
    g = torch.Generator().manual_seed(0)
    head = LinearAsymmetricLoss(FEATURES, classes, dtype=getattr(torch, dtype))
    with torch.no_grad():
        head.weight.normal_(0, 2/FEATURES**.5, generator=g)
        head.bias.fill_(easy_mean(easy))
    hidden = torch.randn(ROWS, FEATURES, generator=g).to(head.weight.dtype).requires_grad_()
    target = torch.randint(0, classes//5, (ROWS, 5), generator=g) + torch.arange(5)*(classes//5)
    optimizer = optimizer_of(method, head.parameters())
    if way != 'gradient': head.step_in_backward(optimizer, **OPTIONS.get(way, {}))
    return head, optimizer, hidden, target

def step(head, optimizer, hidden, target):
    "One step of a training"
    hidden.grad = None
    head(hidden, target).backward()
    optimizer.step()
    optimizer.zero_grad()

def resident(which):
    "Bytes of this process: VmRSS, those in memory now, or VmHWM, the most so far"
    return int(re.search(rf'{which}:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024

def memory(way, method, dtype, easy):
    "Of this process: what a step takes beyond weights and states, in MiB"
    head, optimizer, hidden, target = made(way, method, dtype, easy)
    small = made(way, method, dtype, easy, 1000)
    for _ in range(2): step(*small)                        # loads what is loaded once
    if way == 'gradient':                                  # the states that its first step would make
        for parameter in head.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    Path('/proc/self/clear_refs').write_text('5')          # the most so far is what there is now
    before = resident('VmRSS')
    for _ in range(2): step(head, optimizer, hidden, target)
    weights = sum(p.nbytes for p in head.parameters())
    states = sum(s.nbytes for of in optimizer.state.values() for s in of.values())
    return dict(way=way, method=method, dtype=dtype, easy=easy, weights=weights/2**20, states=states/2**20,
        beyond=(resident('VmHWM')-before)/2**20)

def timed(method, dtype, easy, classes, ways):
    "CPU seconds of a step of each way, taken in turns"
    made_ways = {way: made(way, method, dtype, easy, classes) for way in ways}
    seconds = {way: [] for way in ways}
    for i in range(REPEATS+1):
        for way, parts in made_ways.items():
            start = time.process_time()
            step(*parts)
            if i: seconds[way].append(time.process_time()-start)
    return dict(method=method, dtype=dtype, easy=easy, classes=classes, seconds=seconds,
        least={way: min(found) for way, found in seconds.items()},
        median={way: statistics.median(found) for way, found in seconds.items()})

# Texts and their labels, made: labels are as rare as in real sets of this size, and each puts some words into a text
TEXTS, TESTED, LABELS, WORDS = 20_000, 2_000, 100_000, 20_000
EACH, SIGNATURE, NOISE = 5, 8, 10       # labels of a text; words that a label brings; other words of a text

def texts(number, seed):
    "Words (number, 50) of texts, and labels (number, 5), drawn by Zipf's law: the r-th as often as 1/r; -1 for none"
    signatures = torch.randint(0, WORDS, (LABELS, SIGNATURE), generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(seed)
    cumulated = (1/torch.arange(1, LABELS+1).double()).cumsum(0)
    drawn = torch.searchsorted(cumulated, torch.rand(number, EACH, dtype=torch.float64, generator=g)*cumulated[-1])
    labels = drawn.sort(1).values
    again = torch.cat([torch.zeros(number, 1, dtype=torch.bool), labels[:, 1:] == labels[:, :-1]], 1)
    noise = torch.randint(0, WORDS, (number, NOISE), generator=g)
    return torch.cat([signatures[labels].flatten(1), noise], 1), labels.masked_fill(again, -1)

def precision(network, head, words, labels):
    "Of the 1, 3 and 5 most probable labels, the share that is right"
    with torch.no_grad(): found = head.predict_topk(network(words), 5)[1]
    right = (found[:, :, None] == labels[:, None]).any(2).double()
    return {f'P@{k}': right[:, :k].mean().item() for k in (1, 3, 5)}

def trained(way, dtype='float32', epochs=2, batch=256, features=64):
    "What a network of words and a head has learned, and what that took"
    words, labels = texts(TEXTS, 1)
    torch.manual_seed(0)
    network = nn.EmbeddingBag(WORDS, features, mode='sum')
    nn.init.normal_(network.weight, 0, .1)
    head = LinearAsymmetricLoss(features, LABELS, reduction='batchmean', dtype=getattr(torch, dtype))
    init_prior_(head, EACH/LABELS, head.loss)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs*(TEXTS//batch), cycle_momentum=False)
    if way != 'gradient': head.step_in_backward(optimizer)
    start = time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(TEXTS).split(batch)[:TEXTS//batch]:
            optimizer.zero_grad()
            head(network(words[rows]).to(head.weight.dtype), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    seconds = time.process_time()-start
    return dict(way=way, dtype=dtype, seconds=seconds, epochs=epochs, **precision(network, head, *texts(TESTED, 2)))

def apart(*args):
    "The same in a process of its own"
    out = subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)

def write(out, **parts):
    "Write parts of the record; what else is there stays"
    path = Path(out)
    found = json.loads(path.read_text()) if path.exists() else {}
    found |= dict(command='python tools/step_bench.py benchmarks/step.json', date=str(date.today()),
        machine=machine(torch.device('cpu')), versions=raced_versions(), rows=ROWS, features=FEATURES)
    path.write_text(json.dumps(found | parts, indent=1)+'\n')

def record(out):
    "Memory, then time, then the training on made texts; each case is written when it is done"
    done = []
    for dtype in DTYPES:
        for easy in (0., .99):
            done += [apart('memory', way, 'adamw', dtype, easy) for way in WAYS]
            write(out, memory=done)
    done = []
    cases = [('adamw', dtype, easy, CLASSES_TIMED, WAYS) for dtype in DTYPES for easy in EASY]
    cases += [('sgd', 'float32', .99, CLASSES_TIMED, WAYS), ('adamw', 'float32', .99, CLASSES, WAYS),
        ('adamw', 'float32', .999, CLASSES_TIMED, (*WAYS, 'lazy')),
        ('adamw', 'bfloat16', .99, CLASSES_TIMED, (*WAYS, 'stochastic'))]
    for method, dtype, easy, classes, ways in cases:
        done.append(apart('time', method, dtype, easy, classes, ','.join(ways)))
        write(out, time=done)
    done = []
    for way, dtype in (*((way, DTYPES[0]) for way in WAYS), (WAYS[1], DTYPES[1])):
        done.append(apart('trained', way, dtype))
        write(out, labels=dict(texts=TEXTS, tested=TESTED, labels=LABELS, words=WORDS, runs=done))

if __name__ == '__main__':
    torch.set_num_threads(1)
    what, *rest = sys.argv[1:]
    if what == 'memory': print(json.dumps(memory(rest[0], rest[1], rest[2], float(rest[3]))))
    elif what == 'trained': print(json.dumps(trained(*rest)))
    elif what == 'time': print(json.dumps(timed(rest[0], rest[1], float(rest[2]), int(rest[3]), rest[4].split(','))))
    else: record(what)
