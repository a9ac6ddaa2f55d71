"What people's lists and files contain, beyond what the notebooks show."
import os, random, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asl.training.batches import Batches, transform
from asl.cli import Refused
from asl.training.images import bad_images, read_images, read_rgb, rgb, split
from asl.training.labels import ImageSet, read_csv, read_folder

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('img').mkdir()
    return tmp_path

def csv(data, **kw):
    Path('l.csv').write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_csv('l.csv', 'img', **kw)[0]

def names(data): return [f.name for f in data.files]

def labels(data): return [[c for c, y in zip(data.classes, row) if y == 1] for row in data.targets]

def refusal(f, *args, **kw):
    with pytest.raises(Refused) as e: f(*args, **kw)
    return str(e.value)

plain = 'file,labels\na.jpg,cat|dog\nb.jpg,dog\nc.jpg,\n'
variants = dict(bom=b'\xef\xbb\xbf' + plain.encode(), no_end=plain[:-1],
    crlf=plain.replace('\n', '\r\n'), cr=plain.replace('\n', '\r'),
    semicolon=plain.replace(',', ';'), tab=plain.replace(',', '\t'), blanks=plain.replace(',', ' , '),
    quotes=plain.replace('cat|dog', '"cat|dog"'),
    quotes_after_blank=plain.replace(',cat|dog', ', "cat|dog"'),
    empty_lines='\n' + plain.replace('\n', '\n\n') + '\n\n', empty_cells=plain + ',\n,\n',
    bom_crlf_quoted=b'\xef\xbb\xbf"file","labels"\r\n"a.jpg","cat, dog"\r\n"b.jpg","dog"\r\n"c.jpg",""\r\n',
    semicolon_comma='file;labels\na.jpg;cat, dog\nb.jpg;dog\nc.jpg;\n',
    twice='file,labels\na.jpg,dog|cat||dog|\nb.jpg, dog |\nc.jpg,|\n')

@pytest.mark.parametrize('name', variants)
def test_the_same_list_however_it_is_written(name):
    data = csv(variants[name], files='file')    # a byte-order mark is no part of the name
    assert names(data) == ['a.jpg', 'b.jpg', 'c.jpg'] and data.classes == ['cat', 'dog']
    assert labels(data) == [['cat', 'dog'], ['dog'], []]
    assert data.targets.dtype == torch.float32

def test_rows_are_lines_of_the_file():
    data = csv('file,note,labels\n"a.jpg","two\nlines",cat\n\nb.jpg,,dog\n', labels='labels')
    assert data.where == ['l.csv, row 2', 'l.csv, row 5']
    assert refusal(csv, 'file,labels\r\n\r\na.jpg,cat,x\r\n').startswith('l.csv, row 3: too many cells, 3 for 2')
    assert refusal(csv, b'file,labels\r\na.jpg,cat\r\nb.jpg,caf\xe9\r\n').startswith('l.csv, row 3: not UTF-8')
    assert refusal(csv, b'\xef\xbb\xbffile,labels\na.jpg,caf\xe9\n').startswith('l.csv, row 2: not UTF-8')

def test_quoted_commas_and_names_from_anywhere():
    data = csv('file,labels\n"a, b.jpg","Übung, 猫"\nженщина.jpg,猫\n"sub\\né 1.jpg",\n')
    assert [str(f) for f in data.files] == ['img/a, b.jpg', 'img/женщина.jpg', 'img/sub/né 1.jpg']
    assert labels(data) == [['Übung', '猫'], ['猫'], []]

