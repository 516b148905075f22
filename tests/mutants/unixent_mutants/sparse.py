"""Wrong about sparse targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import unixent
from unixent import TopK
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, mutant

Call = tuple[Array, TopK, dict[str, Any]]


class RightSparse(Plain):
    """The sparse targets of the NumPy backend; each mutant changes what goes in or what comes out."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        """Other arguments."""
        return logits, target, options

    def for_gradient(self, wrt: str, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        """Other arguments where a gradient is asked."""
        return self.given(logits, target, options)

    def change(self, value: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        """Another value."""
        return value

    def implementation(self, name: str = "") -> Implementation:
        def loss(logits: Array, target: TopK, **options: Any) -> Array:
            x, topk, rest = self.given(logits, target, options)
            with np.errstate(all="ignore"):
                return np.asarray(self.change(unixent.cross_entropy(x, topk, **rest), logits, target, options))

        def value_and_grad(
            logits: Array, target: TopK, wrt: str = "logits", grad_output: Any = None, **options: Any
        ) -> tuple[Array, Array]:
            x, topk, rest = self.for_gradient(wrt, logits, target, options)
            gradient = unixent.value_and_grad(x, topk, wrt=wrt, grad_output=grad_output, **rest)[1]
            return loss(logits, target, **options), gradient

        plain = super().implementation(name)
        capabilities = frozenset(
            {
                "target:sparse",
                "dtype:mixed",
                *(f"dtype:{dtype}" for dtype in unixent.get_backend("numpy").capabilities.dtypes),
            }
        )
        return replace(plain, loss=loss, value_and_grad=value_and_grad, terms=None, capabilities=capabilities)


def but(target: TopK, ids: Any = None, values: Any = None, **changes: Any) -> TopK:
    """The target with others of its arrays."""
    ids, values = target.ids if ids is None else ids, target.values if values is None else values
    name = "probs" if target.log_probs is None else "log_probs"
    return TopK(ids, **{name: values.astype(target.values.dtype), "tail": target.tail, **changes})


def padding_of(target: TopK, options: dict[str, Any]) -> Array:
    return np.asarray(target.ids == options.get("ignore_index", -100))


def probabilities(target: TopK, options: dict[str, Any]) -> Array:
    """q_k, 0 at the padding, in float64."""
    values = target.values.astype(np.float64)
    return np.where(padding_of(target, options), 0, values if target.log_probs is None else np.exp(values))


def is_plain(logits: Array, target: TopK, options: dict[str, Any]) -> bool:
    """Whether the usual formulas are all that it takes."""
    rest = set(options) - {"reduction", "ignore_index"}
    return logits.ndim == 2 and not rest and options.get("reduction") == "none" and logits.dtype.itemsize == 4


class OtherTail(RightSparse):
    """One tail in the place of another."""

    tails: tuple[str, str]

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        return logits, but(target, tail=self.tails[1]) if target.tail == self.tails[0] else target, options


@mutant("sparse targets")
class NotRenormalised(OtherTail):
    """The K probabilities are kept as they are."""

    tails = ("renormalize", "drop")


@mutant("sparse targets")
class BucketIsDropped(OtherTail):
    """What the teacher gave other classes is left out."""

    tails = ("bucket", "drop")


@mutant("sparse targets")
class BucketIsRenormalised(OtherTail):
    """What the teacher gave other classes goes to its K."""

    tails = ("bucket", "renormalize")


@mutant("sparse targets")
class AlwaysRenormalised(OtherTail):
    """Dropped classes leave their share to the others."""

    tails = ("drop", "renormalize")


@mutant("sparse targets")
class PaddingCounts(RightSparse):
    """Padding is taken from the end of the classes."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        last = logits.shape[options.get("axis", -1)] - 1
        return logits, but(target, ids=np.where(padding_of(target, options), last, target.ids)), options


@mutant("sparse targets")
class PaddingIsDroppedFromTheMean(RightSparse):
    """A position of nothing but padding does not exist."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        exists = ~padding_of(target, options).all(axis=-1)
        return logits, target, {**options, "mask": options.get("mask", 1) * exists.astype(np.float64)}


@mutant("sparse targets")
class RepeatedIdsOverwrite(RightSparse):
    """Of ids that repeat the last counts."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        q, ids = target.values.copy(), target.ids
        for k in range(ids.shape[-1] - 1):
            q[..., k][(ids[..., k, None] == ids[..., k + 1 :]).any(axis=-1)] = (
                0 if target.log_probs is None else -np.inf
            )
        return logits, but(target, values=q), options


