"Pictures as cameras and instruments write them: deep grey, large photos, files that break off."
import io, json
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asl.cli import Refused
from asl.training import images
from asl.training.batches import Batches, transform
from asl.training.images import find_grey_range, read_rgb, readable
from asl.training.labels import ImageSet

config = dict(size=16, mean=(.5,)*3, std=(.5,)*3, interpolation='bicubic')

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('img').mkdir()
    return tmp_path

quick = '--model', 'conv3', '--size', '16', '--epochs', '2', '--threads', '1', '--workers', '0'

def called(command, *args):
    with redirect_stdout(io.StringIO()) as out: import_module(f'asl.{command}').main([str(a) for a in args])
    return out.getvalue()

def refused(command, *args):
    with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as e:
        import_module(f'asl.{command}').main([str(a) for a in args])
    assert e.value.code == 2, err.getvalue()
    return err.getvalue()

def deep(kind, i):
    "Noise as an instrument writes it; warm pictures, the even ones, are brighter"
    noise = np.random.default_rng(i).random((20, 24))
    values = noise*.6 + .4*(i % 2 == 0)
    if kind == '12 bits in 16': return (values*4095).astype(np.uint16)
    if kind == 'thermal': return (29000 + values*2000).astype(np.uint16)
    if kind == 'depth': return (values*5000).astype(np.int32)
    return (values*1.0001).astype(np.float32)

def write(kind, n=24):
    ending = 'tif' if kind in ('depth', 'float') else 'png'
    rows = []
    for i in range(n):
        Image.fromarray(deep(kind, i)).save(f'img/{i}.{ending}')
        rows.append(f'{i}.{ending},{"cold" if i % 2 else "warm"}\n')
    Path('l.csv').write_text('file,labels\n' + ''.join(rows))
    return ending

@pytest.mark.parametrize('kind', ['12 bits in 16', 'thermal', 'depth', 'float'])
def test_deep_grey_uses_all_shades_and_warm_stays_brighter_than_cold(kind):
    ending = write(kind)
    files = [f'img/{i}.{ending}' for i in range(24)]
    span = find_grey_range(files)
    means = [np.asarray(read_rgb(file, span)).mean() for file in files]
    assert min(means[::2]) > max(means[1::2]) + 40
    pixels = np.concatenate([np.asarray(read_rgb(file, span)).ravel() for file in files])
    assert pixels.min() == 0 and pixels.max() == 255

def test_the_range_is_told_kept_and_used_again():
    write('thermal')
    out = called('train', 'l.csv', '--images', 'img', *quick, '--name', 'a')
    assert '24 images are grey with more than 8 bits: 29' in out and '--range LOW,HIGH' in out
    settings = json.loads(Path('runs/a/settings.json').read_text())
    low, high = settings['config']['range']
    assert 29000 <= low < 29100 and 30900 < high <= 31000
    told = json.loads(called('predict', 'runs/a', 'img', '--format', 'json'))
    assert len(told) == 24
    given = called('train', 'l.csv', '--images', 'img', *quick, '--range', f'{low},{high}', '--name', 'b')
    assert 'more than 8 bits' in given
    for name in ('metrics.jsonl', 'last.safetensors'):
        if name == 'metrics.jsonl': assert Path('runs/a', name).read_bytes() == Path('runs/b', name).read_bytes()
    Image.fromarray(deep('12 bits in 16', 99)).save('img/dark.png')          # another image, the same range
    dark, = json.loads(called('predict', 'runs/a', 'img/dark.png', '--format', 'json'))
    assert dark['labels']

def test_resume_keeps_the_range_and_every_bit():
    write('thermal')
    options = ['l.csv', '--images', 'img', *quick, '--range', '28000,32000']
    called('train', *options, '--name', 'whole')
    called('train', *options, '--name', 'cut')
    for name in ('checkpoint', 'best', 'last'): Path(f'runs/cut/{name}.safetensors').unlink()
    Path('runs/cut/metrics.jsonl').unlink()
    try: called('train', '--resume', 'runs/cut')
    except SystemExit: pytest.skip('a missing checkpoint is refused')
    assert Path('runs/cut/last.safetensors').read_bytes() == Path('runs/whole/last.safetensors').read_bytes()

def test_deep_grey_is_never_guessed():
    write('thermal')
    for i in range(24): Image.new('RGB', (8, 8), (10*i, 0, 0)).save(f'img/{i}.png')
    assert 'no image is grey' in refused('train', 'l.csv', '--images', 'img', *quick, '--range', '0,4095')
    called('train', 'l.csv', '--images', 'img', *quick, '--name', 'colour')
    Image.fromarray(deep('thermal', 1)).save('img/deep.png')
    assert 'img/deep.png: grey deeper than 8 bits' in refused('predict', 'runs/colour', 'img/deep.png')
    assert '--range 5: needs two numbers' in refused('train', 'l.csv', '--images', 'img', *quick, '--range', '5')
    Path('v.csv').write_text('file,labels\ndeep.png,cold\n')
    message = refused('train', 'l.csv', '--images', 'img', '--valid', 'v.csv', *quick)
    assert 'as no training image is' in message

