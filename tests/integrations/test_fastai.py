"fastai: a loss of ours in place of one of fastai's, in everything that asks the loss something"
import pickle
import numpy as np, pytest, torch
from fastai.vision.all import (BCEWithLogitsLossFlat, Callback, CategoryBlock, ClassificationInterpretation, ConvLayer,
    CrossEntropyLossFlat, CutMix, DataBlock, GradientAccumulation, ImageBlock, Interpretation, L, Learner, MixUp,
    MultiCategoryBlock, ProgressCallback, RandomSplitter, TensorCategory, TensorImage, TensorMultiCategory,
    load_learner, nn, noop, plt, set_seed)
from torch.testing import assert_close
from asl import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel
from asl.training.digits import digit_collages

data = digit_collages(n=96, n_classes=10)
one = data.targets.argmax(1)                            # one label for each collage, for the single-label loss

def picture(i): return np.array(data.picture(i))
def tags(i): return L(data.classes)[data.targets[i].bool().tolist()]
def digit(i): return one[i].item()

def learner(loss, cbs=None):
    "A small network and its data: the same weights, the same order, whatever the loss"
    single = isinstance(loss, (AsymmetricLossSingleLabel, CrossEntropyLossFlat))
    set_seed(0, reproducible=True)
    block, get_y = (CategoryBlock, digit) if single else (MultiCategoryBlock(vocab=data.classes), tags)
    block = DataBlock((ImageBlock, block), get_x=picture, get_y=get_y, splitter=RandomSplitter(seed=0))
    dls = block.dataloaders(range(96), bs=32, num_workers=0)
    model = nn.Sequential(ConvLayer(3, 8, stride=2), nn.Flatten(), nn.Linear(8*8*8, dls.c))
    learn = Learner(dls, model, loss_func=loss, cbs=cbs)
    learn.remove_cb(ProgressCallback)
    return learn

def trained(loss, **kwargs):
    learn = learner(loss, **kwargs)
    with learn.no_logging(): learn.fit(1, 1e-2)
    return learn

multi, single = AsymmetricLossMultiLabel(reduction='mean'), AsymmetricLossSingleLabel()
theirs = {multi: BCEWithLogitsLossFlat(), single: CrossEntropyLossFlat()}

@pytest.fixture(params=[multi, single], ids=['multi', 'single'])
def loss(request): return request.param

@pytest.fixture
def learn(loss): return trained(loss)

@pytest.mark.parametrize('ours, theirs', [
    (AsymmetricLossMultiLabel(0, 0, 0, reduction='mean'), BCEWithLogitsLossFlat()),
    (AsymmetricLossSingleLabel(0, 0, eps=0), CrossEntropyLossFlat()),
    (AsymmetricLossSingleLabel(0, 0), CrossEntropyLossFlat(label_smoothing=.1))])
def test_without_focusing_training_is_that_of_fastais_loss(ours, theirs):
    a, b = trained(ours), trained(theirs)
    for p, q in zip(a.model.parameters(), b.model.parameters()): assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert_close(a.validate()[0], b.validate()[0], rtol=1e-5, atol=1e-6)
    many = isinstance(ours, AsymmetricLossMultiLabel)
    focused = AsymmetricLossMultiLabel(reduction='mean') if many else AsymmetricLossSingleLabel(2)
    assert (trained(focused).model[-1].weight-b.model[-1].weight).abs().max() > 1e-4

def test_everything_has_the_shape_of_fastais_loss(loss, learn):
    got, want = (o.get_preds(with_decoded=True, with_loss=True) for o in (learn, trained(theirs[loss])))
    for a, b in zip(got, want): assert a.shape == b.shape and a.dtype == b.dtype
    assert [type(o) for o in learn.predict(picture(0))] == [type(o) for o in trained(theirs[loss]).predict(picture(0))]

def test_predictions_are_posteriors(loss, learn):
    (logits, _), (p, y, said, losses) = learn.get_preds(act=noop), learn.get_preds(with_decoded=True, with_loss=True)
    assert_close(p, loss.posterior(logits))
    assert (p-(logits.sigmoid() if loss is multi else logits.softmax(1))).abs().max() > .01
    assert torch.equal(said, p > .5 if loss is multi else p.argmax(1))
    each = [loss(z[None], t[None]) for z, t in zip(logits, y)]
    assert_close(losses, torch.stack(each), rtol=1e-5, atol=1e-6)
    assert loss.reduction == 'mean'

