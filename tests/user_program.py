"A user's first program. tests/test_house.py runs it; pyright and mypy read it as an editor does."
import torch

from asl import (AdaptiveGamma, AsymmetricLossMultiLabel, AsymmetricLossSingleLabel, LinearAsymmetricLoss, Posterior,
    class_prior, init_prior_, label_frequency, posterior, prior_logit, threshold)

torch.manual_seed(0)                               # every class has a label
images, labels = torch.rand(32, 16), (torch.rand(32, 10) < .2).float()
loss = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=.05, pos_weight=torch.ones(10))
model = torch.nn.Sequential(torch.nn.Linear(16, 10))
init_prior_(model[0], class_prior(labels), loss)
controller = AdaptiveGamma(loss, target_gap=.1)
controller.update(model(images), labels)
loss(model(images), labels).backward()
probability: torch.Tensor = loss.posterior(model(images))
there: torch.Tensor = loss.decodes(loss.activation(model(images)))
score, bias = loss.threshold(.5), loss.prior_logit(.01)
found = label_frequency(labels, labels, per_class=True)
knowing = AsymmetricLossMultiLabel(gamma_neg=4, kept=found.kept).threshold(.5)
same = posterior(model(images), 4., 1., .05), threshold(.5, gamma_neg=4.), prior_logit(.01, clip=.05)
head = LinearAsymmetricLoss(16, 10, gamma_neg=4)
head(images, labels).backward()
values, classes = head.predict_topk(images, k=3)
single = AsymmetricLossSingleLabel(eps=.1).posterior(model(images)).argmax(1)
print(Posterior(loss)(model(images)).shape, score, bias, controller.gap.item(), values.shape, there.sum().item())
