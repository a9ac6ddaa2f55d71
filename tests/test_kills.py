"`asl_train` that is killed, stopped, damaged, or let loose on a run that another process trains: nothing is lost."
import json, os, random, shlex, shutil, signal, socket, subprocess, sys, time
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from asl import AsymmetricLossMultiLabel
from asl.cli import Refused
from asl.train import main
from asl.training.folder import load_tensors, locked, new_run, save_tensors
from asl.training.pipeline import divergence
from asl.training.predictor import load_run
from asl.training.trainer import Trainer

quick = ['labels.csv', '--images', 'img', '--model', 'conv3', '--size', '16', '--batch_size', '8', '--threads', '1']
quick += ['--epochs', '4', '--weights', 'random']
kept = 'metrics.jsonl', 'result.json', 'best.safetensors', 'last.safetensors', 'validation.safetensors'
CODE = '''import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)    # a job in the background ignores it
from asl.training.trainer import Trainer
step = Trainer.step
pause = float(sys.argv.pop(1))
def slow(self, *args):
    time.sleep(pause)
    return step(self, *args)
Trainer.step = slow
from asl.train import main
main()'''

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Forty pictures of 16 pixels, and the labels of each"
    folder = tmp_path_factory.mktemp('data')
    (folder/'img').mkdir()
    chance = random.Random(0)
    rows = ['file,labels']
    for i in range(40):
        colour = tuple(chance.randrange(256) for _ in range(3))
        Image.new('RGB', (16, 16), colour).save(folder/'img'/f'{i}.png')
        rows.append(f"{i}.png,{'|'.join(name for name, c in zip(('red', 'green', 'blue'), colour) if c > 127)}")
    (folder/'labels.csv').write_text('\n'.join(rows))
    return folder

def called(*args, cwd):
    "What `asl_train` prints that is called in this process"
    with chdir(cwd), redirect_stdout(StringIO()) as out: main([str(a) for a in args])
    return out.getvalue()

def ended(*args, cwd, code=2):
    "The line of a call that ends early, in this process"
    with (chdir(cwd), redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err,
          pytest.raises(SystemExit) as e): main([str(a) for a in args])
    assert e.value.code == code and err.getvalue().count('\n') == 1, err.getvalue()
    return err.getvalue()

@pytest.fixture(scope='module')
def whole(data):
    "The run that nobody stops: 16 steps in 4 epochs"
    called(*quick, '--workers', 0, '--name', 'whole', cwd=data)
    return data/'runs'/'whole'

def started(data, name, *options, pause=.05, workers=0, launcher=()):
    "A process that trains, slowly, with a group of its own as in a terminal"
    script = data/'slow.py'
    script.write_text(CODE)
    argv = [sys.executable, *launcher, str(script), str(pause), *quick, '--workers', str(workers), '--name', name]
    return subprocess.Popen([*argv, *options], cwd=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)

def until(condition, process, seconds=60):
    "Wait for something that a process does"
    for _ in range(int(seconds/.002)):
        if condition() or process.poll() is not None: break
        time.sleep(.002)
    if process.poll() is not None or not condition():
        process.kill()
        raise AssertionError((process.returncode, process.communicate()))

def trains(data, name, process):
    "Wait for the folder of the run; from there to its first step it is a moment"
    until((data/'runs'/name/'classes.json').exists, process)

def same(folder, whole):
    for name in kept: assert (folder/name).read_bytes() == (whole/name).read_bytes(), name
    assert not [*folder.glob('.*')] and not [*folder.glob('*.previous*')]

def resumed(folder, whole, cwd):
    "Go on with a run, anew where it had no checkpoint yet; it ends as the one that nobody stopped"
    if (folder/'checkpoint.safetensors').exists(): called('--resume', folder, cwd=cwd)
    else: called(*quick, '--workers', 0, '--name', folder.name, '--force', cwd=cwd)
    same(folder, whole)