@mutant("sparse targets")
class WeightsOfTheTeacherForgotten(RightSparse):
    """Class weights are for class indices alone."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        return logits, target, {name: value for name, value in options.items() if name != "weight"}


@mutant("sparse targets")
class MeanOverTheMass(RightSparse):
    """The mean is over what the teacher kept."""

    def change(self, value: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        if options.get("reduction", "mean") != "mean" or "normalizer" in options:
            return value
        total, mask = probabilities(target, options).sum(axis=-1), options.get("mask", 1)
        return np.asarray(value * np.sum(mask * np.ones_like(total)) / np.sum(mask * total), value.dtype)


@mutant("sparse targets")
class SmoothingOverTheSelected(RightSparse):
    """The smoothed share is spread over the teacher's classes."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        s = options.get("label_smoothing", 0.0)
        if not s or target.log_probs is not None:
            return logits, target, options
        q = (1 - s) * target.values + s / target.ids.shape[-1]
        return logits, but(target, values=q), {**options, "label_smoothing": 0.0}


@mutant("sparse targets")
class LogarithmsAsProbabilities(RightSparse):
    """log_probs are not exponentiated."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        return logits, TopK(target.ids, probs=target.values, tail=target.tail), options


@mutant("sparse targets")
class RestOfRoundedProbabilities(RightSparse):
    """1 - Q of probabilities that have been rounded: nothing is left of a confident teacher."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        if target.log_probs is None:
            return logits, target, options
        return logits, TopK(target.ids, probs=np.exp(target.values), tail=target.tail), options


def bucket_terms(logits: Array, target: TopK, options: dict[str, Any]) -> tuple[Array, Array, Array]:
    """1 - Q, the exact L_rest and that of 1 - sum p in the dtype of the logits."""
    m = logits.max(axis=1, keepdims=True)
    p = np.exp(logits - m) / np.exp(logits - m).sum(axis=1, keepdims=True)
    selected = np.zeros(p.shape, bool)
    padding = padding_of(target, options)
    rows = np.broadcast_to(np.arange(len(p))[:, None], target.ids.shape)
    selected[rows[~padding], target.ids[~padding]] = True
    selected[selected.all(axis=1)] = False
    wide = np.exp(logits.astype(np.float64) - m)
    exact = -np.log(np.where(selected, 0, wide).sum(axis=1) / wide.sum(axis=1))
    usual = -np.log(1 - np.where(selected, p, 0).sum(axis=1, dtype=p.dtype))
    return 1 - probabilities(target, options).sum(axis=1), exact, usual


@mutant("sparse targets")
class RestIsOneMinusTheSum(RightSparse):
    """The student's rest is 1 - sum p, as it is rounded."""

    def change(self, value: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        if target.tail != "bucket" or not is_plain(logits, target, options):
            return value
        left, exact, usual = bucket_terms(logits, target, options)
        return np.asarray(value + np.maximum(left, 0) * (usual - exact), value.dtype)


@mutant("sparse targets")
class RestOfLessThanNothing(RightSparse):
    """A teacher whose probabilities sum to more than 1 has a bucket of negative probability."""

    def change(self, value: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        if target.tail != "bucket" or not is_plain(logits, target, options):
            return value
        left, exact, _ = bucket_terms(logits, target, options)
        return np.asarray(value + np.minimum(left, 0) * exact, value.dtype)


@mutant("sparse targets")
class IdsOutOfRangeArePadding(RightSparse):
    """An id that is no class adds nothing."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        classes = options.get("num_classes", logits.shape[options.get("axis", -1)])
        ids = np.where(target.ids >= classes, options.get("ignore_index", -100), target.ids)
        return logits, but(target, ids=ids), options


@mutant("sparse targets")
class IdsOutOfRangeAreClamped(RightSparse):
    """An id beyond the classes is taken for the last one."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        classes = options.get("num_classes", logits.shape[options.get("axis", -1)])
        return logits, but(target, ids=np.minimum(target.ids, classes - 1)), options


@mutant("sparse targets")
class GradientForgetsTheBucket(RightSparse):
    """The bucket is a constant to the logits."""

    def for_gradient(self, wrt: str, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        is_wrong = wrt == "logits" and target.tail == "bucket"
        return logits, but(target, tail="drop") if is_wrong else target, options


@mutant("sparse targets")
class TeacherForgetsTheBucket(RightSparse):
    """1 - Q is a constant to the probabilities."""

    def for_gradient(self, wrt: str, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        is_wrong = wrt == "target" and target.tail == "bucket"
        return logits, but(target, tail="drop") if is_wrong else target, options


@mutant("sparse targets")
class TeacherForgetsTheTotal(RightSparse):
    """Q is a constant to the probabilities."""

    def for_gradient(self, wrt: str, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        if wrt != "target" or target.tail != "renormalize" or target.log_probs is not None:
            return logits, target, options
        total = probabilities(target, options).sum(axis=-1, keepdims=True)
        return logits, but(target, values=target.values / np.where(total == 0, 1, total), tail="drop"), options


@mutant("sparse targets")
class AbsentClassesAreTheRest(RightSparse):
    """Classes that do not exist are among those that nobody selected."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        return logits, target, {name: value for name, value in options.items() if name != "num_classes"}
