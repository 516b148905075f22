"""The loss of positions whose classes lie on several processes: three passes over the logits, reductions between.

The statistics are those of `_rows`, spread out: the largest logit but the pivot's, then the sum of exponentials and
what only the pivot's process knows. With class indices the pivot is the target, and a position costs 3 numbers on the
wire (4 with smoothing); with probabilities it is the largest logit of all, whose process has to be found first (7
numbers). The gradient needs no more of them. A maximum may lose a NaN on its way, so NaN is left to travel in the sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent.protocol import LossProblem, Sharding
from unixent_numpy._groups import all_reduce, group_of
from unixent_numpy._layout import Array, Rows, Scratch, for_each_block, rows_per_block
from unixent_numpy._positions import Coefficients, Positions
from unixent_numpy._rows import RowStatistics, cap, finish, times, weigh


def split_losses(
    problem: LossProblem,
    positions: Positions,
    factors: Array | None,
    logits: Rows,
    probabilities: Rows | None,
    logits_grad: Rows | None,
    target_grad: Rows | None,
) -> Array:
    """The positions' losses; with ``factors`` the gradients are written too, over the logits themselves if need be."""
    split = SplitLoss(problem, positions, logits, probabilities)
    if factors is not None:
        split.gradient(factors, logits_grad, target_grad)
    losses: Array = split.losses
    return losses


