"""The loss as one plain composition, for tracers: a compiler fuses it, and autograd differentiates it to any order."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unixent_torch.kernel.rows import class_weight, times, two_diff
from unixent_torch.kernel.spec import Spec


def losses(x: Tensor, target: Tensor, weight: Tensor | None, v: Tensor | None, spec: Spec) -> Tensor:
    """What `unixent_torch.kernel.composed.solve` returns first, by functional operations alone."""
    x = x.to(spec.acc_dtype)
    dead = None if v is None else (v == 0).unsqueeze(-1)
    if dead is not None:
        # Before anything else: the derivative of a NaN that is dropped later would still be NaN.
        x = torch.where(dead, 0, x)
    if spec.softcap is not None:
        x = _cap(x, spec.softcap)
    if target.is_floating_point() or spec.smoothing:
        loss, lse = _mixed(x, target, weight, spec, dead)
    else:
        found = _pivot(x, _is_class(x, target))
        loss, lse = found.loss, found.lse
        if weight is not None:
            loss = times(class_weight(weight, target), loss)
    if spec.z_loss:
        loss = loss + spec.z_loss * lse.square()
    if v is not None:
        loss = torch.where(v == 0, 0, v * loss)
    return loss


def _is_class(x: Tensor, index: Tensor) -> Tensor:
    # A comparison fuses with what surrounds it; a gather or scatter does not.
    return torch.arange(x.shape[-1], device=x.device) == index.unsqueeze(-1)


class _Pivot(NamedTuple):
    """Of the pivot class k of each position: L_k; the same with derivative p_c for every class; lse; x_k, constant."""

    loss: Tensor
    anchored: Tensor
    lse: Tensor
    x_k: Tensor


def _pivot(x: Tensor, own: Tensor) -> _Pivot:
    """The statistics of `unixent_torch.kernel.rows.pivot_statistics`, so written that no derivative cancels."""
    x_k = torch.where(own, x, 0).sum(-1)
    others = torch.where(own, -math.inf, x)
    top = others.detach().amax(-1)
    shift = torch.where(top == -math.inf, x_k.detach(), top)
    rest = torch.exp(others - shift.unsqueeze(-1)).sum(-1)
    rest = rest + torch.where(x_k == math.inf, math.nan, 0)  # added, so that the gradient is NaN as well
    gap, dropped = two_diff(shift, x_k)
    far = gap > 0
    half = torch.exp(torch.where(far, 0, gap) / 2)
    correction = 1 + dropped.detach()
    t = (rest * half) * half * correction
    log_total = torch.log(rest + torch.exp(-torch.where(far, gap, 0)))
    loss = torch.where(far, gap + log_total, torch.log1p(t))
    # lse = c + log(sum over the others of exp(x - c) + exp(x_k - c)) with c the value of x_k: its derivative is p_k,
    # where that of x_k + L_k would be 1 - (1 - p_k).
    near = torch.where(far, 0, x_k)
    rise = torch.expm1(near - near.detach())
    anchored = torch.log1p((rest * half.detach()) * half.detach() * correction + rise)
    lse = torch.where(far, shift + log_total, near.detach() + anchored)
    return _Pivot(loss, anchored, lse, x_k.detach())


def _mixed(x: Tensor, target: Tensor, weight: Tensor | None, spec: Spec, dead: Tensor | None) -> tuple[Tensor, Tensor]:
    at_top = _is_class(x, x.detach().argmax(-1))
    found = _pivot(x, at_top)
    gaps = torch.where(at_top, 0, found.x_k.unsqueeze(-1) - x)
    share, base = 1 - spec.smoothing, spec.smoothing / x.shape[-1]
    if target.is_floating_point():
        target = target.to(x.dtype)
        t = share * (target if dead is None else torch.where(dead, 0, target)) + base
    else:
        t = base + share * _is_class(x, target).to(x.dtype)
    if weight is not None:
        t = weight * t
    # The zero comes before the product, so that an infinite gap has no derivative either.
    none = t == 0
    products = t * torch.where(none, 0, gaps)
    if target.is_floating_point() and share:
        # The loss still rises with a probability of 0, unless its weight is 0.
        rise = t - t.detach()
        if weight is not None:
            none = none & (weight != 0)
        products = products + rise * torch.where(none & torch.isfinite(gaps), gaps, 0)
        most = torch.finfo(x.dtype).max  # whose square is infinite, where infinity itself times 0 would be NaN
        products = products + torch.where(none & torch.isinf(gaps), rise * most * most, 0)
    # The top's own share has the derivative p_k - 1, which cancels where it is made of p_k and -1.
    others, top = torch.where(at_top, 0, t).sum(-1), torch.where(at_top, t, 0).sum(-1)
    return products.sum(-1) + others * found.anchored + top * found.loss, found.lse


def _cap(x: Tensor, softcap: float) -> Tensor:
    """a tanh(x / a) whose derivative does not cancel: autograd's 1 - tanh^2 would, for large arguments."""
    y = x / softcap
    large = y.abs() > 1
    w = torch.exp(-2 * torch.where(large, y, 1).abs())
    return softcap * torch.where(large, torch.sign(y) * ((1 - w) / (1 + w)), torch.tanh(torch.where(large, 0, y)))