@pytest.mark.parametrize('text, says', [
    (b'', 'l.csv: empty'), ('\n\n', 'l.csv: empty'), (plain.encode('utf-16'), 'l.csv, row 1: not UTF-8'),
    (plain.encode('utf-16-le'), 'l.csv: not a text file'),
    ('file,labels\n"a.jpg,cat\n', 'l.csv, row 2: a quote'), ('file,labels\n"a.jpg"x,cat\n', 'l.csv, row 2: not CSV'),
    ('file,labels\na.jpg,' + 'x'*200_000, 'l.csv, row 2: not CSV (field larger'),
    ('A.JPEG,cat\n', 'l.csv, row 1: names an image'),
    ('file,labels,\na.jpg,cat,x\n', 'l.csv, row 1: column 3 has no name'),
    ('file,a, a\na.jpg,1,0\n', 'l.csv, row 1: two columns are called a'),
    ('file,labels\na.jpg\n', 'l.csv, row 2: too few cells, 1 for 2 columns'),
    ('file,labels\n,cat\n', 'l.csv, row 2: no file name'),
    ('file,a,b\na.jpg,1,-2\n', "l.csv, row 2, column b: '-2' is not"),
    ('file,a,b\na.jpg,1,inf\n', "l.csv, row 2, column b: 'inf' is not"),
    ('file,labels\n/etc/passwd,cat\n', 'l.csv, row 2: /etc/passwd is not in the folder img'),
    ('file,labels\n..,cat\n', 'l.csv, row 2: .. is not in'),
    ('file,labels\nx/../../y.jpg,cat\n', 'l.csv, row 2: x/../../y.jpg is not in'),
    ('file,labels\n../img2/y.jpg,cat\n', 'l.csv, row 2: ../img2/y.jpg is not'),
    ('file,a,b\na.jpg,1,0\nx/../a.jpg,0,1\n', 'l.csv, row 3: x/../a.jpg is already in row 2')])
def test_lists_that_are_refused(text, says):
    message = refusal(csv, text)
    assert message.startswith(says) and '\n' not in message

def test_paths_inside_are_fine(here):
    data = csv(f'file,labels\n{here}/img/a.jpg,cat\n..b.jpg,cat\n../img/c.jpg,cat\n')
    assert [str(f) for f in data.files] == ['img/a.jpg', 'img/..b.jpg', 'img/c.jpg']
    Image.new('RGB', (4, 4)).save('outside.png')
    Path('img/link.png').symlink_to('../outside.png')
    assert bad_images(csv('file,labels\nlink.png,cat\n').files) == {}

def test_files_that_may_not_be_read(monkeypatch):
    def forbidden(*_): raise PermissionError(13, 'Permission denied')      # root may read all, so chmod proves nothing
    Path('l.csv').write_text(plain)
    Image.new('RGB', (4, 4)).save('img/a.png')
    monkeypatch.setattr(Path, 'read_bytes', forbidden)
    assert refusal(read_csv, 'l.csv', 'img') == 'l.csv: Permission denied'
    monkeypatch.setattr(Image, 'open', forbidden)
    assert bad_images([Path('img/a.png')]) == {0: 'Permission denied'}

def test_any_bytes_make_a_list_or_one_line():
    g, kinds = random.Random(0), set()
    pieces = [b',', b'"', b'\n', b'\r', b'|', b'..', b'/', b'\\', b'\0', b'\xff', b'0', b' ', b';', b'',
              b'\xe2\x80\xa8']
    for _ in range(2000):
        data = bytearray(plain.encode())
        for _ in range(g.randint(1, 6)):
            at = g.randrange(len(data))
            data[at:at + g.randint(0, 2)] = g.choice(pieces)
        try: d = csv(bytes(data))
        except Refused as e: kinds.add(str(e).split(':')[-1][:12])
        else:
            assert len(d.files) == len(set(d.files)) == len(d.targets) == len(d.where)
            assert d.targets.shape[1] == len(d.classes)
    assert len(kinds) > 5

def test_ten_thousand_rows():
    g = random.Random(0)
    drawn = [sorted(g.sample(range(500), 3)) for _ in range(10_000)]
    rows = [f"{i},{'|'.join(f'c{c:03}' for c in d)}\n" for i, d in enumerate(drawn)]
    data = csv('id,labels\n' + ''.join(rows), suffix='.jpg')
    assert data.targets.shape == (10_000, 500) and data.targets[:].nonzero()[:, 1].view(-1, 3).tolist() == drawn
    Path('l2.csv').write_text('id,' + ','.join(data.classes) + '\n' + ''.join(
        f"{i}," + ','.join('1' if c in set(d) else '0' for c in range(500)) + '\n' for i, d in enumerate(drawn)))
    same, _ = read_csv('l2.csv', 'img', suffix='.jpg')
    assert same.files == data.files and same.classes == data.classes and torch.equal(same.targets[:], data.targets[:])
    _, valid = split(data, .2)
    share = valid.targets[:].sum(0)/data.targets[:].sum(0)
    assert abs(len(valid.files) - 2000) <= 5 and share.min() > .1 and share.max() < .3