class SplitLoss:
    """One call's local logits; ``losses`` and, with ``factors``, the gradients of this process's classes."""

    def __init__(self, problem: LossProblem, positions: Positions, logits: Rows, probabilities: Rows | None) -> None:
        assert problem.sharding is not None
        self._split: Sharding = problem.sharding
        self._options = problem.options
        self._positions = positions
        self._logits, self._probabilities = logits, probabilities
        self._fixed = Coefficients.of(problem)
        self._rank = 0 if self._split.model_group is None else group_of(self._split.model_group).rank
        self._first = self._split.vocab_start(self._rank)
        here = slice(self._first, self._first + logits.classes)
        self._base = self._fixed.base[here]
        weight = self._fixed.weight
        self._slope = np.full(logits.classes, self._fixed.share, problem.acc_dtype)
        if weight is not None:
            self._slope *= weight[here]
        self._kind = np.dtype(problem.acc_dtype)
        self._step = rows_per_block(logits.count, max(1, logits.classes), self._kind.itemsize)
        self._scratch = Scratch(self._step, logits.classes, self._kind)
        if probabilities is None:
            self._find_targets()
        else:
            self._find_largest()

    def _each(self, work: Any) -> None:
        """``work(rows, block)`` for all blocks of capped logits."""

        def read(start: int, stop: int) -> None:
            with np.errstate(all="ignore"):
                block = self._scratch.block("logits", stop - start)
                self._logits.read(start, stop, block)
                if self._options.softcap is not None:
                    cap(block, self._options.softcap, None)
                work(slice(start, stop), block)

        for_each_block(self._logits.count, self._step, read)

    def _largest(self, block: Array) -> Array:
        top: Array = block.max(axis=1, initial=-np.inf)
        return top

    def _exclude(self, rows: slice, block: Array) -> None:
        mine = self._mine[rows]
        block[mine, self._pivot[rows][mine]] = -np.inf

    def _find_targets(self) -> None:
        """Class indices: the pivot is the target, on the process that holds it."""
        assert self._positions.index is not None
        self._pivot = self._positions.index - self._first
        self._mine = (self._pivot >= 0) & (self._pivot < self._logits.classes)
        top, x_k = np.empty(self._logits.count, self._kind), np.zeros(self._logits.count, self._kind)

        def work(rows: slice, block: Array) -> None:
            mine = self._mine[rows]
            x_k[rows][mine] = block[mine, self._pivot[rows][mine]]
            self._exclude(rows, block)
            top[rows] = self._largest(block)

        self._each(work)
        self._top = all_reduce(top, self._split.model_group, "MAX")
        self._x_k = x_k
        self._sum(own=x_k)

    def _find_largest(self) -> None:
        """Probabilities: the pivot is the largest logit, on the first process that holds one as large."""
        count, group = self._logits.count, self._split.model_group
        first, second = np.empty(count, self._kind), np.empty(count, self._kind)
        self._pivot = np.zeros(count, np.intp)

        def work(rows: slice, block: Array) -> None:
            first[rows] = self._largest(block)
            if block.shape[1]:
                self._pivot[rows] = block.argmax(axis=1)
                block[np.arange(len(block)), self._pivot[rows]] = -np.inf
            second[rows] = self._largest(block)

        self._each(work)
        own = first.copy()
        self._x_k = all_reduce(first, group, "MAX")
        holds = (own == self._x_k) & (self._logits.classes > 0)
        owner = all_reduce(np.where(holds, -self._rank, -np.inf).astype(self._kind), group, "MAX")
        self._mine = holds & (owner == -self._rank)
        self._top = all_reduce(np.where(self._mine, second, own), group, "MAX")
        self._sum(own=None)

    def _sum(self, own: Array | None) -> None:
        """Sums of exponentials and of weighted gaps, over the classes of all processes."""
        count = self._logits.count
        self._shift = np.where(np.isneginf(self._top), 0, self._top)
        mixed = own is None
        # With indices: the exponentials, the target's logit and, under smoothing, the gaps. With probabilities: the
        # exponentials, the gaps, the shares of all classes but the pivot, and the pivot's.
        parts = np.zeros((4 if mixed else 3 if self._options.label_smoothing else 2, count), self._kind)
        if own is not None:
            parts[1] = own

        def work(rows: slice, block: Array) -> None:
            if mixed or len(parts) == 3:
                gaps = self._scratch.block("gaps", len(block))
                level = self._x_k if mixed else self._shift
                np.subtract(level[rows][:, None], block, out=gaps)
                mine = self._mine[rows]
                at = self._pivot[rows][mine]
                gaps[mine, at] = 0
                if mixed:
                    shares = self._shares(rows)
                    parts[3, rows][mine] = shares[mine, at]
                    weigh(gaps, shares)
                    parts[1, rows] = gaps.sum(axis=1)
                    shares[mine, at] = 0
                    parts[2, rows] = shares.sum(axis=1)
                else:
                    weigh(gaps, self._base)
                    parts[2, rows] = gaps.sum(axis=1)
            self._exclude(rows, block)
            block -= self._shift[rows][:, None]
            np.exp(block, out=block)
            parts[0, rows] = block.sum(axis=1)

        self._each(work)
        parts = all_reduce(parts, self._split.model_group, "SUM")
        if own is not None:
            self._x_k = parts[1]
        # Where no other class is left the pivot is its own shift, as in `pivot_statistics`.
        self._found = finish(np.where(np.isneginf(self._top), self._x_k, self._shift), self._x_k, parts[0])
        self._weigh(parts)

    def _shares(self, rows: slice) -> Array:
        """The coefficients t_c of a block under probability targets."""
        assert self._probabilities is not None
        shares = self._scratch.block("shares", rows.stop - rows.start)
        self._probabilities.read(rows.start, rows.stop, shares)
        shares *= self._slope
        shares += self._base
        return shares

    def _weigh(self, parts: Array) -> None:
        """The losses, the pivot's share t_k, and the others' share, from the reduced parts."""
        found, fixed, positions = self._found, self._fixed, self._positions
        if positions.index is None:
            spread, self._others, self._own = parts[1], parts[2], parts[3]
            loss = spread + (self._others + self._own) * found.loss
        else:
            target = (
                np.full(len(found.loss), fixed.share, self._kind)
                if positions.w is None
                else (fixed.share * positions.w)
            )
            self._own = target + fixed.base[positions.index]
            self._others = fixed.without[positions.index]
            loss = times(self._own, found.loss)
            if self._options.label_smoothing:
                loss = loss + parts[2] + times(self._others, found.rise)
        if self._options.z_loss:
            loss = loss + self._options.z_loss * np.square(found.lse)
        self.losses = loss * positions.v
        self._settle(slice(None), self.losses)

    def _settle(self, rows: slice, values: Array) -> None:
        values[self._positions.v[rows] == 0] = 0
        if self._positions.invalid is not None:
            values[self._positions.invalid[rows]] = np.nan

    def gradient(self, factors: Array, logits_grad: Rows | None, target_grad: Rows | None) -> None:
        """Write the gradients of this process's classes; nothing is communicated."""
        found: RowStatistics = self._found
        pull = 2 * self._options.z_loss * found.lse if self._options.z_loss else np.zeros_like(found.lse)
        push = (self._others + self._own + pull) * found.scale
        at_pivot = self._others * found.p - self._own * found.q + pull * found.p

        def work(start: int, stop: int) -> None:
            with np.errstate(all="ignore"):
                rows = slice(start, stop)
                block = self._scratch.block("logits", stop - start)
                self._logits.read(start, stop, block)
                slope = None
                if self._options.softcap is not None:
                    slope = self._scratch.block("slope", stop - start)
                    cap(block, self._options.softcap, slope)
                if target_grad is not None:
                    gaps = self._scratch.block("gaps", stop - start)
                    np.subtract((self._x_k[rows])[:, None], block, out=gaps)
                    gaps += found.loss[rows][:, None]
                    weigh(gaps, self._slope)
                    gaps *= factors[rows][:, None]
                    self._settle(rows, gaps)
                    target_grad.write(start, stop, gaps)
                if logits_grad is None:
                    return
                self._exclude(rows, block)
                block -= self._shift[rows][:, None]
                np.exp(block, out=block)
                block *= push[rows][:, None]
                block -= self._base if self._probabilities is None else self._shares(rows)
                mine = self._mine[rows]
                block[mine, self._pivot[rows][mine]] = at_pivot[rows][mine]
                block *= factors[rows][:, None]
                if slope is not None:
                    block *= slope
                self._settle(rows, block)
                logits_grad.write(start, stop, block)

        with np.errstate(all="ignore"):
            for_each_block(self._logits.count, self._step, work)