def test_threshold():
    learn = trained(AsymmetricLossMultiLabel(reduction='mean', thresh=.2))
    p, _, said = learn.get_preds(with_decoded=True)
    assert torch.equal(said, p > .2) and not torch.equal(said, p > .5)
    learn.loss_func.thresh = torch.linspace(.1, .3, 10)
    assert torch.equal(learn.get_preds(with_decoded=True)[2], p > torch.linspace(.1, .3, 10))

def test_show_results_and_interpretation(loss, learn):
    plt.close('all')
    learn.show_results(max_n=4)
    assert plt.get_fignums()
    shown = Interpretation.from_learner(learn)
    top, _ = shown.top_losses(5)
    losses = learn.get_preds(with_loss=True)[2]
    assert_close(top, losses.topk(5).values, rtol=1e-5, atol=1e-6)
    shown.plot_top_losses(2)
    if loss is single:
        confusion = ClassificationInterpretation.from_learner(learn).confusion_matrix()
        assert confusion.sum() == len(learn.dls.valid_ds)
    plt.close('all')

def test_export_and_load(learn, tmp_path):
    p = learn.get_preds()[0]
    learn.path = tmp_path
    learn.export('x.pkl', pickle_protocol=4)
    again = load_learner(tmp_path/'x.pkl', pickle_module=pickle)
    assert repr(again.loss_func) == repr(learn.loss_func)
    with again.no_bar(): assert_close(again.get_preds(dl=learn.dls.valid)[0], p)

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_images(loss, mix):
    learn = trained(loss, cbs=mix())
    assert all(p.isfinite().all() for p in learn.model.parameters()) and learn.loss_func is loss
    assert (learn.model[-1].weight-trained(loss).model[-1].weight).abs().max() > 1e-4

def test_mixup_is_the_mixture_of_the_losses(loss):
    "In fastai's way: multi-label targets are mixed, of class indices it is the losses"
    class Keep(Callback):
        order = 99
        def after_loss(self):
            if self.training: self.seen = [o.detach().clone() for o in (self.pred, *self.yb, self.loss_grad)]
    mix, keep = MixUp(), Keep()
    trained(loss, cbs=[mix, keep])
    pred, *y, got = keep.seen
    if loss is multi:
        assert len({*y[0].flatten().tolist()}-{0., 1.}) > 10
        assert_close(got, loss(pred, y[0]))
    else:
        each = AsymmetricLossSingleLabel(reduction='none')
        assert_close(got, torch.lerp(each(pred, mix.yb1[0]), each(pred, y[0]), mix.lam).mean())

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision(loss, dtype):
    "fastai's own callback turns precision down on CUDA only; what the loss gets there is what this network hands out"
    learn = learner(loss)
    class Half(Callback):
        def before_batch(self):
            self.low = torch.autocast('cpu', dtype)
            self.low.__enter__()
        def after_pred(self):
            self.low.__exit__(None, None, None)
            assert self.pred.dtype == dtype
        def after_loss(self): assert self.loss_grad.dtype == torch.float32 and self.loss_grad.isfinite()
    with learn.no_logging(): learn.fit(1, 1e-2, cbs=Half())
    full = trained(loss)
    for p, q in zip(learn.model.parameters(), full.model.parameters()): assert_close(p, q, rtol=.1, atol=.02)

def test_tensor_subclasses(loss):
    z = torch.randn(4, 10)
    y = torch.randint(0, 10, (4,)) if loss is single else torch.randint(0, 2, (4, 10)).float()
    a, b = TensorImage(z).requires_grad_(), (TensorCategory if loss is single else TensorMultiCategory)(y)
    if loss is multi:
        with pytest.raises(TypeError): a*b
    out = loss(a, b)
    assert type(out) is TensorImage and type(out.detach().as_subclass(torch.Tensor)) is torch.Tensor
    assert_close(out.as_subclass(torch.Tensor), loss(z, y))
    out.backward()
    want, = torch.autograd.grad(loss(z.requires_grad_(), y), z)
    assert_close(a.grad.as_subclass(torch.Tensor), want)
    assert type(loss.activation(a)) is TensorImage and type(loss.decodes(loss.activation(a))) is TensorImage

def test_learner_tools(loss):
    learn = learner(loss, cbs=[GradientAccumulation(64)])
    with learn.no_logging(): learn.fit(1, 1e-2)
    learn.lr_find(show_plot=False)
    assert str(type(loss).__name__) in learn.summary()
    wrong = learner(loss)
    wrong.model[-1] = nn.Linear(512, 3)
    with pytest.raises(ValueError, match='target: got'): wrong.fit(1)
