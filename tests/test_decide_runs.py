"What a run keeps to decide by, and `--decide` of `asl_predict` and `asl_evaluate`, which use it."
import csv, io, json, shutil

import pytest
import torch

from asl import evaluate as evaluating, predict as predicting
from asl.decide import choose_thresholds, decisions, reached
from asl.predict import Predictor
from asl.train import train
from asl.training import pipeline, thresholds
from asl.training.folder import load_tensors, save_tensors
from asl.training.pipeline import names_in_split
from asl.training.thresholds import VALIDATION, decider, save_validation
from test_aids import killed_after
from test_predicting import call, names, pictures, small

@pytest.fixture(scope='module')
def tmp(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('decide')
    pictures(tmp/'img', 60)
    return tmp

def trained(tmp, name, **options):
    given = small() | dict(model='conv3', epochs=3, valid='.5', out=tmp/'runs', name=name) | options
    return train(tmp/'labels.csv', images=tmp/'img', **given)

@pytest.fixture(scope='module')
def run(tmp): return trained(tmp, 'run')

@pytest.fixture(scope='module')
def early(tmp):
    "A run whose best epoch is the first, with a loss that changes from epoch to epoch"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(pipeline, 'best_epoch', lambda _: 1)
        return trained(tmp, 'early', adaptive=True)

def held_out(run, epoch):
    tensors, _ = load_tensors(run/VALIDATION)
    return tensors[f'epoch_{epoch}'], tensors['target'].long()

def predict(run, *options):
    code, out, err = call(predicting.main, run, *options)
    assert code == 0, err
    return out, err

def refused(main, *argv):
    code, _, err = call(main, *argv)
    assert code == 2 and err.count('\n') == 1, err
    return err

def wide(text):
    "The numbers of a CSV with a column for each class"
    _, *rows = csv.reader(io.StringIO(text))
    return torch.tensor([[float(cell) for cell in cells] for _, *cells in rows])

def labels_of(tmp, run):
    "By file 1 for each class of the run that the CSV says, else 0"
    _, *rows = csv.reader((tmp/'labels.csv').open())
    return {file: [int(name in labels.split('|')) for name in Predictor(run).classes] for file, labels in rows}

def copied(run, to):
    "The same run elsewhere"
    shutil.copytree(run, to)
    return to

@pytest.mark.parametrize('last, epoch', [(False, 1), (True, 3)])
def test_a_run_keeps_what_each_of_its_models_says_of_the_validation_images(tmp, early, last, epoch):
    p, target = held_out(early, epoch)
    shown = names_in_split(early, True)
    predictor = Predictor(early, last=last)
    assert predictor.metadata['epoch'] == epoch
    torch.testing.assert_close(p, predictor([tmp/'img'/name for name in shown]).probabilities, atol=1e-5, rtol=1e-4)
    assert target.tolist() == [labels_of(tmp, early)[file] for file in shown]
    assert len(load_tensors(early/VALIDATION)[0]) == 3          # two models, and the labels once

def test_of_one_epoch_that_is_best_and_last_it_is_kept_once(tmp):
    assert set(load_tensors(trained(tmp, 'short', epochs=1)/VALIDATION)[0]) == {'epoch_1', 'target'}

def test_of_too_many_a_sample_is_kept_by_the_seed_and_after_a_kill_it_is_the_same(tmp, early, monkeypatch, capsys):
    monkeypatch.setattr(thresholds, 'MOST', 2*7+1)
    monkeypatch.setattr(pipeline, 'best_epoch', lambda _: 1)
    some = trained(tmp, 'some', adaptive=True)
    assert f'{VALIDATION} keeps 7 of 30 validation images, drawn by --seed' in capsys.readouterr().out
    rows = thresholds.rows_to_keep(30, 2, 0)
    for epoch in (1, 3):
        torch.testing.assert_close(held_out(some, epoch), tuple(kept[rows] for kept in held_out(early, epoch)))
    killed_after(monkeypatch, 4, lambda: trained(tmp, 'cut', adaptive=True, checkpoint=0.))
    assert not (tmp/'runs'/'cut'/VALIDATION).exists()
    train(resume=tmp/'runs'/'cut')
    assert (tmp/'runs'/'cut'/VALIDATION).read_bytes() == (some/VALIDATION).read_bytes()

def test_predict_decides_by_thresholds_that_the_labels_chose(tmp, run):
    p, target = held_out(run, Predictor(run).metadata['epoch'])
    at = choose_thresholds(p, target, 'f1')
    assert not torch.allclose(at, torch.tensor(.5), atol=.01)       # else this would show nothing
    said = wide(predict(run, tmp/'img', '--format', 'csv', '--wide')[0])
    out, err = predict(run, tmp/'img', '--decide', 'f1', '--wide', '--format', 'csv')
    assert wide(out).tolist() == (said >= at).float().tolist() and '1' in out and '1.0' not in out
    assert err.count('\n') == 1 and 'from the labels of 30 validation images' in err
    out, _ = predict(run, tmp/'img', '--decide', 'f1', '--format', 'csv')
    rows = [(row['file'], row['label']) for row in csv.DictReader(io.StringIO(out)) if row['label']]
    expected = {(str(file), name) for file, of_image in zip(names(tmp), (said >= at).tolist())
        for name, taken in zip(Predictor(run).classes, of_image) if taken}
    assert set(rows) == expected and len(rows) == len(expected)

def test_rules_that_say_their_threshold_are_what_they_say(tmp, run):
    said = predict(run, tmp/'img', '--threshold', .3, '--format', 'csv')[0]
    assert predict(run, tmp/'img', '--decide', 'probability=.3', '--format', 'csv')[0] == said
    said = predict(run, tmp/'img', '--top', 1, '--format', 'csv')[0]
    assert predict(run, tmp/'img', '--decide', 'top=1', '--format', 'csv')[0] == said

def test_a_run_of_before_is_refused_with_a_cure_that_works(tmp, run, tmp_path):
    old = copied(run, tmp_path/'old')
    (old/VALIDATION).unlink()
    for rule in ('f1', 'recall=.9', 'precision=.9'):
        err = refused(predicting.main, old, tmp/'img', '--decide', rule)
        assert f'--decide {rule}: no {VALIDATION} in {old}' in err and f'asl_train --resume {old}' in err
    for rule in ('cost=4', 'top=1', 'probability=.5'): predict(old, tmp/'img', '--decide', rule)
    assert 'from a probability of 0.8 on, without validation labels' in predict(old, tmp/'img', '--decide', 'cost=4')[1]
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.suffix != '.html'}
    train(resume=old)
    assert {file.name: file.read_bytes() for file in old.iterdir() if file.suffix != '.html'} == before

