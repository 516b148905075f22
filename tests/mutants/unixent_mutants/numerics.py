"""Right on paper, wrong in floating point; and wrong about infinities and NaN."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, Stats, mutant


def naive(x: Array, shift: Array) -> Stats:
    """The usual form, shifted: p = e/sum e, 1 - p by subtraction, L = lse - x."""
    e = np.exp(x - shift[:, None])
    total = e.sum(axis=1)
    lse = shift + np.log(total)
    p = e / total[:, None]
    return Stats(p, 1 - p, lse[:, None] - x, lse)


@mutant("ends of the number line", "confident rows", "class indices")
class NoMaxSubtraction(Plain):
    """exp of the logits as they are."""

    def statistics(self, x: Array) -> Stats:
        return naive(x, np.zeros(len(x), x.dtype))


@mutant("confident rows")
class FlushesToZero(Plain):
    """log sum exp minus x: a confident row's loss is the rounding of its largest logit."""

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        return Stats(
            right.p,
            right.one_minus_p,
            np.where(np.isnan(right.lse)[:, None], np.nan, right.lse[:, None] - x),
            right.lse,
        )


@mutant("confident rows")
class OneMinusP(Plain):
    """The gradient of the target is p - 1, which is 0 long before it should be."""

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        return Stats(right.p, 1 - right.p, right.nll, right.lse)


@mutant("confident rows")
class GapRounded(Plain):
    """exp(x_c - max) from the rounded difference: off by u times the gap."""

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        is_max = np.arange(x.shape[1]) == np.argmax(x, axis=1)[:, None]
        e = np.exp(x - x.max(axis=1, keepdims=True))
        r = np.where(is_max, 0, e).sum(axis=1)
        r = np.where(np.isnan(right.lse), np.nan, r).astype(x.dtype)
        nll = (x.max(axis=1, keepdims=True) - x) + np.log1p(r)[:, None]
        one_minus_p = np.where(is_max, (r / (1 + r))[:, None], right.one_minus_p)
        return Stats(right.p, one_minus_p, nll, right.lse)


@mutant("confident rows")
class EpsilonInTheLog(Plain):
    """log(p + 1e-7) against log 0, as in older Keras."""

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        return Stats(right.p, right.one_minus_p, -np.log(right.p + x.dtype.type(1e-7)), right.lse)


@mutant("confident rows", "minus infinity")
class ClipsProbabilities(Plain):
    """Probabilities are clipped to [1e-7, 1 - 1e-7]: finite losses, wrong ones."""

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        tiny = x.dtype.type(1e-7)
        clipped = -np.log(np.clip(right.p, tiny, 1 - tiny))
        return Stats(right.p, right.one_minus_p, clipped, right.lse)


@mutant("class indices", "large inputs")
class HalfAccumulation(Plain):
    """Half precision inputs are computed with in half precision."""

    def acc_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return dtype


@mutant("large inputs", "class indices")
class HalfSumOfClasses(Plain):
    """exp in float32, the sum over the classes in half precision: 70,000 ones are infinite."""

    def solve(self, x: Array, *args: Any) -> tuple[Any, Any]:
        self.half = x.dtype
        return super().solve(x, *args)

    def sum_classes(self, e: Array) -> Array:
        return super().sum_classes(e.astype(self.half)).astype(e.dtype)


@mutant("class indices")
class Float64InFloat32(Plain):
    """float64 logits are computed with in float32."""

    def acc_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.float32)


@mutant("large inputs")
class SequentialSumOfClasses(Plain):
    """Adds the classes one after the other in float32."""

    def sum_classes(self, e: Array) -> Array:
        return np.asarray(np.cumsum(e, axis=1)[:, -1])


@mutant("class indices")
class SkipsTheLastClasses(Plain):
    """A vector loop over the classes without its tail."""

    def sum_classes(self, e: Array) -> Array:
        whole = e.shape[1] // 8 * 8
        return super().sum_classes(e[:, : whole or e.shape[1]])


@mutant("large inputs")
class First65536Classes(Plain):
    """A kernel whose largest block holds 65536 classes."""

    def sum_classes(self, e: Array) -> Array:
        return super().sum_classes(e[:, :65536])


