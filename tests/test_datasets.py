"Data sets as people have them, beyond CSV: COCO, Parquet, `datasets` folders; splits by words, folds and groups."
import io, json, subprocess, sys
from contextlib import chdir, redirect_stdout
from importlib import import_module
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image

from asl.cli import Refused
from asl.training.images import copies, read_images, read_rgb, split
from asl.training.labels import ImageSet, read_csv
from asl.training.targets import Targets, targets_of_labels, targets_of_table

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('img').mkdir()
    for i in range(40): picture(i).save(f'img/{i}.png')
    return tmp_path

def picture(i): return Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8))

def encoded(i):
    buffer = io.BytesIO()
    picture(i).save(buffer, 'PNG')
    return buffer.getvalue()

def refusal(f, *args, **kw):
    with pytest.raises(Refused) as e: f(*args, **kw)
    return str(e.value)

def labels(data): return [[data.classes[c] for c in own] for own in targets_of_table(data.targets).positives()]

def train(*args):
    quick = '--model', 'conv3', '--size', '16', '--epochs', '2', '--threads', '1', '--workers', '0', '--name', 'run'
    with redirect_stdout(io.StringIO()) as out: import_module('asl.train').main([*map(str, args), *quick])
    return out.getvalue()

def predict(*args):
    with redirect_stdout(io.StringIO()) as out:
        import_module('asl.predict').main(['runs/run', *map(str, args), '--format', 'json'])
    return json.loads(out.getvalue())

def coco(name, images, offset=0):
    "COCO's JSON of some images; image i has a cat if i is even and a dog if it is divisible by 3"
    drawn = [(i, c) for i in images for c, n in ((5, 2), (9, 3)) if i % n == 0]
    content = dict(images=[dict(id=i+offset, file_name=f'{i}.png', width=20) for i in images],
        annotations=[dict(id=k, image_id=i+offset, category_id=c, bbox=[0, 0, 1, 1]) for k, (i, c) in enumerate(drawn)],
        categories=[dict(id=9, name='dog'), dict(id=5, name='cat'), dict(id=7, name='owl')])
    Path(name).write_text(json.dumps(content, indent=1))

def test_coco_trains_and_its_second_file_validates():
    coco('train.json', range(30))
    coco('valid.data', range(30, 40))                                  # known by its content, not by its ending
    train_set, valid_set = read_images('train.json', 'img', 'valid.data')
    assert train_set.classes == valid_set.classes == ['dog', 'cat'] and len(valid_set.files) == 10
    assert labels(train_set)[:6] == [['dog', 'cat'], [], ['cat'], ['dog'], ['cat'], []]
    assert train_set.where[3] == 'train.json, image 3'
    out = train('train.json', '--images', 'img', '--valid', 'valid.data')
    assert '2 classes; 30 images to train on, 10 to validate' in out

def test_what_coco_cannot_be_is_refused():
    coco('train.json', range(30))
    Path('l.csv').write_text('file,labels\n0.png,cat\n')
    assert 'must be a COCO file' in refusal(read_images, 'train.json', 'img', 'l.csv')
    assert 'must be a CSV' in refusal(read_images, 'l.csv', 'img', './train.json')
    assert 'has no columns' in refusal(read_images, 'train.json', 'img', label_column='labels')
    coco('gone.json', range(38, 42))
    with pytest.raises(SystemExit): train('gone.json', '--images', 'img')
    assert not Path('runs').exists()

def test_parquet_with_images_inside_trains_and_predicts():
    pyarrow = pytest.importorskip('pyarrow')
    import pyarrow.parquet as parquet
    rows = [dict(bytes=encoded(i), path=f'{i}.png') for i in range(40)]
    tags = [[name for name, n in (('traffic light', 2), ('猫', 3)) if i % n == 0] for i in range(40)]
    table = pyarrow.table(dict(tags=tags, image=rows, part=['test' if i % 10 == 9 else 'train' for i in range(40)]))
    parquet.write_table(table, 'pets.parquet')
    out = train('pets.parquet', '--label_column', 'tags')
    assert '2 classes; 32 images to train on, 8 to validate' in out
    data, _ = read_images('pets.parquet', valid=.2, label_column='tags')
    assert set(data.classes) == {'traffic light', '猫'} and str(data.files[0]) == data.where[0] == 'pets.parquet, row 0'
    assert np.array_equal(np.asarray(read_rgb(data.files[0])), np.asarray(picture(0)))

