"""The MindSpore backend of unixent: eager mode, ``mindspore.jit`` and graph mode, and the loss as a cell.

Import it (or call ``unixent.get_backend("mindspore")``) before `unixent.cross_entropy` is compiled: only then does
MindSpore's compiler know what to make of it.
"""

from __future__ import annotations

from unixent_mindspore import _graph, _numpy2
from unixent_mindspore._backend import MindsporeBackend
from unixent_mindspore._groups import grid
from unixent_mindspore.loss import CrossEntropyLoss

backend = MindsporeBackend()
_graph.register()
_numpy2.warn()

__all__ = ["CrossEntropyLoss", "MindsporeBackend", "backend", "grid"]
