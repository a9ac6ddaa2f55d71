"`asl_train` and `asl_predict` on images of one's own: in processes of their own where it can matter, else in this one."
import csv, io, json, os, random, signal, subprocess, sys, time
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

colours = dict(rot=(220, 40, 40), grün=(40, 170, 40), blau=(40, 60, 220))
quick = ['--model', 'conv3', '--size', '24', '--batch_size', '16', '--threads', '1', '--workers', '0']
kept = 'metrics.jsonl', 'result.json', 'best.safetensors', 'last.safetensors', 'validation.safetensors'

def run(command, *args, cwd, **kw):
    code = f'from asl.{command} import main; main()'
    argv = [sys.executable, '-c', code, *map(str, args)]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=500, **kw)

def good(result):
    assert result.returncode == 0, result.stderr
    return result.stdout

def called(command, *args, cwd):
    "What a command prints that is called in this process, where nothing heavy need be imported anew"
    with chdir(cwd), redirect_stdout(io.StringIO()) as out: import_module(f'asl.{command}').main([str(a) for a in args])
    return out.getvalue()

def line(result):
    "The one line of a refused call"
    assert result.returncode == 2 and result.stderr.count('\n') == 1, result.stderr
    return result.stderr

def refused(command, *args, cwd):
    "The one line of a call that is refused, in this process: it ends before it has begun"
    with (chdir(cwd), redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()),
          pytest.raises(SystemExit) as e):
        import_module(f'asl.{command}').main([str(a) for a in args])
    assert e.value.code == 2 and err.getvalue().count('\n') == 1, err.getvalue()
    return err.getvalue()

def discs(folder, shown, seed):
    "A picture with a disc of each colour shown"
    g = random.Random(seed)
    picture = Image.new('RGB', (40, 32), tuple(g.randrange(90, 200) for _ in range(3)))
    for name in shown:
        x, y = g.randrange(30), g.randrange(22)
        ImageDraw.Draw(picture).ellipse((x, y, x+9, y+9), fill=colours[name])
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder/f'{seed:03}.png')

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "A folder with images, and CSVs of their labels in two forms"
    tmp, g, rows = tmp_path_factory.mktemp('data'), random.Random(0), []
    for i in range(90):
        shown = [c for c in colours if g.random() < .4]
        discs(tmp/'img', shown, i)
        rows.append((f'{i:03}.png', shown))
    with open(tmp/'labels.csv', 'w', encoding='utf-8-sig', newline='') as f:                # byte-order mark, CRLF
        csv.writer(f).writerows([('file', 'tags'), *((name, '|'.join(s)) for name, s in rows)])
    with open(tmp/'columns.csv', 'w', encoding='utf-8', newline='') as f:
        cell = lambda c, s: '' if g.random() < .1 else int(c in s)
        writer = csv.writer(f)
        writer.writerow(('file', *colours, 'part'))
        for i, (name, shown) in enumerate(rows):
            writer.writerow((name, *(cell(c, shown) for c in colours), 'valid' if i%4 == 0 else 'train'))
    return tmp

@pytest.fixture(scope='module')
def trained(data):
    out = good(run('train', 'labels.csv', '--images', 'img', *quick, '--epochs', 6, '--name', 'ref', cwd=data))
    return data/'runs'/'ref', out

def test_a_csv_trains_and_its_run_predicts(data, trained):
    folder, out = trained
    assert '3 classes; 72 images to train on, 18 to validate' in out and 'epoch   6/6' in out
    assert json.loads((folder/'classes.json').read_text(encoding='utf-8')) == sorted(colours)
    split = list(csv.DictReader((folder/'split.csv').open(encoding='utf-8')))
    assert len(split) == 90 and sum(r['valid'] == '1' for r in split) == 18
    page = (folder/'report.html').read_text(encoding='utf-8')
    assert 'grün' in page and page.count('data:image/') >= 4+18 and '://' not in page

    table = good(run('predict', folder, 'img/000.png', 'img/001.png', cwd=data))
    assert len(table.splitlines()) == 2 and all(c in table for c in colours)
    told = json.loads(called('predict', folder, 'img', '--format', 'json', cwd=data))
    assert len(told) == 90 and all(0 <= p <= 1 for r in told for p in r['labels'].values())
    text = called('predict', folder, 'labels.csv', '--images', 'img', '--threshold', .2, '--format', 'csv', cwd=data)
    rows = list(csv.DictReader(text.splitlines()))
    assert {r['file'] for r in rows} == {r['file'] for r in told}
    chosen = {(r['file'], r['label']) for r in rows if r['label']}
    assert chosen == {(r['file'], c) for r in told for c, p in r['labels'].items() if p >= .2}

