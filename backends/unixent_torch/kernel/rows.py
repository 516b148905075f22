"""The arithmetic of one block of rows: log-sum-exp statistics by a pivot, and the losses and gradients made of them.

A block is a contiguous [rows, C] tensor of the accumulation dtype that is overwritten; what there is one of for each
row is a [rows, 1] column. Every reduction runs along a row.

The usual shift by the row maximum loses a confident row: p_y - 1 cancels, and rounding x - max costs |x - max| units
in the last place of exp. Here one class per row, the pivot k, is left out, and the others are shifted by their own
maximum:

    m = max_{c != k} x_c,  e_c = exp(x_c - m),  R = sum_{c != k} e_c >= 1,  D = m - x_k
    D <= 0:  t = R exp(D),  L_k = log1p(t),             1 - p_k = t / (1 + t)
    D >  0:  u = exp(-D),   L_k = D + log(R + u),       1 - p_k = R / (R + u)

Nothing cancels, the terms that matter in R lie within log C of m, and D is one number per row, so the rounding of that
one subtraction is compensated (Knuth's TwoSum) at no cost that counts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unixent_torch.kernel.blocks import row_sum

# exp(x) needs no shift where no class loses digits near the smallest normal number that its probability would have: the
# sum is at least 1, or every class is far from there. And what the loss is made of, the sum and the odds against the
# target's class, must be far from the ends of float32. (With a z-loss the sum over the others must be at least 1: the
# log of a sum just above 1 has no digits.)
LEAST_CLASS = 1e-35
_LEAST_TOTAL, _MOST_TOTAL = 1e-25, 1e18
_LEAST_ODDS, _MOST_ODDS = 1e-25, 1e30


class RowStatistics(NamedTuple):
    """Per row: loss of the pivot L_k, lse, p_k, 1 - p_k, and the factor that turns e_c into p_c."""

    loss: Tensor
    lse: Tensor
    p: Tensor
    q: Tensor
    scale: Tensor


def two_diff(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a - b`` rounded, and what the rounding dropped (Knuth, TAOCP vol. 2, 4.2.2); 0 where it is not finite."""
    high = a - b
    back = high - a
    low = (a - (high - back)) - (b + back)
    return high, torch.where(torch.isfinite(low), low, 0)


def pivot_statistics(block: Tensor, pivot: Tensor) -> RowStatistics:
    """Statistics of the rows of ``block``, which is overwritten with e (0 at the pivot, a column of class indices)."""
    x_k = block.gather(1, pivot)
    block.scatter_(1, pivot, -math.inf)
    top = block.amax(1, keepdim=True)
    # Without any other class (C = 1, or all of them -inf) the pivot is its own shift, so that D = 0 and R = 0; a row of
    # only -inf becomes NaN by -inf - -inf, and so does one with +inf.
    shift = torch.where(top == -math.inf, x_k, top)
    block.sub_(shift).exp_()
    return finish(shift, x_k, row_sum(block))


def finish(shift: Tensor, x_k: Tensor, rest: Tensor) -> RowStatistics:
    """The statistics from the shift, the pivot's logit and R. A logit of +inf is NaN; a finite loss is no answer."""
    rest = torch.where(x_k == math.inf, math.nan, rest)
    gap, dropped = two_diff(shift, x_k)
    far = gap > 0
    # exp(gap) is subnormal before rest * exp(gap) is: take two halves in turn.
    half = torch.exp(gap.clamp(max=0) / 2)
    t = (rest * half) * half * (1 + dropped)
    u = torch.exp(-gap.clamp(min=0))
    total = rest + u
    log_total = torch.log(total)
    near_loss = torch.log1p(t)
    near_norm = 1 + t
    return RowStatistics(
        loss=torch.where(far, gap + log_total, near_loss),
        lse=torch.where(far, shift + log_total, x_k + near_loss),
        p=torch.where(far, u, 1) / torch.where(far, total, near_norm),
        q=torch.where(far, rest, t) / torch.where(far, total, near_norm),
        scale=torch.where(far, 1, half * half) / torch.where(far, total, near_norm),
    )


