"What helps to fine-tune: each does what its name says, and a run that is killed and resumed ends with the same bytes."
import csv, json, random
from pathlib import Path

import pytest
import torch

from asl.cli import Refused
from asl.train import main, train
from asl.training import pipeline
from asl.training.folder import load_tensors
from test_weights import coloured

SMALL = dict(model='conv3', size=16, epochs=3, batch_size=16, threads=1, workers=0)
NET = dict(model='test_resnet', weights='random', size=32)
AIDS = dict(freeze='1', layer_decay=.8, clip_grad=.5, mixup=.2, cutmix=1., reprob=.3, channels_last=True)
KEPT = 'metrics.jsonl', 'result.json', 'best.safetensors', 'last.safetensors', 'validation.safetensors'

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "40 pictures, columns with unknown entries"
    tmp, g = tmp_path_factory.mktemp('data'), random.Random(0)
    rows = [(file, *('' if g.random() < .2 else int(value > 128) for value in colour[:2]))
        for file, colour in coloured(tmp/'img', g)]
    with open(tmp/'labels.csv', 'w', newline='') as f: csv.writer(f).writerows([('file', 'red', 'green'), *rows])
    return tmp

def trained(data, name, **options):
    return train(data/'labels.csv', images=data/'img', out=data/'runs', name=name, **SMALL | options)

def records(run): return [json.loads(line) for line in (run/'metrics.jsonl').read_text().splitlines()]

class Killed(BaseException): pass

def killed_after(monkeypatch, steps, start):
    "Begin a run that saves after each step, and end it when it has saved so many"
    saved = []
    before = pipeline.Training.save_checkpoint
    def save(training):
        before(training)
        saved.append(training.trainer.done)
        if training.trainer.done >= steps: raise Killed
    with monkeypatch.context() as m:
        m.setattr(pipeline.Training, 'save_checkpoint', save)
        with pytest.raises(Killed): start()

@pytest.mark.parametrize('sched', ['onecycle', 'cosine'])
@pytest.mark.parametrize('steps', [1, 2, 5])
def test_killed_and_resumed_with_all_aids_it_ends_with_the_same_bytes(data, monkeypatch, sched, steps):
    "Two steps an epoch; the head learns alone in the first"
    whole = data/'runs'/f'whole-{sched}'
    if not whole.exists(): trained(data, whole.name, sched=sched, **NET, **AIDS)
    name = f'cut-{sched}-{steps}'
    killed_after(monkeypatch, steps, lambda: trained(data, name, sched=sched, checkpoint=0., **NET, **AIDS))
    train(resume=data/'runs'/name)
    for file in KEPT: assert (data/'runs'/name/file).read_bytes() == (whole/file).read_bytes(), file

def test_each_aid_changes_the_numbers(data):
    plain = records(trained(data, 'plain', epochs=1, **NET))
    for name, value in AIDS.items():
        if name == 'channels_last': continue         # the same numbers, faster
        assert records(trained(data, f'with-{name}', epochs=1, **NET, **{name: value})) != plain, name

