"""The torch backend of unixent, and its native module form."""

from unixent_torch._backend import TorchBackend

backend = TorchBackend()

__all__ = ["TorchBackend", "backend"]
