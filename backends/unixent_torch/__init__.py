"""The torch backend of unixent, and its forms as modules: `CrossEntropyLoss` and `LinearCrossEntropyLoss`."""

from unixent_torch.backend import TorchBackend
from unixent_torch.module import CrossEntropyLoss, LinearCrossEntropyLoss

backend = TorchBackend()

__all__ = ["CrossEntropyLoss", "LinearCrossEntropyLoss", "TorchBackend", "backend"]
