"timm's tasks with a criterion of ours, its mixup's soft labels, and its evaluator beside our metrics"
import numpy as np, pytest, timm, torch
from timm.data import Mixup
from timm.task import ClassificationTask, MultiLabelClassificationTask
from torch.nn import functional as F
from torch.testing import assert_close
from asl import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel
from asl.training.digits import digit_collages
from asl.training.score import score, score_single

train, test = digit_collages(n=256, n_classes=10), digit_collages('test', n=300, n_classes=10)
multi, single = AsymmetricLossMultiLabel(reduction='batchmean'), AsymmetricLossSingleLabel()

def network():
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=10)

def trained(Task, targets, **criterion):
    "A network in its task, and the losses on its way"
    model, losses = network(), []
    task = Task(model, **criterion, verbose=False)
    opt = torch.optim.SGD(model.parameters(), .01)
    for x, y in zip(train.images.split(64), targets.split(64)):
        result = task(x, y)
        losses.append(result['loss'].item())
        result['loss'].backward()
        opt.step()
        opt.zero_grad()
    return task, losses

@pytest.mark.parametrize('Task, ours, theirs, targets', [
    (MultiLabelClassificationTask, AsymmetricLossMultiLabel(0, 0, 0, reduction='mean'), 'bce', train.targets),
    (MultiLabelClassificationTask, multi, 'asl', train.targets),
    (ClassificationTask, AsymmetricLossSingleLabel(0, 0, eps=0), 'ce', train.targets.argmax(1)),
    (ClassificationTask, single, 'asl', train.targets.argmax(1))])
def test_task_trains_as_with_timms_loss(Task, ours, theirs, targets):
    "timm's asymmetric losses are ours but for a clamp, and its cross-entropies are ours without focusing"
    kwargs = dict(loss_type=theirs, smoothing=single.eps if ours is single else 0.)
    (a, got), (b, want) = trained(Task, targets, criterion=ours), trained(Task, targets, criterion_kwargs=kwargs)
    assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert got[0] != got[-1]
    assert type(a(train.images[:2], targets[:2])['output']) == type(b(train.images[:2], targets[:2])['output'])

def test_evaluator_agrees_with_our_metrics():
    task, _ = trained(MultiLabelClassificationTask, train.targets, criterion=multi)
    task.threshold = multi.threshold()
    evaluator = task.create_evaluator()
    logits = task.trainable_module.eval()(test.images).detach().double()   # in float32 two scores may round to one
    for z, y in zip(logits.split(64), test.targets.split(64)): evaluator.update(z, y)
    theirs, (ours, _) = evaluator.compute(), score(logits, test.targets, multi.posterior)
    assert_close(theirs['map'], ours['mAP'], rtol=1e-5, atol=0)
    assert_close(theirs['micro_f1'], ours['OF1_posterior'], rtol=1e-5, atol=1e-5)
    assert theirs['micro_f1'] != ours['OF1']            # at a bare score of 1/2
    entropy = F.binary_cross_entropy_with_logits(logits, test.targets.double())
    assert_close(theirs['loss'], entropy.item(), rtol=1e-5, atol=0)

def test_evaluator_counts_classes_without_a_positive_as_zero():
    "and ours leaves them out: the mAP differs by the share of such classes"
    evaluator = MultiLabelClassificationTask(network(), multi, verbose=False).create_evaluator()
    targets = test.targets.clone()
    targets[:, :5] = 0
    logits = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    evaluator.update(logits, targets)
    assert_close(evaluator.compute()['map'], score(logits, targets)[0]['mAP']/2, rtol=1e-5, atol=0)

def test_single_label_evaluator():
    task, _ = trained(ClassificationTask, train.targets.argmax(1), criterion=single)
    logits, targets = task.trainable_module.eval()(test.images).detach(), test.targets.argmax(1)
    evaluator = task.create_evaluator()
    evaluator.update(logits, targets)
    theirs, (ours, _) = evaluator.compute(), score_single(logits, targets, single.posterior)
    assert_close(theirs['top1'], ours['accuracy'], rtol=1e-6, atol=1e-4)
    assert_close(theirs['top5'], ours['top5'], rtol=1e-6, atol=1e-4)

def test_soft_labels_of_mixup():
    np.random.seed(0)
    x, y = Mixup(1., num_classes=10, label_smoothing=0., multi_label=True)(train.images[:64], train.targets[:64])
    assert ((y > 0) & (y < 1)).any()
    logits = network()(x).double()
    lam = ((y-train.targets[:64].flip(0))/(train.targets[:64]-train.targets[:64].flip(0)))
    lam = lam[lam.isfinite()].mean().item()
    parts = [multi(logits, t) for t in (train.targets[:64], train.targets[:64].flip(0))]
    assert_close(multi(logits, y), lam*parts[0]+(1-lam)*parts[1], rtol=1e-6, atol=0)
    theirs = timm.loss.AsymmetricLossMultiLabel(reduction='batchmean')
    parts = [theirs(logits, t) for t in (train.targets[:64], train.targets[:64].flip(0))]
    assert abs(theirs(logits, y)/(lam*parts[0]+(1-lam)*parts[1])-1) > .01  # timm mixes exponents, not losses

def test_soft_labels_are_no_class_indices():
    x, y = Mixup(1., num_classes=10)(train.images[:64], train.targets[:64].argmax(1))
    task = ClassificationTask(network(), single, verbose=False)
    with pytest.raises(ValueError, match='target: got shape'): task(x, y)
