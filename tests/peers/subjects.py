"""Implementations to put under test: right ones, ones that speak a dialect, ones that die."""

from __future__ import annotations

import ctypes
import os
import sys
import time
import warnings
from typing import Any

import numpy as np


def right(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Class indices, no option but the reduction, in float64."""
    _indices_only(target)
    if ((target < 0) | (target >= logits.shape[-1])).any():
        raise IndexError("target")
    return _reduced(_rows(logits, target), reduction).astype(logits.dtype)


def dies(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    """A segfault on four rows of classes 0 and 1, an exit on others: native code that reads where it should not."""
    if logits.shape == (3, 1000):
        ctypes.string_at(0)
    return right(logits, target, reduction=reduction)


def quits(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    if logits.shape == (3, 1000):
        print("out of memory", flush=True)
        os._exit(3)
    return right(logits, target, reduction=reduction)


def exits(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    if logits.shape == (3, 1000):
        sys.exit("no device")
    return right(logits, target, reduction=reduction)


def interrupts(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    if logits.shape == (3, 1000):
        raise KeyboardInterrupt("no patience")
    return right(logits, target, reduction=reduction)


def hangs(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    if logits.shape == (3, 1000):
        time.sleep(600)
    return right(logits, target, reduction=reduction)


def always_dies(logits: Any, target: Any, **options: Any) -> Any:
    os._exit(1)


def chatty(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    print('{"id": "an answer of its own"}', flush=True)
    return right(logits, target, reduction=reduction)


def forks(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    """A helper process that outlives it and holds its pipes."""
    if logits.shape == (3, 1000) and os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    return right(logits, target, reduction=reduction)


def disturbs(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Underflow and warnings are errors to all that comes after it."""
    loss = right(logits, target, reduction=reduction)
    np.seterr(all="raise")
    warnings.simplefilter("error")
    return loss


def torchs_names(input: Any, labels: Any, reduction: str = "mean") -> Any:
    return right(input, labels, reduction=reduction)


def passes_all_on(*arrays: Any, **options: Any) -> Any:
    return right(*arrays, **options)


class Module:
    """As a module of torch: the signature is that of another method than is called."""

    def __call__(self, *arrays: Any, **options: Any) -> Any:
        return self.forward(*arrays, **options)

    def forward(self, input: Any, target: Any, *, reduction: str = "mean") -> Any:
        return right(input, target, reduction=reduction)


module = Module()


def over_positions(logits: Any, target: Any, *, weight: Any = None, reduction: str = "mean") -> Any:
    """The mean divides by the number of positions, whatever the weights."""
    loss = _rows(logits, target) * (1 if weight is None else weight.astype(np.float64)[target])
    return _reduced(loss, reduction).astype(logits.dtype)


def others_smoothed(logits: Any, target: Any, *, reduction: str = "mean", label_smoothing: float = 0.0) -> Any:
    """s/(C - 1) for every class but the target."""
    _indices_only(target)
    if (target < 0).any():
        raise NotImplementedError("target: no ignored index")
    all_classes = _log_sum_exp(logits)[..., None] - logits.astype(np.float64)
    own = np.take_along_axis(all_classes, target[..., None], -1)[..., 0]
    others = (all_classes.sum(-1) - own) / max(logits.shape[-1] - 1, 1)
    return _reduced((1 - label_smoothing) * own + label_smoothing * others, reduction).astype(logits.dtype)


def clamped(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Indices beyond the classes become the nearest class."""
    _indices_only(target)
    return _reduced(_rows(logits, np.clip(target, 0, logits.shape[-1] - 1)), reduction).astype(logits.dtype)


def wide(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Always float64."""
    return right(logits.astype(np.float64), target, reduction=reduction)


def off_by_a_thousandth(logits: Any, target: Any, *, weight: Any = None, reduction: str = "mean") -> Any:
    """No convention: wrong."""
    return np.asarray(over_positions(logits, target, weight=weight, reduction=reduction) * 1.001).astype(logits.dtype)


def linear(hidden: Any, classifier: Any, target: Any, *, reduction: str = "mean") -> Any:
    """A fused linear form, unfused."""
    logits = hidden.astype(np.float64) @ classifier.astype(np.float64).T
    return right(logits, target, reduction=reduction).astype(hidden.dtype)


def _indices_only(target: Any) -> None:
    if target.dtype.kind not in "iu":
        raise NotImplementedError("target: class indices only")


def _log_sum_exp(logits: Any) -> Any:
    x = logits.astype(np.float64)
    peak = x.max(-1)
    return peak + np.log(np.exp(x - peak[..., None]).sum(-1))


def _rows(logits: Any, target: Any) -> Any:
    """The loss per position, with the digits of a confident row."""
    _indices_only(target)
    x = logits.astype(np.float64)
    own = np.take_along_axis(x, target[..., None].astype(np.int64), -1)
    others = np.exp(x - own)
    np.put_along_axis(others, target[..., None].astype(np.int64), 0, -1)
    return np.log1p(others.sum(-1))


def _reduced(loss: Any, reduction: str) -> Any:
    return np.asarray({"none": lambda: loss, "sum": loss.sum, "mean": loss.mean}[reduction]())


def summed(logits: Any, target: Any, *, weight: Any = None, reduction: str = "mean") -> Any:
    """Indices are picked, probabilities summed up, with 0 times infinity NaN in both."""
    rows = _log_sum_exp(logits)[..., None] - logits.astype(np.float64)
    weights = np.ones(logits.shape[-1]) if weight is None else weight.astype(np.float64)
    with np.errstate(invalid="ignore"):
        if target.dtype.kind == "f":
            loss, denominator = (weights * target * rows).sum(-1), target[..., 0].size
        else:
            _indices_only(target)
            loss = weights[target] * np.take_along_axis(rows, target[..., None], -1)[..., 0]
            denominator = weights[target].sum()
    return np.asarray(loss if reduction == "none" else loss.sum() / (denominator if reduction == "mean" else 1)).astype(
        logits.dtype
    )


def linear_summed(
    hidden: Any, classifier: Any, target: Any, *, bias: Any = None, weight: Any = None, reduction: str = "mean"
) -> Any:
    """The same of a product."""
    if target.dtype.kind != "f" and ((target < 0) | (target >= len(classifier))).any():
        raise NotImplementedError("target: classes alone")
    logits = hidden.astype(np.float64) @ classifier.astype(np.float64).T + (0 if bias is None else bias)
    return summed(logits, target, weight=weight, reduction=reduction).astype(hidden.dtype)