def test_the_report_says_what_predict_says(data, trained):
    "OF1 of the predicted probabilities on the validation images is the one in result.json"
    folder, _ = trained
    truth = {n: set(t.split('|'))-{''} for n, t in list(csv.reader((data/'labels.csv').open(encoding='utf-8-sig')))[1:]}
    valid = [r['file'] for r in csv.DictReader((folder/'split.csv').open(encoding='utf-8')) if r['valid'] == '1']
    (data/'valid.csv').write_text('file\n' + '\n'.join(valid), encoding='utf-8')
    told = json.loads(called('predict', folder, 'valid.csv', '--images', 'img', '--threshold', .5, '--last',
                             '--format', 'json', cwd=data))
    pairs = [(set(r['labels']), truth[Path(r['file']).name]) for r in told]
    f1 = 200*sum(len(a & b) for a, b in pairs)/sum(len(a)+len(b) for a, b in pairs)
    assert abs(f1-json.loads((folder/'result.json').read_text(encoding='utf-8'))['OF1_posterior']) < .01

def test_onnx_says_the_same(data, trained):
    import onnxruntime
    folder, _ = trained
    told = json.loads(called('predict', folder, 'img/000.png', 'img/005.png', '--onnx', 'model.onnx',
                             '--format', 'json', cwd=data))
    session = onnxruntime.InferenceSession(data/'model.onnx')
    classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])
    size = session.get_inputs()[0].shape[-1]
    pictures = [Image.open(data/'img'/n).resize((size, size), Image.Resampling.BICUBIC) for n in ('000.png', '005.png')]
    x = np.stack([np.asarray(p, dtype=np.float32).transpose(2, 0, 1)/255 for p in pictures])
    p, = session.run(None, dict(image=x))
    for row, r in zip(p, told):
        for c, v in zip(classes, row): assert abs(r['labels'][c]-v) < 1e-4
    assert '--force' in refused('predict', folder, '--onnx', 'model.onnx', cwd=data)

def killed(data, name, *options, epochs=6, saves):
    "Start a run that saves after every step, and kill it at the moment that it saves for the n-th time"
    code = 'from asl.train import main; main()'
    argv = [sys.executable, '-c', code, 'labels.csv', '--images', 'img', *quick, '--epochs', str(epochs)]
    p = subprocess.Popen([*argv, '--checkpoint', '0', '--name', name, *options], cwd=data, stdout=subprocess.DEVNULL)
    new = data/'runs'/name/'.checkpoint.safetensors.new'
    seen = 0
    last = None
    while not new.parent.exists() and p.poll() is None: time.sleep(.01)
    # from here on without a pause: a save is short
    while seen < saves and p.poll() is None:
        try: stamp = new.stat().st_ino
        except FileNotFoundError: stamp = None
        if stamp != last and stamp is not None: seen += 1
        last = stamp
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert p.returncode == -signal.SIGKILL, 'it ended before it was killed'
    return data/'runs'/name

def test_killed_at_three_random_moments_and_resumed(data, trained):
    "The test's seed is printed if it fails; 30 steps and 6 epochs are saved. While the first is, there is nothing yet"
    reference, seed = trained[0], random.randrange(10**6)
    for i, saves in enumerate(random.Random(seed).sample(range(2, 24), 3)):
        folder = killed(data, f'kill{i}', saves=saves)
        called('train', '--resume', folder, cwd=data)
        for name in kept: assert (folder/name).read_bytes() == (reference/name).read_bytes(), (seed, saves, name)
        assert not list(folder.glob('.*'))

def test_killed_with_half_written_files(data):
    "Killed, and resumed among what the kill has left half written; a loss that adapts, and chance in the network"
    options = ['--adaptive', '--opt', 'lamb', '--sched', 'cosine', '--accumulate', '2']
    called('train', 'labels.csv', '--images', 'img', *quick, '--epochs', 3, '--name', 'adapted', *options, cwd=data)
    folder = killed(data, 'twice', *options, epochs=3, saves=4)
    for stale in ('.best.safetensors.new', '.metrics.jsonl.new'): (folder/stale).write_bytes(b'half')
    good(run('train', '--resume', folder, cwd=data))
    for name in (*kept, 'gamma.png'):
        assert (folder/name).read_bytes() == (data/'runs'/'adapted'/name).read_bytes(), name