@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize('workers', [0, 2])
def test_a_signal_saves_in_the_middle_of_an_epoch(data, whole, number, code, workers):
    "Sent to the whole group, as a terminal and Slurm do: the processes that load images get it too"
    name = f'{number.name}-{workers}'
    process = started(data, name, workers=workers, pause=.2)
    trains(data, name, process)
    time.sleep(.7)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and err.count('\n') == 1, err
    done = load_tensors(data/'runs'/name/'checkpoint.safetensors')[1]['done']
    assert f'stopped after step {done} of 16, which is saved: --resume runs/{name} goes on from there' in err
    assert 1 <= done < 16 and 'Traceback' not in out
    resumed(data/'runs'/name, whole, data)

def test_ends_at_random_moments(data, whole):
    "A kill, SIGTERM or Ctrl-C, then another one while it goes on; the test's seed is printed if it fails"
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    for i in range(int(os.environ.get('ASL_KILLED_RUNS', 1))):
        name = f'random-{i}'
        number = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        process = started(data, name, '--checkpoint', '0', pause=.03)
        trains(data, name, process)
        for turn in range(2):
            time.sleep(chance.random()*.8)
            process.send_signal(number)
            process.communicate(timeout=60)
            if turn or not (data/'runs'/name/'checkpoint.safetensors').exists(): break
            process = subprocess.Popen([sys.executable, data/'slow.py', '.03', '--resume', f'runs/{name}'], cwd=data,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
            time.sleep(chance.random()*4)
        try: resumed(data/'runs'/name, whole, data)
        except AssertionError as e: raise AssertionError(f'seed {seed}, run {i}, {number.name}: {e}') from None

def test_a_signal_in_validation_ends_it_at_once(data, whole, monkeypatch):
    judge = Trainer.logits
    asked = []
    def logits(self, *args):
        if self.epoch == 1 and not asked:
            asked.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return judge(self, *args)
    monkeypatch.setattr(Trainer, 'logits', logits)
    assert 'after step 8 of 16' in ended(*quick, '--workers', 0, '--name', 'judged', cwd=data, code=143)
    assert (data/'runs'/'judged'/'metrics.jsonl').read_text().count('\n') == 1
    resumed(data/'runs'/'judged', whole, data)

def test_a_signal_before_the_first_step_leaves_nothing(data):
    os.mkfifo(data/'fifo.csv')                     # whoever reads it waits, with all that is before the first step
    code = 'from asl.train import main; main()'
    argv = [sys.executable, '-c', code, 'fifo.csv', '--images', 'img', '--name', 'early']
    process = subprocess.Popen(argv, cwd=data, stderr=subprocess.PIPE, text=True)
    with open(data/'fifo.csv', 'w'): process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err == 'asl_train: stopped before its first step: there is nothing to save\n'
    assert not (data/'runs'/'early').exists()

def test_a_second_signal_ends_it_at_once(data):
    process = started(data, 'twice', pause=30)
    trains(data, 'twice', process)
    time.sleep(.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.3)
    assert process.poll() is None
    since = time.time()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and 'stopped at once' in err and time.time()-since < 5

@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_two_processes_stop_at_the_same_step(data, number):
    "torchrun hands the signal on; with Ctrl-C in a terminal the processes get it twice"
    name = f'two-{number.name}'
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}']
    process = started(data, name, '--precision', 'fp64', launcher=torchrun, pause=.2)
    trains(data, name, process)
    time.sleep(.7)
    if number == signal.SIGINT: os.killpg(process.pid, number)
    else: process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert err.count('asl_train: stopped after step') == 1 and 'DataLoader' not in err, err
    folder = data/'runs'/name
    assert 1 <= load_tensors(folder/'checkpoint.safetensors')[1]['done'] < 16
    called('--resume', folder, cwd=data)
    called(*quick, '--workers', 0, '--name', f'{name}-whole', '--precision', 'fp64', cwd=data)
    ends = [json.loads((run/'result.json').read_text()) for run in (folder, data/'runs'/f'{name}-whole')]
    assert ends[0]['mAP'] == pytest.approx(ends[1]['mAP'], rel=1e-6)

