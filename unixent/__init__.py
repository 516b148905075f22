"""One cross-entropy loss for NumPy, PyTorch, JAX and MindSpore: the same call, definition and gradients in each.

    import unixent
    loss = unixent.cross_entropy(logits, target)     # the arrays' own framework, or backend="torch", "jax", ...

Importing unixent imports NumPy and no framework.
"""

from __future__ import annotations

from functools import partial

from unixent.entropy import entropy_of
from unixent.errors import (
    BackendError,
    BackendUnavailableError,
    DTypeError,
    EmptyMeanError,
    NonFiniteError,
    OptionError,
    ShapeError,
    TargetRangeError,
    UnixentError,
    UnknownBackendError,
    refuse_script,
)
from unixent.functions import (
    cross_entropy,
    loss_terms,
    value_and_grad,
)
from unixent.linear import linear_cross_entropy, linear_value_and_grad
from unixent.module import CrossEntropyLoss
from unixent.options import LossOptions, ParallelConfig
from unixent.positions import (
    linear_position_stats,
    linear_position_stats_and_grad,
    position_stats,
    position_stats_and_grad,
)
from unixent.protocol import ArrayInfo, Backend, Capabilities, Device, LinearProblem, LossTerms, PositionStats, Problem
from unixent.registry import BackendStatus, backends, get_backend
from unixent.topk import TopK

for _function in (
    *(cross_entropy, loss_terms, value_and_grad, linear_cross_entropy, linear_value_and_grad),
    *(position_stats, position_stats_and_grad, linear_position_stats, linear_position_stats_and_grad, entropy_of),
):
    _function.__dict__["__prepare_scriptable__"] = partial(refuse_script, _function.__name__)
del _function, partial, refuse_script

__version__ = "0.1.0"

__all__ = [
    "ArrayInfo",
    "Backend",
    "BackendError",
    "BackendStatus",
    "BackendUnavailableError",
    "Capabilities",
    "CrossEntropyLoss",
    "DTypeError",
    "Device",
    "EmptyMeanError",
    "LinearProblem",
    "LossOptions",
    "LossTerms",
    "NonFiniteError",
    "OptionError",
    "ParallelConfig",
    "PositionStats",
    "Problem",
    "ShapeError",
    "TargetRangeError",
    "TopK",
    "UnixentError",
    "UnknownBackendError",
    "backends",
    "cross_entropy",
    "entropy_of",
    "get_backend",
    "linear_cross_entropy",
    "linear_position_stats",
    "linear_position_stats_and_grad",
    "linear_value_and_grad",
    "loss_terms",
    "position_stats",
    "position_stats_and_grad",
    "value_and_grad",
]
