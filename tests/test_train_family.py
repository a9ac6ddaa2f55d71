"`asl_train --loss` with the losses of the family: what a run keeps of its loss, and all that reads it."
import csv, json

import pytest
import torch

from asl import evaluate as evaluating, family, predict as predicting
from asl.cli import Refused
from asl.predict import Predictor
from asl.train import main, train
from asl.training import pipeline
from asl.training.folder import load_tensors, save_tensors
from test_aids import KEPT, killed_after
from test_predicting import call, names, pictures, small

LOSSES = dict(      # name, what is given, and the loss that is meant
    poly=('epsilon=1', family.PolyLoss(1.)),
    hill=('lam=2,margin=.5', family.HillLoss(2., .5)),
    apl=('epsilon_2=-1, disable_torch_grad_focal_loss=0',
        family.AsymmetricPolynomialLoss(epsilon_2=-1., disable_torch_grad_focal_loss=False)),
    ral=(None, family.RobustAsymmetricLoss()),
    gce=('k_pos=.5,k_neg=0', family.GeneralizedCrossEntropy(.5, 0.)))
every_loss = pytest.mark.parametrize('loss', LOSSES)

@pytest.fixture(scope='module')
def tmp(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('family')
    pictures(tmp/'img', 40)
    return tmp

def trained(tmp, name, **options):
    return train(tmp/'labels.csv', images=tmp/'img', model='conv3', out=tmp/'runs', name=name,
        **small(epochs=2) | options)

@pytest.fixture(scope='module')
def run(tmp):
    "The run of a loss, made once"
    made = {}
    def of(loss):
        if loss not in made: made[loss] = trained(tmp, loss, loss=loss, loss_args=LOSSES[loss][0])
        return made[loss]
    return of

@every_loss
def test_what_a_run_says_are_the_probabilities_that_its_loss_means(tmp, run, loss):
    meant = LOSSES[loss][1]
    predictor = Predictor(run(loss))
    assert type(predictor.loss) is type(meant)
    (_, x, _), = predictor.batches(names(tmp))
    expected = meant.posterior(predictor.scores(x))
    torch.testing.assert_close(predictor.probabilities(x), expected)
    code, out, err = call(predicting.main, run(loss), tmp/'img', '--format', 'csv', '--wide')
    assert code == 0, err
    written = torch.tensor([[float(p) for p in row[1:]] for row in list(csv.reader(out.splitlines()))[1:]])
    torch.testing.assert_close(written, expected, rtol=1e-4, atol=1e-6)

class Started(Exception): pass

@every_loss
def test_a_run_starts_at_the_prior_of_its_loss(tmp, loss, monkeypatch):
    def started(_net, _targets, loss): raise Started(loss)
    monkeypatch.setattr(pipeline, 'start_at_prior', started)
    with pytest.raises(Started) as e: trained(tmp, f'start-{loss}', loss=loss, loss_args=LOSSES[loss][0])
    assert repr(e.value.args[0]) == repr(LOSSES[loss][1])

@every_loss
def test_killed_and_resumed_it_ends_with_the_same_bytes(tmp, run, loss, monkeypatch):
    def start(): trained(tmp, f'cut-{loss}', loss=loss, loss_args=LOSSES[loss][0], checkpoint=0.)
    killed_after(monkeypatch, 3, start)
    train(resume=tmp/'runs'/f'cut-{loss}')
    for file in KEPT: assert (tmp/'runs'/f'cut-{loss}'/file).read_bytes() == (run(loss)/file).read_bytes(), file

def test_settings_of_a_run_begin_another_with_the_same_bytes(run):
    again = train(config=run('apl'), name='again')
    assert (again/'last.safetensors').read_bytes() == (run('apl')/'last.safetensors').read_bytes()

@every_loss
def test_evaluate_finds_what_the_training_found(tmp, run, loss):
    code, _, err = call(evaluating.main, run(loss), '--last', '--json', tmp/f'{loss}.json')
    assert code == 0, err
    found = json.loads((tmp/f'{loss}.json').read_text())['scores']
    told = json.loads((run(loss)/'result.json').read_text())
    for ours, theirs in dict(mAP='mAP', OF1='OF1_posterior', ECE='ECE_posterior').items():
        assert found[ours] == pytest.approx(told[theirs], rel=1e-4)

@pytest.mark.parametrize('loss', ['hill', 'ral'])
def test_an_onnx_file_has_the_posterior_of_the_loss(tmp, run, loss, recwarn):
    pytest.importorskip('onnxruntime')
    path = tmp/f'{loss}.onnx'
    code, _, err = call(predicting.main, run(loss), '--onnx', path)      # checked against PyTorch as it is written
    assert code == 0 and path.exists() and not any('overflow' in str(w.message) for w in recwarn), err

@pytest.mark.parametrize('loss', ['hill', 'timm_asl'])
def test_what_was_not_written_down_counts_in_predictions_alone(tmp, loss):
    written = trained(tmp, f'written-{loss}', loss=loss)
    true = trained(tmp, f'true-{loss}', loss=loss, kept=.25)
    assert (written/'result.json').read_bytes() == (true/'result.json').read_bytes()
    _, x, _ = next(iter(Predictor(true).batches(names(tmp))))
    expected = (Predictor(written).probabilities(x)/.25).clamp(max=1)
    torch.testing.assert_close(Predictor(true).probabilities(x), expected)
    assert 'predictions count the rest' in (true/'report.html').read_text()

def test_a_run_that_diverges_is_told_by_its_own_loss(tmp):
    with pytest.raises(FloatingPointError, match='diverged'): trained(tmp, 'wild', loss='hill', lr=1e4)

def test_a_loss_of_a_later_version_is_refused(tmp, run):
    weights, metadata = load_tensors(run('poly')/'best.safetensors')
    later = trained(tmp, 'later', epochs=1)
    save_tensors(later/'best.safetensors', weights, metadata | dict(loss='later'))
    with pytest.raises(Refused, match="its weights cannot be used .'later'"): Predictor(later)

WRONG = {'--loss hill --gamma_neg 2': '--gamma_neg: the loss hill has no such setting; it has lam, margin, gamma',
    '--loss poly --loss_args lam=2': '--loss_args lam: the loss poly has no such setting; it has epsilon',
    '--loss bce --loss_args lam=2': '--loss_args lam: the loss bce has no such setting; it has none',
    '--loss hill --loss_args lam=1': 'lam: got 1.0, needs a finite number >= 1.5',
    '--loss hill --loss_args lam=nan': 'lam: got nan, needs a finite number >= 1.5',
    '--loss hill --loss_args lam': '--loss_args lam: needs numbers, such as lam=1.5,margin=1',
    '--loss hill --loss_args lam=2,lam=3': '--loss_args lam=2,lam=3: gives lam twice',
    '--loss apl --gamma_neg 2 --loss_args gamma_neg=3': '--loss_args gamma_neg=3: --gamma_neg says something else',
    '--loss apl --loss_args disable_torch_grad_focal_loss=2': 'disable_torch_grad_focal_loss=2: needs 0 or 1',
    '--loss apl --loss_args epsilon_2=9': '--loss apl: posterior: the probability falls',
    '--loss gce --loss_args k_pos=1,k_neg=1': '--loss gce: with these settings all scores mean the same probability',
    '--kept 0': '--kept: needs a number above 0, at most 1, got 0.0',
    '--kept 1.5': '--kept: needs a number above 0, at most 1, got 1.5',
    '--loss hill --adaptive': '--adaptive: moves the gamma_neg of asl, not of hill',
    '--loss hill --images .': '--loss hill: with one label per image choose one of ce, focal, asl, timm_asl'}

@pytest.mark.parametrize('options', WRONG)
def test_a_setting_that_cannot_be_meant_is_one_line(tmp, options):
    code, out, err = call(main, *options.split(), '--model', 'conv3', '--out', tmp/'none')
    assert code == 2 and out == '' and err.count('\n') == 1 and err.startswith('asl_train: ')
    assert WRONG[options] in err and not (tmp/'none').exists()
