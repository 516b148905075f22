"""Wrong in how a loss is put together from parts: classes or positions that were split over processes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, Stats, mutant

PARTS = 2


def parts(size: int) -> list[slice]:
    """The share of each of the processes, as equal as can be."""
    cuts = [size * part // PARTS for part in range(PARTS + 1)]
    return [slice(first, last) for first, last in pairwise(cuts)]


def shift_lse(stats: Stats, change: Array) -> Stats:
    """The statistics of rows whose log-normaliser came out wrong by ``change``."""
    return Stats(stats.p * np.exp(-change)[:, None], stats.one_minus_p, stats.nll + change[:, None], stats.lse + change)


@mutant("class indices", "class probabilities")
class EachPartItsOwnMaximum(Plain):
    """The parts' sums of exponentials are added without the common maximum they should be relative to."""

    def statistics(self, x: Array) -> Stats:
        top = x.max(axis=1)
        sums = [
            np.exp(x[:, part] - x[:, part].max(axis=1, keepdims=True)).sum(axis=1)
            for part in parts(x.shape[1])
            if part.stop > part.start
        ]
        stats = super().statistics(x)
        return shift_lse(stats, (top + np.log(np.sum(sums, axis=0))).astype(x.dtype) - stats.lse)


@mutant("class indices", "class probabilities")
class GatheredAndReduced(Plain):
    """Every process holds all classes and the sums are added all the same: the loss is off by the log of their number
    (Megatron-LM #7452)."""

    def statistics(self, x: Array) -> Stats:
        return shift_lse(super().statistics(x), np.full(len(x), np.log(PARTS), x.dtype))


@mutant("class indices")
class TargetsByLocalIndex(Plain):
    """The first class of the part is not subtracted: a target of the second part is looked up in the first."""

    def one_hot(self, y: Array, classes: int, acc: np.dtype[Any]) -> Array:
        return super().one_hot(y % max(1, parts(classes)[0].stop), classes, acc)


@mutant("class indices")
class TargetsOfOtherPartsAreZero(Plain):
    """The target's logit is not summed over the parts: only those of the first part are seen."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        seen = np.arange(t.shape[1]) < max(1, parts(t.shape[1])[0].stop)
        return super().position_losses(stats, np.where(seen, t, 0), v)


@mutant("label smoothing")
class SmoothingOverThePart(Plain):
    """The uniform part is spread over the classes of one process and averaged there (Megatron-LM #737)."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        s = q.dtype.type(self.options["label_smoothing"])
        first = parts(q.shape[1])[0]
        local = np.zeros_like(q)
        if first.stop:
            local[:, first] = s / q.dtype.type(first.stop)
        return np.asarray(w * ((1 - s) * q + local))


@mutant("class indices", "class probabilities")
class UnevenTailDropped(Plain):
    """Classes beyond a whole number for each process take no part in the normaliser."""

    def statistics(self, x: Array) -> Stats:
        whole = x.shape[1] - x.shape[1] % PARTS
        if not whole:
            return super().statistics(x)
        stats = super().statistics(x)
        return shift_lse(stats, super().statistics(x[:, :whole]).lse - stats.lse)


@mutant("class indices", "class probabilities")
class GradientTimesTheProcesses(Plain):
    """Differentiated through the reduction: the gradient is as many times too large as there are processes."""

    def position_gradients(self, stats: Stats, t: Array, v: Array) -> Array:
        return PARTS * super().position_gradients(stats, t, v)


@mutant("NaN")
class NanLostOnTheWay(Plain):
    """A maximum that passes over NaN, and sums that follow it."""

    def statistics(self, x: Array) -> Stats:
        return super().statistics(np.where(np.isnan(x), -np.inf, x).astype(x.dtype))


@mutant("ignore_index", "mask")
class MeanOfTheParts(Plain):
    """The mean of the processes' means, though they hold different numbers of positions that count."""

    def solve(self, x: Array, target: Array, *rest: Any) -> tuple[Any, Any]:
        self._denominators = np.zeros(0)
        return super().solve(x, target, *rest)

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        self._denominators = super().denominators(v, w, q, indices)
        return self._denominators

    def sum_positions(self, rows: Array) -> Any:
        d = self._denominators
        sums = [d[part].sum() for part in parts(len(d))]
        if self.options["reduction"] != "mean" or rows is d or not all(sums):
            return super().sum_positions(rows)
        means = [rows[part].sum() / own for part, own in zip(parts(len(d)), sums, strict=True)]
        return rows.dtype.type(np.mean(means) * d.sum())


@mutant("ignore_index", "mask")
class DenominatorOfOneProcess(Plain):
    """The loss is summed over all processes and divided by what counts on the first."""

    def denominator(self, d: Array) -> Any:
        own = d[parts(len(d))[0]]
        return super().denominator(own if own.any() else d)


@mutant("class indices", "class probabilities")
class LastProcessForgotten(Plain):
    """The positions of the last process never reach the sum."""

    def blocks(self, n: int) -> Iterator[slice]:
        yield slice(0, max(1, parts(n)[0].stop))