def test_only_the_head_learns_when_the_rest_is_frozen(data):
    first = trained(data, 'first', epochs=1)
    run = trained(data, 'probe', weights=first, freeze='head', model=None)
    before, after = load_tensors(first/'best.safetensors')[0], load_tensors(run/'last.safetensors')[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {'13.weight', '13.bias'} <= changed
    learned = {name for name in changed if name.endswith(('weight', 'bias'))}
    assert learned == {'13.weight', '13.bias'}

def test_the_gradient_is_cut_to_the_norm_and_layers_learn_at_their_rates(data, monkeypatch):
    seen = {}
    def look(training):
        seen['rates'] = {round(group['lr']/max(g['lr'] for g in training.trainer.opt.param_groups), 6)
                         for group in training.trainer.opt.param_groups}
        seen['norm'] = sum(p.grad.square().sum() for p in training.trainer.net.parameters()).sqrt().item()
    monkeypatch.setattr(pipeline, '_save_epoch', look)
    monkeypatch.setattr(pipeline, '_finish', lambda _: None)
    monkeypatch.setattr(pipeline, '_scores_as_text', lambda *_: '')
    trained(data, 'cut', model='test_resnet', weights='random', size=32, epochs=1, clip_grad=1e-3, layer_decay=.5)
    assert {1., .5, .25} <= seen['rates']
    assert seen['norm'] == pytest.approx(1e-3, rel=.01)

def test_a_run_can_become_longer_and_says_so_in_its_settings(data, monkeypatch):
    "Killed and resumed after that, it ends as if nobody had killed it"
    for name in ('longer', 'cut-longer'): trained(data, name, epochs=2)
    train(resume=data/'runs'/'longer', epochs=4)
    killed_after(monkeypatch, 6, lambda: train(resume=data/'runs'/'cut-longer', epochs=4))
    train(resume=data/'runs'/'cut-longer')
    assert len(records(data/'runs'/'longer')) == 4
    assert json.loads((data/'runs'/'longer'/'settings.json').read_text())['epochs'] == 4
    for file in KEPT: assert (data/'runs'/'cut-longer'/file).read_bytes() == (data/'runs'/'longer'/file).read_bytes()
    with pytest.raises(Refused, match='--epochs 3'): train(resume=data/'runs'/'longer', epochs=3)

def test_patience_ends_a_run_before_its_last_epoch(data):
    run = trained(data, 'patient', epochs=30, patience=2, lr=1e-9)
    n = len(records(run))
    assert n < 30 and (run/'result.json').exists()
    train(resume=run)
    assert len(records(run)) == n

def test_settings_of_a_run_can_be_given_back_and_options_beside_them_count(data, capsys):
    run = trained(data, 'origin', lr=.002, clip_grad=1.)
    again = train(config=run, name='again')
    for file in KEPT: assert (again/file).read_bytes() == (run/file).read_bytes()
    main(['--config', str(run/'settings.json'), '--name', 'other', '--epochs', '1', '--lr', '0.003'])
    other = json.loads((data/'runs'/'other'/'settings.json').read_text())
    assert (other['epochs'], other['lr'], other['clip_grad']) == (1, .003, 1.)
    capsys.readouterr()

def test_the_digits_can_be_given_back_too(tmp_path):
    run = train(classes=10, epochs=1, batch_size=512, out=tmp_path)
    again = train(config=run)
    assert (again/'metrics.jsonl').read_bytes() == (run/'metrics.jsonl').read_bytes()

def test_a_csv_of_the_epochs_can_be_asked_for(data):
    run = trained(data, 'logged', log='csv')
    rows = list(csv.DictReader((run/'metrics.csv').open()))
    assert [float(row['train_loss']) for row in rows] == [record['train_loss'] for record in records(run)]

def test_trackers_of_accelerate_get_each_epoch(data, monkeypatch):
    from accelerate import tracking
    said = []
    class Tracker:
        def __init__(self, name, logging_dir): said.append((name, Path(logging_dir)))
        def start(self): pass
        def store_init_configuration(self, values): said.append(values['clip_grad'])
        def log(self, values, step): said.append((step, values['train_loss']))
        def finish(self): said.append('end')
    monkeypatch.setattr(tracking, 'TensorBoardTracker', Tracker)
    monkeypatch.setattr(pipeline, 'need', lambda *_, **__: None)
    run = trained(data, 'tracked', log='tensorboard', clip_grad=1.)
    epochs = [(record['epoch'], record['train_loss']) for record in records(run)]
    assert said == [('tracked', data/'runs'), 1., *epochs, 'end']

def test_what_is_not_there_or_means_nothing_is_refused_before_anything_is_read(data):
    for given, words in ((dict(log='tensorboard,csv'), r'asymmetric-loss\[log\]'),
                         (dict(log='text'), 'csv, tensorboard, wandb'),
                         (dict(freeze='all'), 'head or a number'), (dict(mixup=-1.), '--mixup'),
                         (dict(layer_decay=.5), 'layers of this network'),
                         (dict(reprob=.5, augment='none'), '--reprob')):
        with pytest.raises(Refused, match=words): trained(data, 'none', **given)
    assert not (data/'runs'/'none').exists()
    with pytest.raises(Refused, match='--mixup: with one label'): train(images=data, mixup=.2, model='conv3')

def test_unknown_labels_stay_unknown_when_images_are_mixed():
    from asl.training.trainer import Mixed
    torch.manual_seed(0)
    y = torch.randint(0, 2, (8, 5)).float()
    y[torch.rand(8, 5) < .3] = -100
    x = torch.rand(8, 3, 4, 4)
    for kw in (dict(mixup=1.), dict(cutmix=1.)):
        _, mixed = Mixed(5, **kw)(x, y)
        unknown = (y == -100) | (y.flip(0) == -100)
        assert torch.equal(mixed == -100, unknown) and ((mixed[~unknown] >= 0) & (mixed[~unknown] <= 1)).all()

def test_a_compiled_network_learns_the_same(data):
    plain, compiled = (records(trained(data, f'compiled-{on}', epochs=1, compile=on)) for on in (False, True))
    assert compiled[0]['train_loss'] == pytest.approx(plain[0]['train_loss'], rel=1e-4)
