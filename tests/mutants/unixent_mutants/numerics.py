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
