"""The arithmetic of one block of rows: log-sum-exp statistics by a pivot, and the losses and gradients made of them.

A block is a contiguous [rows, C] tensor of the accumulation dtype that is overwritten; what there is one of for each
row is a [rows, 1] column. Every reduction runs along a row.

The scalars of a row from its pivot are those of `unixent.pivot`, which also says what a pivot is for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unixent.logit_transform import LogitTransform
from unixent.pivot import RowStats, row_stats
from unixent.semantics import product, smoothing_coefs
from unixent_torch.kernel.blocks import row_sum


def pivot_stats(block: Tensor, pivot: Tensor) -> RowStats:
    """Statistics of the rows of ``block``, which is overwritten with e (0 at the pivot, a column of class indices)."""
    pivot_logit = block.gather(1, pivot)
    block.scatter_(1, pivot, -math.inf)
    max_rest = block.amax(1, keepdim=True)
    # Without any other class (C = 1, or all of them -inf) the pivot is its own shift, so that D = 0 and R = 0; a row of
    # only -inf becomes NaN by -inf - -inf, and so does one with +inf.
    shift = torch.where(max_rest == -math.inf, pivot_logit, max_rest)
    block.sub_(shift).exp_()
    return row_stats(torch, shift, pivot_logit, row_sum(block))


def class_weight(weight: Tensor, index: Tensor) -> Tensor:
    """``weight[index]``, which the compiler takes for indexing with a number where ``index`` is 0-d."""
    return weight.index_select(0, index.reshape(-1)).reshape(index.shape)


def apply_transform(block: Tensor, transform: LogitTransform, softcap_grad: Tensor | None) -> None:
    """Replace the block by x' = b a tanh(x / a), and ``softcap_grad``, where given, by sech^2(x / a).

    Infinite logits stay, with derivative 0.
    """
    softcap, inverse_temperature = transform
    if softcap is not None:
        infinite = torch.where(block.isinf(), block, 0)
        block.div_(softcap)
        if softcap_grad is not None:
            # sech^2(y) = 4 w / (1 + w)^2 with w = exp(-2 |y|); 1 - tanh^2 would cancel for large y.
            torch.abs(block, out=softcap_grad)
            softcap_grad.mul_(-2).exp_()
            softcap_grad.div_((1 + softcap_grad).square_()).mul_(4)
        block.tanh_().mul_(softcap).add_(infinite)
    if inverse_temperature != 1:
        block.mul_(inverse_temperature)


def through_transform(grad: Tensor, transform: LogitTransform, softcap_grad: Tensor | None) -> Tensor:
    """The gradient of x' becomes that of x."""
    if softcap_grad is not None:
        grad.mul_(softcap_grad)
    return grad if transform.inverse_temperature == 1 else grad.mul_(transform.inverse_temperature)


def index_rows(
    block: Tensor, index: Tensor, weight: Tensor | None, z_loss: float, grad_scale: Tensor | float | None
) -> Tensor:
    """Class indices without smoothing. Returns the losses; with a ``grad_scale`` the block becomes the gradient."""
    stats = pivot_stats(block, index)
    target_weight = None if weight is None else weight[index]
    loss = stats.loss if target_weight is None else product(torch, target_weight, stats.loss)
    if z_loss:
        loss = loss + z_loss * stats.logsumexp.square()
    if grad_scale is None:
        return loss
    nll_grad = grad_scale if target_weight is None else grad_scale * target_weight
    if not z_loss:
        block.mul_(nll_grad * stats.exp_scale)
        block.scatter_(1, index, -(nll_grad * stats.one_minus_p))
    else:
        z_loss_grad = grad_scale * (2 * z_loss) * stats.logsumexp
        block.mul_((nll_grad + z_loss_grad) * stats.exp_scale)
        block.scatter_(1, index, z_loss_grad * stats.p - nll_grad * stats.one_minus_p)
    return loss


