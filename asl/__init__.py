"The asymmetric loss for PyTorch, done right: exact, fast, calibrated, explained"
__version__ = "0.1.0"

from asl.loss import (AsymmetricLossMultiLabel, AsymmetricLossSingleLabel, asymmetric_loss_multi_label,
    asymmetric_loss_single_label)

__all__ = ['AsymmetricLossMultiLabel', 'AsymmetricLossSingleLabel', 'asymmetric_loss_multi_label', 'asymmetric_loss_single_label']
