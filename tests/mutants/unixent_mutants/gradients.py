"""A right value with a wrong gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, Stats, mutant


@mutant("upstream gradient")
class UpstreamForgotten(Plain):
    """The upstream gradient is taken to be 1."""

    def upstream(self, up: Any, n: int, acc: np.dtype[Any]) -> Array:
        return np.ones(n, acc)


@mutant("upstream gradient")
class UpstreamOfTheFirst(Plain):
    """One upstream value for all positions, as if the loss were a scalar (Liger-Kernel #678 and #968)."""

    def upstream(self, up: Any, n: int, acc: np.dtype[Any]) -> Array:
        full = super().upstream(up, n, acc)
        return np.full_like(full, full[0]) if n else full


@mutant("upstream gradient")
class UpstreamAveraged(Plain):
    """The upstream gradients are averaged."""

    def upstream(self, up: Any, n: int, acc: np.dtype[Any]) -> Array:
        full = super().upstream(up, n, acc)
        return np.full_like(full, full.mean()) if n else full


@mutant("upstream gradient")
class NothingFromUpstreamIsSkipped(Plain):
    """Rows whose upstream gradient is 0 are skipped, and keep what was in memory."""

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        return np.where((up == 0)[:, None], gradients, super().scale(gradients, up, factor, v)).astype(gradients.dtype)


@mutant("class indices", "mask")
class MeanNotInTheGradient(Plain):
    """The gradient of the mean is that of the sum."""

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        return super().scale(gradients, up, factor.dtype.type(1), v)


@mutant("class indices")
class GradientInFloat32(Plain):
    """Half precision logits get a float32 gradient."""

    def gradient_dtype(self, x: Array) -> Any:
        return self.acc_dtype(x.dtype)


@mutant("class indices", "large inputs")
class GradientRoundedBeforeTheMean(Plain):
    """The gradient is rounded to half precision, then divided."""

    def solve(self, x: Array, *args: Any) -> tuple[Any, Any]:
        self.half = x.dtype
        return super().solve(x, *args)

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        return super().scale(gradients.astype(self.half).astype(gradients.dtype), up, factor, v)


@mutant("large inputs", "class indices")
class SmallGradientsDropped(Plain):
    """Entries below 1e-6 are set to 0, as sparse kernels do."""

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        full = super().scale(gradients, up, factor, v)
        return np.where(abs(full) < 1e-6, 0, full).astype(full.dtype)


@mutant("ignore_index", "uncounted rows", "mask")
class GradientAtInactiveRows(Plain):
    """Inactive rows lose their loss, not their gradient."""

    def position_gradients(self, stats: Stats, t: Array, v: Array) -> Array:
        return super().position_gradients(stats, t, np.where(v == 0, 1, v).astype(v.dtype))

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        return super().scale(gradients, up, factor, np.ones_like(v))


@mutant("mask")
class MaskNotInTheGradient(Plain):
    """Fractions of the mask scale the value only."""

    def position_gradients(self, stats: Stats, t: Array, v: Array) -> Array:
        return super().position_gradients(stats, t, (v != 0).astype(v.dtype))


@mutant("class weights")
class WeightsNotInTheGradient(Plain):
    """Class weights scale the value only."""

    def position_gradients(self, stats: Stats, t: Array, v: Array) -> Array:
        total = t.sum(axis=1, keepdims=True)
        return super().position_gradients(stats, t / np.where(total == 0, 1, total), v)


@mutant("class probabilities")
class ProbabilitiesTakenToSumTo1(Plain):
    """The gradient is p - q, right only where q sums to 1."""

    def others(self, t: Array) -> Array:
        return np.asarray(1 - t)


@mutant("label smoothing")
class SmoothingNotInTheGradient(Plain):
    """The gradient is that of the unsmoothed loss."""

    def position_gradients(self, stats: Stats, t: Array, v: Array) -> Array:
        s = self.options["label_smoothing"]
        hard = t if s == 0 else np.where(t == t.max(axis=1, keepdims=True), t, 0).astype(t.dtype)
        return super().position_gradients(stats, hard, v)


@mutant("z-loss")
class PenaltyNotInTheGradient(Plain):
    """The z-loss has a value and no gradient."""

    def penalty_gradient(self, stats: Stats) -> Array:
        return np.zeros_like(stats.p)


@mutant("z-loss")
class PenaltyWithoutItsTwo(Plain):
    """z lse p for 2 z lse p."""

    def penalty_gradient(self, stats: Stats) -> Array:
        return np.asarray(super().penalty_gradient(stats) / stats.p.dtype.type(2))


@mutant("softcap")
class CapNotInTheGradient(Plain):
    """The gradient stops at the capped logits."""

    def softcap_grad(self, x: Array) -> Array:
        return np.ones_like(x)


@mutant("softcap")
class CapGradientCancels(Plain):
    """1 - tanh^2, which is 0 where the cap is saturated."""

    def softcap_grad(self, x: Array) -> Array:
        a = self.options["softcap"]
        return super().softcap_grad(x) if a is None else np.asarray(1 - np.tanh(x / x.dtype.type(a)) ** 2)


@mutant("class probabilities", "class weights")
class TargetGradientForgetsWeights(Plain):
    """dl/dq = L, without the class weights."""

    def target_gradients(self, stats: Stats, w: Array, v: Array) -> Array:
        return super().target_gradients(stats, np.ones_like(w), v)


@mutant("label smoothing")
class TargetGradientForgetsSmoothing(Plain):
    """dl/dq = w L, without 1 - s."""

    def target_gradients(self, stats: Stats, w: Array, v: Array) -> Array:
        return np.asarray(v[:, None] * self.times(np.broadcast_to(w, stats.p.shape), stats.nll))


@mutant("class probabilities")
class TargetGradientIsMinusLogits(Plain):
    """dl/dq = -x, right up to a constant per row when q is kept on the simplex, and wrong as a gradient."""

    def target_gradients(self, stats: Stats, w: Array, v: Array) -> Array:
        return super().target_gradients(
            Stats(stats.p, stats.one_minus_p, stats.nll - stats.lse[:, None], stats.lse), w, v
        )


@mutant("large inputs")
class GridOf65535(Plain):
    """Rows beyond the largest grid of a launch keep a gradient of 0."""

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        return super().scale(gradients, up, factor, np.where(np.arange(len(v)) < 65_535, v, 0).astype(v.dtype))


@mutant("tile edges")
class IgnoredRowsClearedInOneBlock(Plain):
    """The gradient of a row that does not count is cleared in the first 1024 classes."""

    def zero_inactive(self, rows: Array, v: Array) -> Array:
        zeroed = super().zero_inactive(rows, v)
        if rows.ndim == 2 and rows.shape[1] > 1024:
            zeroed[:, 1024:] = np.where((v == 0)[:, None], 1 / rows.shape[1], zeroed[:, 1024:])
        return zeroed


@mutant("tile edges", "large inputs")
class UpstreamOfNarrowRows(Plain):
    """Rows of more than 1024 classes take the upstream gradient to be 1."""

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        wide = gradients.shape[1] > 1024
        return super().scale(gradients, np.ones_like(up) if wide else up, factor, v)