def test_parquet_with_paths_and_a_column_per_class():
    pyarrow = pytest.importorskip('pyarrow')
    import pyarrow.parquet as parquet
    columns = dict(file=[f'{i}.png' for i in range(40)], cat=[i % 2 for i in range(40)])
    columns['dog'] = [i % 3 == 0 for i in range(40)]
    columns['owl'] = [None if i % 4 else 1. for i in range(40)]
    parquet.write_table(pyarrow.table(columns), 'pets.parquet')
    data, _ = read_csv('pets.parquet', 'img')
    assert data.classes == ['cat', 'dog', 'owl'] and data.targets[:2].tolist() == [[0, 1, 1], [1, 0, -100]]

def write_stream(path, table):
    "An Arrow file as `datasets` writes it"
    import pyarrow
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.OSFile(str(path), 'wb') as f, pyarrow.ipc.new_stream(f, table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    (path.parent/'state.json').write_text(json.dumps(dict(_data_files=[dict(filename=path.name)])))

def dataset(path, images):
    "A folder as save_to_disk of `datasets` leaves it"
    pyarrow = pytest.importorskip('pyarrow')
    features = dict(image=dict(_type='Image'), objects=dict(category=dict(_type='List',
        feature=dict(_type='ClassLabel', names=['cat', 'dog']))))
    objects = [dict(category=[c for c, n in ((0, 2), (1, 3)) if i % n == 0]) for i in images]
    table = pyarrow.table(dict(image=[dict(bytes=encoded(i), path=None) for i in images], objects=objects))
    notes = dict(huggingface=json.dumps(dict(info=dict(features=features))))
    write_stream(path/'data-00000-of-00001.arrow', table.replace_schema_metadata(notes))

def test_a_datasets_folder_with_its_own_split():
    dataset(Path('pets/train'), range(25))
    dataset(Path('pets/validation'), range(25, 33))
    dataset(Path('pets/test'), range(33, 40))
    Path('pets/dataset_dict.json').write_text('{"splits": ["train", "validation", "test"]}')
    out = train('pets', '--valid', 'split', '--label_column', 'objects.category')
    assert '2 classes; 25 images to train on, 8 to validate' in out and '7 rows for testing' in out
    message = refusal(read_images, 'pets', label_column='objects.category')
    assert '--valid split' in message
    train_set, _ = read_images('pets/train', valid=.2, label_column='objects.category')
    assert len(train_set.files) == 20 and train_set.classes == ['cat', 'dog']

def test_images_in_a_table_are_read_by_workers():
    from asl.training.batches import Batches, transform
    dataset(Path('pets'), range(12))
    data, _ = read_images('pets', valid=.2, label_column='objects.category')
    config = dict(size=16, mean=(.5,)*3, std=(.5,)*3, interpolation='bicubic')
    order = torch.arange(len(data.files)).split(4)
    def seen(workers):
        batches = Batches(data, transform(config, True), 0, workers).batches(order)
        return torch.cat([x for x, _ in batches])
    assert torch.equal(seen(0), seen(2))

def test_words_and_folds():
    parts = ['train', 'Val', 'test', '', 'TEST']*8
    rows = ''.join(f'{i}.png,{"cat" if i % 2 else "dog"},{part},{i % 5}.0\n' for i, part in enumerate(parts))
    Path('l.csv').write_text('file,labels,part,fold\n' + rows)
    said = []
    train_set, valid_set = read_images('l.csv', 'img', 'part', label_column='labels', say=said.append)
    assert (len(train_set.files), len(valid_set.files)) == (16, 8)
    assert said == ['l.csv: 16 rows for testing (column part) are left out']
    train_set, valid_set = read_images('l.csv', 'img', 'fold:3', label_column='labels')
    assert [f.name for f in valid_set.files] == [f'{i}.png' for i in range(3, 40, 5)]
    assert 'there are 0, 1, 2, 3, 4' in refusal(read_images, 'l.csv', 'img', 'fold:7', label_column='labels')
    assert '--valid fold:2.0' in refusal(read_images, 'l.csv', 'img', 'fold', label_column='labels')

def test_a_group_stays_on_one_side_and_labels_are_still_divided():
    rows = ''.join(f'{i}.png,{"cat" if i % 8 < 4 else "dog"},video {i//4}\n' for i in range(40))
    Path('l.csv').write_text('file,labels,video\n' + rows)
    for seed in range(5):
        train_set, valid_set = read_images('l.csv', 'img', .2, label_column='labels', group='video', seed=seed)
        assert not set(train_set.groups) & set(valid_set.groups)
        assert len(valid_set.files) == 8 and len(set(sum(labels(valid_set), []))) == 2
    assert 'none' in refusal(read_images, 'l.csv', 'img', 'video:video 1', label_column='labels', group='video')

def test_a_split_without_groups_is_as_it_was():
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(50, 6, generator=g) < .3).float()
    data = ImageSet([str(i) for i in range(50)], y, list('abcdef'), [str(i) for i in range(50)])
    of_groups_of_one = data._replace(groups=[f'g{i}' for i in range(50)])
    assert split(data, .3)[1].files == split(of_groups_of_one, .3)[1].files
    assert split(data._replace(targets=targets_of_table(y)), .3)[1].files == split(data, .3)[1].files