def test_one_of_two_processes_is_told_and_both_stop(data):
    name = 'one-told'
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone']
    process = started(data, name, launcher=torchrun, pause=.2)
    trains(data, name, process)
    time.sleep(.5)
    children = [int(p) for p in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()]
    ranks = {pid: Path(f'/proc/{pid}/environ').read_bytes() for pid in children}
    os.kill(next(pid for pid, environ in ranks.items() if b'\0RANK=1\0' in environ), signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert err.count('asl_train: stopped after step') == 1, err
    assert load_tensors(data/'runs'/name/'checkpoint.safetensors')[1]['done'] >= 1

# A run that another process trains

def test_force_leaves_a_run_alone_that_another_process_trains(data, whole):
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    with locked(whole):
        said = ended(*quick, '--name', 'whole', '--force', cwd=data)
        assert '--force: runs/whole: is being trained by another process' in said
        assert 'another process' in ended('--resume', whole, cwd=data)
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == before

@pytest.mark.parametrize('at_step', [0, 1])
def test_force_replaces_a_run_with_the_first_step_only(data, whole, monkeypatch, at_step):
    "The run that was there stands while the new one may still fail"
    old = data/'runs'/f'old-{at_step}'
    shutil.copytree(whole, old)
    step = Trainer.step
    def fails(self, *args):
        if self.done == at_step: raise Refused('no memory')
        return step(self, *args)
    monkeypatch.setattr(Trainer, 'step', fails)
    ended(*quick, '--workers', 0, '--name', old.name, '--force', '--seed', 1, cwd=data)
    assert (old/'result.json').exists() == (at_step == 0)
    assert json.loads((old/'settings.json').read_text())['seed'] == at_step
    assert not [*(data/'runs').glob('.*')]
    monkeypatch.undo()
    if at_step == 0: same(old, whole)

def test_a_new_run_that_fails_before_its_first_step_leaves_nothing(data, monkeypatch):
    def fails(*_): raise Refused('no memory')
    monkeypatch.setattr(Trainer, 'step', fails)
    ended(*quick, '--workers', 0, '--name', 'none', cwd=data)
    assert not (data/'runs'/'none').exists()

def test_two_forced_runs_of_one_name_exclude_each_other(tmp_path):
    with new_run(tmp_path, 'asl', 'a') as folder: folder.begin()
    with new_run(tmp_path, 'asl', 'a', True):
        with pytest.raises(Refused, match='another process'): new_run(tmp_path, 'asl', 'a', True)

def test_a_lock_ends_with_the_process_though_those_that_load_images_live_on(data):
    process = started(data, 'orphans', '--checkpoint', '0', workers=1, pause=.1)
    until((data/'runs'/'orphans'/'checkpoint.safetensors').exists, process)
    process.kill()
    process.wait()
    with locked(data/'runs'/'orphans'): pass

# Damage

@pytest.fixture(scope='module')
def third_epoch(data):
    "A run that was stopped in its third epoch"
    process = started(data, 'stopped', '--checkpoint', '0', pause=.05)
    until(lambda: (data/'runs'/'stopped'/'metrics.jsonl').exists()
          and (data/'runs'/'stopped'/'metrics.jsonl').read_text().count('\n') == 2, process)
    process.terminate()
    process.communicate(timeout=60)
    return data/'runs'/'stopped'

@pytest.fixture
def stopped(third_epoch, tmp_path):
    "A copy of it"
    return shutil.copytree(third_epoch, tmp_path/'stopped')

def flip_last_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

def test_a_missing_checkpoint_is_refused_and_the_older_one_is_named(data, whole, stopped):
    checkpoint = stopped/'checkpoint.safetensors'
    flip_last_bit(checkpoint)
    said = ended('--resume', stopped, cwd=data)
    assert 'damaged (its checksum is another)' in said
    assert f'rename {stopped}/checkpoint.previous.safetensors to checkpoint.safetensors' in said
    checkpoint.unlink()
    assert 'is missing; rename' in ended('--resume', stopped, cwd=data)
    (stopped/'checkpoint.previous.safetensors').rename(checkpoint)
    called('--resume', stopped, cwd=data)
    same(stopped, whole)

def test_a_run_without_a_checkpoint_says_how_it_starts_again(data, whole, stopped):
    for path in stopped.glob('checkpoint*'): path.unlink()
    said = ended('--resume', stopped, cwd=data)
    assert 'is missing; this starts it again: asl_train ' in said
    command = shlex.split(said.partition('again: asl_train')[2])
    called(*command, cwd='/')
    same(stopped, whole)

def test_a_run_that_has_ended_says_so(data, whole, tmp_path):
    copy = tmp_path/'copy'
    shutil.copytree(whole, copy)
    (copy/'checkpoint.safetensors').unlink()
    assert 'the run has ended' in ended('--resume', copy, cwd=data)
    flip_last_bit(copy/'best.safetensors')
    with pytest.raises(Refused, match='damaged .* --last takes the last epoch'): load_run(copy)
    load_run(copy, last=True)

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_every_flipped_bit_of_tensors_and_numbers_is_noticed(tmp_path, dtype):
    path = tmp_path/'w.safetensors'
    table = torch.arange(6).reshape(2, 3).to(dtype)
    tensors = dict(a=table, b=torch.ones((), dtype=dtype), c=torch.ones(0, dtype=dtype))
    save_tensors(path, tensors, dict(gamma=4.))
    loaded, metadata = load_tensors(path)
    assert metadata == dict(gamma=4., format=1) and all(torch.equal(loaded[k], v) for k, v in tensors.items())
    whole = path.read_bytes()
    name = whole.index(b'crc32')        # without this word the file looks like one of asl 0.1.0; all else is unharmed
    for i in range(len(whole)):
        if name <= i < name+5: continue
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i+1:])
        with pytest.raises(Refused): load_tensors(path)

