"""The loss of positions whose classes lie on several processes: passes over the logits here, reductions between.

The statistics are those of `unixent_torch.kernel.rows`, spread out. Two rounds find them, a maximum and then sums:

class indices    The pivot is the target. Maximum: the largest logit of the other classes. Sums: their exponentials, the
                 target's logit and, under smoothing, their weighted distances from that maximum: 3 numbers a position,
                 or 4.
probabilities    The pivot is the largest logit. Maximum: that one. Each process then takes its own exponentials
                 relative to its own largest logit but the pivot, and adds its share of t = (1 - p) / p. Sums: t, the
                 weighted distances, the coefficients of the other classes and of the pivot, and how many processes
                 hold a logit as large: 6 numbers.

What they found is enough for the gradient. A maximum may lose a NaN on its way, so NaN is left to travel in the sums.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unixent_torch.collectives import Parts, all_reduce
from unixent_torch.kernel.blocks import row_sum
from unixent_torch.kernel.rows import finish, times, two_diff
from unixent_torch.kernel.spec import Spec
from unixent_torch.vocab_parallel.blocks import LocalRows, exponentials, put


class Found(NamedTuple):
    """What the processes found together, a column [N, 1] each.

    Attributes:
        at: the pivot's column here; anything where another process holds it.
        mine: whether this one does.
        shift, scale: p_c = scale * exp(x_c - shift) for every class here but the pivot.
        p: p of the pivot.
        mass: sum of the target's coefficients t_c.
        lse: log-sum-exp.
        x_k, loss: the pivot's logit and its negative log-probability.
        at_pivot: the gradient there, of the loss without position weight.
    """

    at: Tensor
    mine: Tensor
    shift: Tensor
    scale: Tensor
    p: Tensor
    mass: Tensor
    lse: Tensor
    x_k: Tensor
    loss: Tensor
    at_pivot: Tensor


def solve_split(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    v: Tensor | None,
    spec: Spec,
    parts: Parts,
    keep: Tensor | None = None,
) -> tuple[Tensor, Found]:
    """Losses of shape P in the accumulation dtype, the same on every process of the model groups, and what was found.

    Args:
        x: the logits of this process's classes, P + (C here,), any strides; no class is legal.
        target: int64 indices P in [0, C), or the probabilities of this process's classes.
        weight, v: as `unixent_torch.kernel.composed.solve` takes them; ``weight`` is that of all classes.
        spec, parts: the static options, and how the classes are split.
        keep: contiguous memory of the shape of ``x`` and the accumulation dtype to leave the exponentials in, for
            `split_gradients`; may be ``x`` itself.
    """
    rows = LocalRows(x, target, weight, spec, parts)
    losses, found = _by_target(rows, keep) if rows.index is not None else _by_largest(rows, keep)
    if v is not None:
        v = v.reshape(-1, 1)
        losses = torch.where(v == 0, 0, losses * v)
    return losses.view(x.shape[:-1]), found


def _by_target(local: LocalRows, keep: Tensor | None) -> tuple[Tensor, Found]:
    """Class indices: the pivot is the target, on the process that holds it."""
    assert local.index is not None
    index, parts, fixed = local.index, local.parts, local.fixed
    at = index - parts.first_class
    mine = (at >= 0) & (at < local.here)
    at = torch.where(mine, at, 0)
    top, sums = local.columns().fill_(-math.inf), local.columns(2 if fixed is None else 3)
    for rows, (piece,) in local.pieces():
        block = local.read(piece)
        sums[1, rows] = torch.where(mine[rows], block.gather(1, at[rows]), 0)
        put(block, at[rows], mine[rows], -math.inf)
        top[rows] = block.amax(1, keepdim=True)
    top = all_reduce(top, parts.model, "max")
    shift = torch.where(top == -math.inf, 0, top)
    for rows, (piece, *out) in local.pieces(keep):
        block = local.shifted(piece, shift[rows], *out)
        if fixed is not None:
            gaps = torch.neg(block, out=local.buffer("gaps", len(block)))
            put(gaps, at[rows], mine[rows], 0.0)
            sums[2, rows] = row_sum(gaps.mul_(local.base).masked_fill_(local.base == 0, 0))
        sums[0, rows] = row_sum(exponentials(block, at[rows], mine[rows]))
    sums = _sum(local, sums)
    x_k = sums[1]
    # Where no other class is left the pivot is its own shift, as in `pivot_statistics`.
    stats = finish(torch.where(top == -math.inf, x_k, top), x_k, sums[0])
    own = torch.ones_like(x_k) if local.weight is None else local.weight[index]
    others = torch.zeros_like(x_k)
    loss = stats.loss
    if fixed is not None:
        own, others = fixed.share * own + fixed.base[index], fixed.without[index]
        gap = shift - x_k
        # lse - shift, which stats.loss - gap would cancel down to where the pivot is far below.
        rise = torch.where(gap > 0, torch.log(sums[0] + torch.exp(-gap.clamp(min=0))), stats.loss - gap)
        loss = times(own, stats.loss) + sums[2] + times(others, rise)
    elif local.weight is not None:
        loss = times(own, stats.loss)
    return _with_z(loss, stats.lse, local.spec), Found(
        at=at,
        mine=mine,
        shift=shift,
        scale=stats.scale,
        p=stats.p,
        mass=own + others,
        lse=stats.lse,
        x_k=x_k,
        loss=stats.loss,
        at_pivot=(others + _pull(stats.lse, local.spec)) * stats.p - own * stats.q,
    )


def _by_largest(local: LocalRows, keep: Tensor | None) -> tuple[Tensor, Found]:
    """Probabilities: the pivot is the largest logit, one on each process that holds one as large."""
    first, second = local.columns().fill_(-math.inf), local.columns().fill_(-math.inf)
    at = torch.zeros_like(first, dtype=torch.int64)
    for rows, (piece, _) in local.pieces():
        block = local.read(piece)
        at[rows] = block.argmax(1, keepdim=True)
        first[rows] = block.gather(1, at[rows])
        block.scatter_(1, at[rows], -math.inf)
        second[rows] = block.amax(1, keepdim=True)
    x_k = all_reduce(first.clone(), local.parts.model, "max")
    mine = (first == x_k) & (local.here > 0)
    near = torch.where(mine, second, first)
    shift = torch.where(near == -math.inf, 0, near)
    sums, rest, own = local.columns(5), local.columns(), local.columns()
    for rows, (piece, probabilities, *out) in local.pieces(keep):
        block, shares = local.read(piece, *out), local.shares(probabilities)
        gaps = local.gaps(block, x_k[rows])
        put(gaps, at[rows], mine[rows], 0.0)
        sums[1, rows] = row_sum(gaps.mul_(shares).masked_fill_(shares == 0, 0))
        own[rows] = torch.where(mine[rows], shares.gather(1, at[rows]), 0)
        put(shares, at[rows], mine[rows], 0.0)
        sums[2, rows] = row_sum(shares)
        rest[rows] = row_sum(exponentials(block.sub_(shift[rows]), at[rows], mine[rows]))
    # D = near - x_k <= 0; exp(D) is subnormal before rest * exp(D) is: take two halves in turn.
    gap, dropped = two_diff(torch.where(rest == 0, x_k, near), x_k)
    half = torch.exp(gap / 2)
    sums[0] = (rest * half) * half * (1 + dropped)
    sums[3], sums[4] = own, mine
    sums = _sum(local, sums)
    # Each further logit as large as the pivot adds 1. A row with none is one of NaN.
    t = torch.where((x_k == math.inf) | (sums[4] == 0), math.nan, sums[0] + (sums[4] - 1))
    loss, norm, mass = torch.log1p(t), 1 + t, sums[2] + sums[3]
    lse = x_k + loss
    return _with_z(sums[1] + times(mass, loss), lse, local.spec), Found(
        at=at,
        mine=mine,
        shift=shift,
        scale=half * half / norm,
        p=1 / norm,
        mass=mass,
        lse=lse,
        x_k=x_k,
        loss=loss,
        at_pivot=(sums[2] + (sums[3] - own) + _pull(lse, local.spec) - own * t) / norm,
    )


def _sum(local: LocalRows, sums: Tensor) -> Tensor:
    """The sums over the classes of all processes."""
    if not torch.compiler.is_compiling():
        return all_reduce(sums, local.parts.model, "sum")
    # A compiled program takes all processes to hold as many classes. Where they don't, the loss is NaN, not a number
    # that looks like one.
    flat = torch.cat([sums.reshape(-1), sums.new_full((1,), float(local.here))])
    flat = all_reduce(flat, local.parts.model, "sum")
    return torch.where(flat[-1] == local.parts.classes, flat[:-1].view_as(sums), math.nan)


def _with_z(loss: Tensor, lse: Tensor, spec: Spec) -> Tensor:
    return loss + spec.z_loss * lse.square() if spec.z_loss else loss


def _pull(lse: Tensor, spec: Spec) -> Tensor | float:
    """What z-loss adds to the sum of the coefficients: its derivative along lse."""
    return 2 * spec.z_loss * lse if spec.z_loss else 0.0


def split_gradients(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    v: Tensor | None,
    factor: Tensor | float | None,
    found: Found,
    spec: Spec,
    parts: Parts,
    wrt: tuple[str, ...],
    kept: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The gradient of ``sum(factor * loss)`` for each of ``wrt``, at this process's classes. Nothing is communicated.

    Args:
        x, target, weight, v, spec, parts: as `solve_split` takes them.
        factor: in the accumulation dtype and broadcastable to P, or a number; None for 1.
        found: what `solve_split` returned.
        wrt: "logits", "target".
        kept: what was given to `solve_split` as ``keep``; becomes the gradient of the logits. It can be ``x`` itself
            where that is not read again: without softcap and gradient of the target.
    """
    local = LocalRows(x, target, weight, spec, parts)
    if isinstance(factor, Tensor) and factor.ndim:
        factor = factor.expand(x.shape[:-1]).reshape(-1, 1)
    dead = None
    if v is not None:
        v = v.reshape(-1, 1)
        factor, dead = v if factor is None else v * factor, v == 0
    results = {"logits": torch.empty_like(x) if kept is None else kept} if "logits" in wrt else {}
    if "target" in wrt:
        results["target"] = torch.empty_like(target)
    push, at_pivot = (found.mass + _pull(found.lse, spec)) * found.scale, found.at_pivot
    early = local.fixed is None and factor is not None
    if early:  # where every entry is a product, one more factor of the rows costs no pass over the classes
        push, at_pivot = push * factor, at_pivot * factor

    def settle(out: Tensor, block: Tensor, rows: slice, in_place: bool) -> None:
        """Scale a block and put it where it belongs, rounded; rows that don't exist as zeros."""
        if factor is not None and not early:
            block.mul_(factor[rows] if isinstance(factor, Tensor) and factor.ndim else factor)
        if dead is not None:
            block.masked_fill_(dead[rows], 0)
        if not in_place:
            out.copy_(block.view(out.shape))

    for rows, pieces in local.pieces(*results.values()):
        outs = dict(zip(results, pieces[-len(results) :], strict=True))
        if "logits" in outs:
            block = _by_logits(local, pieces, rows, found, push, at_pivot, None if kept is None else outs["logits"])
            settle(outs["logits"], block, rows, kept is not None)
        if "target" in outs:
            gaps = local.gaps(local.read(pieces[0]), found.x_k[rows])
            gaps.add_(found.loss[rows]).mul_(local.slope).masked_fill_(local.slope == 0, 0)
            settle(outs["target"], gaps, rows, False)
    return tuple(results[name] for name in wrt)


def _by_logits(
    local: LocalRows,
    pieces: tuple[Tensor, ...],
    rows: slice,
    found: Found,
    push: Tensor,
    at_pivot: Tensor,
    kept: Tensor | None,
) -> Tensor:
    """A block of gradients: ``push`` times what ``kept`` holds, the exponentials, less t_c; and ``at_pivot`` there."""
    at, mine, slope = found.at[rows], found.mine[rows], None
    if local.spec.softcap is not None:
        slope = local.buffer("slope", rows.stop - rows.start)
    if kept is None:
        shift = found.shift[rows]
        block = local.shifted(pieces[0], shift) if slope is None else local.read(pieces[0], slope=slope).sub_(shift)
        block = exponentials(block, at, mine)
    else:
        block = kept.view(rows.stop - rows.start, local.here)
        if slope is not None:
            local.read(pieces[0], slope=slope)
    block.mul_(push[rows])
    if local.probabilities is not None:
        block.sub_(local.shares(pieces[1]))
    elif local.fixed is not None:
        block.sub_(local.base)
    put(block, at, mine, at_pivot[rows])
    return block if slope is None else block.mul_(slope)