def test_resume_refuses_what_is_not_the_run(data, trained):
    folder, _ = trained
    assert '--lr' in refused('train', '--resume', folder, '--lr', .1, cwd=data)
    assert '--epochs 2' in refused('train', '--resume', folder, '--epochs', 2, cwd=data)
    before = (data/'labels.csv').read_bytes()
    try:
        (data/'labels.csv').write_bytes(before.replace(b'rot', b'blau', 1) if b'rot' in before else b'')
        assert 'changed' in refused('train', '--resume', folder, cwd=data)
    finally: (data/'labels.csv').write_bytes(before)
    settings = folder/'settings.json'
    text = settings.read_text(encoding='utf-8')
    try:
        settings.write_text(text.replace('"format": 1', '"format": 7'), encoding='utf-8')
        for call in (('train', '--resume', folder), ('predict', folder, 'img')):
            assert 'format 7' in refused(*call, cwd=data)
    finally: settings.write_text(text, encoding='utf-8')

def test_a_run_is_not_overwritten(data, trained):
    folder, _ = trained
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert '--force' in refused('train', 'labels.csv', '--images', 'img', *quick, '--name', 'ref', cwd=data)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before

def processes(data, n, *options):
    "The metrics of a run by n processes; one is this one"
    name = f'{n}-of-{len(options)}'
    if n == 1: out = called('train', *options, '--name', name, cwd=data)
    else:
        port = 29700+random.randrange(200)
        torchrun = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={n}', f'--master_port={port}']
        argv = [*torchrun, '-m', 'asl.train', *map(str, options), '--name', name]
        out = good(subprocess.run(argv, cwd=data, capture_output=True, text=True, timeout=500))
    assert out.count('epoch   1/') == 1
    return [json.loads(record) for record in (data/'runs'/name/'metrics.jsonl').read_text().splitlines()]

@pytest.mark.parametrize('source', ['columns.csv', 'digits'])
def test_two_processes_give_the_metrics_of_one(data, source):
    "In float64, where rounding cannot grow in so few steps; 67 and 3000 images to train on: the last batches are odd"
    own = ['columns.csv', '--images', 'img', '--valid', 'part', *quick, '--batch_size', '9', '--epochs', 3]
    options = [*(own if source != 'digits' else ['--epochs', 1]), '--precision', 'fp64']
    one, two = processes(data, 1, *options), processes(data, 2, *options)
    for a, b in zip(one, two, strict=True): assert a == pytest.approx(b, rel=1e-6)

def test_a_folder_per_class(tmp_path):
    for i in range(30): discs(tmp_path/'pets'/list(colours)[i%3], [list(colours)[i%3]], i)
    out = called('train', '--images', 'pets', *quick, '--epochs', 4, '--valid', '0.3', cwd=tmp_path)
    assert 'accuracy' in out and '3 classes; 21 images to train on, 9 to validate' in out
    told = json.loads(called('predict', 'runs/asl-0', 'pets', '--format', 'json', cwd=tmp_path))
    assert len(told) == 30 and all(abs(sum(r['labels'].values())-1) < 1e-4 for r in told)
    assert 'ce, focal' in refused('train', '--images', 'pets', '--loss', 'bce', cwd=tmp_path)
    called('train', '--images', 'pets', *quick, '--epochs', 1, '--loss', 'ce', '--model', 'test_vit', '--size', 32,
           '--weights', 'random', '--augment', 'rand-m7-mstd0.5', cwd=tmp_path)

def test_a_timm_model_with_pretrained_weights_that_cannot_be_had(data):
    "An error, with the two ways on; nothing is begun with random weights that nobody asked for"
    offline = os.environ | dict(HF_HUB_OFFLINE='1', HF_HOME=str(data/'none'))
    options = ['labels.csv', '--images', 'img', '--model', 'test_resnet', '--size', 64, '--name', 'tuned']
    said = line(run('train', *options, cwd=data, env=offline))
    assert '--weights random' in said and '--weights PATH' in said and not (data/'runs'/'tuned').exists()

