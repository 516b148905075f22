"""Bugs that users of other libraries have reported, each named with its repository and number."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, Stats, mutant


@mutant("class indices", "ignore_index")
class NoneIsSummed(Plain):
    """The losses come added up, whatever the reduction (Liger-Kernel #421)."""

    def solve(self, *args: Any) -> tuple[Any, Any]:
        value, gradient = super().solve(*args)
        return np.asarray(value.sum(dtype=value.dtype)), gradient


@mutant("class indices")
class SumGradientOfTheMean(Plain):
    """The gradient of a sum is divided by the number of positions (aprender #2182)."""

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        n = len(v) if self.options["reduction"] == "sum" else 1
        return super().scale(gradients, up, factor / gradients.dtype.type(n), v)


@mutant("class indices")
class NoneHasNoGradient(Plain):
    """Losses that are not reduced have a gradient of 0 (DirectML #739)."""

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        none = self.options["reduction"] == "none"
        return super().scale(gradients, up, factor * gradients.dtype.type(not none), v)


@mutant("axis and shape", "class indices")
class MeanOfSequenceMeans(Plain):
    """The mean over sequences of each one's mean over its tokens (NeMo #8345)."""

    def mean_of(self, losses: Array, denominator: Any) -> tuple[Any, Any]:
        value, factor = super().mean_of(losses, denominator)
        shape = self.shape
        if len(shape) < 2 or self.options["normalizer"] is not None or not losses.size:
            return value, factor
        own = self.d.reshape(shape[0], -1).sum(axis=1)
        rows = losses.reshape(shape[0], -1).sum(axis=1)
        return np.mean(np.where(own == 0, 0, rows / own), dtype=losses.dtype), factor

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        self.d = super().denominators(v, w, q, indices)
        return self.d

    def solve(self, x: Array, *args: Any) -> tuple[Any, Any]:
        self.shape = np.delete(np.array(x.shape, int), self.options["axis"] % max(x.ndim, 1)).tolist() if x.ndim else []
        return super().solve(x, *args)


@mutant("ignore_index")
class DefaultIgnoredStillCounted(Plain):
    """Positions of a negative ignore_index, as the default is, stay in the mean's denominator (Paddle #76033)."""

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        right = super().denominators(v, w, q, indices)
        return np.ones_like(v) if indices and self.options["ignore_index"] < 0 else right


@mutant("ignore_index")
class IgnoredClassHasAGradient(Plain):
    """Positions of an ignored index that is a class lose their loss, not their gradient (Paddle #28622)."""

    def position_gradients(self, stats: Stats, t: Array, v: Array) -> Array:
        return super().position_gradients(stats, t, np.where(v == 0, 1, v).astype(v.dtype) if self.inside() else v)

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        return super().scale(gradients, up, factor, np.ones_like(v) if self.inside() else v)

    def inside(self) -> bool:
        return bool(self.options["ignore_index"] >= 0)


@mutant("ignore_index")
class IgnoreIndexTo32Bits(Plain):
    """ignore_index is cut to 32 bits: 2**32 is class 0 (pytorch #187559)."""

    def ignored(self, y: Array) -> Array:
        low = self.options["ignore_index"] % 2**32
        return np.asarray(y == (low - 2**32 if low >= 2**31 else low))


@mutant("label smoothing", "ignore_index", "combinations")
class IgnoredClassIsNotSmoothed(Plain):
    """The class of an ignored index has no share of the smoothing (OpenNMT #570, AMDMIGraphX #3008)."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        t = super().target_coefs(q, w, indices)
        if indices and 0 <= self.options["ignore_index"] < t.shape[1]:
            t[:, self.options["ignore_index"]] = 0
        return t


@mutant("label smoothing", "class indices")
class ClassZeroIsPadding(Plain):
    """Class 0 is padding, whatever ignore_index says (apex's xentropy, padding_idx=0)."""

    def ignored(self, y: Array) -> Array:
        return np.asarray(super().ignored(y) | (y == 0))


@mutant("label smoothing")
class SmoothingWhereIgnored(Plain):
    """The uniform part is kept where a position is ignored and dropped elsewhere (sockeye #200)."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        s = q.dtype.type(self.options["label_smoothing"])
        return np.asarray(w * (1 - s) * q)


@mutant("label smoothing")
class SmoothingOverTheOthersButPadding(Plain):
    """s/(C - 2) to each class but the target (OpenNMT's LabelSmoothingLoss)."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        s, classes = q.dtype.type(self.options["label_smoothing"]), q.shape[1]
        if not indices or classes < 3:
            return super().target_coefs(q, w, indices)
        return np.asarray(w * ((1 - s) * q + s / (classes - 2) * (1 - q)), dtype=q.dtype)


@mutant("axis and shape", "combinations")
class SmoothingCountsTheLastAxis(Plain):
    """The smoothed share is 1/n with n the length of the last axis, not of the classes' (mlx #2641)."""

    def solve(self, x: Array, *args: Any) -> tuple[Any, Any]:
        self.last = x.shape[-1] if x.ndim else 1
        return super().solve(x, *args)

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        s = q.dtype.type(self.options["label_smoothing"])
        last = q.shape[1] if self.options["axis"] == -1 else max(self.last, 1)
        return np.asarray(w * ((1 - s) * q + s / q.dtype.type(last)))


@mutant("label smoothing")
class SmoothingLessItsEntropy(Plain):
    """The entropy of the smoothed target is subtracted, so that the least loss is 0 (flax's and t5x's examples)."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        right = super().position_losses(stats, t, v)
        if not 0 < self.options["label_smoothing"] < 1 or not self.indices:
            return right
        s, classes = self.options["label_smoothing"], t.shape[1]
        hot, cold = 1 - s + s / classes, s / classes
        return np.asarray(right + v * (hot * np.log(hot) + (classes - 1) * cold * np.log(cold)), v.dtype)

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        self.indices = indices
        return super().target_coefs(q, w, indices)


@mutant("label smoothing", "confident rows", "ends of the number line", "combinations")
class SmoothingOfUnderflownProbabilities(Plain):
    """The uniform part takes the log of probabilities that have underflown to 0 (Megatron-LM #5522)."""

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        if not self.options["label_smoothing"]:
            return right
        return Stats(right.p, right.one_minus_p, np.where(right.p == 0, np.inf, right.nll), right.lse)


@mutant("temperature")
class TargetIsNotScaled(Plain):
    """The target's logit is loaded once more, without its scale (Fast-LLM #228)."""

    def transform(self, x: Array) -> Array:
        self.given = x
        return super().transform(x)

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        if self.options["scale"] == 1:
            return right
        moved = np.where(np.isfinite(self.given), right.nll + (x - self.given), right.nll)
        return Stats(right.p, right.one_minus_p, moved.astype(x.dtype), right.lse)


@mutant("temperature")
class ScaleOfTheProbabilitiesAlone(Plain):
    """k p - onehot for k (p - onehot) (Fast-LLM #228)."""

    def transform_grad(self, x: Array) -> Array:
        return np.asarray(super().transform_grad(x) / x.dtype.type(self.options["scale"]))

    def position_gradients(self, stats: Stats, t: Array, v: Array) -> Array:
        k = v.dtype.type(self.options["scale"])
        right = super().position_gradients(stats, t, v)
        more = (k - 1) * v[:, None] * stats.p * t.sum(axis=1, keepdims=True)
        return right if k == 1 else np.asarray(right + more)


@mutant("softcap")
class CapTimesLogits(Plain):
    """x tanh(x/a) for a tanh(x/a) (unsloth-zoo #593)."""

    def cap(self, x: Array) -> Array:
        a = self.options["softcap"]
        return x if a is None else np.where(np.isinf(x), x, x * np.tanh(x / self.representable(a, x.dtype)))


@mutant("z-loss")
class PenaltyAveragedUnderNone(Plain):
    """The z-loss of each position is the mean of all (Liger-Kernel #435)."""

    def penalty(self, lse: Array) -> Array:
        right = super().penalty(lse)
        return np.full_like(right, right.mean()) if self.options["reduction"] == "none" and len(lse) else right


@mutant("class indices", "combinations")
class HalfLogNormaliser(Plain):
    """The log-normaliser is rounded to half precision before the target's logit is subtracted (optax #1020)."""

    def solve(self, x: Array, *args: Any) -> tuple[Any, Any]:
        self.given = x.dtype
        return super().solve(x, *args)

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        if self.given.itemsize != 2:
            return right
        lse = right.lse.astype(self.given).astype(x.dtype)
        return Stats(right.p, right.one_minus_p, lse[:, None] - x, lse)


@mutant("out-of-range targets")
class OutOfRangeKeepsItsSoftmax(Plain):
    """An index that is no class has a loss of 0 and the gradient of the log-normaliser (torchtitan #4297)."""

    def out_of_range(self, y: Array, classes: int, ignored: Array) -> Array:
        self.bad = super().out_of_range(y, classes, ignored)
        return np.zeros(len(y), bool)

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        return super().scale(np.where(self.bad[:, None], self.softmax, gradients), up, factor, v)

    def solve(self, x: Array, *args: Any) -> tuple[Any, Any]:
        self.softmax: Any = None
        return super().solve(x, *args)

    def position_gradients(self, stats: Stats, t: Array, v: Array) -> Array:
        part = v[:, None] * stats.p
        self.softmax = part if self.softmax is None else np.concatenate([self.softmax, part])
        return super().position_gradients(stats, t, v)


@mutant("class indices")
class SentinelMatchesThePadding(Plain):
    """A target of another process is looked up in the padding of the last tile: -inf (ml-cross-entropy #59)."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        half = -(-t.shape[1] // 2)
        elsewhere = (t.argmax(axis=1) >= half) & (half % 8 != 0) & (t != 0).any(axis=1)
        right = super().position_losses(stats, t, v)
        return np.where(elsewhere & (v != 0), np.inf, right).astype(v.dtype)