# What can be known at once

@pytest.mark.parametrize('options, said', [
    (['--name', 'a/b'], '--name a/b'), (['--name', 'whole'], '--force replaces it'),
    (['--opt', 'nothing'], '--opt nothing'), (['--sched', 'nothing'], '--sched nothing'),
    (['--augment', 'nothing'], '--augment nothing'),
    (['--out', 'labels.csv'], '--out labels.csv'), (['--size', '100000'], 'pictures of a batch alone take'),
    (['--name', 'img', '--out', '.', '--force'], 'not a run folder')])
@pytest.mark.usefixtures('whole')
def test_it_is_refused_before_an_image_is_read(data, monkeypatch, options, said):
    from asl.training import pipeline
    def never(*_): raise AssertionError('images are read')
    monkeypatch.setattr(pipeline, '_decodable', never)
    before = sorted(p.name for p in data.iterdir())
    assert said in ended(*quick, '--workers', 0, *options, cwd=data)
    assert sorted(p.name for p in data.iterdir()) == before

# Divergence

def test_a_run_that_has_diverged_says_so_everywhere_and_fails(data):
    said = ended(*quick, '--workers', 0, '--lr', 100, '--name', 'diverged', cwd=data, code=1)
    assert 'diverged: the loss ended at' in said and 'try a lower --lr, it was 100' in said
    folder = data/'runs'/'diverged'
    assert json.loads((folder/'result.json').read_text())['diverged'].startswith('the loss ended at')
    assert 'the loss ended at' in (folder/'report.html').read_text(encoding='utf-8')

def test_a_run_that_has_not_diverged_says_nothing(whole):
    assert json.loads((whole/'result.json').read_text())['diverged'] is False
    assert 'the loss ended at' not in (whole/'report.html').read_text(encoding='utf-8')

def test_a_loss_above_twice_its_start_but_below_the_prior_is_no_divergence():
    targets = torch.tensor([[0., 1.], [1., 0.], [0., 0.]])
    def ended_at(loss, first): return divergence(SimpleNamespace(records=[dict(train_loss=loss)],
        trainer=SimpleNamespace(first_loss=first), train=SimpleNamespace(targets=targets), metadata=dict(classes='ab'),
        loss_of_each=lambda: AsymmetricLossMultiLabel(0., 0., 0., reduction='none'), options=SimpleNamespace(lr=1.)))
    assert not ended_at(1., .1) and not ended_at(9., 5.) and 'try a lower --lr' in ended_at(9., 1.)