def test_what_is_kept_of_another_epoch_is_not_used(tmp, run, tmp_path):
    later = copied(run, tmp_path/'later')
    weights, metadata = load_tensors(later/'best.safetensors')
    save_tensors(later/'best.safetensors', weights, metadata | dict(epoch=9))
    assert 'says nothing of epoch 9' in refused(predicting.main, later, tmp/'img', '--decide', 'f1')

def test_a_damaged_file_is_refused(tmp, run, tmp_path):
    damaged = copied(run, tmp_path/'damaged')
    data = (damaged/VALIDATION).read_bytes()
    (damaged/VALIDATION).write_bytes(data[:-1]+bytes([data[-1] ^ 1]))
    assert f'{VALIDATION}: damaged' in refused(predicting.main, damaged, tmp/'img', '--decide', 'cost=2')

def test_without_a_known_positive_the_probabilities_choose_alone(tmp, run, tmp_path):
    nothing = copied(run, tmp_path/'nothing')
    epoch = Predictor(run).metadata['epoch']
    p, target = held_out(run, epoch)
    save_validation(nothing, torch.full_like(target, -100), {epoch: p})
    _, err = predict(nothing, tmp/'img', '--decide', 'f1')
    assert 'probabilities of 30 validation images alone, for none of their labels is known to be positive' in err
    at = decider('f1', nothing, Predictor(nothing).metadata)
    assert at.thresholds.equal(choose_thresholds(p, None, 'f1')) and not at.by_labels

def test_labels_that_kept_says_are_incomplete_choose_nothing(tmp):
    part = trained(tmp, 'part', kept=.5)
    assert '--kept says that labels are missing' in predict(part, tmp/'img', '--decide', 'f1')[1]
    predictor = Predictor(part)
    p, _ = held_out(part, predictor.metadata['epoch'])
    said = predictor([tmp/'img'/name for name in names_in_split(part, True)]).probabilities      # of all labels
    torch.testing.assert_close(p, said, atol=1e-5, rtol=1e-4)

