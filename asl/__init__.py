"""The asymmetric loss (ASL, arXiv 2009.14119) for PyTorch, done right: exact, fast, calibrated, explained.

Train with it: the names and keywords are those of timm.

    from asl import AsymmetricLossMultiLabel
    loss = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=.05)     # logits and labels, both (..., C)
    loss(model(images), labels).backward()

Its scores are not probabilities. What they mean follows from the loss:

    loss.posterior(logits)                # the probability of each label
    loss.threshold(.5)                    # the score sigmoid(logit) of an even chance
    init_prior_(model.fc, class_prior(labels), loss)     # start where training would take the last bias

What else there is:

    AsymmetricLossSingleLabel             one label among C, beside F.cross_entropy
    Posterior(loss)                       the posterior as a layer, to put behind a model
    label_frequency(written, checked)     the share of labels that people wrote down, for kept= of all of these
    AdaptiveGamma                         gamma_neg that follows the probability gap
    LinearAsymmetricLoss, linear_loss     last layer and loss in tiles, for 10 000 labels and more
    asl.family, ElementwiseLoss           other losses with all of this: focal, poly, Hill, ..., and your own
    class_weights, corrected_targets      weights from counts; labels that were forgotten, corrected while training
    asl.distributed, asl.jax              classes divided among processes; the same losses in JAX
    asl_train, asl_predict, asl_evaluate  commands: train on your own images, predict, judge; -h lists the options
    asl_review, asl_bench                 commands: which labels are missing or wrong? how fast are the losses here?

help(AsymmetricLossMultiLabel) explains every setting.
"""
__version__ = "0.1.0"

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asl.adaptive import AdaptiveGamma, probability_gap
    from asl.family import ElementwiseLoss, class_weights
    from asl.functional import asymmetric_loss_multi_label, asymmetric_loss_single_label
    from asl.linear import LinearAsymmetricLoss, linear_asymmetric_loss, linear_loss
    from asl.loss import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel, Posterior, init_prior_
    from asl.missing import corrected_targets, elkan_noto, label_frequency
    from asl.posterior import class_prior, gamma_for_prior, posterior, prior_logit, threshold

__all__ = ['AsymmetricLossMultiLabel', 'AsymmetricLossSingleLabel',
    'asymmetric_loss_multi_label', 'asymmetric_loss_single_label',
    'posterior', 'threshold', 'prior_logit', 'Posterior', 'class_prior', 'init_prior_', 'gamma_for_prior',
    'label_frequency', 'elkan_noto',
    'AdaptiveGamma', 'probability_gap', 'LinearAsymmetricLoss', 'linear_asymmetric_loss', 'linear_loss',
    'ElementwiseLoss', 'class_weights', 'corrected_targets']


_MODULES = 'functional', 'posterior', 'missing', 'loss', 'family', 'adaptive', 'linear'

class _Package(ModuleType):
    "PyTorch takes a second to import: the library comes with the first name that is asked for, and -h does without"
    # A module's class may be set: docs.python.org/3/reference/datamodel.html, "Customizing module attribute access".
    # A __getattr__ of the module itself (PEP 562) would let type checkers believe that any name exists
    def __getattr__(self, name):
        if not name.startswith('_'):
            for module in _MODULES:
                names = vars(import_module(f'asl.{module}'))
                vars(self).update({public: names[public] for public in __all__ if public in names})
            if name in vars(self): return vars(self)[name]
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def __dir__(self): return sorted({*super().__dir__(), *__all__})

    def __setattr__(self, name, value):
        # Python sets each module that it has imported. asl.posterior stays the function, though a module has this name
        if not (name in __all__ and isinstance(value, ModuleType)): super().__setattr__(name, value)

sys.modules[__name__].__class__ = _Package
