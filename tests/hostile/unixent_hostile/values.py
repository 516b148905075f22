"""What the arrays of a hostile call hold."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np

from unixent_conformance.tolerance import FORMATS

Array = np.ndarray[Any, Any]

LOGITS = ("normal", "small", "large", "confident", "equal", "zero", "huge", "subnormal", "padded", "special")
WEIGHTS = (40, 5, 10, 10, 5, 3, 4, 3, 10, 10)


def logits(r: Random, rng: np.random.Generator, shape: tuple[int, ...], axis: int, dtype: Any, family: str) -> Array:
    """Scores of one family, with the classes along `axis`."""
    dtype = np.dtype(dtype)
    form = FORMATS[dtype.name]
    x = rng.standard_normal(shape)
    if family == "small":
        x *= 1e-3
    elif family == "large":
        x *= r.choice((10.0, 100.0, 1e4))
    elif family == "confident" and x.size:
        x[np.argmax(x, axis=axis, keepdims=True) == np.arange(shape[axis]).reshape(_along(shape, axis))] += r.choice(
            (15.0, 20.0, 80.0, 700.0, 1e4)
        )
    elif family == "equal":
        x = np.full(shape, float(x.flat[0]) if x.size else 0.0)
    elif family == "zero":
        x *= 0.0
    elif family == "huge":
        x = np.sign(x) * form.largest * r.choice((1.0, 0.9, 1e-3))
    elif family == "subnormal":
        x *= form.smallest * r.choice((1.0, 1000.0))
    elif family == "padded" and shape[axis] > 1:
        padding = [slice(None)] * len(shape)
        padding[axis] = slice(shape[axis] - r.randint(1, shape[axis] - 1), None)
        x[tuple(padding)] = -np.inf
    x = x.astype(dtype)
    if family == "special" and x.size:
        for _ in range(r.choice((1, 1, 2, 5))):
            x[tuple(r.randrange(size) for size in shape)] = r.choice(
                (-math.inf, -math.inf, -math.inf, math.inf, math.nan, form.largest, -form.largest, form.smallest, 0.0)
            )
        if r.random() < 0.1:
            x[...] = r.choice((-math.inf, math.inf, math.nan))
    return x


def _along(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(size if i == axis % len(shape) else 1 for i, size in enumerate(shape))


def indices(
    r: Random, rng: np.random.Generator, shape: tuple[int, ...], classes: int, ignore_index: int, dtype: Any, bad: bool
) -> Array:
    """Class indices: some ignored; where `bad`, some outside [0, C)."""
    info = np.iinfo(dtype)
    target = rng.integers(min(classes, int(info.max) + 1), size=shape).astype(dtype)
    if info.min <= ignore_index <= info.max and r.random() < 0.6 and target.size:
        target[rng.random(shape) < r.choice((0.2, 0.5, 1.0))] = ignore_index
    if bad and target.size:
        values = [v for v in (-1, classes, classes + 1, info.min, info.max, -100) if info.min <= v <= info.max]
        target.reshape(-1)[r.randrange(target.size)] = r.choice(values)
    return target


def probabilities(r: Random, rng: np.random.Generator, shape: tuple[int, ...], axis: int, dtype: Any) -> Array:
    """A distribution per position, or what need not be one."""
    family = r.choice(("softmax", "one-hot", "sparse", "zero", "any"))
    q = rng.random(shape)
    if family == "one-hot" and q.size:
        q = (q == q.max(axis=axis, keepdims=True)).astype(float)
    elif family == "zero":
        q[...] = 0.0
    elif family != "any" and q.size:
        q = np.where(q > 0.5, q, 0.0) if family == "sparse" else np.exp(8 * q)
        q /= np.maximum(q.sum(axis=axis, keepdims=True), 1e-3)
    return q.astype(dtype)


def quarters(x: Array) -> Array:
    """Multiples of 1/4, whose products and sums are exact in every dtype: equal logits are equal everywhere."""
    wide = x.astype(np.float64)
    return np.where(np.isfinite(wide), np.round(4 * np.clip(wide, -16, 16)) / 4, wide).astype(x.dtype)


def teacher(r: Random, rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, log_probs: bool) -> Array:
    """Probabilities of K classes of each position, or their logarithms. Their sum is not near 1, where the derivative
    of a bucket jumps."""
    q = probabilities(r, rng, shape, -1, np.float64)
    total = q.sum(axis=-1, keepdims=True)
    q = np.where((total > 0.9) & (total < 1.1), q * r.choice((0.5, 0.125, 1.5)), q)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(q) if log_probs else q).astype(dtype)


def weight(r: Random, rng: np.random.Generator, classes: int, dtype: Any) -> Array:
    w = rng.random(classes) * r.choice((1.0, 1.0, 1e-3, 100.0))
    w[rng.random(classes) < r.choice((0.0, 0.0, 0.3, 1.0))] = 0.0
    return w.astype(dtype)


def mask(r: Random, rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    m = rng.random(shape) * r.choice((1.0, 3.0))
    if np.dtype(dtype).kind in "biu":
        m = np.floor(m)
    m = np.where(rng.random(shape) < r.choice((0.1, 0.5, 0.5, 1.0)), 0.0, m)
    return np.asarray(m).astype(dtype)


def upstream(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Upstream gradients that every dtype holds exactly."""
    return np.asarray(rng.integers(-8, 9, size=shape) / (8 if np.dtype(dtype).kind == "f" else 1)).astype(dtype)
