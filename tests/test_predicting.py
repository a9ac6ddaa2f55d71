"`asl_predict` and `Predictor`: what is written, what is refused before an image is opened, what an ONNX file costs."
import csv, io, json, subprocess, sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from asl.predict import Predictor, main, predict
from asl.train import train
from asl.training import images, predictor as module

def pictures(folder, n, seed=0):
    "Pictures of noise in a colour, and a CSV of whether they are red and bright"
    folder.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(seed)
    rows = ['file,labels']
    for i in range(n):
        red, bright = g.random(2) < .5
        values = g.integers(0, 90, (20, 24, 3)) + 110*bright
        values[..., 0] += 50*red
        Image.fromarray(values.astype(np.uint8)).save(folder/f'{i:03}.png')
        rows.append(f"{i:03}.png,{'|'.join(name for name, there in (('red', red), ('bright', bright)) if there)}")
    (folder.parent/'labels.csv').write_text('\n'.join(rows))

@pytest.fixture(scope='module')
def tmp(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('predicting')
    pictures(tmp/'img', 40)
    return tmp

def small(**options): return dict(size=16, batch_size=16, workers=0, threads=1, **options)

@pytest.fixture(scope='module')
def run(tmp):
    with redirect_stdout(io.StringIO()):
        return train(tmp/'labels.csv', images=tmp/'img', model='conv3', epochs=2, out=tmp/'runs', **small())

def call(main, *argv):
    "Exit code, output and messages of a command"
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try: code = main([str(a) for a in argv]) or 0
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()

called = partial(call, main)

@pytest.fixture
def opened(monkeypatch):
    "The files that are decoded, in this process"
    found = []
    def read(file, *grey_range):
        found.append(str(file))
        return images.read_rgb(file, *grey_range)
    monkeypatch.setattr(module, 'read_rgb', read)
    return found

def names(tmp): return [str(path) for path in sorted((tmp/'img').iterdir())]

def test_every_image_has_its_row_in_every_format(tmp, run):
    everything = run, tmp/'img', '--threshold', 1
    _, text, _ = called(*everything)
    assert [line.split()[0] for line in text.splitlines()] == names(tmp)
    _, text, _ = called(*everything, '--format', 'csv')
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row['file'] for row in rows] == names(tmp)
    assert {(row['label'], row['probability']) for row in rows} == {('', '')}
    _, text, _ = called(*everything, '--format', 'json')
    assert json.loads(text) == [dict(file=name, labels={}) for name in names(tmp)]

def test_wide_has_the_probabilities_of_all_classes(tmp, run):
    _, text, _ = called(run, tmp/'img', '--format', 'csv', '--wide', '--batch-size', 7)
    rows = list(csv.DictReader(io.StringIO(text)))
    p, _ = Predictor(run)(names(tmp))
    written = torch.tensor([[float(row[name]) for name in ('bright', 'red')] for row in rows])
    torch.testing.assert_close(written, p, rtol=1e-5, atol=1e-6)
    assert called(run, tmp/'img', '--wide', '--batch-size', 7)[1] == text       # it is a CSV, said or not

@pytest.mark.parametrize('options, said', [
    (['--out', 'none/p.csv'], 'no folder'),
    (['--onnx', 'none/m.onnx'], 'no folder'),
    (['--out', '.'], 'is a folder'),
    (['--out', 'labels.csv'], '--force'),
    (['--format', 'xml'], 'table, json or csv'),
    (['--wide', '--format', 'json'], 'form of CSV'),
    (['--wide', '--format', 'csv', '--top', 3], 'has its column'),
    (['--wide', '--format', 'csv', '--threshold', .5], 'has its column'),
    (['--onnx_precision', 'int8'], '--onnx FILE'),
    (['--onnx', 'm.onnx', '--onnx_precision', 'int4'], 'fp32, fp16 or int8'),
    (['--out', 'x', '--onnx', './x'], 'are one file'),
    (['--device', 'nowhere'], 'nowhere'),
    (['--top', 0], '1 or more'),
    (['none.png'], 'none.png: no such file'),
])
def test_what_cannot_work_is_refused_before_an_image_is_opened(tmp, run, opened, monkeypatch, options, said):
    monkeypatch.chdir(tmp)
    code, out, err = called(run, 'img', *options)
    assert code == 2 and said in err and err.count('\n') == 1 and not out and not opened