class ClassCoefs(NamedTuple):
    """What of the target's coefficients t_c = w_c((1 - s) q_c + s/C) no position changes.

    Attributes:
        weight: w, or None for ones.
        one_minus_smoothing: 1 - s.
        smoothing: b_c = w_c s / C.
        smoothing_sum: the sum of b.
        smoothing_sum_rest: the sum of b over the classes but c.
    """

    weight: Tensor | None
    one_minus_smoothing: float
    smoothing: Tensor
    smoothing_sum: Tensor
    smoothing_sum_rest: Tensor

    @classmethod
    def of(cls, weight: Tensor | None, label_smoothing: float, like: Tensor) -> ClassCoefs:
        """For class weights, or none; ``like`` has the shape (C,), the dtype and the device of the results."""
        num_classes, device, dtype = like.shape[-1], like.device, like.dtype
        wide = torch.ones(num_classes, dtype=torch.float64, device=device) if weight is None else weight.double()
        coefs = smoothing_coefs(torch, wide, torch.arange(num_classes, device=device), label_smoothing)
        return cls(weight, 1 - label_smoothing, *(each.to(dtype) for each in coefs))

    def target_weight(self, index: Tensor) -> Tensor:
        """(1 - s) w_y."""
        if self.weight is None:
            return self.smoothing.new_full((1, 1), self.one_minus_smoothing)
        return self.one_minus_smoothing * self.weight[index]

    def probability_grad(self) -> Tensor:
        """(1 - s) w_c: what of t_c a probability q_c is multiplied with."""
        if self.weight is None:
            return torch.full_like(self.smoothing, self.one_minus_smoothing)
        return self.one_minus_smoothing * self.weight


def scale_infinite_(grad: Tensor, factor: Tensor | float) -> Tensor:
    """``grad *= factor`` with 0 * inf = 0: a gradient of probabilities is infinite at -inf logits."""
    return grad.masked_fill_(torch.as_tensor(factor == 0) & grad.isinf(), 0).mul_(factor)


def mixed_rows(
    block: Tensor,
    logit_gaps: Tensor,
    index: Tensor | None,
    probabilities: Tensor | None,
    coefs: ClassCoefs,
    z_loss: float,
    grad_scale: Tensor | float | None,
    target_grad: Tensor | None,
) -> Tensor:
    """Smoothing or probabilities: every class of a row has a coefficient t_c, and the pivot is the row's maximum.

        loss = sum_c t_c (x_j - x_c) + T L_j,      T = sum_c t_c
        d loss / d x_c = T p_c - t_c (c != j),      d loss / d x_j = (T - t_j) p_j - t_j (1 - p_j)

    ``logit_gaps`` is scratch, ``probabilities`` is overwritten, and ``target_grad``, where given, receives the gradient
    with respect to them.
    """
    pivot = block.argmax(1, keepdim=True)
    torch.sub(block.gather(1, pivot), block, out=logit_gaps)
    stats = pivot_stats(block, pivot)
    if target_grad is not None:
        assert grad_scale is not None
        torch.add(logit_gaps, stats.loss, out=target_grad)
        probability_grad = coefs.probability_grad()
        target_grad.mul_(probability_grad).masked_fill_(probability_grad == 0, 0)
        scale_infinite_(target_grad, grad_scale)
    if index is not None:
        target_weight = coefs.target_weight(index)
        coef_sum = coefs.smoothing_sum + target_weight
        target_coefs = coefs.smoothing
        if_target = torch.where(pivot == index, target_weight, 0)
        pivot_coef = coefs.smoothing[pivot] + if_target
        coef_sum_rest = coefs.smoothing_sum_rest[pivot] + (target_weight - if_target)
        loss = product(torch, target_weight, logit_gaps.gather(1, index))
    else:
        assert probabilities is not None
        target_coefs = probabilities.mul_(coefs.one_minus_smoothing)
        if coefs.weight is not None:
            target_coefs.mul_(coefs.weight)
        target_coefs.add_(coefs.smoothing)
        coef_sum = row_sum(target_coefs)
        pivot_coef = target_coefs.gather(1, pivot)
        loss = torch.zeros_like(coef_sum)
    logit_gaps.mul_(target_coefs)
    if index is None or coefs.weight is not None:
        logit_gaps.masked_fill_(target_coefs == 0, 0)
    loss = loss + row_sum(logit_gaps) + coef_sum * stats.loss
    if z_loss:
        loss = loss + z_loss * stats.logsumexp.square()
    if grad_scale is None:
        return loss
    z_loss_grad = 2 * z_loss * stats.logsumexp if z_loss else None
    block.mul_((coef_sum if z_loss_grad is None else coef_sum + z_loss_grad) * stats.exp_scale).sub_(target_coefs)
    if index is not None:
        block.scatter_add_(1, index, (-target_weight).expand_as(index))
    else:
        coef_sum_rest = row_sum(target_coefs.scatter_(1, pivot, 0))
    pivot_grad = coef_sum_rest * stats.p - pivot_coef * stats.one_minus_p
    block.scatter_(1, pivot, pivot_grad if z_loss_grad is None else pivot_grad + z_loss_grad * stats.p)
    block.mul_(grad_scale)
    return loss
