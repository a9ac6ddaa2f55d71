"`asl_evaluate`: the run's own validation, other images with labels, what is left out and what is said of it."
import csv, io, json
from contextlib import redirect_stdout
from functools import partial

import pytest
import torch
from sklearn.metrics import average_precision_score

from asl.evaluate import evaluate, main
from asl.predict import Predictor
from asl.train import train
from test_predicting import call, names, pictures, small

called = partial(call, main)

@pytest.fixture(scope='module')
def tmp(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('evaluating')
    pictures(tmp/'img', 60)
    pictures(tmp/'new'/'img', 30, seed=1)
    return tmp

@pytest.fixture(scope='module')
def run(tmp):
    with redirect_stdout(io.StringIO()):
        return train(tmp/'labels.csv', images=tmp/'img', model='conv3', epochs=3, out=tmp/'runs', **small(valid='.3'))

@pytest.fixture(scope='module')
def pets(tmp):
    for i, path in enumerate(names(tmp)):
        folder = tmp/'pets'/'abc'[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder/f'{i}.png').write_bytes(open(path, 'rb').read())
    with redirect_stdout(io.StringIO()):
        return train(images=tmp/'pets', model='conv3', epochs=1, out=tmp/'runs', **small(valid='.3'))

def judged(run, *argv):
    "What --json writes"
    path = run.parent/'found.json'
    code, out, err = called(run, *argv, '--json', path, '--force')
    assert code == 0, err
    return json.loads(path.read_text()), out, err

def marks(tmp):
    "Which of the new images is bright, and which red, (n, 2)"
    rows = list(csv.DictReader((tmp/'new'/'labels.csv').open()))
    return torch.tensor([[name in row['labels'].split('|') for name in ('bright', 'red')] for row in rows])

def table(tmp, name, header, rows):
    path = tmp/name
    with open(path, 'w', newline='') as f: csv.writer(f).writerows([header, *rows])
    return path

def test_without_a_source_it_is_what_the_training_said(run):
    found, out, err = judged(run, '--last')
    told = json.loads((run/'result.json').read_text())
    for ours, theirs in dict(mAP='mAP', OF1='OF1_posterior', ECE='ECE_posterior').items():
        assert found['scores'][ours] == pytest.approx(told[theirs], rel=1e-4)
    assert {c['name']: c['AP'] for c in found['classes']} == pytest.approx(told['AP'], rel=1e-4)
    assert 'mAP (macro)' in out and 'bright' in out and not err

def test_a_single_label_run_too(pets):
    found, out, _ = judged(pets, '--last')
    told = json.loads((pets/'result.json').read_text())
    for ours, theirs in dict(accuracy='accuracy', mAP='mAP', ECE='ECE_posterior').items():
        assert found['scores'][ours] == pytest.approx(told[theirs], rel=1e-4)
    wrong = sum(pair['images'] for pair in found['confused'])
    assert wrong == round(found['images']*(1-found['scores']['accuracy']/100)) and 'confused most often' in out

def test_the_validation_split_holds_none_that_was_trained_on_though_the_csv_has_grown(tmp, run):
    before = (tmp/'labels.csv').read_text()
    own, _, _ = judged(run)
    try:
        header, *rows = before.splitlines()
        (tmp/'labels.csv').write_text('\n'.join([header, *reversed(rows), 'more.png,red']))
        again, _, err = judged(run)
    finally: (tmp/'labels.csv').write_text(before)
    assert again['scores'] == pytest.approx(own['scores']) and not err

def test_a_validation_image_that_is_gone_from_the_csv_is_said(tmp, run):
    before = (tmp/'labels.csv').read_text()
    held_out = next(row['file'] for row in csv.DictReader((run/'split.csv').open()) if row['valid'] == '1')
    try:
        (tmp/'labels.csv').write_text('\n'.join(line for line in before.splitlines() if held_out not in line))
        code, _, err = called(run)
    finally: (tmp/'labels.csv').write_text(before)
    assert code == 2 and held_out in err and '--images' in err

def test_a_csv_gives_scikit_learns_numbers(tmp, run):
    found, _, err = judged(run, tmp/'new'/'labels.csv', '--images', tmp/'new'/'img', '--batch_size', 7)
    p, _ = Predictor(run)(names(tmp/'new'))
    y = marks(tmp)
    assert found['scores']['mAP'] == pytest.approx(100*average_precision_score(y, p, average='macro'), rel=1e-4)
    assert found['scores']['mAP_micro'] == pytest.approx(100*average_precision_score(y, p, average='micro'), rel=1e-4)
    assert [c['positives'] for c in found['classes']] == y.sum(0).tolist() and not err

def test_unknown_entries_count_nowhere_and_columns_may_stand_in_any_order(tmp, run):
    y = marks(tmp).int().tolist()
    files = [f'{i:03}.png' for i in range(30)]
    turned = table(tmp, 'turned.csv', ['file', 'red', 'bright'], [(f, *row[::-1]) for f, row in zip(files, y)])
    whole, _, _ = judged(run, turned, '--images', tmp/'new'/'img')
    listed, _, _ = judged(run, tmp/'new'/'labels.csv', '--images', tmp/'new'/'img')
    assert whole['scores'] == listed['scores']
    known = [(f, *row) for f, row in zip(files, y)]
    unknown = [(f, bright, '') for f, bright, _ in known]
    gaps = table(tmp, 'gaps.csv', ['file', 'bright', 'red'], unknown[:10] + known[10:])
    rest = table(tmp, 'rest.csv', ['file', 'bright', 'red'], known[10:])
    with_gaps, _, _ = judged(run, gaps, '--images', tmp/'new'/'img')
    without, _, _ = judged(run, rest, '--images', tmp/'new'/'img')
    assert with_gaps['classes'][0] == whole['classes'][0]
    for name in ('positives', 'known', 'AP', 'recall', 'Brier'):
        assert with_gaps['classes'][1][name] == pytest.approx(without['classes'][1][name], rel=1e-4)

def test_classes_that_the_csv_lacks_or_adds_are_left_out_and_said(tmp, run):
    y = marks(tmp).int().tolist()
    rows = [(f'{i:03}.png', r, r) for i, (_, r) in enumerate(y)]
    found, _, err = judged(run, table(tmp, 'other.csv', ['file', 'red', 'blue'], rows), '--images', tmp/'new'/'img')
    assert 'left out what the run does not know: blue' in err
    assert 'no column for these classes of the run: bright' in err
    assert found['classes'][0]['known'] == 0 and found['classes'][0]['AP'] is None
    assert found['scores']['mAP'] == found['classes'][1]['AP']
    code, _, err = called(run, table(tmp, 'none.csv', ['file', 'rot', 'hell'], rows), '--images', tmp/'new'/'img')
    assert code == 2 and 'none of the classes of the run' in err

def test_a_csv_is_read_as_that_of_the_training_unless_told_otherwise(tmp):
    rows = list(csv.DictReader((tmp/'labels.csv').open()))
    header = ['file', 'age', 'bright', 'red', 'part']
    cells = []
    for i, row in enumerate(rows):
        shown = row['labels'].split('|')
        cells.append((row['file'], 30+i, int('bright' in shown), int('red' in shown), 'valid' if i % 3 else 'train'))
    path = table(tmp, 'columns.csv', header, cells)
    with redirect_stdout(io.StringIO()):
        run = train(path, images=tmp/'img', model='conv3', epochs=1, out=tmp/'runs', ignore_columns='age',
                    **small(valid='part'))
    own, _, _ = judged(run)
    held_out = table(tmp, 'held.csv', header, [row for row in cells if row[-1] == 'valid'])
    again, _, err = judged(run, held_out, '--images', tmp/'img')
    assert again['scores'] == pytest.approx(own['scores'], rel=1e-3) and not err
    red, _, err = judged(run, held_out, '--images', tmp/'img', '--label_columns', 'red')
    assert red['scores']['mAP'] == pytest.approx(own['classes'][1]['AP'], rel=1e-4) and 'no column' in err
    rest = [(file, bright, red) for file, _, bright, red, part in cells if part == 'valid']
    plain = table(tmp, 'plain.csv', ['file', 'bright', 'red'], rest)
    assert judged(run, plain, '--images', tmp/'img')[0]['scores'] == again['scores']

def test_a_soft_label_counts_from_a_half_on(tmp, run):
    y = marks(tmp).int().tolist()
    soft = [(f'{i:03}.png', *((.9 if v else .2) for v in row)) for i, row in enumerate(y)]
    found, _, _ = judged(run, table(tmp, 'soft.csv', ['file', 'bright', 'red'], soft), '--images', tmp/'new'/'img')
    listed, _, _ = judged(run, tmp/'new'/'labels.csv', '--images', tmp/'new'/'img')
    assert found['scores'] == listed['scores']

def test_images_that_were_trained_on_are_said(tmp, run):
    _, _, err = judged(run, tmp/'labels.csv', '--images', tmp/'img')
    assert '42 of the 60 images were trained on' in err

def test_a_threshold_decides(run):
    low, high = [judged(run, '--threshold', t)[0] for t in (0, 1)]
    assert low['scores']['OR'] == 100 and high['scores']['OR'] == 0 and low['scores']['mAP'] == high['scores']['mAP']
    assert {c['threshold'] for c in low['classes']} == {0}

def test_a_folder_for_each_class_or_a_csv_with_one_label_a_row(tmp, pets):
    found, _, err = judged(pets, '--images', tmp/'pets')
    assert found['images'] == 60 and 'were trained on' in err
    rows = [(f"{'abc'[i % 3]}/{i}.png", 'abc'[i % 3]) for i in range(60)]
    listed, _, _ = judged(pets, table(tmp, 'pets.csv', ['file', 'label'], rows), '--images', tmp/'pets')
    assert listed['scores'] == pytest.approx(found['scores'], rel=1e-3)
    both = table(tmp, 'both.csv', ['file', 'label'], [*rows[:3], (rows[3][0], 'a|b')])
    code, _, err = called(pets, both, '--images', tmp/'pets')
    assert code == 2 and 'row 5: 2 labels' in err

def test_a_folder_of_a_class_that_the_run_does_not_know_is_left_out(tmp, pets):
    for name, i in (('a', 0), ('b', 1), ('owl', 2)):
        (tmp/'some'/name).mkdir(parents=True)
        (tmp/'some'/name/'0.png').write_bytes(open(names(tmp)[i], 'rb').read())
    found, _, err = judged(pets, '--images', tmp/'some')
    assert 'does not know: owl' in err and sum(c['positives'] for c in found['classes']) == 2

def test_bad_images_are_refused_or_left_out(tmp, run):
    broken = tmp/'new'/'img'/'broken.png'
    broken.write_bytes(b'no image')
    rows = [('000.png', 'red'), ('broken.png', 'red'), ('001.png', 'bright')]
    path = table(tmp, 'broken.csv', ['file', 'labels'], rows)
    try:
        code, _, err = called(run, path, '--images', tmp/'new'/'img')
        assert code == 2 and 'row 3' in err and '--skip_bad' in err
        found, _, err = judged(run, path, '--images', tmp/'new'/'img', '--skip_bad')
        assert found['images'] == 2 and 'left out 1 images' in err
        assert [c['positives'] for c in found['classes']] == [1, 1]
    finally: broken.unlink()

def test_the_csv_has_a_row_for_each_class_and_an_empty_cell_where_there_is_no_number(tmp, run):
    rows = [(f'{i:03}.png', 'red') for i in range(5)]
    path = table(tmp, 'red.csv', ['file', 'labels'], rows)
    code, _, err = called(run, path, '--images', tmp/'new'/'img', '--out', tmp/'classes.csv', '--force')
    assert code == 0 and 'no image shows these classes of the run: bright' in err
    found = {row['class']: row for row in csv.DictReader((tmp/'classes.csv').open())}
    assert list(found) == ['bright', 'red'] and found['bright']['AP'] == found['red']['AP'] == ''
    assert found['red']['threshold'] == '0.5' and float(found['red']['precision']) == 100

@pytest.mark.parametrize('options, said', [
    (['--out', 'none/x.csv'], 'no folder'), (['--json', 'none/x.json'], 'no folder'), (['--threshold', 2], '0 to 1'),
    (['--files', 'x'], 'about a CSV'), (['none.csv'], 'none.csv'),
    (['labels.csv', '--images', 'none'], 'no such folder'),
    (['--images', 'img'], 'give a CSV'), (['labels.csv', '--images', 'new'], 'no such file'),
])
def test_what_cannot_work_is_one_line_and_nothing_is_written(tmp, run, monkeypatch, options, said):
    monkeypatch.chdir(tmp)
    code, out, err = called(run, *options)
    assert code == 2 and said in err and err.count('\n') == 1 and not out

def test_in_python_it_returns_what_json_holds(run, capsys):
    found = evaluate(run)
    assert set(found) == {'run', 'data', 'images', 'threshold', 'scores', 'classes'}
    assert 'mAP' in capsys.readouterr().out
