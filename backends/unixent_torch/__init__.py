"""The torch backend of unixent, and its forms as modules: `CrossEntropyLoss` and `LinearCrossEntropyLoss`."""

from unixent_torch._backend import TorchBackend
from unixent_torch._linear_module import LinearCrossEntropyLoss
from unixent_torch._module import CrossEntropyLoss

backend = TorchBackend()

__all__ = ["CrossEntropyLoss", "LinearCrossEntropyLoss", "TorchBackend", "backend"]
