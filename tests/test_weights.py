"Which weights a run begins with: what was taken is told, what cannot be had is refused, and the source may go."
import csv, hashlib, json, random, shutil, socket, time
from pathlib import Path

import pytest
import torch
from PIL import Image

from asl.cli import Refused
from asl.predict import predict
from asl.train import train
from asl.training import weights as sources
from asl.training.folder import load_tensors
from asl.training.model import begin, make_model, told
from asl.training.weights import find_weights

SMALL = dict(size=32, epochs=1, batch_size=16, threads=1, workers=0, augment='none')

def coloured(folder, g):
    "Make 40 pictures of one colour; yields the name of each and its colour"
    folder.mkdir()
    for i in range(40):
        colour = [g.randrange(256) for _ in range(3)]
        Image.new('RGB', (16, 16), tuple(colour)).save(folder/f'{i:02}.png')
        yield f'{i:02}.png', colour

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "40 pictures with two labels, weights of a network that has ten classes, in a file and in a folder of timm"
    tmp, g = tmp_path_factory.mktemp('data'), random.Random(0)
    rows = [(file, '|'.join(name for name, value in zip(('red', 'green'), colour) if value > 128))
        for file, colour in coloured(tmp/'img', g)]
    with open(tmp/'labels.csv', 'w', newline='') as f: csv.writer(f).writerows([('file', 'tags'), *rows])
    from timm.models import save_for_hf
    net = make_model('test_resnet', 10, 32)
    torch.save(net.state_dict(), tmp/'net.pth')
    save_for_hf(net, tmp/'timm')
    return tmp

@pytest.fixture
def no_network(monkeypatch, tmp_path):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setattr(sources, '_answers', lambda _: False)

def trained(data, name, **options):
    return train(data/'labels.csv', images=data/'img', out=data/'runs', name=name, **SMALL | options)

def settings(run): return json.loads((run/'settings.json').read_text(encoding='utf-8'))

def first_layer(run, file): return load_tensors(run/file)[0]['conv1.0.weight']

def test_the_first_line_and_the_settings_say_what_was_taken(data, capsys):
    run = trained(data, 'said', model='test_resnet', weights=data/'net.pth', freeze='head')
    digest = hashlib.sha256((data/'net.pth').read_bytes()).hexdigest()
    line = capsys.readouterr().out.splitlines()[0]
    assert line == (f'weights: file {data}/net.pth, sha256 {digest[:12]}; 90 tensors taken, '
                    'left out: fc.weight, fc.bias')
    start = settings(run)['started_from']
    assert start == dict(kind='file', source=f'{data}/net.pth', sha256=digest, loaded=90,
                         left_out=['fc.weight', 'fc.bias'])
    assert line.removeprefix('weights: ') in (run/'report.html').read_text(encoding='utf-8')
    known = torch.load(data/'net.pth', weights_only=True)['conv1.0.weight']
    assert torch.equal(first_layer(run, 'last.safetensors'), known)

def test_a_run_outlives_the_folder_that_its_weights_came_from(data, tmp_path):
    shutil.copytree(data/'timm', tmp_path/'timm')
    runs = [trained(data, f'folder{i}', model=f'local-dir:{tmp_path}/timm', epochs=2) for i in range(2)]
    assert settings(runs[0])['model'] == 'test_resnet' and settings(runs[0])['started_from']['kind'] == 'folder'
    shutil.rmtree(tmp_path/'timm')
    for name in ('result.json', 'last.safetensors'): (runs[1]/name).unlink()
    train(resume=runs[1], epochs=3)
    assert len((runs[1]/'metrics.jsonl').read_text().splitlines()) == 3
    assert len(predict(runs[1], data/'img')) == 40

def test_a_run_gives_its_head_only_for_the_same_classes(data):
    run = trained(data, 'first', model='test_resnet', weights='random')
    _, start = begin(find_weights(str(run)), ['green', 'red'], 32)
    assert start['left_out'] == [] and start['kind'] == 'run'
    net, start = begin(find_weights(str(run)), ['red', 'green'], 32)
    assert start['left_out'] == ['fc.weight', 'fc.bias'] and net.get_classifier().out_features == 2
    again = trained(data, 'again', weights=run, size=None)
    assert settings(again)['config'] == settings(run)['config'] and settings(again)['model'] == 'test_resnet'
    conv3 = trained(data, 'conv3', model='conv3')
    net, start = begin(find_weights(str(conv3)), ['other'], 32)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 1) and len(start['left_out']) == 2

@pytest.mark.usefixtures('no_network')
def test_the_default_is_pretrained_and_is_refused_without_a_network(data):
    with pytest.raises(Refused, match='--weights random begins without; --weights PATH'):
        trained(data, 'none', model='test_resnet')
    assert not (data/'runs'/'none').exists()
    with pytest.raises(Refused, match='timm has none for conv3'):
        trained(data, 'none', model='conv3', weights='pretrained')
    with pytest.raises(Refused, match='no answer'): find_weights('hf-hub:someone/something')

def test_a_server_that_does_not_answer_is_waited_for_only_so_long(monkeypatch):
    monkeypatch.setattr(sources, 'SECONDS', 1)
    with socket.create_server(('127.0.0.1', 0)) as silent:
        started = time.monotonic()
        assert not sources._answers(f'http://127.0.0.1:{silent.getsockname()[1]}')
        assert time.monotonic()-started < 3

def test_what_the_hub_gave_before_is_taken_without_asking_it(monkeypatch, tmp_path):
    from huggingface_hub import constants
    from safetensors.torch import save_file
    repository = tmp_path/'models--timm--test_resnet.r160_in1k'
    (repository/'snapshots'/'abc').mkdir(parents=True)
    (repository/'refs').mkdir()
    (repository/'refs'/'main').write_text('abc')
    known = make_model('test_resnet', 1000, 32).state_dict()
    save_file(known, repository/'snapshots'/'abc'/'model.safetensors')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(sources, '_answers', lambda _: pytest.fail('it was asked'))
    net, start = begin(find_weights('pretrained', 'test_resnet'), ['a', 'b'], 32)
    assert torch.equal(net.state_dict()['conv1.0.weight'], known['conv1.0.weight'])
    assert told(start).startswith('weights: pretrained timm/test_resnet.r160_in1k, sha256 ')
    assert not constants.HF_HUB_OFFLINE

def test_weights_that_do_not_fit_say_how_many_do(data, tmp_path):
    with pytest.raises(Refused, match=r'of its 92 tensors fit resnet18, .* has 122'):
        begin(find_weights(str(data/'net.pth')), ['a', 'b'], 32)
    torch.save([1, 2], tmp_path/'list.pth')
    (tmp_path/'text.pth').write_text('no weights')
    for name in ('list', 'text'):
        with pytest.raises(Refused, match='needs a dict of tensors'):
            begin(find_weights(str(tmp_path/f'{name}.pth')), ['a', 'b'], 32)

def test_a_pickle_that_would_run_code_is_not_read(tmp_path):
    class Evil:
        def __reduce__(self): return Path(tmp_path/'ran').touch, ()
    torch.save(dict(state_dict=Evil()), tmp_path/'evil.pth')
    with pytest.raises(Refused): begin(find_weights(str(tmp_path/'evil.pth')), ['a', 'b'], 32)
    assert not (tmp_path/'ran').exists()

def test_two_ways_to_say_it_may_not_differ(data):
    with pytest.raises(Refused, match='leave --model out'): find_weights(str(data/'timm'), 'resnet18')
    with pytest.raises(Refused, match='--pretrained'): trained(data, 'none', weights='random', pretrained=True)
