"""The arithmetic of one block of rows: statistics by a pivot, and the losses and gradients made of them.

A block is a C-contiguous [rows, C] array of the accumulation dtype that is overwritten. Every reduction runs along a
row, so that the bits of a row do not depend on which block it is in. `unixent.pivot` defines the pivot and what
follows from it: with class indices it is the target, and otherwise the largest logit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unixent.logit_transform import LogitTransform
from unixent.pivot import RowStats, row_stats
from unixent.semantics import SmoothingCoefs, product, smoothing_coefs
from unixent_numpy.compat import Array
from unixent_numpy.kernel.spec import KernelSpec


def pivot_stats(block: Array, pivot: Array) -> RowStats:
    """Statistics of the rows of ``block``, which is overwritten with e (0 at the pivot)."""
    rows = np.arange(len(block))
    pivot_logit = block[rows, pivot]
    block[rows, pivot] = -np.inf
    largest = block.max(axis=1)
    # Without any other class (C = 1, or all of them -inf) the pivot is its own shift, so that D = 0 and R = 0; a row of
    # only -inf becomes NaN by -inf - -inf, and so does one with +inf.
    shift = np.where(np.isneginf(largest), pivot_logit, largest)
    block -= shift[:, None]
    np.exp(block, out=block)
    return row_stats(np, shift, pivot_logit, block.sum(axis=1))


def multiply(values: Array, coefs: Array) -> None:
    """``values *= coefs``, where a coefficient of 0 gives 0 whatever the value."""
    values *= coefs
    zero = coefs == 0
    if zero.any():
        np.copyto(values, 0, where=zero)


def scale_rows(values: Array, scale: Array) -> None:
    """``values *= scale`` with one factor a row and 0 * inf = 0; NaN stays NaN."""
    zero = scale == 0
    if zero.any():
        values[zero] = np.where(np.isinf(values[zero]), 0, values[zero])
    values *= scale[:, None]


def apply_transform(block: Array, transform: LogitTransform, softcap_grad: Array | None) -> None:
    """Replace x by x' = b a tanh(x / a), and fill ``softcap_grad``, where given, with sech^2(x / a).

    Infinities stay, with derivative 0: a class of probability 0 is one whatever the cap.
    """
    softcap, inverse_temperature = transform
    if softcap is not None:
        infinite = np.isinf(block)
        infinities = block[infinite]
        block /= softcap
        if softcap_grad is not None:
            # sech^2(y) = 4 w / (1 + w)^2 with w = exp(-2 |y|); 1 - tanh^2 would cancel for large y.
            np.abs(block, out=softcap_grad)
            softcap_grad *= -2
            np.exp(softcap_grad, out=softcap_grad)
            softcap_grad /= np.square(1 + softcap_grad)
            softcap_grad *= 4
        np.tanh(block, out=block)
        block *= softcap
        block[infinite] = infinities
    if inverse_temperature != 1:
        block *= inverse_temperature


def through_transform(grad: Array, transform: LogitTransform, softcap_grad: Array | None) -> None:
    """Replace the gradient of x' by that of x."""
    if softcap_grad is not None:
        grad *= softcap_grad
    if transform.inverse_temperature != 1:
        grad *= transform.inverse_temperature


class ClassCoefs(NamedTuple):
    """What no position changes in the coefficients t_c = (1 - s) w_c q_c + b_c.

    Attributes:
        of_probability: (1 - s) w_c, the derivative of t_c with respect to q_c.
        one_minus_smoothing: 1 - s.
        weight: w, or None for ones.
        smoothing: b_c and its sums, or None where s = 0.
    """

    of_probability: Array
    one_minus_smoothing: float
    weight: Array | None
    smoothing: SmoothingCoefs | None

    @classmethod
    def of(cls, weight: Array | None, num_classes: int, spec: KernelSpec) -> ClassCoefs:
        dtype, one_minus_smoothing = spec.acc_dtype, 1 - spec.label_smoothing
        of_probability: Array = np.full(num_classes, one_minus_smoothing, dtype)
        if weight is not None:
            of_probability *= weight
        if not spec.label_smoothing:
            return cls(of_probability, one_minus_smoothing, weight, None)
        wide = np.ones(num_classes, np.longdouble) if weight is None else weight.astype(np.longdouble)
        base, total, without = smoothing_coefs(np, wide, np.arange(num_classes), np.longdouble(spec.label_smoothing))
        smoothing = SmoothingCoefs(base.astype(dtype), dtype.type(total), without.astype(dtype))
        return cls(of_probability, one_minus_smoothing, weight, smoothing)


