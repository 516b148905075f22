"""The torch backend of unixent, and `CrossEntropyLoss`, its form as a module."""

from unixent_torch._backend import TorchBackend
from unixent_torch._module import CrossEntropyLoss

backend = TorchBackend()

__all__ = ["CrossEntropyLoss", "TorchBackend", "backend"]
