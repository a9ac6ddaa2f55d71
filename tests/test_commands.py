"What the commands say of themselves and while they work, and that `import asl` and `-h` do without PyTorch."
import ast, inspect, os, pickle, pydoc, re, subprocess, sys
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest, torch
from fastcore.docscrape import NumpyDocString

import asl
from asl.bench import bench, main as bench_main
from asl.benchmark.measure import TASKS
from asl.benchmark.options import BenchOptions
from asl.cli import Refused
from asl.evaluate import evaluate, main as evaluate_main
from asl.predict import main as predict_main, predict
from asl.review import main as review_main, review
from asl.train import main as train_main, train
from asl.training.model import LOSSES, LOSSES_SINGLE
from asl.training.options import EvaluateOptions, Options, PredictOptions, ReviewOptions
from asl.training.predictor import FORMATS

commands = dict(asl_train=(train, train_main, Options), asl_predict=(predict, predict_main, PredictOptions),
    asl_evaluate=(evaluate, evaluate_main, EvaluateOptions), asl_review=(review, review_main, ReviewOptions),
    asl_bench=(bench, bench_main, BenchOptions))
modules = dict(asl_train='asl.train', asl_predict='asl.predict', asl_evaluate='asl.evaluate',
    asl_review='asl.review', asl_bench='asl.bench')

