"""Wrong about the statistics of positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import unixent
from unixent import PositionStats
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, mutant


class RightStats(Plain):
    """The statistics of the NumPy backend; each mutant changes one of them."""

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        """Another value of an output."""
        return value

    def change_gradient(self, name: str, grad: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        """Another gradient of an output."""
        return grad

    def given(self, logits: Array, target: Array, options: dict[str, Any]) -> tuple[Array, Array, dict[str, Any]]:
        """Other arguments."""
        return logits, target, options

    def implementation(self, name: str = "") -> Implementation:
        def position_stats(logits: Array, target: Array, outputs: tuple[str, ...], **options: Any) -> PositionStats:
            given, y, rest = self.given(logits, target, options)
            stats = unixent.position_stats(given, y, outputs=outputs, **rest)
            with np.errstate(all="ignore"):
                changed = self.change(outputs[0], getattr(stats, outputs[0]), logits, target, options)
            return PositionStats(**{outputs[0]: np.asarray(changed)})

        def stats_and_grad(
            logits: Array, target: Array, outputs: tuple[str, ...], grad_output: Any = None, **options: Any
        ) -> tuple[PositionStats, Array]:
            given, y, rest = self.given(logits, target, options)
            _, grad = unixent.position_stats_and_grad(given, y, outputs=outputs, grad_output=grad_output, **rest)
            up = getattr(grad_output, outputs[0])
            with np.errstate(all="ignore"):
                changed = self.change_gradient(outputs[0], grad, logits, target, {**options, "up": up})
            return position_stats(logits, target, outputs, **options), changed

        return replace(
            super().implementation(name), position_stats=position_stats, position_stats_and_grad=stats_and_grad
        )


def is_plain(logits: Array, options: dict[str, Any]) -> bool:
    """Whether the usual formulas are all that it takes."""
    rest = set(options) - {"ignore_index", "k", "selected", "up"}
    return logits.ndim == 2 and not rest and logits.dtype.itemsize > 2


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@mutant("statistics")
class EntropyWithoutShift(RightStats):
    """exp of the logits as they are."""

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name != "entropy" or not is_plain(logits, options):
            return value
        e = np.exp(logits)
        p = e / e.sum(axis=1, keepdims=True)
        return np.asarray(-(p * np.log(p)).sum(axis=1))


@mutant("statistics")
class EntropyNaNAtZero(RightStats):
    """p log p where p is 0."""

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name != "entropy" or not is_plain(logits, options):
            return value
        p = softmax(logits)
        return np.where((p == 0).any(axis=1), np.nan, value).astype(value.dtype)


@mutant("statistics")
class EntropyOfLogSoftmax(RightStats):
    """-sum p log p of a log-softmax, which has lost a confident row."""

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name != "entropy" or not is_plain(logits, options):
            return value
        m = logits.max(axis=1, keepdims=True)
        log_p = (logits - m) - np.log(np.exp(logits - m).sum(axis=1, keepdims=True))
        naive = -np.where(np.isneginf(log_p), 0, np.exp(log_p) * log_p).sum(axis=1)
        return np.where(np.isnan(value) | (value == 0), value, naive).astype(value.dtype)


@mutant("statistics")
class LogProbIsLogitMinusLse(RightStats):
    """x_y - lse: 0 for a confident row."""

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name != "log_prob" or not is_plain(logits, options):
            return value
        m = logits.max(axis=1)
        lse = m + np.log(np.exp(logits - m[:, None]).sum(axis=1))
        own = logits[np.arange(len(target)), np.clip(target, 0, logits.shape[1] - 1)]
        return np.where(np.isnan(value) | (value == 0), value, own - lse).astype(value.dtype)


@mutant("statistics")
class LogSumSqOfProbabilities(RightStats):
    """log of the sum of squares, as they are rounded."""

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name != "log_sum_sq" or not is_plain(logits, options):
            return value
        naive = np.log(np.square(softmax(logits)).sum(axis=1))
        return np.where(np.isnan(value) | (value == 0), value, naive).astype(value.dtype)


@mutant("statistics")
class EntropyGradientWithoutItsMean(RightStats):
    """p L for p (L - H)."""

    def change_gradient(self, name: str, grad: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name != "entropy" or not is_plain(logits, options):
            return grad
        p = softmax(logits)
        entropy = -np.where(p == 0, 0, p * np.log(p)).sum(axis=1)
        return np.asarray(grad + (options["up"] * entropy)[:, None] * p, dtype=grad.dtype)


@mutant("statistics")
class RepeatedSelectionOverwrites(RightStats):
    """The gradient of a class that is selected twice has one of the two."""

    def change_gradient(self, name: str, grad: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name != "selected_log_prob" or not is_plain(logits, options):
            return grad
        selected, up = options["selected"], options["up"]
        again = (selected[:, 0] == selected[:, 2]) & (selected[:, 0] >= 0)
        changed: Array = grad.copy()
        changed[np.flatnonzero(again), selected[again, 0]] -= up[again, 0]
        return changed


@mutant("statistics")
class RankCountsEqualLogits(RightStats):
    """How many classes are not below the target, whatever their order."""

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name != "rank" or not is_plain(logits, options):
            return value
        own = logits[np.arange(len(target)), np.clip(target, 0, logits.shape[1] - 1)]
        return np.where(value < 0, value, (logits >= own[:, None]).sum(axis=1) - 1)


@mutant("statistics")
class LastOfEqualPredictions(RightStats):
    """The highest of the largest classes."""

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name != "prediction" or not is_plain(logits, options):
            return value
        return np.where(value < 0, value, logits.shape[1] - 1 - np.argmax(logits[:, ::-1], axis=1))


@mutant("statistics")
class TopOfEqualClassesInAnyOrder(RightStats):
    """The top classes by an order that turns equal ones around."""

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name != "top_index" or not is_plain(logits, options):
            return value
        order = np.argsort(logits, axis=1, kind="stable")[:, ::-1][:, : value.shape[1]]
        return np.where(value < 0, value, order)


@mutant("statistics")
class OutOfRangeIsClamped(RightStats):
    """An index beyond the classes is taken for the last one."""

    def given(self, logits: Array, target: Array, options: dict[str, Any]) -> tuple[Array, Array, dict[str, Any]]:
        classes = options.get("num_classes", logits.shape[options.get("axis", -1)])
        return logits, np.where(target >= classes, classes - 1, target), options


@mutant("statistics")
class MaskIsForTheLossAlone(RightStats):
    """What is masked keeps its statistics."""

    def given(self, logits: Array, target: Array, options: dict[str, Any]) -> tuple[Array, Array, dict[str, Any]]:
        return logits, target, {name: value for name, value in options.items() if name != "mask"}


@mutant("statistics")
class PaddingIsSelected(RightStats):
    """What pads the selection is taken from the end of the classes."""

    def given(self, logits: Array, target: Array, options: dict[str, Any]) -> tuple[Array, Array, dict[str, Any]]:
        if "selected" not in options:
            return logits, target, options
        classes, selected = logits.shape[options.get("axis", -1)], options["selected"]
        padding = selected == options.get("ignore_index", -100)
        return logits, target, {**options, "selected": np.where(padding, classes - 1, selected)}


@mutant("statistics")
class PaddingTakesPart(RightStats):
    """Classes that do not exist are as likely as their logits say."""

    def given(self, logits: Array, target: Array, options: dict[str, Any]) -> tuple[Array, Array, dict[str, Any]]:
        return logits, target, {name: value for name, value in options.items() if name != "num_classes"}
