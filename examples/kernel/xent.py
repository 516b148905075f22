"""The kernel of xent.c as functions that take what `unixent.cross_entropy` and `unixent.value_and_grad` take.

It has class indices, float32, ignore_index and reductions, and says so: everything else counts as refused.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from unixent_conformance.implementation import Implementation

LIBRARY = ctypes.CDLL(str(Path(__file__).with_name("libxent.so")))
LIBRARY.xent.restype = ctypes.c_int64
INDICES = ctypes.POINTER(ctypes.c_int64)
FLOATS = ctypes.POINTER(ctypes.c_float)


def solve(logits: Any, target: Any, upstream: Any, reduction: str, ignore_index: int) -> tuple[Any, Any]:
    """The loss and, where there is an upstream gradient, that of the logits."""
    if logits.dtype != np.float32 or target.dtype.kind not in "iu":
        raise NotImplementedError(f"logits {logits.dtype}, target {target.dtype}")
    if not logits.ndim or target.shape != logits.shape[:-1] or not logits.shape[-1]:
        raise ValueError(f"logits {logits.shape}, target {target.shape}")
    if reduction not in ("none", "sum", "mean") or type(ignore_index) is not int:
        raise ValueError(f"reduction {reduction!r}, ignore_index {ignore_index!r}")
    if upstream is not None and upstream.shape != (target.shape if reduction == "none" else ()):
        raise ValueError(f"grad_output {upstream.shape}")

    x, y = np.ascontiguousarray(logits), np.ascontiguousarray(target, np.int64)
    losses = np.empty(y.shape, np.float32)
    gradient = None if upstream is None else np.empty_like(x)
    grad_output = np.ascontiguousarray(np.broadcast_to(1 if upstream is None else upstream, y.shape), np.float32)
    counted = LIBRARY.xent(
        x.ctypes.data_as(FLOATS),
        y.ctypes.data_as(INDICES),
        ctypes.c_int64(y.size),
        ctypes.c_int64(x.shape[-1]),
        ctypes.c_int64(ignore_index),
        ctypes.c_int(reduction == "mean"),
        grad_output.ctypes.data_as(FLOATS),
        losses.ctypes.data_as(FLOATS),
        None if gradient is None else gradient.ctypes.data_as(FLOATS),
    )
    if counted < 0:
        raise IndexError(f"target: no class at position {-1 - counted}")
    if reduction == "none":
        return losses, gradient
    total = float(losses.sum(dtype=np.float64))
    return np.array(total / counted if reduction == "mean" else total, np.float32), gradient


def loss(logits: Any, target: Any, *, reduction: str = "mean", ignore_index: int = -100) -> Any:
    return solve(logits, target, None, reduction, ignore_index)[0]


def value_and_grad(
    logits: Any,
    target: Any,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    grad_output: Any = None,
    wrt: str = "logits",
) -> tuple[Any, Any]:
    if wrt != "logits":
        raise NotImplementedError(f"wrt {wrt!r}")
    upstream = grad_output
    if upstream is None:
        upstream = np.ones(target.shape if reduction == "none" else (), np.float32)
    return solve(logits, target, upstream, reduction, ignore_index)


kernel = Implementation(
    name="xent:kernel",
    loss=loss,
    value_and_grad=value_and_grad,
    options=frozenset({"logits", "target", "reduction", "ignore_index"}),
    capabilities=frozenset({"dtype:float32", "target:index"}),
    refusals=(NotImplementedError,),
)