@mutant("tile edges")
class TailOfTheLastBlock(Plain):
    """Beyond 1024 classes, whole blocks of 1024 alone are added up."""

    def sum_classes(self, e: Array) -> Array:
        return super().sum_classes(e[:, : e.shape[1] // 1024 * 1024] if e.shape[1] > 1024 else e)


@mutant("tile edges")
class TargetBeyondTheFirstBlock(Plain):
    """The target's logit is looked for in the first block of 65536 classes."""

    def one_hot(self, y: Array, classes: int, acc: np.dtype[Any]) -> Array:
        return super().one_hot(np.where(y < 65_536, y, 0) if classes > 65_536 else y, classes, acc)


@mutant("tile edges")
class SmoothingOfTheFirstBlock(Plain):
    """The smoothed share of classes beyond the first block of 4096 is left out."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        t = super().target_coefs(q, w, indices)
        return np.where((np.arange(t.shape[1]) < 4096) | (q > 0), t, 0).astype(t.dtype)


class Online(Plain):
    """Blocks of classes, one after the other, under a running maximum."""

    block = 128

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        lost = (x.shape[1] > self.block) & np.isneginf(self.part(x)).all(axis=1)
        return Stats(*(np.where(lost.reshape(-1, *[1] * (a.ndim - 1)), self.then(a), a) for a in vars(right).values()))

    def part(self, x: Array) -> Array:
        return x[:, : self.block]

    def then(self, right: Array) -> Array:
        return np.full_like(right, np.nan)


@mutant("tile edges")
class FirstBlockOfMinusInfinity(Online):
    """A running maximum that is still -inf: exp(-inf - -inf) is NaN."""


@mutant("tile edges")
class FirstWideBlockOfMinusInfinity(Online):
    """The same in blocks of 16384 classes."""

    block = 16_384


@mutant("tile edges")
class LastBlockOfMinusInfinity(Online):
    """A last block that is -inf leaves its own maximum: finite, and wrong."""

    def part(self, x: Array) -> Array:
        return x[:, x.shape[1] // self.block * self.block - (x.shape[1] % self.block == 0) * self.block :]

    def then(self, right: Array) -> Array:
        return right / 2


@mutant("ends of the number line", "confident rows", "combinations", "class indices")
class OneMaximumPerBlock(Plain):
    """Rows of a block share the largest maximum: rows far below it vanish."""

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        top = np.broadcast_to(x.max(), len(x))
        lost = naive(x, top).lse
        return Stats(right.p, right.one_minus_p, lost[:, None] - x, lost)


@mutant("NaN")
class NaNIsSkipped(Plain):
    """A NaN logit counts as -inf: nanmax and nansum."""

    def statistics(self, x: Array) -> Stats:
        return super().statistics(np.where(np.isnan(x), -np.inf, x).astype(x.dtype))


@mutant("plus infinity")
class PlusInfinityIsCertain(Plain):
    """A target of +inf has loss 0."""

    def statistics(self, x: Array) -> Stats:
        return super().statistics(np.where(np.isposinf(x), 1e30, x).astype(x.dtype))


@mutant("minus infinity")
class MinusInfinityIsLarge(Plain):
    """-inf is replaced by -1e9: a row of nothing else has loss ln C."""

    def statistics(self, x: Array) -> Stats:
        return super().statistics(np.where(np.isneginf(x), -1e9, x).astype(x.dtype))


@mutant("minus infinity")
class MinusInfinityIsNaN(Plain):
    """0 times infinity is NaN: a class without weight poisons the row (optax #896)."""

    def times(self, t: Array, nll: Array) -> Array:
        return np.asarray(t * nll)


@mutant("minus infinity", "NaN")
class NaNToNumber(Plain):
    """nan_to_num over the losses."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        return np.nan_to_num(super().position_losses(stats, t, v))


@mutant("uncounted rows")
class InactiveMultipliedByZero(Plain):
    """Inactive rows are multiplied by 0: NaN stays NaN."""

    def zero_inactive(self, rows: Array, v: Array) -> Array:
        return rows


@mutant("ends of the number line", "confident rows")
class ClipsLogits(Plain):
    """Logits are clipped to +-50 against overflow."""

    def cap(self, x: Array) -> Array:
        return np.asarray(super().cap(np.clip(x, -50, 50)))


@mutant("softcap")
class CapByClipping(Plain):
    """clip(x, -a, a) for a tanh(x/a)."""

    def cap(self, x: Array) -> Array:
        a = self.options["softcap"]
        return x if a is None else np.asarray(np.clip(x, -a, a))


@mutant("softcap")
class CapWithoutItsScale(Plain):
    """tanh(x/a), not a tanh(x/a)."""

    def cap(self, x: Array) -> Array:
        a = self.options["softcap"]
        return super().cap(x) if a is None else super().cap(x) / x.dtype.type(a)


@mutant("z-loss")
class PenaltyOfTheMaximum(Plain):
    """The z-loss squares the row's maximum instead of its log-normaliser."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        top = stats.lse + np.log(stats.p.max(axis=1)) if stats.p.size else stats.lse
        return super().position_losses(Stats(stats.p, stats.one_minus_p, stats.nll, top), t, v)


@mutant("z-loss")
class PenaltyNotSquared(Plain):
    """z |lse|, not z lse^2."""

    def penalty(self, lse: Array) -> Array:
        return np.asarray(lse.dtype.type(self.options["z_loss"]) * abs(lse))


@mutant("z-loss")
class PenaltyWeighed(Plain):
    """The class weights scale the z-loss too."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        plain = super().position_losses(stats, t, v)
        more = self.penalty(stats.lse) * (t.sum(axis=1) - 1)
        return np.where((v == 0) | ~np.isfinite(plain), plain, plain + v * more).astype(plain.dtype)


@mutant("z-loss")
class PenaltyAtIgnoredPositions(Plain):
    """The z-loss is taken of every position, active or not."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        return np.where(v == 0, self.penalty(stats.lse), super().position_losses(stats, t, v)).astype(v.dtype)
