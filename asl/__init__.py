"The asymmetric loss for PyTorch, done right: exact, fast, calibrated, explained"
__version__ = "0.1.0"

from asl.adaptive import AdaptiveGamma, probability_gap
from asl.linear import LinearAsymmetricLoss, linear_asymmetric_loss
from asl.loss import (AsymmetricLossMultiLabel, AsymmetricLossSingleLabel, asymmetric_loss_multi_label,
    asymmetric_loss_single_label)
from asl.posterior import Posterior, class_prior, gamma_for_prior, init_prior_

__all__ = ['AsymmetricLossMultiLabel', 'AsymmetricLossSingleLabel', 'asymmetric_loss_multi_label', 'asymmetric_loss_single_label',
    'LinearAsymmetricLoss', 'linear_asymmetric_loss', 'AdaptiveGamma', 'probability_gap', 'Posterior', 'class_prior', 'gamma_for_prior',
    'init_prior_']
