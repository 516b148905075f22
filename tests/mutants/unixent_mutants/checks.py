"""Bad input to the plain implementation, as errors of the standard library."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Array

DEFAULTS: dict[str, Any] = {
    "weight": None,
    "mask": None,
    "axis": -1,
    "reduction": "mean",
    "ignore_index": -100,
    "label_smoothing": 0.0,
    "z_loss": 0.0,
    "scale": 1.0,
    "softcap": None,
    "temperature": 1.0,
    "num_classes": None,
    "normalizer": None,
    "on_empty": "zero",
    "dtype": None,
    "validate": "auto",
}


def check(x: Array, target: Array, weight: Array | None, mask: Array | None, o: dict[str, Any]) -> None:
    """Raises where a call cannot mean anything."""
    if x.dtype.kind in "biucO" or not x.ndim:
        raise TypeError(f"logits: {x.dtype} of shape {x.shape}")
    if not -x.ndim <= o["axis"] < x.ndim:
        raise ValueError("axis")
    positions = np.delete(np.array(x.shape, int), o["axis"]).tolist()
    index = target.dtype.kind in "iu"
    if target.dtype.kind in "bcO" or target.shape != (tuple(positions) if index else x.shape):
        raise ValueError(f"target: {target.dtype} of shape {target.shape}")
    if not x.shape[o["axis"]]:
        raise ValueError("logits: no classes")
    known, most = o["num_classes"], x.shape[o["axis"]]
    if known is not None and (type(known) is not int or not 1 <= known <= most):
        raise ValueError("num_classes")
    if weight is not None and (weight.shape != (known or most,) or weight.dtype.kind in "biucO"):
        raise ValueError("weight")
    if mask is not None and (mask.ndim != len(positions) or mask.dtype.kind in "cO"):
        raise ValueError("mask")
    if mask is not None and any(size not in (1, due) for size, due in zip(mask.shape, positions, strict=True)):
        raise ValueError("mask")
    if o["reduction"] not in ("none", "sum", "mean") or o["on_empty"] not in ("zero", "nan", "raise"):
        raise ValueError("reduction, on_empty")
    if not 0 <= o["label_smoothing"] <= 1 or not 0 <= o["z_loss"] < np.inf:
        raise ValueError("label_smoothing, z_loss")
    for name in ("scale", "temperature"):
        if not np.finfo(np.float64 if x.dtype == np.float64 else np.float32).tiny < o[name] < np.inf:
            raise ValueError(name)
    if o["softcap"] is not None and not 0 < o["softcap"] < np.inf:
        raise ValueError("softcap")
    if o["normalizer"] is not None and (
        o["reduction"] != "mean" or np.ndim(o["normalizer"]) or not np.isfinite(o["normalizer"])
    ):
        raise ValueError("normalizer")
    if type(o["ignore_index"]) is not int or (not index and o["ignore_index"] != -100):
        raise ValueError("ignore_index")
    if o["validate"] not in ("auto", "full", "off"):
        raise ValueError("validate")
    if o["dtype"] not in (None, "float16", "bfloat16", "float32", "float64"):
        raise ValueError("dtype")


def check_upstream(up: Any, positions: tuple[int, ...], reduction: str) -> None:
    """Raises unless the upstream gradient has the shape of the loss."""
    due = positions if reduction == "none" else ()
    if up is not None and (up.shape != due or up.dtype.kind == "c"):
        raise ValueError("grad_output")
