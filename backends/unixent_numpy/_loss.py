"""The loss of a block of rows, and its gradient in the same place."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent.protocol import LossProblem
from unixent_numpy._layout import Array, Rows, Scratch
from unixent_numpy._positions import Coefficients, Positions
from unixent_numpy._rows import cap, pivot_statistics, times, weigh


def plain_block(block: Array, index: Array, w: Array | None, z_loss: float, coefficient: Array | None) -> Array:
    """Losses for class indices without smoothing; with a coefficient per row the block becomes the gradient."""
    found = pivot_statistics(block, index)
    loss = found.loss if w is None else times(w, found.loss)
    if z_loss:
        loss = loss + z_loss * np.square(found.lse)
    if coefficient is not None:
        pull = 1 if w is None else w
        push = pull + 2 * z_loss * found.lse if z_loss else pull
        block *= (coefficient * push * found.scale)[:, None]
        own = -pull * found.q
        if z_loss:
            own = own + 2 * z_loss * found.lse * found.p
        block[np.arange(len(block)), index] = coefficient * own
    return loss


def mixed_block(
    block: Array,
    gaps: Array,
    index: Array | None,
    probabilities: Array | None,
    w: Array | None,
    fixed: Coefficients,
    z_loss: float,
    coefficient: Array | None,
    target_grad: Array | None,
) -> Array:
    """Smoothing or probabilities: every class of a row has a coefficient t_c, and the pivot is the row's maximum.

        loss = sum_c t_c (x_j - x_c) + T L_j,      T = sum_c t_c
        d loss / d x_c = T p_c - t_c (c != j),      d loss / d x_j = (T - t_j) p_j - t_j (1 - p_j)

    ``gaps`` is scratch, ``probabilities`` is overwritten, and ``target_grad``, where given, receives the gradient of
    the probabilities.
    """
    rows = np.arange(len(block))
    top = block.argmax(axis=1)
    np.subtract(block[rows, top][:, None], block, out=gaps)
    found = pivot_statistics(block, top)
    if target_grad is not None and coefficient is not None:
        slope = (
            np.full(block.shape[1], fixed.share, block.dtype) if fixed.weight is None else fixed.share * fixed.weight
        )
        np.add(gaps, found.loss[:, None], out=target_grad)
        weigh(target_grad, slope)
        target_grad *= coefficient[:, None]
    own: Any = None
    if index is not None:
        shares = fixed.base
        own = np.full(len(block), fixed.share, block.dtype) if w is None else fixed.share * w
        at_target = times(own, gaps[rows, index])
        total = fixed.total + own
        top_share = fixed.base[top] + np.where(top == index, own, 0)
        others = fixed.without[top] + np.where(top == index, 0, own)
    else:
        assert probabilities is not None
        shares = probabilities
        shares *= fixed.share
        if fixed.weight is not None:
            shares *= fixed.weight
        shares += fixed.base
        at_target = np.zeros(len(block), block.dtype)
        total = shares.sum(axis=1)
        top_share = shares[rows, top]
    weigh(gaps, shares)
    loss: Array = gaps.sum(axis=1) + at_target + total * found.loss
    if z_loss:
        loss = loss + z_loss * np.square(found.lse)
    if coefficient is None:
        return loss
    push = total + 2 * z_loss * found.lse if z_loss else total
    block *= (push * found.scale)[:, None]
    block -= shares
    if index is not None:
        block[rows, index] -= own
    else:
        shares[rows, top] = 0
        others = shares.sum(axis=1)
    at_top = others * found.p - top_share * found.q
    if z_loss:
        at_top = at_top + 2 * z_loss * found.lse * found.p
    block[rows, top] = at_top
    block *= coefficient[:, None]
    return loss


class BlockLoss:
    """The loss of one problem, a block of rows at a time; ``losses`` fills up with the positions' losses.

    With ``factors`` (see `row_factors`) a block of logits becomes the block of its gradient; with ``target_grad`` the
    gradient of the probabilities is written there.
    """

    def __init__(
        self,
        problem: LossProblem,
        positions: Positions,
        factors: Array | None,
        probabilities: Rows | None,
        target_grad: Rows | None,
        scratch: Scratch,
    ) -> None:
        self._options = problem.options
        self._positions = positions
        self._off = positions.v == 0
        self._factors = factors
        self._probabilities = probabilities
        self._target_grad = target_grad
        self._scratch = scratch
        mixed = probabilities is not None or problem.options.label_smoothing > 0
        self._fixed = Coefficients.of(problem) if mixed else None
        self.losses = np.empty(len(positions.v), problem.acc_dtype)

    def __call__(self, start: int, stop: int, block: Array) -> None:
        """Work the rows ``start`` to ``stop``, whose logits ``block`` holds and loses."""
        # Infinities and NaN are part of the semantics, not accidents to warn of; the state is a thread's own.
        with np.errstate(all="ignore"):
            self._work(slice(start, stop), block)

    def _work(self, rows: slice, block: Array) -> None:
        options, positions, scratch = self._options, self._positions, self._scratch
        slope = None
        if options.softcap is not None:
            slope = None if self._factors is None else scratch.block("slope", len(block))
            cap(block, options.softcap, slope)
        index = None if positions.index is None else positions.index[rows]
        w = None if positions.w is None else positions.w[rows]
        factors = None if self._factors is None else self._factors[rows]
        shares = target_grad = None
        if self._fixed is None:
            assert index is not None
            loss = plain_block(block, index, w, options.z_loss, factors)
        else:
            if self._probabilities is not None:
                shares = scratch.block("shares", len(block))
                self._probabilities.read(rows.start, rows.stop, shares)
            if self._target_grad is not None:
                target_grad = scratch.block("target", len(block))
            gaps = scratch.block("gaps", len(block))
            loss = mixed_block(block, gaps, index, shares, w, self._fixed, options.z_loss, factors, target_grad)
        if slope is not None:
            block *= slope
        loss = loss * positions.v[rows]
        self._settle(rows, loss)
        self.losses[rows] = loss
        if factors is not None:
            self._settle(rows, block)
        if self._target_grad is not None and target_grad is not None:
            self._settle(rows, target_grad)
            self._target_grad.write(rows.start, rows.stop, target_grad)

    def _settle(self, rows: slice, values: Array) -> None:
        """What a position without weight or with an invalid target comes to, whatever was computed for it."""
        values[self._off[rows]] = 0
        if self._positions.invalid is not None:
            values[self._positions.invalid[rows]] = np.nan
