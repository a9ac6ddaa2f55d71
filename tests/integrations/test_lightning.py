"Lightning with torchmetrics: training, metrics of posteriors, checkpoints, precision, accumulation."
import pytest, torch
from torch.nn import functional as F

from asl import AsymmetricLossMultiLabel
from common import as_bce, as_ce, chunks, data, losses, net, off, seeded, sgd, weights

L = pytest.importorskip('lightning')
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score, MulticlassAccuracy

class Lit(L.LightningModule):
    "A module with any loss; its predictions are posteriors where the loss knows them"
    def __init__(self, loss, dtype=torch.float64, single=False):
        super().__init__()
        self.net = net(dtype=dtype)
        self.loss = loss
        self.lr = .1
        self.seen = []
        self.losses = []
        self.metric = MulticlassAccuracy(10) if single else MultilabelAveragePrecision(10)

    def probabilities(self, z):
        if hasattr(self.loss, 'posterior'): return self.loss.posterior(z)
        return z.softmax(1) if isinstance(self.metric, MulticlassAccuracy) else z.sigmoid()

    def training_step(self, batch):
        x, y = batch
        loss = self.loss(self.net(x), y)
        self.seen.append(y)
        self.losses.append(loss.detach())
        self.log('train_loss', loss)
        return loss

    def validation_step(self, batch):
        x, y = batch
        z = self.net(x)
        self.metric(self.probabilities(z), y.long())
        self.log_dict(dict(valid_loss=self.loss(z, y), score=self.metric))

    def predict_step(self, batch): return self.probabilities(self.net(batch[0]))

    def configure_optimizers(self): return torch.optim.SGD(self.net.parameters(), lr=self.lr)

class Counted(Lit):
    "A summed loss over the count of all batches of a step; Lightning's division by their number is taken back"
    count = 0

    def training_step(self, batch):
        self.count += (batch[1] != -100).sum()
        return super().training_step(batch)

    def on_before_optimizer_step(self, _optimizer):
        for p in self.net.parameters(): p.grad *= self.trainer.accumulate_grad_batches/self.count.item()
        self.count = 0

def loader(x, y, size=16, shuffle=False):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), size, shuffle=shuffle)

def trainer(epochs=1, **kwargs):
    return L.Trainer(max_epochs=epochs, accelerator='cpu', logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **kwargs)

def fit(lit, x, y, size=16, **kwargs):
    "The change of all weights"
    before = weights(lit.net)
    trainer(**kwargs).fit(lit, loader(x, y, size))
    return weights(lit.net)-before

def plain(loss, x, y, size=16): return sgd(net(), loss, chunks(x, y, size)) - weights(net())

def what_happens(loss, single):
    lit, t, (x, y) = Lit(loss, single=single), trainer(epochs=2), data(58, single=single)
    before = weights(lit.net)
    L.seed_everything(0)
    t.fit(lit, loader(x, y, shuffle=True), loader(x, y))
    scores, = t.validate(lit, loader(x, y), verbose=False)
    out = torch.cat(t.predict(lit, loader(x, y)))
    facts = dict(seen=torch.cat(lit.seen).tolist(), before=before.tolist(), keys=sorted(scores),
        logged=sorted(t.callback_metrics), out=(out.shape, out.dtype), steps=t.global_step)
    return facts, weights(lit.net)-before, scores

def test_a_swap_changes_nothing_else(single):
    theirs = F.cross_entropy if single else F.binary_cross_entropy_with_logits
    mean = lambda **settings: losses(single)(reduction='mean', **settings)
    three = theirs, mean(**(as_ce if single else as_bce)), mean()
    (facts, update, scores), same, asl = (what_happens(o, single) for o in three)
    assert facts == same[0] == asl[0] and facts['keys'] == ['score', 'valid_loss'] and facts['steps'] == 8
    assert off(same[1], update) < 1e-6 and same[2] == pytest.approx(scores, rel=1e-6)
    assert off(asl[1], update) > .01 and abs(asl[2]['valid_loss']-scores['valid_loss']) > .1*scores['valid_loss']

def test_fit_is_the_plain_loop(single):
    (x, y), loss = data(58, 'uneven', single), losses(single)(reduction='mean')
    assert off(fit(Lit(loss, single=single), x, y), plain(loss, x, y)) < 1e-6

