"""The loss as torch modules: drop-ins for `torch.nn.CrossEntropyLoss` and `torch.nn.LinearCrossEntropyLoss`."""

from unixent_torch.module.linear import LinearCrossEntropyLoss
from unixent_torch.module.logits import CrossEntropyLoss

__all__ = ["CrossEntropyLoss", "LinearCrossEntropyLoss"]
