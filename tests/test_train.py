"The command `asl_train` as its users run it: in a process of its own, or called in this one where that is the same."
import inspect, json, os, re, shutil, signal, subprocess, sys
from dataclasses import fields
from pathlib import Path

import pytest

from asl.train import main, train
from asl.training.options import Options

command = [sys.executable, '-c', 'from asl.train import main; main()']

def run(*args, cwd=None, **kw):
    return subprocess.run([*command, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300, **kw)

def refusal(result):
    "The one line of a refused call"
    assert result.returncode == 2, result.stderr
    assert result.stdout == '' and result.stderr.count('\n') == 1 and result.stderr.startswith('asl_train: ')
    return result.stderr

files = {'settings.json', 'classes.json', 'metrics.jsonl', 'result.json', 'report.html', 'best.safetensors',
    'last.safetensors', 'validation.safetensors', 'checkpoint.safetensors', 'loss.png', 'map.png', 'ap.png',
    'reliability.png'}

def test_leaves_a_run_folder_and_never_overwrites_it(tmp_path, monkeypatch):
    first = run('--epochs', 2, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path/'runs'/'asl-0'
    assert {p.name for p in folder.iterdir()} == files
    words = 'epoch   1/2', 'mAP (macro)', 'OF1 at 0.5', 'best OF1', 'calibration error', str(Path('runs/asl-0'))
    assert all(word in first.stdout for word in words)
    settings, result = [json.loads((folder/f'{name}.json').read_text()) for name in ('settings', 'result')]
    assert {k: settings[k] for k in ('loss', 'gamma_neg', 'gamma_pos', 'clip', 'epochs', 'seed')} == dict(
        loss='asl', gamma_neg=4, gamma_pos=1, clip=.05, epochs=2, seed=0)
    records = [json.loads(line) for line in (folder/'metrics.jsonl').read_text().splitlines()]
    assert [r['epoch'] for r in records] == [1, 2] and records[1]['mAP'] == result['mAP']
    assert 0 < result['ECE_posterior'] < result['ECE'] and 'OF1_posterior' in result
    assert list(result['AP']) == json.loads((folder/'classes.json').read_text()) and len(result['AP']) == 80

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.chdir(tmp_path)
    main(['--epochs', '2'])                      # in another process, after other work
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    kept = 'metrics.jsonl', 'result.json', 'best.safetensors', 'last.safetensors', 'validation.safetensors'
    for name in kept:                            # same seed, to the last bit
        assert (tmp_path/'runs'/'asl-1'/name).read_bytes() == before[name]

@pytest.mark.parametrize('loss', ['bce', 'focal', 'timm_asl'])
def test_every_loss_trains(tmp_path, loss):
    main(f'--loss {loss} --epochs 1 --classes 10 --seed 1 --batch-size 256'.split() + ['--out', str(tmp_path/'a'/'b')])
    assert (tmp_path/'a'/'b'/f'{loss}-0'/'result.json').exists()

def test_it_starts_from_the_prior_unless_told_not_to(tmp_path):
    for options in ([], ['--no-prior']): main(['--loss', 'bce', '--epochs', '1', '--out', str(tmp_path), *options])
    prior, zero = (json.loads((tmp_path/f'bce-{i}'/'metrics.jsonl').read_text()) for i in (0, 1))
    assert prior['train_loss'] < .6*zero['train_loss']       # telling "no" to 78 of 80 classes need not be learned

bad = ['--loss foo', '--gamma_neg -1', '--gamma_pos nan', '--clip 1.5', '--clip 1', '--clip -.1', '--epochs 0',
    '--epochs x', '--epochs', '--epoch 3', '--lr nan', '--lr 0', '--lr inf', '--batch_size 1', '--seed -1', '--ema 1',
    '--weight_decay -1', '--classes 5', '--eps .1', '--accumulate 0', '--precision fp8', '--opt nothing',
    '--sched nothing', '--valid .3', '--skip_bad',
    '--loss focal --adaptive', '--resume nowhere', '--name a/b',
    '--device nowhere', '--model no_such_model', '--loss bce --gamma_neg 2', '--loss focal --clip .1', 'labels.csv']

def refused(options, capsys):
    "The one line of a call that is refused in this process"
    with pytest.raises(SystemExit) as e: main(options.split())
    out, err = capsys.readouterr()
    assert e.value.code == 2 and out == '' and err.count('\n') == 1 and err.startswith('asl_train: ')
    return err

@pytest.mark.parametrize('options', bad)
def test_a_bad_option_is_one_line(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    named = [w for w in options.split() if w[:2] == '--' or w == 'labels.csv'][-1]
    assert named in refused(options, capsys) and not list(tmp_path.iterdir())

@pytest.mark.parametrize('options', ['--loss foo', '--epochs x', '--model no_such_model'])
def test_nothing_else_is_printed_by_the_process(tmp_path, options):
    assert options.split()[0] in refusal(run(*options.split(), cwd=tmp_path)) and not list(tmp_path.iterdir())

@pytest.mark.parametrize('out', ['file', 'file/below', '/proc', '/proc/below'])
def test_an_unwritable_out_is_one_line(tmp_path, monkeypatch, capsys, out):
    if out.startswith('/proc') and not Path('/proc/self').exists(): pytest.skip('no /proc here')
    monkeypatch.chdir(tmp_path)
    (tmp_path/'file').touch()
    assert '--out' in refused(f'--out {out}', capsys)

def test_an_editor_sees_every_option():
    "Static type checkers read what inspect reads: the fields of Options"
    parameters = inspect.signature(train).parameters
    assert list(parameters) == [f.name for f in fields(Options)] and parameters['epochs'].default == Options().epochs
    assert parameters['images'].kind is inspect.Parameter.KEYWORD_ONLY
    assert inspect.signature(train).return_annotation is Path
    with pytest.raises(TypeError, match='no_such_option'): train(no_such_option=1)

def test_help_names_every_option():
    result = run('-h')
    assert result.returncode == 0
    for name in inspect.signature(train).parameters: assert re.search(rf'^  (--)?{name}\b.*', result.stdout, re.M), name

def test_a_missing_extra_is_one_line(tmp_path):
    code = ("import asl.cli as c, asl.train as t; find = c.find_spec; "
        "c.find_spec = lambda p: None if p == 'safetensors' else find(p); t.main()")
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert "safetensors" in refusal(result) and "pip install 'asymmetric-loss[train]'" in result.stderr
    assert not list(tmp_path.iterdir())

def test_ctrl_c_is_one_line(tmp_path):
    # a job in the background ignores the signal by default
    code = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '+command[-1]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p = subprocess.Popen([*command[:-1], code, '--epochs', '500'], cwd=tmp_path, **pipes)
    assert 'epoch' in p.stdout.readline()
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and err.count('\n') == 1 and err.startswith('asl_train: stopped')
    assert (tmp_path/'runs'/'asl-0'/'metrics.jsonl').read_text().count('\n') >= 1

def test_a_diverging_run_is_one_line(tmp_path):
    result = run('--lr', 1e30, '--epochs', 1, cwd=tmp_path)
    assert result.returncode == 1 and result.stderr.count('\n') == 1 and '--lr' in result.stderr

def test_importing_it_is_light():
    heavy = 'timm', 'torchmetrics', 'sklearn', 'matplotlib', 'accelerate'
    code = f'import sys, asl.train; print([m for m in {heavy} if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'

def test_installed_under_its_name():
    places = str(Path(sys.executable).parent), os.environ.get('PATH', '')
    script = shutil.which('asl_train', path=os.pathsep.join(places))
    if not script: pytest.skip('asl is not installed here')
    assert '--gamma_neg' in subprocess.run([script, '-h'], capture_output=True, text=True).stdout