def class_weight(weight: Tensor, index: Tensor) -> Tensor:
    """``weight[index]``, which the compiler takes for indexing with a number where ``index`` is 0-d."""
    return weight.index_select(0, index.reshape(-1)).reshape(index.shape)


def times(coefficient: Tensor, value: Tensor) -> Tensor:
    """``coefficient * value`` with 0 * inf = 0: what has no weight adds nothing. NaN stays NaN."""
    return torch.where((coefficient == 0) & torch.isinf(value), 0, coefficient * value)


def cap(block: Tensor, softcap: float, slope: Tensor | None) -> None:
    """Replace the block by a tanh(x / a) and fill ``slope`` with its derivative, sech^2, free of cancellation."""
    block.div_(softcap)
    if slope is not None:
        # sech^2(y) = 4 w / (1 + w)^2 with w = exp(-2 |y|); 1 - tanh^2 would cancel for large y.
        torch.abs(block, out=slope)
        slope.mul_(-2).exp_()
        slope.div_((1 + slope).square_()).mul_(4)
    block.tanh_().mul_(softcap)


def plain_block(
    block: Tensor, index: Tensor, weight: Tensor | None, z_loss: float, factor: Tensor | float | None
) -> Tensor:
    """Class indices without smoothing. Returns the losses; with a factor per row the block becomes the gradient."""
    found = pivot_statistics(block, index)
    own = None if weight is None else weight[index]
    loss = found.loss if own is None else times(own, found.loss)
    if z_loss:
        loss = loss + z_loss * found.lse.square()
    if factor is None:
        return loss
    push = factor if own is None else factor * own
    if not z_loss:
        block.mul_(push * found.scale)
        block.scatter_(1, index, -(push * found.q))
    else:
        drift = factor * (2 * z_loss) * found.lse
        block.mul_((push + drift) * found.scale)
        block.scatter_(1, index, drift * found.p - push * found.q)
    return loss