def test_it_learns_and_predicts(single):
    x, y = data(single=single)
    lit = Lit(losses(single)(reduction='mean'), single=single)
    t = trainer(epochs=30)
    lit.lr = 1. if single else 5.
    before, = t.validate(lit, loader(x, y), verbose=False)
    t.fit(lit, loader(x, y), loader(x, y))
    assert t.callback_metrics['train_loss'] == lit.losses[-1]
    after, = t.validate(lit, loader(x, y), verbose=False)
    assert after['score'] > before['score'] + .3 and after['valid_loss'] < .5*before['valid_loss']
    out = torch.cat(t.predict(lit, loader(x, y)))
    with torch.no_grad(): torch.testing.assert_close(out, lit.loss.posterior(lit.net(x)))

def test_what_metrics_make_of_posteriors():
    y, loss = data()[1].long(), AsymmetricLossMultiLabel()
    z = 2*torch.randn(y.shape, generator=seeded(0)) + 2*y - 1
    mAP, F1 = MultilabelAveragePrecision(10), MultilabelF1Score(10, threshold=.5)
    at, eta = float(loss.prior_logit(.5)), loss.posterior(z)
    assert ((z > 0) != (z > at)).any() and F1(eta, y) == F1((z > at).double(), y) != F1(z, y) == F1(z.sigmoid(), y)
    easy = z.sigmoid() <= loss.clip                             # there all posteriors are 0,
    assert 0 < easy.sum() and not eta[easy].any() and eta[~easy].all()
    high = z.masked_fill(easy, z[easy].max())                   # so ties are all that they can change in a ranking:
    assert mAP(eta, y) == mAP(high, y)            # the metric is that of logits, ties apart
    hidden = torch.tensor([[-3.5]*10, [-4.]*10]), torch.tensor([[1]*10, [0]*10])
    assert mAP(*hidden) == 1 and mAP(loss.posterior(hidden[0]), hidden[1]) == .5

def test_checkpoints(tmp_path, single):
    (x, y), weight = data(16, single=single), torch.linspace(.5, 2, 10).double()
    lit, t = Lit(losses(single)(reduction='mean', weight=weight), single=single), trainer()
    t.fit(lit, loader(x, y))
    t.save_checkpoint(tmp_path/'a.ckpt')
    other = losses(single)(weight=torch.ones(10).double())
    again = Lit.load_from_checkpoint(tmp_path/'a.ckpt', loss=other, single=single)
    assert torch.equal(again.loss.weight, weight)               # class weights are buffers
    assert torch.equal(weights(again.net), weights(lit.net))
    with pytest.raises(RuntimeError, match='loss.weight'):
        Lit.load_from_checkpoint(tmp_path/'a.ckpt', loss=losses(single)(), single=single)

def test_bf16(single):
    (x, y), loss = data(single=single, dtype=torch.float32), losses(single)(reduction='mean')
    full, mixed = (Lit(loss, torch.float32, single) for _ in range(2))
    full, mixed = (fit(o, x, y, precision=p) for o, p in ((full, '32-true'), (mixed, 'bf16-mixed')))
    assert 1e-4 < off(mixed, full) < .05
    lit, t = Lit(loss, torch.float32, single), trainer(precision='bf16-mixed')
    t.fit(lit, loader(x, y))
    assert all(o.dtype == torch.float32 and o.isfinite() for o in lit.losses) and len(lit.losses) == 4

def test_accumulation(single):
    mean, total = (losses(single)(reduction=r) for r in ('mean', 'sum'))
    accumulated = lambda lit, x, y: fit(lit, x, y, size=4, accumulate_grad_batches=4)
    x, y = data(16, single=single)
    assert off(accumulated(Lit(mean, single=single), x, y), plain(mean, x, y)) < 1e-6        # equal batches, all known
    assert off(accumulated(Lit(total, single=single), x, y), plain(lambda z, y: total(z, y)/4, x, y)) < 1e-6
    for n, ignore in ((58, None), (64, 'uneven')):               # not where batches count unequally
        x, y = data(n, ignore, single)
        large = plain(mean, x, y)
        assert off(accumulated(Lit(mean, single=single), x, y), large) > .01
        assert off(accumulated(Counted(total, single=single), x, y), large) < 1e-6