def python(code, *argv):
    "What a Python of its own prints"
    done = subprocess.run([sys.executable, '-c', code, *argv], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout

def shown(name, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '100')
    with pytest.raises(SystemExit) as ended: commands[name][1](['-h'])
    assert not ended.value.code
    return capsys.readouterr().out

@pytest.mark.parametrize('name', commands)
def test_help_needs_no_pytorch(name):
    code = f'''import sys, {modules[name]} as m
try: m.main(['-h'])
except SystemExit: pass
print({{'torch', 'numpy', 'timm', 'PIL', 'matplotlib'}} & {{*sys.modules}})'''
    assert python(code).splitlines()[-1] == 'set()'

@pytest.mark.parametrize('name', commands)
def test_a_wrong_option_needs_no_pytorch_either(name):
    code = f'''import sys, {modules[name]} as m
try: m.main(['--no_such_option'])
except SystemExit as e: print(e.code, 'torch' in sys.modules)'''
    assert python(code) == '2 False\n'

@pytest.mark.parametrize('name', commands)
def test_help_is_a_short_usage_then_groups_then_two_examples(name, capsys, monkeypatch):
    text = shown(name, capsys, monkeypatch)
    first, *rest = text.splitlines()
    assert first.startswith(f'usage: {name}') and first.endswith('[options]') and len(first) < 60 and rest[0] == ''
    titles = [line[:-1] for line in rest if re.fullmatch('[A-Z].*:', line)]
    assert len(titles) >= 3
    examples = text.partition('\nexamples:\n')[2].splitlines()
    assert len(examples) == 2 and all(line.startswith(f'  {name}') for line in examples)
    parser_takes = {field.name for field in fields(commands[name][2])}
    for example in examples: assert {*re.findall(r'--(\w+)', example)} <= parser_takes

def choices():
    "Each option with few values, by command"
    for name, (_, _, record) in commands.items():
        for option, kind in get_type_hints(record).items():
            words = re.search(r'Literal\[(.*?)\]', str(kind))
            if words: yield name, option, [str(value) for value in ast.literal_eval(f'[{words[1]}]')]

@pytest.mark.parametrize('name, option, values', [*choices()])
def test_choices_are_shown_and_another_value_is_refused_in_a_line(name, option, values, capsys, monkeypatch):
    assert f"--{option} {{{','.join(values)}}}" in shown(name, capsys, monkeypatch)
    by_place = ['no_run'] if name == 'asl_predict' else []
    with pytest.raises(SystemExit) as ended: commands[name][1]([*by_place, f'--{option}', '7'])
    said = capsys.readouterr().err
    needs = ', '.join(values[:-1]) + f' or {values[-1]}'
    assert ended.value.code == 2 and said == f'{name}: --{option}: needs {needs}, got 7\n'

def test_python_callers_are_refused_alike():
    with pytest.raises(Refused, match='--precision: needs fp32, fp16, bf16 or fp64, got fp7'): train(precision='fp7')

def test_choices_are_those_that_there_are():
    def values(record, name): return {*get_args(get_type_hints(record)[name])}
    assert values(Options, 'loss') == {*LOSSES, *LOSSES_SINGLE}
    assert values(PredictOptions, 'format') == {*FORMATS} and values(BenchOptions, 'task') == {*TASKS}

@pytest.mark.parametrize('name', commands)
def test_help_in_python_explains_each_option(name):
    function, _, record = commands[name]
    doc = NumpyDocString(inspect.getdoc(function))
    said = doc['Parameters']
    assert list(said) == list(inspect.signature(function).parameters) == [f.name for f in fields(record)]
    assert all(''.join(each.desc).strip() for each in said.values()) and name in doc['Examples']
    assert not re.search(r'pathlib|typing|Literal|\|| or None', ' '.join(each.type for each in said.values()))

# What `import asl` gives, in a Python of its own

def test_import_asl_is_light_and_the_first_name_brings_the_library():
    code = '''import sys, asl
light = 'torch' not in sys.modules and 'posterior' not in vars(asl)
asl.AsymmetricLossMultiLabel
print(light, 'torch' in sys.modules, {*asl.__all__} <= {*vars(asl)})'''
    assert python(code) == 'True True True\n'

@pytest.mark.parametrize('first', ['asl.posterior', 'asl.loss'])
def test_asl_posterior_is_the_function_whatever_was_imported_first(first):
    code = f'''import {first}, asl, asl.posterior as again
from asl.posterior import posterior
from asl import posterior as also
print(asl.posterior is posterior is also is again)'''
    assert python(code) == 'True\n'

def test_all_names_are_listed_before_they_are_loaded_and_a_wrong_one_is_an_error():
    code = '''import sys, asl
print({*asl.__all__} <= {*dir(asl)}, 'torch' in sys.modules, hasattr(asl, '_private'), 'torch' in sys.modules)
from asl import *
print(all(globals()[name] is getattr(asl, name) for name in asl.__all__), asl.functional, asl.loss)
try: asl.posteriour
except AttributeError as e: print(e)
try: from asl import posteriour
except ImportError as e: print(e)'''
    lines = python(code).splitlines()
    assert lines[0] == 'True False False False' and lines[1].startswith("True <module 'asl.functional'")
    assert lines[2] == "module 'asl' has no attribute 'posteriour'" and 'cannot import name' in lines[3]

def test_the_predictor_comes_when_it_is_asked_for():
    code = '''import sys, asl.predict
print('torch' in sys.modules)
from asl.predict import Predictor
print(Predictor.__module__, hasattr(asl.predict, 'no_such_name'))'''
    assert python(code) == 'False\nasl.training.predictor False\n'

def test_what_type_checkers_are_told_is_what_there_is():
    tree = ast.parse(Path(asl.__file__).read_text())
    [told] = [node for node in tree.body if isinstance(node, ast.If)]
    names = {alias.name: node.module for node in told.body for alias in node.names}
    assert {*names} == {*asl.__all__}
    for name, module in names.items(): assert getattr(asl, name).__module__ == module

def test_help_shows_the_library_and_nothing_else():
    text = pydoc.render_doc(asl, renderer=pydoc.plaintext)
    functions = text.partition('\nFUNCTIONS\n')[2].partition('\nDATA\n')[0]
    names = re.findall(r'^    (\w+)\(', functions, re.M)
    assert 'class AsymmetricLossMultiLabel(' in text and 'posterior' in names and {*names} <= {*asl.__all__}

def test_compiling_loads_the_library_and_pickles_find_it():
    pickled = pickle.dumps(asl.AsymmetricLossMultiLabel(gamma_neg=3)).hex()
    code = f'''import pickle, torch, asl
z = torch.randn(4, 3)
def loss_of(z): return asl.posterior(z).sum() + asl.AsymmetricLossMultiLabel()(z, torch.zeros_like(z))
print(torch.allclose(torch.compile(loss_of, fullgraph=True, backend='eager')(z), loss_of(z)))
print('gamma_neg=3' in repr(pickle.loads(bytes.fromhex('{pickled}'))))
print(pickle.loads(pickle.dumps(asl.posterior)) is asl.posterior)'''
    assert python(code) == 'True\nTrue\nTrue\n'

# While it trains

quick = '--classes 10 --batch_size 512 --threads 1'.split()
scores = r'loss \d+\.\d{3}, test \d+\.\d{3}, mAP \d+\.\d'
line = re.compile(rf'epoch +\d/2  {scores}, lr [\d.e-]+, \d+(\.\d)? images/s(, best)?')

def test_each_epoch_is_a_line(tmp_path):
    text = python('from asl.train import main; main()', *quick, '--epochs', '2', '--out', str(tmp_path))
    found = [each for each in text.splitlines() if each.startswith('epoch')]
    assert len(found) == 2 and all(map(line.fullmatch, found)) and found[0].endswith(', best')

@pytest.mark.skipif(sys.platform == 'win32', reason='no pseudo-terminals')
def test_on_a_terminal_the_lines_stand_above_the_bar(tmp_path):
    import pty
    terminal, end = pty.openpty()
    argv = [sys.executable, '-c', 'from asl.train import main; main()', *quick, '--epochs', '2', '--out', str(tmp_path)]
    process = subprocess.Popen(argv, stdout=end, stderr=end, env=os.environ | dict(COLUMNS='100', LINES='30'))
    os.close(end)
    text = b''
    while True:
        try: more = os.read(terminal, 4096)
        except OSError: break      # the other end is closed
        if not more: break
        text += more
    os.close(terminal)
    assert process.wait() == 0
    parts = re.split('[\r\n]+', text.decode())
    epochs = [i for i, part in enumerate(parts) if line.fullmatch(part.strip())]
    bars = [i for i, part in enumerate(parts) if 'step/s' in part or 's/step' in part]
    assert len(epochs) == 2 and bars[0] < epochs[0] < epochs[1] < bars[-1]

def test_the_report_shows_the_batch_that_the_network_saw(tmp_path, monkeypatch):
    "Of digits, which come to the network as they are"
    from asl.training import pipeline
    given = {}
    def keep(*args): given.update(notes=args[6], seen=args[7])
    monkeypatch.setattr(pipeline, 'write_report', keep)
    stepped = []
    step = pipeline.Trainer.step
    def watched(self, x, y, share=1.):
        stepped.append((x, y))
        return step(self, x, y, share)
    monkeypatch.setattr(pipeline.Trainer, 'step', watched)
    train(classes=10, batch_size=512, epochs=1, seed=3, out=tmp_path)
    images, targets = stepped[0]
    assert given['notes'] == dict(weights='random, conv3') and len(given['seen']) == 12
    for (picture, target), image, wanted in zip(given['seen'], images, targets):
        pixels = torch.tensor([*picture.convert('RGB').tobytes()]).view(16, 16, 3).permute(2, 0, 1)
        assert torch.equal(target, wanted) and torch.equal(pixels, (255*image).round().int())