def test_evaluate_shows_thresholds_and_what_they_bring_beside_a_half(tmp, run):
    code, out, err = call(evaluating.main, run, tmp/'labels.csv', '--images', tmp/'img', '--decide', 'f1',
        '--json', tmp/'e.json', '--out', tmp/'e.csv', '--force')
    assert code == 0, err
    found = json.loads((tmp/'e.json').read_text())
    at = decider('f1', run, Predictor(run).metadata)
    chosen, half = found['decide']['thresholds']
    p = Predictor(run)(names(tmp)).probabilities
    y = torch.tensor(list(labels_of(tmp, run).values()))
    assert chosen['value'] == pytest.approx(100*reached(p, y, at.thresholds), rel=1e-4)
    assert half['value'] == pytest.approx(100*reached(p, y, .5), rel=1e-4) and half['lowest'] == .5
    assert (chosen['lowest'], chosen['highest']) == (at.thresholds.min().item(), at.thresholds.max().item())
    assert [record['threshold'] for record in found['classes']] == at.thresholds.tolist()
    taken = decisions(p, at.thresholds)
    recall = 100*(taken*y).sum(0)/y.sum(0)
    assert [record['recall'] for record in found['classes']] == pytest.approx(recall.tolist())
    written = [float(row['threshold']) for row in csv.DictReader((tmp/'e.csv').open())]
    assert written == pytest.approx(at.thresholds.tolist(), rel=1e-4)
    assert at.said in out and f"{'0.5':12}    0.500    0.500    0.500" in out and 'held out' not in out

def test_on_the_images_that_chose_there_is_a_held_out_result_and_a_half_is_never_better(run):
    for rule in ('f1', 'f2', 'cost=3'):
        code, out, err = call(evaluating.main, run, '--decide', rule, '--json', run.parent/'own.json', '--force')
        assert code == 0, err
        chosen, held, half = json.loads((run.parent/'own.json').read_text())['decide']['thresholds']
        worse = -1 if rule.startswith('cost') else 1
        assert worse*chosen['value'] >= worse*half['value']-1e-3 and held['name'] == 'held out'
        assert 'judged on the other' in out

@pytest.mark.parametrize('options, said', [
    (['--decide', 'best'], "--decide: got 'best', needs f1"), (['--decide', ''], "--decide: got '', needs f1"),
    (['--decide', 'f1', '--top', 2], '--top: --decide f1 says which labels'),
    (['--decide', 'f1', '--threshold', .5], '--threshold: --decide f1 says which labels')])
def test_predict_refuses(tmp, run, options, said): assert said in refused(predicting.main, run, tmp/'img', *options)

@pytest.mark.parametrize('options, said', [
    (['--decide', 'best'], "--decide: got 'best', needs f1"), (['--decide', 'top=2'], '--decide top=2: has no measure'),
    (['--decide', 'probability=.4'], '--decide probability=.4: has no measure'),
    (['--decide', 'f1', '--threshold', .4], '--threshold: --decide f1 chooses')])
def test_evaluate_refuses(run, options, said): assert said in refused(evaluating.main, run, *options)

def test_a_precision_out_of_reach_names_the_class(tmp, run, tmp_path):
    hard = copied(run, tmp_path/'hard')
    epoch = Predictor(run).metadata['epoch']
    p = torch.tensor([[.9, .2], [.1, .8]])
    save_validation(hard, torch.tensor([[1, 1], [0, 0]]), {epoch: p})
    name = Predictor(run).classes[1]
    err = refused(predicting.main, hard, tmp/'img', '--decide', 'precision=.9')
    assert f'--decide precision=.9: on the validation images {name} reaches 0.5 at most; ask for less' in err

def test_an_onnx_file_carries_the_rule_and_its_thresholds(tmp, run):
    onnxruntime = pytest.importorskip('onnxruntime')
    predict(run, '--onnx', tmp/'m.onnx', '--decide', 'f1')
    predict(run, '--onnx', tmp/'plain.onnx')
    about, plain = (onnxruntime.InferenceSession(tmp/f'{name}.onnx').get_modelmeta().custom_metadata_map
        for name in ('m', 'plain'))
    assert about['decide'] == 'f1' and 'decide' not in plain and 'thresholds' not in plain
    assert json.loads(about['thresholds']) == decider('f1', run, Predictor(run).metadata).thresholds.tolist()

def test_a_run_with_one_label_an_image_keeps_nothing_and_is_not_decided_by_thresholds(tmp):
    for i, file in enumerate(names(tmp)[:20]):
        (tmp/'pets'/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp/'pets'/'ab'[i % 2])
    one = train(images=tmp/'pets', model='conv3', epochs=1, out=tmp/'runs', name='one', **small())
    assert not (one/VALIDATION).exists()
    assert 'one label per image' in refused(predicting.main, one, tmp/'img', '--decide', 'f1')
    assert 'one label per image' in refused(evaluating.main, one, '--decide', 'f1')
    assert predict(one, tmp/'img', '--decide', 'top=1')[0] == predict(one, tmp/'img', '--top', 1)[0]
