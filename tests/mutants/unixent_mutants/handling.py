"""Wrong in how arrays, dtypes and bad input are handled."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Array
from unixent_mutants.checks import DEFAULTS
from unixent_mutants.plain import Plain, Stats, mutant


@mutant("inputs unmutated")
class WritesToLogits(Plain):
    """The maximum is subtracted in place."""

    def solve(self, x: Array, *args: Any) -> tuple[Any, Any]:
        if x.ndim and x.dtype.kind in "fV" and x.size and x.flags.writeable:
            x -= x.max(axis=-1, keepdims=True)
        return super().solve(x, *args)


@mutant("inputs unmutated", "ignore_index")
class WritesToTargets(Plain):
    """Ignored targets are set to 0 in place, to gather safely."""

    def solve(self, x: Array, target: Array, *args: Any) -> tuple[Any, Any]:
        result = super().solve(x, target, *args)
        if target.dtype.kind == "i" and target.flags.writeable:
            target[target == self.options["ignore_index"]] = 0
        return result


@mutant("inputs unmutated")
class WritesToWeights(Plain):
    """weight is normalised in place after its use."""

    def solve(self, x: Array, target: Array, weight: Any, *args: Any) -> tuple[Any, Any]:
        result = super().solve(x, target, weight, *args)
        if weight is not None and weight.flags.writeable:
            weight /= weight.sum()
        return result


@mutant("inputs unmutated")
class WritesToMask(Plain):
    """The mask is divided by the denominator in place after its use."""

    def solve(self, x: Array, target: Array, weight: Any, mask: Any, *args: Any) -> tuple[Any, Any]:
        result = super().solve(x, target, weight, mask, *args)
        if mask is not None and mask.dtype.kind == "f" and mask.flags.writeable:
            mask *= mask.dtype.type(0.5)
        return result


@mutant("axis and shape")
class AssumesTheLastAxis(Plain):
    """Rows are cut from memory as if the classes came last."""

    def rows(self, x: Array, axis: int) -> Array:
        return np.ascontiguousarray(x).reshape(-1, x.shape[axis])


@mutant("memory layout")
class AssumesCOrder(Plain):
    """Reads memory in the order in which it lies."""

    def rows(self, x: Array, axis: int) -> Array:
        return super().rows(np.ravel(x, order="K").reshape(x.shape), axis)


@mutant("axis and shape")
class OneClassIsBinary(Plain):
    """A single logit is taken for a binary decision."""

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        if x.shape[1] != 1:
            return right
        return Stats(right.p, right.one_minus_p, np.log1p(np.exp(-x)), right.lse)


@mutant("axis and shape", "class indices")
class PositionsFlattened(Plain):
    """Losses under "none" come as one flat axis."""

    def finish(self, value: Any, dtype: Any) -> Array:
        done = super().finish(value, dtype)
        return done.reshape(-1) if done.ndim != 1 and self.options["reduction"] == "none" and done.ndim < 2 else done


@mutant("class indices")
class PythonFloat(Plain):
    """Reduced losses are Python floats, not arrays."""

    def finish(self, value: Any, dtype: Any) -> Any:
        done = super().finish(value, dtype)
        return float(done) if done.ndim == 0 else done


@mutant("result dtype", "class indices")
class ResultInFloat32(Plain):
    """Half precision losses come as float32."""

    def finish(self, value: Any, dtype: Any) -> Array:
        return super().finish(value, "float32" if self.dtype(dtype).itemsize == 2 and not np.ndim(value) else dtype)


@mutant("result dtype")
class DtypeForgotten(Plain):
    """dtype= has no effect."""

    def implementation(self, name: str = "") -> Implementation:
        right = super().implementation(name)

        def loss(*args: Any, dtype: Any = None, **options: Any) -> Any:
            return right.loss(*args, **options)

        return Implementation(right.name, loss, right.terms, right.value_and_grad)


@mutant("result dtype")
class DtypeOfTheGradientToo(Plain):
    """dtype= changes the dtype of the gradient."""

    def gradient_dtype(self, x: Array) -> Any:
        return self.options["dtype"] or x.dtype


@mutant("batch invariance")
class CompanyChangesTheBits(Plain):
    """Rows are centred on the mean of their block first: the same on paper, not in bits."""

    def statistics(self, x: Array) -> Stats:
        centre = x.dtype.type(0 if not np.isfinite(x).all() else x.mean())
        right = super().statistics(x - centre)
        return Stats(right.p, right.one_minus_p, right.nll, right.lse + centre)


@mutant("invariances")
class DifferentEachTime(Plain):
    """Reductions in whatever order threads finish: here, an ulp that comes and goes."""

    calls = 0

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        type(self).calls += 1
        losses = super().position_losses(stats, t, v)
        return np.nextafter(losses, np.inf).astype(losses.dtype) if self.calls % 2 else losses


@mutant("invariances", "class indices")
class PositionDependent(Plain):
    """The first position of a call counts double."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        losses = super().position_losses(stats, t, v)
        if len(losses) > 1:
            losses[0] *= 2
        return losses


