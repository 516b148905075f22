"""The MindSpore backend of unixent: eager mode, ``mindspore.jit`` and graph mode, and the loss as a cell.

The first call imports it, also one that is compiled: `unixent.dispatch` sees MindSpore's parser coming.
"""

from __future__ import annotations

from unixent_mindspore import compat, compiled
from unixent_mindspore.backend import MindsporeBackend
from unixent_mindspore.collectives import grid
from unixent_mindspore.module import CrossEntropyLoss

backend = MindsporeBackend()
compiled.register()
compat.warn_of_numpy_2()

__all__ = ["CrossEntropyLoss", "MindsporeBackend", "backend", "grid"]
