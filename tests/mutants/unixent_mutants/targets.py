"""Wrong in what a target, an ignored index, a weight or smoothing means."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, Stats, mutant


@mutant("out-of-range targets")
class WrapsNegativeTargets(Plain):
    """-1 is the last class, as in Python's indexing."""

    def out_of_range(self, y: Array, classes: int, ignored: Array) -> Array:
        return super().out_of_range(y, classes, ignored | ((y < 0) & (y >= -classes)))

    def one_hot(self, y: Array, classes: int, acc: np.dtype[Any]) -> Array:
        return super().one_hot(np.where(y < 0, y % classes, y), classes, acc)


@mutant("out-of-range targets")
class ClampsTargets(Plain):
    """A target of C or more is the last class: what jax.numpy's gather does."""

    def out_of_range(self, y: Array, classes: int, ignored: Array) -> Array:
        return super().out_of_range(y, classes, ignored | (y >= classes))

    def one_hot(self, y: Array, classes: int, acc: np.dtype[Any]) -> Array:
        return super().one_hot(np.minimum(y, classes - 1), classes, acc)


@mutant("out-of-range targets")
class OutOfRangeIsIgnored(Plain):
    """A target out of range adds nothing and says nothing: a one-hot row of zeros."""

    def out_of_range(self, y: Array, classes: int, ignored: Array) -> Array:
        return np.zeros(len(y), bool)


@mutant("out-of-range targets")
class OutOfRangeNeverRaises(Plain):
    """NaN even where the values can be read."""

    def check_range(self, out_of_range: Array) -> None:
        pass


@mutant("out-of-range targets")
class MaskedOutOfRangePasses(Plain):
    """A mask of 0 hides a target that is no class."""

    def out_of_range(self, y: Array, classes: int, ignored: Array) -> Array:
        mask = self.options["mask"]
        hidden = np.zeros(len(y), bool) if mask is None else np.asarray(mask).reshape(-1) == 0
        return super().out_of_range(y, classes, ignored | hidden)


@mutant("out-of-range targets", "ignore_index")
class EveryNegativeIsIgnored(Plain):
    """Any negative target counts as ignored."""

    def ignored(self, y: Array) -> Array:
        return np.asarray(super().ignored(y) | (y < 0))


@mutant("ignore_index")
class OnlyTheDefaultIsIgnored(Plain):
    """-100 is compared with, whatever ignore_index says."""

    def ignored(self, y: Array) -> Array:
        return np.asarray((y == -100) | ((y == self.options["ignore_index"]) & (y < 0)))


@mutant("ignore_index")
class IgnoreIndexCast(Plain):
    """ignore_index is cast into the target's dtype: -100 becomes 156 of uint8, which may be a class."""

    def ignored(self, y: Array) -> Array:
        return np.asarray(y == np.asarray(self.options["ignore_index"]).astype(y.dtype))


@mutant("ignore_index", "class weights")
class IgnoredStillCounted(Plain):
    """Ignored positions lose their loss, not their place in the denominator."""

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        return super().denominators(self.before, w, q, indices)

    def position_weight(self, v: Array, ignored: Array) -> Array:
        self.before = v
        return super().position_weight(v, ignored)

    def one_hot(self, y: Array, classes: int, acc: np.dtype[Any]) -> Array:
        return super().one_hot(np.where(self.ignored(y) & ((y < 0) | (y >= classes)), 0, y), classes, acc)


@mutant("out-of-range targets", "target dtypes")
class TargetsTo32Bits(Plain):
    """64-bit targets are cut to 32 bits: 2**32 + 1 is class 1."""

    def out_of_range(self, y: Array, classes: int, ignored: Array) -> Array:
        return super().out_of_range(y.astype(np.int32), classes, ignored)

    def one_hot(self, y: Array, classes: int, acc: np.dtype[Any]) -> Array:
        return super().one_hot(y.astype(np.int32), classes, acc)


@mutant("target dtypes", "ignore_index", "out-of-range targets")
class TargetsToSigned8(Plain):
    """Unsigned bytes are read as signed ones."""

    def ignored(self, y: Array) -> Array:
        return super().ignored(y.view(np.int8) if y.dtype == np.uint8 else y)