def index_rows(block: Array, index: Array, weight: Array | None, spec: KernelSpec, grad_scale: Array | None) -> Array:
    """Class indices without smoothing. Returns the losses; with ``grad_scale`` the block becomes the gradient.

    loss = w_y L_y + z lse^2;  d loss / d x_c = (w_y + 2 z lse) p_c - w_y [c = y]
    """
    stats = pivot_stats(block, index)
    target_weight: Any = 1 if weight is None else weight[index]
    loss: Array = stats.loss if weight is None else product(np, target_weight, stats.loss)
    if spec.z_loss:
        loss = loss + spec.z_loss * np.square(stats.logsumexp)
    if grad_scale is None:
        return loss
    rest_coef, pivot_grad = target_weight, -target_weight * stats.one_minus_p
    if spec.z_loss:
        z_loss_grad = 2 * spec.z_loss * stats.logsumexp
        rest_coef, pivot_grad = rest_coef + z_loss_grad, pivot_grad + z_loss_grad * stats.p
    block *= (grad_scale * rest_coef * stats.exp_scale)[:, None]
    block[np.arange(len(block)), index] = grad_scale * pivot_grad
    return loss


def mixed_rows(
    block: Array,
    logit_gaps: Array,
    index: Array | None,
    probabilities: Array | None,
    coefs: ClassCoefs,
    spec: KernelSpec,
    grad_scale: Array | None,
    target_grad: Array | None,
) -> Array:
    """Smoothing or probabilities: every class has a coefficient t_c, and the pivot j is the row's maximum.

        loss = sum_c t_c (x_j - x_c) + T L_j + z lse^2,                 T = sum_c t_c
        d loss / d x_c = (T + 2 z lse) p_c - t_c (c != j),              d loss / d q_c = (1 - s) w_c L_c
        d loss / d x_j = (T - t_j + 2 z lse) p_j - t_j (1 - p_j)

    ``logit_gaps`` is scratch, ``probabilities`` is overwritten, and ``target_grad``, where given, receives the gradient
    of the probabilities.
    """
    rows = np.arange(len(block))
    pivot = block.argmax(axis=1)
    np.subtract(block[rows, pivot][:, None], block, out=logit_gaps)
    stats = pivot_stats(block, pivot)
    if target_grad is not None and grad_scale is not None:
        np.add(logit_gaps, stats.loss[:, None], out=target_grad)
        multiply(target_grad, coefs.of_probability)
        scale_rows(target_grad, grad_scale)
    target_coef: Any = None
    if index is not None:
        assert coefs.smoothing is not None
        target_coefs, total, without = coefs.smoothing
        target_coef = coefs.of_probability[index]
        target_loss = product(np, target_coef, logit_gaps[rows, index])
        total = total + target_coef
        pivot_coef = target_coefs[pivot] + np.where(pivot == index, target_coef, 0)
        rest_coef = without[pivot] + np.where(pivot == index, 0, target_coef)
    else:
        assert probabilities is not None
        target_coefs = probabilities
        if coefs.smoothing is not None:
            target_coefs *= coefs.one_minus_smoothing
        if coefs.weight is not None:
            target_coefs *= coefs.weight
        if coefs.smoothing is not None:
            target_coefs += coefs.smoothing.base
        target_loss = np.zeros(len(block), block.dtype)
        total = target_coefs.sum(axis=1)
        pivot_coef = target_coefs[rows, pivot]
    multiply(logit_gaps, target_coefs)
    loss: Array = logit_gaps.sum(axis=1) + target_loss + total * stats.loss
    if spec.z_loss:
        loss = loss + spec.z_loss * np.square(stats.logsumexp)
    if grad_scale is None:
        return loss
    z_loss_grad = 2 * spec.z_loss * stats.logsumexp if spec.z_loss else None
    block *= ((total if z_loss_grad is None else total + z_loss_grad) * stats.exp_scale)[:, None]
    block -= target_coefs
    if index is not None:
        block[rows, index] -= target_coef
    else:
        target_coefs[rows, pivot] = 0
        rest_coef = target_coefs.sum(axis=1)
    pivot_grad = rest_coef * stats.p - pivot_coef * stats.one_minus_p
    block[rows, pivot] = pivot_grad if z_loss_grad is None else pivot_grad + z_loss_grad * stats.p
    block *= grad_scale[:, None]
    return loss
