"""The arithmetic of one block of rows: log-sum-exp statistics by a pivot, and the losses and gradients made of them.

A block is a contiguous [rows, C] tensor of the accumulation dtype that is overwritten; what there is one of for each
row is a [rows, 1] column. Every reduction runs along a row.

The scalars of a row from its pivot are those of `unixent.semantics`, which also says what a pivot is for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unixent.semantics import RowStats, product, row_stats, smoothing_coefs
from unixent_torch.kernel.blocks import row_sum

# exp(x) needs no shift where no class loses digits near the smallest normal number that its probability would have: the
# sum is at least 1, or every class is far from there. And what the loss is made of, the sum and the odds against the
# target's class, must be far from the ends of float32. (With a z-loss the sum over the others must be at least 1: the
# log of a sum just above 1 has no digits.)
MIN_EXP = 1e-35
_MIN_SUM, _MAX_SUM = 1e-25, 1e18
_MIN_ODDS, _MAX_ODDS = 1e-25, 1e30


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


def apply_softcap(block: Tensor, softcap: float, softcap_grad: Tensor | None, readable: bool) -> None:
    """Replace the block by a tanh(x / a), and ``softcap_grad`` by its derivative sech^2, free of cancellation.

    Infinite logits stay, with derivative 0. Where values are ``readable``, they are looked for first.
    """
    infinite = None
    if not readable or (block.numel() and not math.isfinite(sum(map(Tensor.item, torch.aminmax(block))))):
        infinite = torch.where(block.isinf(), block, 0)
    block.div_(softcap)
    if softcap_grad is not None:
        # sech^2(y) = 4 w / (1 + w)^2 with w = exp(-2 |y|); 1 - tanh^2 would cancel for large y.
        torch.abs(block, out=softcap_grad)
        softcap_grad.mul_(-2).exp_()
        softcap_grad.div_((1 + softcap_grad).square_()).mul_(4)
    block.tanh_().mul_(softcap)
    if infinite is not None:
        block.add_(infinite)


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


def unshifted_index_rows(
    block: Tensor,
    index: Tensor,
    weight: Tensor | None,
    z_loss: float,
    grad_scale: Tensor | float | None,
    inactive: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """`index_rows` of the logits whose exponentials ``block`` holds, and which rows have to be done with a shift."""
    pivot_exp = block.gather(1, index)
    block.scatter_(1, index, 0.0)
    sum_rest = row_sum(block)
    total, odds = sum_rest + pivot_exp, sum_rest / pivot_exp
    redo = _rows_to_shift(block, index, total, odds, sum_rest if z_loss else None, inactive)
    loss = torch.log1p(odds)
    target_weight = None if weight is None else weight[index]
    if target_weight is not None:
        loss = product(torch, target_weight, loss)
    logsumexp = total.log() if z_loss else None
    if logsumexp is not None:
        loss = loss + z_loss * logsumexp.square()
    if grad_scale is None:
        return loss, redo
    nll_grad = total.reciprocal().mul_(grad_scale if target_weight is None else grad_scale * target_weight)
    if logsumexp is None:
        block.mul_(nll_grad)
        block.scatter_(1, index, sum_rest.mul_(nll_grad).neg_())
    else:
        z_loss_grad = grad_scale * (2 * z_loss) * logsumexp / total
        block.mul_(nll_grad + z_loss_grad)
        block.scatter_(1, index, z_loss_grad * pivot_exp - nll_grad * sum_rest)
    return loss, redo


def _rows_to_shift(
    block: Tensor, index: Tensor, total: Tensor, odds: Tensor, sum_rest: Tensor | None, inactive: Tensor | None
) -> Tensor | None:
    """Which rows of exponentials need a shift after all; ``sum_rest`` is given where it must be at least 1."""
    at_least_one = total if sum_rest is None else sum_rest
    min_odds, max_odds = torch.aminmax(odds)
    if (
        min_odds.item() >= _MIN_ODDS
        and max_odds.item() <= _MAX_ODDS
        and at_least_one.amin().item() >= 1
        and total.amax().item() <= _MAX_SUM
    ):
        return None
    in_range = (odds >= _MIN_ODDS) & (odds <= _MAX_ODDS) & (total >= _MIN_SUM) & (total <= _MAX_SUM)
    accurate = in_range & (at_least_one >= 1)
    if inactive is not None:
        accurate |= inactive
    redo = accurate.logical_not_().squeeze(1).nonzero().squeeze(1)
    if sum_rest is None and redo.numel():
        others = block[redo].scatter_(1, index[redo], 1.0)
        redo = redo[~in_range[redo].squeeze(1) | (others.amin(1) < MIN_EXP)]
    return redo if redo.numel() else None


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


def scale_infinite_(grad: Tensor, factor: Tensor | float, readable: bool) -> Tensor:
    """``grad *= factor`` with 0 * inf = 0: a gradient of probabilities is infinite at -inf logits."""
    is_zero = torch.as_tensor(factor == 0)
    if not readable or is_zero.any():
        grad.masked_fill_(is_zero & grad.isinf(), 0)
    return grad.mul_(factor)


def mixed_rows(
    block: Tensor,
    logit_gaps: Tensor,
    index: Tensor | None,
    probabilities: Tensor | None,
    coefs: ClassCoefs,
    z_loss: float,
    grad_scale: Tensor | float | None,
    target_grad: Tensor | None,
    readable: bool,
) -> Tensor:
    """Smoothing or probabilities: every class of a row has a coefficient t_c, and the pivot is the row's maximum.

        loss = sum_c t_c (x_j - x_c) + T L_j,      T = sum_c t_c
        d loss / d x_c = T p_c - t_c (c != j),      d loss / d x_j = (T - t_j) p_j - t_j (1 - p_j)

    ``logit_gaps`` is scratch, ``probabilities`` is overwritten, and ``target_grad``, where given, receives the gradient
    with respect to them. Where ``readable``, values may be looked at.
    """
    pivot = block.argmax(1, keepdim=True)
    torch.sub(block.gather(1, pivot), block, out=logit_gaps)
    stats = pivot_stats(block, pivot)
    if target_grad is not None:
        assert grad_scale is not None
        torch.add(logit_gaps, stats.loss, out=target_grad)
        probability_grad = coefs.probability_grad()
        target_grad.mul_(probability_grad).masked_fill_(probability_grad == 0, 0)
        scale_infinite_(target_grad, grad_scale, readable)
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
