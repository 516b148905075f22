"""Wrong at the ends: about classes that do not exist, infinities under a softcap, options that no float32 holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.linear import Inputs, PlainLinear
from unixent_mutants.plain import Plain, Stats, mutant


@mutant("minus infinity padding")
class CapRevivesMinusInfinity(Plain):
    """a tanh(-inf / a) is -a: a class that is masked by -inf has a probability again."""

    def cap(self, x: Array) -> Array:
        a = self.options["softcap"]
        return x if a is None else np.asarray(x.dtype.type(a) * np.tanh(x / x.dtype.type(a)))


@mutant("softcap")
class CapRevivesBlockPadding(Plain):
    """A block is a power of two of classes: what is beyond those of the row is -inf when loaded, and -a once capped
    (unsloth #10616)."""

    def statistics(self, x: Array) -> Stats:
        a, classes = self.options["softcap"], x.shape[1]
        if a is None:
            return super().statistics(x)
        beyond = (1 << (classes - 1).bit_length()) - classes
        right = super().statistics(np.pad(x, ((0, 0), (0, beyond)), constant_values=x.dtype.type(-a)))
        return Stats(right.p[:, :classes], right.one_minus_p[:, :classes], right.nll[:, :classes], right.lse)


@mutant("minus infinity padding")
class CapGradientTimesInfinity(Plain):
    """sech^2 from the capped logits, 1 - (x'/a)^2: at -inf that is -inf, times a gradient of 0."""

    def softcap_grad(self, x: Array) -> Array:
        a = self.options["softcap"]
        return super().softcap_grad(x) if a is None else np.where(np.isinf(x), -np.inf, super().softcap_grad(x))


@mutant("num_classes")
class PaddingTakesPartInSmoothing(Plain):
    """The smoothed share is s/C with the C of the padded vocabulary."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        coefs = super().target_coefs(q, w, indices)
        if self.options["num_classes"] is None:
            return coefs
        s = q.dtype.type(self.options["label_smoothing"])
        return np.asarray(coefs - w * s / q.dtype.type(q.shape[1]) + w * s / q.dtype.type(q.shape[1] + 3))


class Masked(Plain):
    """Padding by what is added to or put in the place of its logits."""

    fill = -np.inf

    def solve(self, x: Array, target: Array, weight: Any, *rest: Any) -> tuple[Any, Any]:
        self.check(x, target, weight, rest[0])
        known, axis = self.options["num_classes"], self.options["axis"]
        self.known = known
        if known is not None:
            self.options["num_classes"] = None
            exists = np.arange(x.shape[axis]) < known
            shaped = np.expand_dims(exists, [i for i in range(x.ndim) if i != axis % x.ndim])
            x = self.filled(x, shaped)
            if target.dtype.kind not in "iu":
                target = np.where(shaped, target, 0).astype(target.dtype)
            weight = np.pad(np.ones(known, x.dtype) if weight is None else weight, (0, len(exists) - known))
        return super().solve(x, target, weight, *rest)

    def filled(self, x: Array, exists: Array) -> Array:
        return np.where(exists, x, self.fill).astype(x.dtype)

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        """The smoothed share is one of the classes that exist all the same."""
        right = super().target_coefs(q, w, indices)
        known, s = self.known or q.shape[1], q.dtype.type(self.options["label_smoothing"])
        return np.asarray(right + w * s * q.dtype.type(1 / known - 1 / q.shape[1]))


@mutant("num_classes")
class PaddingMaskIsAdded(Masked):
    """-inf is added to the padding's logits: NaN + -inf is NaN."""

    def filled(self, x: Array, exists: Array) -> Array:
        return (x + np.where(exists, 0, -np.inf)).astype(x.dtype)


@mutant("num_classes")
class PaddingIsMinusTenThousand(Masked):
    """The padding's logits become -1e4, which a softcap brings back."""

    fill = -1e4


@mutant("num_classes")
class PaddingAcceptsTargets(Masked):
    """The range of an index is that of the padded vocabulary: a target in the padding has an infinite loss."""


@mutant("num_classes")
class PaddingGradientIsMultiplied(Plain):
    """The padding's gradient is 0 times what it holds: NaN and infinities stay."""

    def solve(self, x: Array, *rest: Any) -> tuple[Any, Any]:
        self.held = x
        return super().solve(x, *rest)

    def pad_classes(self, gradient: Array, like: Array, axis: int) -> Array:
        whole = super().pad_classes(gradient, like, axis)
        exists = super().pad_classes(np.ones_like(gradient), like, axis) != 0
        return np.where(exists, whole, like * 0).astype(whole.dtype)


@mutant("num_classes")
class PaddingOfProbabilitiesCounts(Plain):
    """The last class also has the probabilities of the padding."""

    def solve(self, x: Array, target: Array, *rest: Any) -> tuple[Any, Any]:
        known, axis = self.options["num_classes"], self.options["axis"]
        if known is not None and target.dtype.kind == "f" and target.shape == x.shape:
            target = np.moveaxis(target.copy(), axis, -1)
            target[..., known - 1] += target[..., known:].sum(axis=-1)
            target = np.moveaxis(target, -1, axis)
        return super().solve(x, target, *rest)


@mutant("fused linear padding")
class HiddenGradientThroughPadding(PlainLinear):
    """The gradient of hidden multiplies the classifier's padding by 0: NaN and infinities stay."""

    def linear(self, hidden: Any, classifier: Any, *rest: Any) -> Any:
        self.unused = classifier[rest[-1].get("num_classes", len(classifier)) :]
        return super().linear(hidden, classifier, *rest)

    def hidden_gradient(self, logits_grad: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        return np.asarray(super().hidden_gradient(logits_grad, given, acc) + (0 * self.unused.astype(acc)).sum(axis=0))


@mutant("fused linear padding")
class BiasPaddingKept(PlainLinear):
    """A padded bias of -inf is capped to -a."""

    cap = CapRevivesMinusInfinity.cap


@mutant("confident softcap")
class CapRoundedTwice(Plain):
    """The loss and the maximum take capped logits of different roundings, as two fusions of a compiler may."""

    def cap(self, x: Array) -> Array:
        a = self.options["softcap"]
        self.again = None if a is None else (a * np.tanh(x.astype(np.longdouble) / a)).astype(x.dtype)
        return super().cap(x)

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        if self.again is None:
            return right
        apart = self.again.max(axis=1) - x.max(axis=1)
        return Stats(right.p, right.one_minus_p, right.nll + apart[:, None], right.lse)


@mutant("extreme options")
class CapRoundedToTheDtype(Plain):
    """A softcap of 1e300 is infinite in float32, one of 1e-50 is 0."""

    def representable(self, a: float, dtype: np.dtype[Any]) -> Any:
        return dtype.type(a)


@mutant("extreme options")
class NormalizerRoundedToTheDtype(Plain):
    """A normalizer of 1e-50 is 0 in float32, and the mean empty."""

    def denominator(self, d: Array) -> Any:
        normalizer = self.options["normalizer"]
        return super().denominator(d) if normalizer is None else d.dtype.type(normalizer)


@mutant("extreme options")
class MeanOfAnOverflowingSum(Plain):
    """The sum of finite losses is infinite, and so is their mean."""

    def mean_of(self, losses: Array, denominator: Any) -> tuple[Any, Any]:
        return self.mean(self.sum_positions(losses), denominator)


@mutant("empty mean of NaN")
class EmptyMeanHidesNaN(Plain):
    """A mean over nothing is 0 without a look at what it is a mean of."""

    def mean(self, numerator: Any, denominator: Any) -> tuple[Any, Any]:
        return super().mean(np.nan_to_num(numerator) if denominator == 0 else numerator, denominator)


@mutant("broadcast mask")
class MaskRepeated(Plain):
    """A mask of fewer elements is repeated until it is long enough, not broadcast."""

    def broadcast(self, mask: Array | None, positions: tuple[int, ...]) -> Array | None:
        return None if mask is None else np.resize(mask, positions)
