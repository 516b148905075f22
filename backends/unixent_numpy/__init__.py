"""The NumPy backend of unixent: the embedded default, worked in row blocks that stay in cache, on all cores."""

from unixent_numpy.backend import NumpyBackend

backend = NumpyBackend()

__all__ = ["NumpyBackend", "backend"]