def test_a_missing_extra_is_said_before_an_image_is_opened(tmp, run, opened, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    monkeypatch.setattr('asl.cli.find_spec', lambda name: None if name == 'onnxscript' else name)
    code, _, err = called(run, tmp/'img', '--onnx', tmp/'m.onnx')
    assert code == 2 and 'onnxscript not installed' in err and 'asymmetric-loss[onnx]' in err and not opened

def test_each_image_is_decoded_once_and_in_order(tmp, run, opened):
    assert called(run, tmp/'img', '--batch-size', 7)[0] == 0
    assert opened == names(tmp)

def test_rows_are_written_while_images_are_still_to_be_opened(tmp, run, opened):
    class Out(io.StringIO):
        seen = None
        def write(self, text):
            if text and self.seen is None: self.seen = len(opened)
            return super().write(text)
    with redirect_stdout(Out()) as out: main([str(run), str(tmp/'img'), '--batch_size', '5'])
    assert out.seen == 5 and len(opened) == 40

def test_workers_give_the_same_rows(tmp, run):
    assert called(run, tmp/'img', '--workers', 2, '--batch-size', 7)[1] == called(run, tmp/'img', '--batch-size', 7)[1]

def test_a_bad_image_ends_it_without_half_a_file_or_is_left_out(tmp, run):
    pictures(tmp/'bad', 5)
    (tmp/'bad'/'002.png').write_bytes(b'no image')
    (tmp/'bad'/'003.png').write_bytes((tmp/'bad'/'004.png').read_bytes()[:200])
    asked = run, tmp/'bad', '--out', tmp/'bad.csv', '--format', 'csv', '--wide', '--batch-size', 1
    code, _, err = called(*asked)
    assert code == 2 and '002.png: not an image; --skip_bad goes on without' in err
    assert not [path for path in tmp.iterdir() if 'bad.csv' in path.name]
    code, _, err = called(*asked, '--skip-bad')
    assert code == 0 and 'left out 2 images' in err and '002.png' in err
    assert [row['file'][-7:] for row in csv.DictReader((tmp/'bad.csv').open())] == ['000.png', '001.png', '004.png']
    for path in (tmp/'bad').iterdir(): path.write_bytes(b'no image')
    assert 'no other image' in called(*asked, '--skip-bad', '--force')[2]

def test_an_old_file_stays_until_the_new_one_is_whole(tmp, run):
    pictures(tmp/'cut', 3)
    (tmp/'cut'/'002.png').write_bytes(b'')
    (tmp/'cut.csv').write_text('old')
    assert called(run, tmp/'cut', '--out', tmp/'cut.csv', '--force')[0] == 2
    assert (tmp/'cut.csv').read_text() == 'old'

def test_in_python_rows_are_returned_as_well(tmp, run, capsys):
    rows = predict(run, names(tmp)[:3], top=1, out=tmp/'rows', force=True)
    assert [name for name, _ in rows] == names(tmp)[:3] and all(len(labels) == 1 for _, labels in rows)
    assert capsys.readouterr() == ('', '')

def test_a_predictor_takes_one_picture_or_many_of_any_kind(tmp, run, capsys):
    predictor = Predictor(run, batch_size=3)
    path = names(tmp)[0]
    array = np.asarray(Image.open(path))
    kinds = [path, tmp/'img'/'000.png', Image.open(path), array, array/np.float32(255)]
    p, labels = predictor(kinds)
    assert p.shape == (5, 2) and all(torch.equal(row, p[0]) for row in p) and labels == labels[:1]*5
    for kind in kinds: torch.testing.assert_close(predictor(kind).probabilities, p[:1])
    assert predictor([]).probabilities.shape == (0, 2) and predictor([]).labels == []
    assert capsys.readouterr() == ('', '')

def test_a_predictor_shows_labels_from_a_half_on_unless_told_otherwise(tmp, run):
    predictor = Predictor(run)
    p, labels = predictor(names(tmp))
    assert [{name for name, _ in shown} for shown in labels] == [
        {name for name, value in zip(predictor.classes, row) if value >= .5} for row in p]
    assert all(len(shown) == 1 for shown in predictor(names(tmp), top=1).labels)
    assert all(len(shown) == 2 for shown in predictor(names(tmp), threshold=0).labels)

def test_a_picture_of_the_caller_stays_as_it_was(run):
    picture = Image.fromarray(np.zeros((8, 16, 3), np.uint8))
    exif = picture.getexif()
    exif[0x112] = 6
    stored = io.BytesIO()
    picture.save(stored, 'JPEG', exif=exif)
    picture = Image.open(stored)
    Predictor(run)(picture)
    assert picture.size == (16, 8)

def test_what_is_no_picture_is_named(tmp, run):
    predictor = Predictor(run)
    wrong = [([names(tmp)[0], 'none.png'], 'none.png: no such file'), (torch.zeros(3, 8, 8), 'picture 0: a Tensor'),
             ([np.zeros((8, 8, 3))+2], 'floats from 2 to 2')]
    for given, said in wrong:
        with pytest.raises(ValueError, match=said): predictor(given)

def test_random_numbers_of_the_caller_are_left_alone(tmp, run):
    predictor = Predictor(run)
    before = torch.get_rng_state()
    predictor(names(tmp)[:3])
    assert torch.equal(before, torch.get_rng_state())

@pytest.mark.parametrize('model, size', [('conv3', 16), ('test_resnet', 32), ('test_vit', 32)])
def test_the_scores_follow_from_the_features_and_onnx_agrees_in_fewer_bits(tmp, model, size):
    with redirect_stdout(io.StringIO()):
        options = small() | dict(size=size, epochs=1, weights='random')
        run = train(tmp/'labels.csv', images=tmp/'img', model=model, out=tmp/'runs', **options)
    predictor = Predictor(run)
    features = predictor.features(names(tmp)[:4])
    head = predictor.net[-1] if model == 'conv3' else predictor.net.get_classifier()
    torch.testing.assert_close(predictor.loss.posterior(head(features)), predictor(names(tmp)[:4]).probabilities)
    for precision, most in (('fp16', .02), ('int8', .3)):
        code, _, err = called(run, '--onnx', tmp/f'{model}.onnx', '--onnx-precision', precision, '--force')
        assert code == 0 and 'off by at most' in err and 'fp32' in err, err
        assert float(err.split('at most ')[1].split(',')[0]) < most

def test_one_label_an_image(tmp):
    for i, path in enumerate(names(tmp)):
        (tmp/'pets'/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp/'pets'/'ab'[i % 2]/f'{i}.png').write_bytes(open(path, 'rb').read())
    with redirect_stdout(io.StringIO()):
        run = train(images=tmp/'pets', model='conv3', epochs=1, out=tmp/'runs', **small())
    p, labels = Predictor(run)(names(tmp)[:5])
    torch.testing.assert_close(p.sum(1), torch.ones(5))
    assert [name for (name, _), in labels] == ['ab'[i] for i in p.argmax(1)]
    code, _, err = called(run, '--onnx', tmp/'pets.onnx', '--onnx_precision', 'int8')
    assert code == 0 and 'mAP' in err

def test_fewer_bits_need_the_validation_images(tmp, run):
    moved = tmp/'labels.csv'
    text = moved.read_text()
    moved.unlink()
    try:
        code, _, err = called(run, '--onnx', tmp/'gone.onnx', '--onnx_precision', 'int8')
        assert code == 2 and 'labels.csv' in err and not (tmp/'gone.onnx').exists()
        assert called(run, '--onnx', tmp/'gone.onnx')[0] == 0
    finally: moved.write_text(text)

def test_memory_does_not_grow_with_the_folder(tmp, run):
    "20 and 400 large pictures, 4 at once: in one process each, what the second needs more is far from 380 pictures"
    (tmp/'large').mkdir()
    Image.new('RGB', (1000, 1000)).save(tmp/'large'/'0.png')
    for i in range(1, 400): (tmp/'large'/f'{i}.png').hardlink_to(tmp/'large'/'0.png')
    peaks = []
    for n in (20, 400):
        code = f"""import resource, sys
from asl.predict import main
main([{str(run)!r}, *[f'{tmp}/large/{{i}}.png' for i in range({n})], '--batch_size', '4'])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"""
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
        assert done.stdout.count('\n') == n
        peaks.append(int(done.stderr.split()[-1])/1000)
    assert peaks[1]-peaks[0] < 60       # MB; the pictures are 1200