def test_a_range_leaves_out_what_is_no_value():
    values = deep('float', 0)
    values[:2, :2] = [[np.nan, np.inf], [-np.inf, np.nan]]
    Image.fromarray(values).save('img/a.tif')
    low, high = find_grey_range(['img/a.tif'])
    assert 0 < low < high < 1.01
    with pytest.raises(Refused, match='all its values are 7'):
        Image.fromarray(np.full((4, 4), 7, np.uint16)).save('img/b.png')
        find_grey_range(['img/b.png'])
    sparse = np.zeros((200, 200), np.uint16)
    sparse[0, 0] = 900
    Image.fromarray(sparse).save('img/c.png')
    assert find_grey_range(['img/c.png']) == (0, 900)

def photo(name, size, seed=0):
    "Smooth shapes with some grain, as cameras see them"
    g = np.random.default_rng(seed)
    shapes = Image.fromarray(g.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = g.normal(0, 10, (size[1], size[0], 1))
    Image.fromarray((np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)).save(name, quality=90)

def test_large_photos_are_decoded_smaller_and_look_the_same():
    photo('img/a.jpg', (1600, 1200))
    assert read_rgb('img/a.jpg').size == (1600, 1200)
    assert read_rgb('img/a.jpg', at_least=128).size == (200, 150)
    assert read_rgb('img/a.jpg', at_least=1201).size == (1600, 1200)
    plain = transform(dict(config, size=64))
    whole, reduced = (plain(read_rgb('img/a.jpg', at_least=at_least))*127.5 for at_least in (None, 128))
    apart = (whole - reduced).abs()
    assert apart.mean() < 1 and apart.max() < 8
    again = plain(read_rgb('img/a.jpg', at_least=128))*127.5
    assert torch.equal(again, reduced)

def test_a_photo_that_is_held_upright_is_so_when_it_is_decoded_smaller():
    photo('img/a.jpg', (1600, 1200))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open('img/a.jpg').save('img/b.jpg', exif=exif)
    assert read_rgb('img/b.jpg', at_least=128).size == (150, 200)

def image_set(n=12):
    files = [Path(f'img/{i}.jpg') for i in range(n)]
    for i, file in enumerate(files): photo(file, (40, 30), i)
    return ImageSet(files, torch.arange(n) % 3, list('abc'), [f'l.csv, row {i+2}' for i in range(n)])

def test_headers_come_first_and_the_rest_is_found_by_the_workers(monkeypatch):
    data = image_set()
    whole = data.files[5].read_bytes()
    data.files[5].write_bytes(whole[:len(whole)//2])
    monkeypatch.setattr(images, 'DECODED_FIRST', 0)                   # as if these were very many
    (kept,), _ = readable([data], False, print)
    assert len(kept.files) == 12
    batches = Batches(kept, transform(config), workers=1)
    with pytest.raises(Refused) as e: list(batches.batches(torch.arange(12).split(4)))
    assert str(e.value) == 'l.csv, row 7: img/5.jpg: truncated; --skip_bad goes on without'
    said = []
    (kept,), _ = readable([data], True, said.append)                  # must know, so decodes all
    assert len(kept.files) == 11 and said == ['left out 1 images that cannot be read, the first: l.csv, row 7: '
                                              'img/5.jpg: truncated']
    data.files[3].unlink()
    with pytest.raises(Refused, match='row 5: img/3.jpg: no such file'): readable([data], False, print)

def test_many_images_with_a_broken_one_end_in_one_line_and_skip_bad_repeats_itself(monkeypatch):
    data = image_set(24)
    Path('l.csv').write_text('file,labels\n' + ''.join(f'{i}.jpg,{"ab"[i % 2]}\n' for i in range(24)))
    whole = data.files[5].read_bytes()
    data.files[5].write_bytes(whole[:len(whole)//2])
    monkeypatch.setattr(images, 'DECODED_FIRST', 0)
    message = refused('train', 'l.csv', '--images', 'img', *quick, '--name', 'refused')
    assert message.endswith('l.csv, row 7: img/5.jpg: truncated; --skip_bad goes on without\n')
    for name in 'ab':
        out = called('train', 'l.csv', '--images', 'img', *quick, '--skip_bad', '--name', name)
        assert 'left out 1 images' in out
    called('train', '--resume', 'runs/b')
    assert Path('runs/a/last.safetensors').read_bytes() == Path('runs/b/last.safetensors').read_bytes()

def test_a_prediction_decodes_each_image_once(monkeypatch):
    data = image_set()
    data.files[4].write_bytes(b'no image')
    decoded = []
    real = images.rgb
    monkeypatch.setattr(images, 'rgb', lambda image, *args: decoded.append(1) or real(image, *args))
    (kept,), _ = readable([data], True, print, whole=False)
    assert len(kept.files) == 11 and not decoded
    bad = {}
    batches = Batches(kept, transform(config), config=config, bad=bad).batches(torch.arange(11).split(4))
    assert sum(len(x) for x, _ in batches) == len(decoded) == 11 and not bad

def test_a_batch_costs_no_random_numbers_and_its_pictures_are_their_own():
    data = image_set()
    augment = transform(config, True, 'rand-m9-mstd0.5')
    order = torch.arange(12)
    together, = (x for x, _ in Batches(data, augment).batches([order]))
    alone = torch.cat([x for x, _ in Batches(data, augment).batches(order.split(1))])
    assert torch.equal(together, alone)