def test_a_second_file_means_the_same_classes():
    for name in 'abcd': Image.new('RGB', (4, 4)).save(f'img/{name}.jpg')
    Path('t.csv').write_text('file,labels\na.jpg,traffic light|cat\nb.jpg,cat\n')
    Path('v.csv').write_text('file,labels\nc.jpg,traffic light\n')
    train, valid = read_images('t.csv', 'img', 'v.csv')
    assert labels(valid) == [['traffic light']] and valid.classes == train.classes
    Path('t.csv').write_text('file,cat,dog\na.jpg,1,0\nb.jpg,0,1\n')
    Path('v.csv').write_text('file,dog,cat\nc.jpg,1,\n')
    train, valid = read_images('t.csv', 'img', 'v.csv')
    assert valid.classes == ['cat', 'dog'] and valid.targets.tolist() == [[-100, 1]]
    Path('t.csv').write_text('file,bad\na.jpg,1\nb.jpg,0\n')
    Path('v.csv').write_text('file,bad\nc.jpg,1\nd.jpg,\n')
    assert read_images('t.csv', 'img', 'v.csv')[1].targets.tolist() == [[1], [-100]]

def test_a_column_or_a_share_for_validation():
    rows = {'a': 'Train', 'b': 'VALID', 'c': 'false', 'd': 'Yes', 'e': '', 'f': '1', 'g': '0'}
    Path('l.csv').write_text('file,labels,use\n' + ''.join(f'{k}.jpg,cat,{v}\n' for k, v in rows.items()))
    train, valid = read_images('l.csv', 'img', 'use')
    assert names(train) == ['a.jpg', 'c.jpg', 'e.jpg', 'g.jpg'] and names(valid) == ['b.jpg', 'd.jpg', 'f.jpg']
    train, valid = read_images('l.csv', 'img', .3, label_column='labels')
    assert len(valid.files) == 2
    for bad in ('0', '1', '-.1', 'nan', 'inf', '2'):
        assert 'above 0 and below 1' in refusal(read_images, 'l.csv', 'img', bad)
    assert 'no share such as 0.2' in refusal(read_images, 'l.csv', 'img', '')

def picture(n=24):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (n, n + 8, 3), dtype=np.uint8))

def saved(image, name, grey_range=None, **kw):
    image.save(name, **kw)
    return read_rgb(name, grey_range)

def test_all_kinds_of_pixels_become_rgb():
    p = picture()
    grey = np.asarray(p.convert('L'))
    as_grey = Image.fromarray(grey).convert('RGB')
    same = lambda a, b: a.mode == 'RGB' and np.array_equal(np.asarray(a), np.asarray(b))
    assert same(saved(p, 'a.png'), p) and same(saved(p.convert('L'), 'l.png'), as_grey)
    for mode in 'P1': assert same(saved(p.convert(mode), f'{mode}.png'), p.convert(mode).convert('RGB'))
    assert same(saved(p.convert('CMYK'), 'c.tif'), p)
    assert np.abs(np.asarray(saved(p.convert('CMYK'), 'c.jpg', quality=100)).astype(int) - np.asarray(p)).mean() < 12
    deep = (0, 65535)
    sixteen = Image.fromarray(grey.astype(np.uint16)*257)
    for name in ('16.png', '16.tif', '16.pgm'): assert same(saved(sixteen, name, grey_range=deep), as_grey)
    assert same(rgb(sixteen.convert('I'), deep), as_grey)
    assert same(rgb(Image.fromarray(grey.astype('>u2')*257), deep), as_grey)
    part = grey/grey.max()
    bright = Image.fromarray((part*255).round().astype(np.uint8)).convert('RGB')
    assert same(saved(Image.fromarray(part.astype(np.float32)), 'f.tif', grey_range=(0, 1)), bright)
    assert saved(p, 'two.gif', save_all=True, append_images=[picture(24)]).size == p.size

def test_what_is_transparent_is_white():
    white, clear = [255]*3, Image.new('RGBA', (4, 4), (10, 20, 30, 0))
    assert np.asarray(saved(clear, 'a.png')).tolist() == [[white]*4]*4
    assert np.asarray(saved(clear.convert('LA'), 'la.png')).tolist() == [[white]*4]*4
    palette = Image.new('RGB', (4, 4), 'red').quantize(8)
    assert np.asarray(saved(palette, 'p.png', transparency=palette.getpixel((0, 0)))).tolist() == [[white]*4]*4
    red = Image.new('RGB', (4, 4), 'red')
    assert np.asarray(saved(red, 't.png', transparency=(255, 0, 0))).tolist() == [[white]*4]*4
    half = Image.new('RGBA', (1, 1), (0, 0, 0, 128))
    assert np.asarray(rgb(half)).tolist() == [[[127]*3]]