def test_absolute_paths_need_no_folder(here):
    rows = [(f'{here}/img/{i}.png', 'cat' if i % 2 else 'dog') for i in range(20)]
    Path('elsewhere').mkdir()
    Path('elsewhere/l.csv').write_text('file,labels\n' + ''.join(','.join(row) + '\n' for row in rows))
    with chdir('elsewhere'):
        out = train('l.csv')
        assert '16 images to train on' in out
        Path('mixed.csv').write_text('file,labels\nx.png,cat\n' + ','.join(rows[0]) + '\n')
        assert 'is an absolute path, and others are not' in refusal(read_csv, 'mixed.csv')
    with redirect_stdout(io.StringIO()): import_module('asl.train').main(['--resume', 'elsewhere/runs/run'])

def test_accents_are_one_thing_however_they_are_written():
    name, label = normalize('NFD', 'é.png'), normalize('NFD', 'café')
    picture(1).save(f'img/{name}')
    Path('l.csv').write_text(f'file,labels\n{normalize("NFC", name)},{label}\n0.png,{normalize("NFC", label)}\n')
    data, _ = read_csv('l.csv', 'img')
    assert data.classes == ['café'] and read_rgb(data.files[0]).size == (20, 16)
    for i, folder in enumerate((label, 'x')):
        for side in 'tv':
            Path(side, normalize('NFC', folder) if side == 'v' else folder).mkdir(parents=True)
            empty = next(p for p in sorted(Path(side).iterdir()) if not any(p.iterdir()))
            picture(i + 2*(side == 'v')).save(empty/'1.png')
    _, valid_set = read_images(images='t', valid='v')
    assert sorted(valid_set.classes) == ['café', 'x']

def test_a_training_image_reached_through_a_link_is_no_validation_image():
    Path('img/link.png').symlink_to('0.png')
    Path('hard').mkdir()
    Path('hard/a.png').hardlink_to('img/0.png')
    Path('l.csv').write_text('file,labels,valid\nimg/0.png,cat,0\nimg/1.png,cat,0\nimg/link.png,cat,1\n')
    message = 'l.csv, row 4: img/link.png is a training image already, in l.csv, row 2'
    assert refusal(read_images, 'l.csv', None, 'valid', label_column='labels') == message
    Path('l.csv').write_text('file,labels,valid\nimg/0.png,cat,0\nhard/a.png,cat,1\n')
    assert 'already' in refusal(read_images, 'l.csv', None, 'valid', label_column='labels')

def test_copies_are_told_and_trained_on():
    Path('img/copy.png').write_bytes(Path('img/0.png').read_bytes())
    Path('img/like.png').write_bytes(Path('img/1.png').read_bytes()[:-1] + b'x')        # as long, and another
    rows = ''.join(f'{i}.png,cat,{int(i > 30)}\n' for i in range(40))
    Path('l.csv').write_text('file,labels,valid\n' + rows + 'copy.png,cat,1\nlike.png,cat,1\n')
    sets = read_images('l.csv', 'img', 'valid', label_column='labels')
    assert copies(*sets) == [(9, 0)]
    assert copies(sets[0], sets[0].pick([3])) == [(0, 3)]

def test_targets_say_what_a_table_says():
    g = torch.Generator().manual_seed(0)
    table = torch.tensor([0, 0, 1, -100, .3])[torch.randint(5, (30, 4), generator=g)]
    kept = targets_of_table(table)
    assert isinstance(kept, Targets) and len(kept) == 30 and kept.shape == table.shape and kept.ndim == 2
    for which in (slice(3, 9), [5, 2], torch.tensor([5, 2]), table[:, 0] == 1, 7, -1, []):
        assert torch.equal(kept[which], table[which])
    assert torch.equal(torch.stack(list(kept)), table) and kept.tolist() == table.tolist()
    assert targets_of_labels([[], []], 3)[:].tolist() == [[0]*3]*2

def test_20_000_images_with_9605_classes_fit_a_small_memory():
    code = """
import random, resource, torch
from asl.training.labels import read_csv
g = random.Random(0)
with open('big.csv', 'w') as f:
    f.write('file,labels\\n')
    for i in range(20_000): f.write(f"{i}.jpg,{'|'.join(str(g.randrange(9605)) for _ in range(10))}\\n")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data, _ = read_csv('big.csv', '.')
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd='.')
    assert done.returncode == 0, done.stderr
    assert int(done.stdout)/1024 < 150                   # MB; as a table of float32 it is 768