@mutant("class indices")
class TargetsInTheDtypeOfLogits(Plain):
    """Labels are cast to the dtype of logits, as Keras does: in bfloat16, 257 is 256."""

    def solve(self, x: Array, target: Array, *args: Any) -> tuple[Any, Any]:
        self.lossy = x.dtype
        return super().solve(x, target, *args)

    def one_hot(self, y: Array, classes: int, acc: np.dtype[Any]) -> Array:
        return super().one_hot(y.astype(self.lossy).astype(np.int64), classes, acc)


@mutant("large inputs")
class TargetsTo16Bits(Plain):
    """Classes above 32767 wrap."""

    def one_hot(self, y: Array, classes: int, acc: np.dtype[Any]) -> Array:
        return super().one_hot(y.astype(np.int16), classes, acc)


@mutant("class probabilities")
class ProbabilitiesNormalised(Plain):
    """Probability targets are divided by their sum."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        total = q.sum(axis=1, keepdims=True)
        return super().target_coefs(q if indices else q / np.where(total == 0, 1, total), w, indices)


@mutant("class probabilities")
class ProbabilitiesToTheLargest(Plain):
    """Probability targets are cut to their largest class."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        hard = (np.arange(q.shape[1]) == np.argmax(q, axis=1)[:, None]).astype(q.dtype)
        return super().target_coefs(hard if q.size else q, w, indices)


@mutant("class weights")
class WeightsForgottenForProbabilities(Plain):
    """weight acts on class indices only."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        return super().target_coefs(q, w if indices else np.ones_like(w), indices)


@mutant("class weights")
class WeightsNormalised(Plain):
    """weight is scaled to a mean of 1."""

    def weight(self, weight: Array | None, classes: int, acc: np.dtype[Any]) -> Array:
        w = super().weight(weight, classes, acc)
        return w if weight is None else np.asarray(w / w.mean())


@mutant("label smoothing")
class SmoothingOverTheOthers(Plain):
    """s/(C - 1) to each of the other classes, as in some papers."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        s = q.dtype.type(self.options["label_smoothing"])
        return np.asarray(w * ((1 - s) * q + s * (1 - q) / q.dtype.type(max(q.shape[1] - 1, 1))))


@mutant("label smoothing")
class SmoothingForgetsWeights(Plain):
    """The uniform part is not weighed, as pytorch #104776 would have it: another definition than ours and torch's."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        s = q.dtype.type(self.options["label_smoothing"])
        return np.asarray(w * (1 - s) * q + s / q.dtype.type(q.shape[1]))


@mutant("label smoothing")
class SmoothingByTheTargetsWeight(Plain):
    """The whole row is weighed by w_y, the uniform part too."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        own = np.broadcast_to((q @ w)[:, None], q.shape) if indices else w
        return super().target_coefs(q, own, indices)


@mutant("label smoothing")
class SmoothingOnTop(Plain):
    """The uniform part is added without taking 1 - s from the target."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        s = q.dtype.type(self.options["label_smoothing"])
        return np.asarray(w * (q + s / q.dtype.type(q.shape[1])))


@mutant("label smoothing")
class SmoothingForgottenForProbabilities(Plain):
    """Probability targets are not smoothed."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        return super().target_coefs(q, w, indices) if indices else np.asarray(w * q)


@mutant("label smoothing")
class SmoothingInTheDenominator(Plain):
    """The smoothed weights are what the mean divides by."""

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        return np.asarray(v * self.target_coefs(q, w, indices).sum(axis=1)) if indices else v


@mutant("label smoothing", "uncounted rows")
class SmoothingAtIgnoredPositions(Plain):
    """The uniform part is added before positions are ignored, and stays (pytorch #73205, tinygrad #3570)."""

    def zero_inactive(self, rows: Array, v: Array) -> Array:
        return rows

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        smooth = v.dtype.type(self.options["label_smoothing"] / t.shape[1])
        return super().position_losses(stats, t, v) + np.where(v == 0, smooth * stats.nll.sum(axis=1), 0)
