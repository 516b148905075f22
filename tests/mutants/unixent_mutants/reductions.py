"""Wrong in what is added up and what it is divided by."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, mutant


@mutant("ignore_index")
class MeanOverAllPositions(Plain):
    """Divides by N, ignored positions included."""

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        return np.ones_like(v)


@mutant("class weights")
class WeightsNotInTheDenominator(Plain):
    """Weighs the losses but divides by the number of positions."""

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        return v


@mutant("class weights")
class WeightsInTheDenominatorOfProbabilities(Plain):
    """Divides by sum q w for probability targets too, where the positions count."""

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        return np.asarray(v * (q @ w))


@mutant("mask")
class MaskNotInTheDenominator(Plain):
    """A fractional mask scales the losses, but each of its positions counts as one."""

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        return super().denominators((v != 0).astype(v.dtype), w, q, indices)


@mutant("mask")
class MaskAsBool(Plain):
    """Fractions and counts of the mask are cut to 0 and 1."""

    def mask(self, mask: Array | None, n: int, acc: np.dtype[Any]) -> Array:
        return np.asarray(super().mask(mask, n, acc) != 0, dtype=acc)


@mutant("mask")
class MaskAppliedTwice(Plain):
    """The losses are scaled by the mask once per position and once more when summed."""

    def position_weight(self, v: Array, ignored: Array) -> Array:
        return np.asarray(super().position_weight(v, ignored) ** 2)


@mutant("mask", "class indices")
class DenominatorAtLeastOne(Plain):
    """max(denominator, 1) against division by zero: wrong for fractions that sum to less."""

    def denominator(self, d: Array) -> Any:
        return np.maximum(super().denominator(d), d.dtype.type(1))


@mutant("mask", "class indices")
class DenominatorPlusEpsilon(Plain):
    """denominator + 1e-8 against division by zero."""

    def denominator(self, d: Array) -> Any:
        return super().denominator(d) + d.dtype.type(1e-8)


@mutant("normalizer")
class NormalizerForgotten(Plain):
    """The mean divides by the batch's own count, whatever normalizer says, so that accumulating gradients gives the
    mean of the micro-batches' means (transformers #34191 and #35438)."""

    def denominator(self, d: Array) -> Any:
        return self.sum_positions(d)


@mutant("normalizer")
class NormalizerInTheValueOnly(Plain):
    """The value is divided by the normalizer, the gradient by the batch's own count: what is logged is right, and what
    accumulates is the mean of the micro-batches' means (transformers #34191)."""

    def mean(self, numerator: Any, denominator: Any) -> tuple[Any, Any]:
        value, factor = super().mean(numerator, denominator)
        return value, factor if self.options["normalizer"] is None else 1 / self.own

    def denominator(self, d: Array) -> Any:
        self.own = self.sum_positions(d)
        return super().denominator(d)


@mutant("normalizer")
class NormalizerOnTop(Plain):
    """The mean divides by its own denominator and by the normalizer."""

    def denominator(self, d: Array) -> Any:
        own = self.sum_positions(d)
        return own if self.options["normalizer"] is None else own * super().denominator(d)


@mutant("empty mean")
class EmptyMeanIsNaN(Plain):
    """0/0 whatever on_empty says."""

    def mean(self, numerator: Any, denominator: Any) -> tuple[Any, Any]:
        return numerator / denominator, 1 / denominator


@mutant("empty mean", "no positions")
class EmptyMeanNeverRaises(Plain):
    """on_empty="raise" gives 0."""

    def mean(self, numerator: Any, denominator: Any) -> tuple[Any, Any]:
        nothing = denominator.dtype.type(0)
        return super().mean(numerator, denominator) if denominator != 0 else (nothing, nothing)


@mutant("empty mean")
class EmptyMeanByCount(Plain):
    """Looks for positions that count, not at the denominator: weights of 0 divide by zero."""

    def mean(self, numerator: Any, denominator: Any) -> tuple[Any, Any]:
        if denominator == 0 and self.any_active:
            return numerator / denominator, 1 / denominator
        return super().mean(numerator, denominator)

    def position_weight(self, v: Array, ignored: Array) -> Array:
        weight = super().position_weight(v, ignored)
        self.any_active = bool(weight.any())
        return weight


@mutant("large inputs")
class HalfSumOfPositions(Plain):
    """Adds the positions up in the dtype of a half precision result."""

    def solve(self, x: Array, *args: Any) -> tuple[Any, Any]:
        self.half = x.dtype if x.dtype.itemsize == 2 else None
        return super().solve(x, *args)

    def sum_positions(self, rows: Array) -> Any:
        return rows.sum() if self.half is None else rows.astype(self.half).sum().astype(rows.dtype)


@mutant("large inputs")
class SequentialSumOfPositions(Plain):
    """Adds the positions one after the other in float32."""

    def sum_positions(self, rows: Array) -> Any:
        return np.cumsum(rows)[-1] if rows.size else rows.sum()


@mutant("large inputs")
class HalfTerms(Plain):
    """loss_terms in the dtype of logits: a float16 denominator is infinite above 65504 tokens."""

    def finish(self, value: Any, dtype: Any) -> Array:
        half = getattr(self, "half", None)
        return super().finish(value, dtype if half is None else half)

    def solve(self, x: Array, target: Array, weight: Any, mask: Any, up: Any, wrt: str | None, terms: bool) -> Any:
        self.half = x.dtype if terms and x.dtype.itemsize == 2 else None
        return super().solve(x, target, weight, mask, up, wrt, terms)


@mutant("class indices")
class SkipsTheLastBlock(Plain):
    """Works off whole blocks only."""

    def blocks(self, n: int) -> Any:
        return (block for block in super().blocks(n) if block.stop <= n or n < block.stop - block.start)


@mutant("class indices")
class MeanOfBlockMeans(Plain):
    """Averages the averages of blocks, the last of which is shorter."""

    def sum_positions(self, rows: Array) -> Any:
        means = [rows[block].mean() for block in self.blocks(len(rows))]
        return rows.dtype.type(len(rows) * np.mean(means)) if means else rows.sum()


@mutant("empty mean")
class EmptyMeanInHalfPrecision(Plain):
    """0/0 is caught in float32 and float64 alone."""

    def solve(self, x: Array, *args: Any) -> tuple[Any, Any]:
        if x.dtype.itemsize == 2:
            self.options["on_empty"] = "nan"
        return super().solve(x, *args)