@mutant("mask", "normalizer", "class weights")
class TermsForgetTheWeights(Plain):
    """loss_terms counts positions."""

    def solve(self, *args: Any) -> tuple[Any, Any]:
        numerator, denominator = super().solve(*args)
        if args[-1]:
            denominator = self.finish(np.prod(np.asarray(args[1]).shape), denominator.dtype)
        return numerator, denominator


class Lenient(Plain):
    """Base of those that accept bad input: `mended` says what they do with it."""

    def mended(self, x: Array, target: Array, weight: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
        return x, target, weight, mask

    def solve(self, x: Array, target: Array, weight: Any, mask: Any, *args: Any) -> tuple[Any, Any]:
        return super().solve(*self.mended(x, target, weight, mask), *args)


@mutant("bad input")
class MaskBroadcasts(Lenient):
    """A mask that fits by broadcasting is taken."""

    def mended(self, x: Array, target: Array, weight: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
        if mask is not None and mask.ndim == 1 and x.ndim == 3 and mask.shape == x.shape[1:2]:
            mask = np.broadcast_to(mask, x.shape[:2])
        return x, target, weight, mask


@mutant("bad input")
class BoolTargets(Lenient):
    """Booleans are taken for class indices."""

    def mended(self, x: Array, target: Array, weight: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
        return x, target.astype(np.int64) if target.dtype == bool else target, weight, mask


@mutant("bad input")
class IntegerLogits(Lenient):
    """Integer logits are converted without a word."""

    def mended(self, x: Array, target: Array, weight: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
        return x.astype(np.float32) if x.dtype.kind == "i" else x, target, weight, mask


@mutant("bad input")
class OptionsUnchecked(Plain):
    """Options outside their range are used as they are."""

    def check(self, x: Array, target: Array, weight: Array | None, mask: Array | None) -> None:
        given = dict(self.options)
        for name in ("label_smoothing", "z_loss"):
            self.options[name] = DEFAULTS[name]
        super().check(x, target, weight, mask)
        self.options = given


@mutant("bad input")
class UnknownReductionIsMean(Plain):
    """Anything but "none" and "sum" is the mean."""

    def check(self, x: Array, target: Array, weight: Array | None, mask: Array | None) -> None:
        if self.options["reduction"] not in ("none", "sum"):
            self.options["reduction"] = "mean"
        super().check(x, target, weight, mask)


@mutant("invariances")
class ResultsShareABuffer(Plain):
    """Losses of one shape come in one buffer, which the next call writes to."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[Any, ...], Array] = {}

    def finish(self, value: Any, dtype: Any) -> Array:
        done = super().finish(value, dtype)
        buffer = self.buffers.setdefault((done.shape, done.dtype), np.empty_like(done))
        buffer[...] = done
        return buffer


@mutant("inputs unmutated")
class WritesToTheUpstreamGradient(Plain):
    """The upstream gradient is halved in place."""

    def solve(self, x: Array, target: Array, weight: Any, mask: Any, up: Any, *args: Any) -> tuple[Any, Any]:
        result = super().solve(x, target, weight, mask, up, *args)
        if up is not None and up.flags.writeable:
            up *= up.dtype.type(0.5)
        return result


@mutant("axis and shape", "combinations")
class FirstAxisByATranspose(Plain):
    """Classes along the first axis are moved by .T, which turns the positions around."""

    def rows(self, x: Array, axis: int) -> Array:
        return x.T.reshape(-1, x.shape[0]) if axis % x.ndim == 0 and x.ndim > 2 else super().rows(x, axis)


@mutant("z-loss")
class OneClassIsFree(Plain):
    """Of a single class nothing is computed, the z-loss neither."""

    def penalty(self, lse: Array) -> Array:
        return np.zeros_like(lse) if self.classes == 1 else super().penalty(lse)

    def statistics(self, x: Array) -> Stats:
        self.classes = x.shape[1]
        return super().statistics(x)
