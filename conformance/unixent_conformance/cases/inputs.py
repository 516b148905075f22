"""Inputs made from a seed: one recipe with every option as a field, so that a case says only what is special to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np

from unixent_conformance.model import MIXED, Array, Call

try:
    from ml_dtypes import bfloat16 as _bfloat16
except ImportError:  # the cases in bfloat16 are left out, which the report's header says
    _bfloat16 = None

HALF = ("float16", "bfloat16") if _bfloat16 is not None else ("float16",)
DTYPES = (*HALF, "float32", "float64")

# Of more positions than this, the last is ignored too where some are.
LONE = 8


def dtype_of(name: str) -> np.dtype[Any]:
    """NumPy's dtype of a name, bfloat16 included."""
    return np.dtype(_bfloat16 if name == "bfloat16" else name)


@dataclass(frozen=True)
class Recipe:
    """A call to make. The defaults are the plainest: float32 logits (5, 7), class indices, the mean."""

    target: str = "index"  # "index", "probability", "unnormalised", "one-hot"
    dtype: str = "float32"
    positions: tuple[int, ...] = (5,)
    classes: int = 7
    axis: int = -1
    weight: str = "none"  # "none", "plain", "zeros"
    ignore: str = "none"  # "none"; some positions ignored by "default" -100, an index "inside" [0, C) or "outside" it
    mask: str = "none"  # "none", "bool", "int", "fraction", "faint" (fractions that sum to less than 1)
    smoothing: float = 0.0
    z_loss: float = 0.0
    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    reduction: str = "mean"
    normalizer: str = "none"  # "none", "float", "array"
    result: str | None = None
    scale: float = 3.0  # standard deviation of the logits
    offset: float = 0.0
    confident: float = 0.0  # added to the target's logit
    grad_output: str = "none"  # "none", "uneven"
    seed: int = 0

    def but(self, **changes: Any) -> Recipe:
        return replace(self, **changes)

    def call(self) -> Call:
        """The same arrays for the same recipe, always. Seeded from the recipe less the options that draw nothing, so
        that e.g. every reduction sees the same logits."""
        rng = np.random.default_rng(crc32(f"{self.positions}{self.classes}{self.seed}".encode()))
        floating = dtype_of(self.dtype)
        n = int(np.prod(self.positions, dtype=np.int64))
        x = rng.normal(self.offset, self.scale, (n, self.classes))
        y = rng.integers(0, self.classes, n)
        x[np.arange(n), y] += self.confident
        logits = _place(x, self.positions, self.axis).astype(floating)
        options = self._options()
        weight = None
        if self.weight != "none":
            w = rng.uniform(0.25, 2.0, self.classes)
            w[:: 3 if self.weight == "zeros" else self.classes + 1] = 0.0
            weight = w.astype(floating)
            if self.weight == "plain":
                weight[0] = 1.5
        mask = self._mask(rng, n, floating)
        if self.target != "index":
            target = _place(self._probabilities(rng, y), self.positions, self.axis).astype(floating)
        else:
            if self.ignore != "none":
                last = np.arange(n) == max(n - 1, LONE)  # a sequence often ends in padding
                y = np.where((rng.random(n) < 0.4) | last, options.get("ignore_index", -100), y)
            target = y.reshape(self.positions)
        grad_output = None
        if self.grad_output == "uneven":
            shape = self.positions if self.reduction == "none" else ()
            grad_output = np.asarray(rng.uniform(-2.0, 2.0, shape)).astype(dtype_of(self.result or self.dtype))
        return Call(logits, target, weight, mask, options, grad_output)

    def needs(self) -> frozenset[str]:
        """What `call().needs()` gives, without the arrays."""
        needs = {f"dtype:{dtype}" for dtype in (self.dtype, self.result) if dtype}
        needs.add("target:index" if self.target == "index" else "target:probability")
        others = {"float32"} if self.normalizer == "array" else set()
        if self.grad_output != "none":
            others.add(self.result or self.dtype)
        if others - {self.dtype}:
            needs.add(MIXED)
        return frozenset(needs)

    def _options(self) -> dict[str, Any]:
        """Only what differs from the defaults, so that an implementation without an option can still be asked."""
        index = {"inside": self.classes // 2, "outside": self.classes + 4}.get(self.ignore, -100)
        normalizers = {"none": None, "float": 37.3, "array": np.asarray(11.0, dtype=np.float32)}
        given_and_default: dict[str, tuple[Any, Any]] = {
            "axis": (self.axis, -1),
            "reduction": (self.reduction, "mean"),
            "ignore_index": (index, -100),
            "label_smoothing": (self.smoothing, 0.0),
            "z_loss": (self.z_loss, 0.0),
            "scale": (self.logit_scale, 1.0),
            "softcap": (self.softcap, None),
            "temperature": (self.temperature, 1.0),
            "normalizer": (normalizers[self.normalizer], None),
            "dtype": (self.result, None),
        }
        return {name: given for name, (given, default) in given_and_default.items() if given != default}

    def _mask(self, rng: np.random.Generator, n: int, floating: np.dtype[Any]) -> Array | None:
        draws = rng.random(n)
        if self.mask == "none":
            return None
        if self.mask == "bool":
            return (draws < 0.6).reshape(self.positions)
        if self.mask == "int":
            return np.floor(draws * 3).astype(np.int64).reshape(self.positions)
        draws = draws / (4 * n) if self.mask == "faint" else draws
        return np.where(draws < 0.3 * draws.max(initial=0.0), 0.0, draws).astype(floating).reshape(self.positions)

    def _probabilities(self, rng: np.random.Generator, y: Array) -> Array:
        if self.target == "one-hot":
            return np.asarray(np.arange(self.classes) == y[:, None], dtype=np.float64)
        q = rng.exponential(1.0, (len(y), self.classes))
        q[rng.random(q.shape) < 0.2] = 0.0
        if self.target == "unnormalised":
            return q
        return np.asarray(q / np.maximum(q.sum(axis=1, keepdims=True), 1e-3))


def _place(rows: Array, positions: tuple[int, ...], axis: int) -> Array:
    """Rows (N, C) in the layout of logits with the classes along `axis`, contiguous."""
    return np.ascontiguousarray(np.moveaxis(rows.reshape(*positions, rows.shape[1]), -1, axis))