def unshifted_block(
    block: Tensor,
    index: Tensor,
    weight: Tensor | None,
    z_loss: float,
    factor: Tensor | float | None,
    dead: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """`plain_block` of the logits whose exponentials ``block`` holds, and which rows have to be done with a shift."""
    e_k = block.gather(1, index)
    block.scatter_(1, index, 0.0)
    rest = row_sum(block)
    total, odds = rest + e_k, rest / e_k
    redo = _rows_outside(block, index, total, odds, rest if z_loss else None, dead)
    loss = torch.log1p(odds)
    own = None if weight is None else weight[index]
    if own is not None:
        loss = times(own, loss)
    lse = total.log() if z_loss else None
    if lse is not None:
        loss = loss + z_loss * lse.square()
    if factor is None:
        return loss, redo
    push = total.reciprocal().mul_(factor if own is None else factor * own)
    if lse is None:
        block.mul_(push)
        block.scatter_(1, index, rest.mul_(push).neg_())
    else:
        drift = factor * (2 * z_loss) * lse / total
        block.mul_(push + drift)
        block.scatter_(1, index, drift * e_k - push * rest)
    return loss, redo


def _rows_outside(
    block: Tensor, index: Tensor, total: Tensor, odds: Tensor, rest: Tensor | None, dead: Tensor | None
) -> Tensor | None:
    """Which rows of exponentials an unshifted exp does not serve; ``rest`` is given where it must be at least 1."""
    floor = total if rest is None else rest
    least, most = torch.aminmax(odds)
    usual = least.item() >= _LEAST_ODDS and most.item() <= _MOST_ODDS
    if usual and floor.amin().item() >= 1 and total.amax().item() <= _MOST_TOTAL:
        return None
    within = (odds >= _LEAST_ODDS) & (odds <= _MOST_ODDS) & (total >= _LEAST_TOTAL) & (total <= _MOST_TOTAL)
    served = within & (floor >= 1)
    if dead is not None:
        served |= dead
    redo = served.logical_not_().squeeze(1).nonzero().squeeze(1)
    if rest is None and redo.numel():
        others = block[redo].scatter_(1, index[redo], 1.0)
        redo = redo[~within[redo].squeeze(1) | (others.amin(1) < LEAST_CLASS)]
    return redo if redo.numel() else None


class Coefficients(NamedTuple):
    """What of the target's coefficients no position changes.

    share = 1 - s, base b_c = w_c s / C, total = sum of b, without = sum of b over the other classes.
    """

    weight: Tensor | None
    share: float
    base: Tensor
    total: Tensor
    without: Tensor

    @classmethod
    def of(cls, weight: Tensor | None, smoothing: float, like: Tensor) -> Coefficients:
        classes = like.shape[-1]
        wide = torch.ones(classes, dtype=torch.float64, device=like.device) if weight is None else weight.double()
        wide = wide * (smoothing / classes)
        total = wide.sum()
        # total - b_c cancels for a class that outweighs the others together, of which there is at most one.
        heavy = torch.arange(classes, device=like.device) == wide.argmax()
        without = torch.where(heavy, torch.where(heavy, 0, wide).sum(), total - wide)
        return cls(weight, 1 - smoothing, wide.to(like.dtype), total.to(like.dtype), without.to(like.dtype))


def mixed_block(
    block: Tensor,
    gaps: Tensor,
    index: Tensor | None,
    shares: Tensor | None,
    fixed: Coefficients,
    z_loss: float,
    factor: Tensor | float | None,
    target_grad: Tensor | None,
) -> Tensor:
    """Smoothing or probabilities: every class of a row has a coefficient t_c, and the pivot is the row's maximum.

        loss = sum_c t_c (x_j - x_c) + T L_j,      T = sum_c t_c
        d loss / d x_c = T p_c - t_c (c != j),      d loss / d x_j = (T - t_j) p_j - t_j (1 - p_j)

    ``gaps`` is scratch, ``shares`` holds the probabilities and is overwritten, and ``target_grad``, where given,
    receives the gradient with respect to them.
    """
    top = block.argmax(1, keepdim=True)
    torch.sub(block.gather(1, top), block, out=gaps)
    found = pivot_statistics(block, top)
    if target_grad is not None:
        assert factor is not None
        torch.add(gaps, found.loss, out=target_grad)
        slope = torch.full_like(fixed.base, fixed.share) if fixed.weight is None else fixed.share * fixed.weight
        target_grad.mul_(slope).masked_fill_(slope == 0, 0).mul_(factor)
    if index is not None:
        own = block.new_full((1, 1), fixed.share) if fixed.weight is None else fixed.share * fixed.weight[index]
        total = fixed.total + own
        t = fixed.base
        at_top = torch.where(top == index, own, 0)
        top_share, others = fixed.base[top] + at_top, fixed.without[top] + (own - at_top)
        loss = times(own, gaps.gather(1, index))
    else:
        assert shares is not None
        t = shares.mul_(fixed.share)
        if fixed.weight is not None:
            t.mul_(fixed.weight)
        t.add_(fixed.base)
        total = row_sum(t)
        top_share = t.gather(1, top)
        loss = torch.zeros_like(total)
    gaps.mul_(t)
    if index is None or fixed.weight is not None:
        gaps.masked_fill_(t == 0, 0)
    loss = loss + row_sum(gaps) + total * found.loss
    if z_loss:
        loss = loss + z_loss * found.lse.square()
    if factor is None:
        return loss
    drift = 2 * z_loss * found.lse if z_loss else None
    block.mul_((total if drift is None else total + drift) * found.scale).sub_(t)
    if index is not None:
        block.scatter_add_(1, index, (-own).expand_as(index))
    else:
        others = row_sum(t.scatter_(1, top, 0))
    value = others * found.p - top_share * found.q
    block.scatter_(1, top, value if drift is None else value + drift * found.p)
    block.mul_(factor)
    return loss