def test_pictures_stand_upright():
    from PIL import ImageOps
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        picture().save('t.png', exif=exif)
        assert np.array_equal(np.asarray(read_rgb('t.png')), np.asarray(ImageOps.exif_transpose(Image.open('t.png'))))
    picture().save('t.jpg', exif=exif)
    data, g = Path('t.jpg').read_bytes(), random.Random(0)
    for _ in range(300):                                     # whatever EXIF says, the pixels are there
        broken = bytearray(data)
        for _ in range(3): broken[data.find(b'Exif') + 6 + g.randrange(20)] = g.randrange(256)
        Path('b.jpg').write_bytes(broken)
        assert sorted(read_rgb('b.jpg').size) == [24, 32]

def test_a_picture_stands_upright_though_its_exif_cannot_be_written_anew(monkeypatch):
    def fails(*_): raise ValueError
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save('t.jpg', exif=exif)
    monkeypatch.setattr(Image.Exif, 'tobytes', fails)
    assert read_rgb('t.jpg').size == (24, 32)

@pytest.mark.parametrize('end', ['png', 'jpg', 'bmp', 'gif', 'tif', 'webp'])
def test_truncated_files(end):
    picture(64).save(f'x.{end}')
    data = Path(f'x.{end}').read_bytes()
    for part in range(8):
        Path(f'img/{part}.{end}').write_bytes(data[:len(data)*part//8])
    bad = bad_images([f'img/{part}.{end}' for part in range(8)])
    assert sorted(bad) == list(range(8)) and bad[0] == 'an empty file'
    if end in ('png', 'jpg', 'bmp'): assert [bad[i] for i in range(1, 8)] == ['truncated']*7

def test_files_that_are_no_images():
    Path('img/x.jpg').mkdir()
    Path('img/page.jpg').write_text('<html>')
    Path('img/a.jpg').write_bytes(b'\xff\xd8\xff\xe0' + bytes(100))
    Image.new('RGB', (4, 4)).save('img/good.png')
    Path('img/good.jpg').write_bytes(Path('img/good.png').read_bytes())   # a wrong ending does no harm
    Path('img/loop.jpg').symlink_to('loop.jpg')
    if hasattr(os, 'mkfifo'): os.mkfifo('img/pipe.jpg')
    files = [f'img/{n}.jpg' for n in ('x', 'page', 'a', 'good', 'loop', 'pipe', 'good/inside', 'gone', 'n'*300)]
    ticks = []
    bad = bad_images(files, workers=2, tick=lambda: ticks.append(1))
    assert len(ticks) == len(files) and 3 not in bad and len(bad) == len(files) - 1
    assert [bad[i] for i in (0, 1, 5)] == ['a folder', 'not an image', 'not a file']
    assert bad[6] == bad[7] == 'no such file'
    assert all('\n' not in reason and len(reason) <= 100 for reason in bad.values())

def test_more_pixels_than_pillow_opens(monkeypatch, recwarn):
    picture(64).save('x.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert 'exceeds limit' in bad_images(['x.png'])[0]
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 64*64)
    assert bad_images(['x.png']) == {} and not recwarn.list

def folders(*paths):
    for p in map(Path, paths):
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(p)

def test_folders():
    folders('t/dog/b.png', 't/dog/.hidden.png', 't/dog/deep/er/a.JPG', 't/Cat/1.webp', 't/.git/x.png', 't/loose.png',
            'v/dog/z.png')
    Path('t/Cat/movie.mpg').write_text('')
    Path('t/Cat/loop').symlink_to('../../t', target_is_directory=True)
    Path('t/Cat/loop').unlink()
    Path('t/dog/loop').symlink_to('..', target_is_directory=True)
    d = read_folder('t')
    assert d.single and d.classes == ['Cat', 'dog'] and d.targets.dtype == torch.int64
    _, valid = read_images(images='t', valid='v')
    assert valid.targets.tolist() == [1] and valid.where == ['v/dog/z.png'] and valid.at(0) == 'v/dog/z.png'
    folders('v/owl/x.png')
    message = refusal(read_images, images='t', valid='v')
    assert message.startswith('v/owl: the class is not among the classes of training (Cat, dog)')
    Path('l.csv').write_text(plain)
    assert 'must be a folder' in refusal(read_images, images='t', valid='l.csv')
    assert 'must be a CSV' in refusal(read_images, 'l.csv', 't', valid='v')

def test_pick():
    d = ImageSet([Path('a'), Path('b'), Path('c')], torch.tensor([0, 1, 0]), ['x', 'y'], ['a', 'b', 'c'])
    for which in ([2, 0], torch.tensor([2, 0]), (2, 0)):
        assert d.pick(which).where == ['c', 'a'] and d.pick(which).targets.tolist() == [0, 0]
    assert d.pick(torch.tensor([True, False, True])).where == d.pick([True, False, True]).where == ['a', 'c']
    assert d.pick([]).files == [] and d.pick([]).targets.shape == (0,)

config = dict(size=16, mean=(.5, .5, .5), std=(.5, .5, .5), interpolation='bicubic')

def image_set(n=12):
    files = [Path(f'img/{i}.png') for i in range(n)]
    for i, file in enumerate(files):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return ImageSet(files, torch.arange(n) % 3, list('abc'), [f'l.csv, row {i+2}' for i in range(n)])

@pytest.mark.parametrize('augment', ['none', 'crop', 'rand-m9-mstd0.5', 'augmix-m5', 'original', '3a'])
def test_pictures_depend_on_seed_epoch_and_index_alone(augment):
    data, t, order = image_set(), transform(config, True, augment), torch.arange(12).split(5)
    def run(workers, order, epoch=0, seed=0):
        return torch.cat([x for x, _ in Batches(data, t, seed, workers).batches(order, epoch)])

    x = run(0, order)
    assert x.shape == (12, 3, 16, 16) and x.dtype == torch.float32
    assert torch.equal(run(2, order), x) and torch.equal(run(1, order[1:]), x[5:])
    assert torch.equal(run(0, [torch.tensor([7, 3])]), x[[7, 3]])
    random.seed(5), np.random.seed(5), torch.manual_seed(5), torch.set_num_threads(2)
    assert torch.equal(run(0, order), x)
    torch.set_num_threads(1)
    assert (augment == 'none') == torch.equal(run(0, order, epoch=1), x) == torch.equal(run(0, order, seed=1), x)

@pytest.mark.parametrize('workers', [0, 2])
def test_the_callers_random_numbers_go_on(workers):
    batches = Batches(image_set(), transform(config, True, 'rand-m9-mstd0.5'), workers=workers)
    def draws(f):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        f()
        return random.random(), np.random.rand(), torch.rand(1).item()
    assert draws(lambda: list(batches.batches([torch.arange(4)]*2))) == draws(lambda: None)
    assert draws(lambda: transform(config, True, 'rand-m9-mstd0.5')) == draws(lambda: None)

@pytest.mark.parametrize('workers', [0, 2])
def test_a_file_that_goes_bad_during_training(workers):
    batches = Batches(image_set(), transform(config, True), workers=workers)
    order = torch.arange(12).split(4)
    assert [y.tolist() for _, y in batches.batches(order)] == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]
    Path('img/6.png').unlink()
    message = 'l.csv, row 8: img/6.png: no such file; --skip_bad goes on without'
    assert refusal(lambda: list(batches.batches(order))) == message
    first, = (x for x, _ in batches.batches(order[:1]))
    assert len(first) == 4
    for _ in batches.batches(order): break                    # left in the middle
    assert len(list(batches.batches(order[:1]*5, epoch=3))) == 5 and list(batches.batches([])) == []

def test_crops_keep_the_labels_in_the_picture():
    t = transform(config, True).transforms[0]
    for size in ((300, 100), (100, 300), (64, 64), (1, 50), (1, 1)):
        t(Image.new('RGB', size))
        for _ in range(200):
            *_, h, w = t.crop.get_params(Image.new('RGB', size), t.crop.scale, t.crop.ratio)
            assert h*w >= .58*size[0]*size[1]

def test_importing_is_light():
    code = ('import sys, asl.training.labels, asl.training.images, asl.training.batches; '
            "print({'timm', 'PIL', 'torchvision', 'matplotlib'} & {*sys.modules})")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout == 'set()\n'