def test_skip_bad_says_how_many(data, trained):
    text = (data/'labels.csv').read_text(encoding='utf-8-sig') + 'none.png,rot\ncut.png,blau\n'
    (data/'cut.csv').write_text(text, encoding='utf-8')
    (data/'img'/'cut.png').write_bytes((data/'img'/'000.png').read_bytes()[:80])
    try:
        said = refused('train', 'cut.csv', '--images', 'img', '--valid', '.01', *quick, cwd=data)
        assert 'cut.csv, row 92: img/none.png: no such file' in said
        out = called('train', 'cut.csv', '--images', 'img', *quick, '--epochs', 1, '--skip-bad', cwd=data)
        assert 'left out 2 images that cannot be read' in out
        assert 'truncated' in refused('predict', trained[0], 'img', cwd=data)
    finally: (data/'img'/'cut.png').unlink()

def test_a_full_disk_is_one_line_and_loses_nothing(data, trained):
    "A limit on the size of files stands for the full disk: the checkpoint no longer fits, the smaller files do"
    code = ("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900_000,)*2); from asl.train import main; main()")
    argv = [sys.executable, '-c', code, 'labels.csv', '--images', 'img', *quick, '--epochs', '6', '--name', 'full']
    result = subprocess.run(argv, cwd=data, capture_output=True, text=True, timeout=500)
    assert 'checkpoint.safetensors' in line(result)
    assert 'this starts it again' in refused('train', '--resume', 'runs/full', cwd=data)    # it had no checkpoint yet
    options = ['--epochs', 6, '--name', 'full', '--force']
    called('train', 'labels.csv', '--images', 'img', *quick, *options, cwd=data)
    for name in kept: assert (data/'runs'/'full'/name).read_bytes() == (trained[0]/name).read_bytes()

def test_help_names_every_option():
    import inspect
    from asl.predict import predict
    out = good(run('predict', '-h', cwd='.'))
    for name in inspect.signature(predict).parameters: assert name in out

def test_importing_it_is_light():
    heavy = 'timm', 'PIL', 'onnx', 'matplotlib', 'accelerate'
    code = f'import sys, asl.predict; print([m for m in {heavy} if m in sys.modules])'
    assert 'timm' not in subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout

def test_the_digits_resume_too(tmp_path):
    options = ['--classes', 10, '--epochs', 2, '--batch_size', 256]
    called('train', *options, '--name', 'ref', cwd=tmp_path)
    argv = [sys.executable, '-c', 'from asl.train import main; main()', *map(str, options)]
    p = subprocess.Popen([*argv, '--name', 'cut', '--checkpoint', '0'], cwd=tmp_path)
    while not (tmp_path/'runs'/'cut'/'checkpoint.safetensors').exists(): time.sleep(.005)
    p.kill()
    p.wait()
    called('train', '--resume', 'runs/cut', cwd=tmp_path)
    runs = tmp_path/'runs'
    for name in kept: assert (runs/'cut'/name).read_bytes() == (runs/'ref'/name).read_bytes(), name

def test_resumed_from_another_folder(data, tmp_path):
    called('train', '../labels.csv', *quick, '--epochs', 1, '--out', tmp_path, '--name', 'here', cwd=data/'img')
    called('train', '--resume', tmp_path/'here', cwd=tmp_path)

def test_a_class_whose_only_training_image_is_bad(data):
    (data/'img'/'bad.png').write_bytes(b'no image')
    images = [('bad.png', 'rare', 0), ('000.png', 'a', 0), ('001.png', 'a', 0), ('002.png', 'rare', 1)]
    with open(data/'rare.csv', 'w', newline='') as f: csv.writer(f).writerows([('file', 'label', 'valid'), *images])
    options = ['--images', 'img', '--valid', 'valid', *quick, '--skip_bad']
    try: assert 'rare.csv, row 5' in refused('train', 'rare.csv', *options, cwd=data)
    finally: (data/'img'/'bad.png').unlink()

def test_a_run_is_trained_once_at_a_time(data, trained):
    from asl.training.folder import locked
    with locked(trained[0]): assert 'another process' in refused('train', '--resume', trained[0], cwd=data)

def test_many_parts_of_a_small_batch(data):
    options = ['--batch_size', 5, '--accumulate', 4, '--epochs', 1, '--name', 'parts']
    called('train', 'labels.csv', '--images', 'img', *quick, *options, cwd=data)

def test_a_name_that_is_not_utf8(tmp_path):
    for i in range(8): discs(tmp_path/'pets'/'ab'[i%2], ['rot'], i)
    os.rename(tmp_path/'pets'/'a'/'000.png', os.fsencode(tmp_path/'pets'/'a') + b'/\xff.png')
    assert 'not UTF-8' in refused('train', '--images', 'pets', *quick, cwd=tmp_path)
    assert not (tmp_path/'runs').exists()
