"""The losses as one plain composition, for tracers: a compiler fuses it, and autograd differentiates it to any order.

The gradient has one of its own, since torch.export records no autograd.

The scalars of a row are those of `unixent_torch.kernel.rows`, so written that no derivative cancels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unixent.logit_transform import LogitTransform
from unixent.pivot import row_stats, two_diff
from unixent.semantics import product
from unixent_torch.kernel.rows import class_weight, scale_infinite_
from unixent_torch.kernel.spec import KernelSpec


def row_losses(
    x: Tensor, target: Tensor, weight: Tensor | None, position_weight: Tensor | None, spec: KernelSpec
) -> Tensor:
    """What `unixent_torch.kernel.row_losses` returns first, by functional operations alone."""
    x = x.to(spec.acc_dtype)
    inactive = None if position_weight is None else (position_weight == 0).unsqueeze(-1)
    if inactive is not None:
        # Before anything else: the derivative of a NaN that is dropped later would still be NaN.
        x = torch.where(inactive, 0, x)
    x = transformed(x, spec.transform)
    if target.is_floating_point() or spec.label_smoothing:
        loss, logsumexp = _mixed(x, target, weight, spec, inactive)
    else:
        pivot = _pivot(x, _is_class(x, target))
        loss, logsumexp = pivot.loss, pivot.logsumexp
        if weight is not None:
            loss = product(torch, class_weight(weight, target), loss)
    if spec.z_loss:
        loss = loss + spec.z_loss * logsumexp.square()
    if position_weight is not None:
        loss = torch.where(position_weight == 0, 0, position_weight * loss)
    return loss


def row_gradients(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor,
    spec: KernelSpec,
    wrt: tuple[str, ...],
) -> tuple[Tensor, ...]:
    """What `unixent_torch.kernel.row_losses` returns second, by functional operations alone; see `rows.mixed_rows`."""
    dtypes, scale, inactive = {"logits": x.dtype, "target": target.dtype}, grad_scale.unsqueeze(-1), None
    x = x.to(spec.acc_dtype)
    if position_weight is not None:
        inactive, scale = (position_weight == 0).unsqueeze(-1), scale * position_weight.unsqueeze(-1)
        x, scale = torch.where(inactive, 0, x), torch.where(inactive, 0, scale)
    transform_grad: Tensor | float = spec.transform.inverse_temperature
    if spec.transform.softcap is not None:
        w = torch.exp(-2 * (x / spec.transform.softcap).abs())
        transform_grad = transform_grad * (4 * w / (1 + w).square())
    x = transformed(x, spec.transform)
    is_index = not (target.is_floating_point() or spec.label_smoothing)
    is_pivot = _is_class(x, target if is_index else x.argmax(-1))
    pivot_logit, others = torch.where(is_pivot, x, 0).sum(-1, keepdim=True), torch.where(is_pivot, -math.inf, x)
    shift = others.amax(-1, keepdim=True)
    shift = torch.where(shift == -math.inf, pivot_logit, shift)
    exps = torch.exp(others - shift)
    stats = row_stats(torch, shift, pivot_logit, exps.sum(-1, keepdim=True))
    grads: dict[str, Tensor] = {}
    if "target" in wrt:
        k: Tensor | float = (1 - spec.label_smoothing) * (1.0 if weight is None else weight)
        gaps = torch.where(is_pivot, 0, pivot_logit - x) + stats.loss
        grads["target"] = scale_infinite_(torch.where(torch.as_tensor(k == 0), 0, k * gaps), scale)
    if "logits" in wrt:
        coefs = _coefs(x, target, weight, spec, inactive)
        rest_coefs = torch.where(is_pivot, 0, coefs)
        rest, pivot = rest_coefs.sum(-1, keepdim=True), torch.where(is_pivot, coefs, 0).sum(-1, keepdim=True)
        z_loss_grad = 2 * spec.z_loss * stats.logsumexp if spec.z_loss else 0.0
        grad = (rest + pivot + z_loss_grad) * stats.exp_scale * exps - rest_coefs
        pivot_grad = (rest + z_loss_grad) * stats.p - pivot * stats.one_minus_p
        grads["logits"] = torch.where(is_pivot, pivot_grad, grad) * transform_grad * scale
    if inactive is not None:
        grads = {name: torch.where(inactive, 0, grad) for name, grad in grads.items()}
    return tuple(grads[name].to(dtypes[name]) for name in wrt)


def _coefs(x: Tensor, target: Tensor, weight: Tensor | None, spec: KernelSpec, inactive: Tensor | None) -> Tensor:
    """The target's coefficients t_c."""
    one_minus_smoothing, smoothing = 1 - spec.label_smoothing, spec.label_smoothing / x.shape[-1]
    if target.is_floating_point():
        target = target.to(x.dtype)
        coefs = one_minus_smoothing * (target if inactive is None else torch.where(inactive, 0, target)) + smoothing
    else:
        coefs = smoothing + one_minus_smoothing * _is_class(x, target).to(x.dtype)
    return coefs if weight is None else weight * coefs


def _is_class(x: Tensor, index: Tensor) -> Tensor:
    # A comparison fuses with what surrounds it; a gather or scatter does not.
    return torch.arange(x.shape[-1], device=x.device) == index.unsqueeze(-1)


class _Pivot(NamedTuple):
    """Of the pivot class k of each position: L_k; the same with derivative p_c for every class; lse; x_k, constant."""

    loss: Tensor
    loss_of_rest: Tensor
    logsumexp: Tensor
    logit: Tensor


def _pivot(x: Tensor, is_pivot: Tensor) -> _Pivot:
    """The statistics of `unixent_torch.kernel.rows.pivot_stats`, so written that no derivative cancels."""
    pivot_logit = torch.where(is_pivot, x, 0).sum(-1)
    others = torch.where(is_pivot, -math.inf, x)
    max_rest = others.detach().amax(-1)
    shift = torch.where(max_rest == -math.inf, pivot_logit.detach(), max_rest)
    sum_rest = torch.exp(others - shift.unsqueeze(-1)).sum(-1)
    sum_rest = sum_rest + torch.where(pivot_logit == math.inf, math.nan, 0)  # added: the gradient is NaN as well
    gap, dropped = two_diff(torch, shift, pivot_logit)
    far = gap > 0
    half = torch.exp(torch.where(far, 0, gap) / 2)
    correction = 1 + dropped.detach()
    odds = (sum_rest * half) * half * correction
    log_total = torch.log(sum_rest + torch.exp(-torch.where(far, gap, 0)))
    loss = torch.where(far, gap + log_total, torch.log1p(odds))
    # lse = c + log(sum over the others of exp(x - c) + exp(x_k - c)) with c the value of x_k: its derivative is p_k,
    # where that of x_k + L_k would be 1 - (1 - p_k).
    near = torch.where(far, 0, pivot_logit)
    rise = torch.expm1(near - near.detach())
    loss_of_rest = torch.log1p((sum_rest * half.detach()) * half.detach() * correction + rise)
    logsumexp = torch.where(far, shift + log_total, near.detach() + loss_of_rest)
    return _Pivot(loss, loss_of_rest, logsumexp, pivot_logit.detach())


def _mixed(
    x: Tensor, target: Tensor, weight: Tensor | None, spec: KernelSpec, inactive: Tensor | None
) -> tuple[Tensor, Tensor]:
    is_pivot = _is_class(x, x.detach().argmax(-1))
    pivot = _pivot(x, is_pivot)
    gaps = torch.where(is_pivot, 0, pivot.logit.unsqueeze(-1) - x)
    coefs = _coefs(x, target, weight, spec, inactive)
    # The zero comes before the product, so that an infinite gap has no derivative either.
    is_zero = coefs == 0
    products = coefs * torch.where(is_zero, 0, gaps)
    if target.is_floating_point() and spec.label_smoothing != 1:
        # The loss still rises with a probability of 0, unless its weight is 0.
        rise = coefs - coefs.detach()
        if weight is not None:
            is_zero = is_zero & (weight != 0)
        products = products + rise * torch.where(is_zero & torch.isfinite(gaps), gaps, 0)
        largest = torch.finfo(x.dtype).max  # whose square is infinite, where infinity itself times 0 would be NaN
        products = products + torch.where(is_zero & torch.isinf(gaps), rise * largest * largest, 0)
    # The pivot's own coefficient has the derivative p_k - 1, which cancels where it is made of p_k and -1.
    rest_coef, pivot_coef = torch.where(is_pivot, 0, coefs).sum(-1), torch.where(is_pivot, coefs, 0).sum(-1)
    return products.sum(-1) + rest_coef * pivot.loss_of_rest + pivot_coef * pivot.loss, pivot.logsumexp


def transformed(x: Tensor, transform: LogitTransform) -> Tensor:
    """b a tanh(x / a) whose derivative does not cancel: autograd's 1 - tanh^2 would, for large arguments.

    -inf stays, with derivative 0; so does +inf, and its row is NaN.
    """
    softcap, inverse_temperature = transform
    if softcap is not None:
        y = x / softcap
        large = y.abs() > 1
        w = torch.exp(-2 * torch.where(large, y, 1).abs())
        capped = softcap * torch.where(large, torch.sign(y) * ((1 - w) / (1 + w)), torch.tanh(torch.where(large, 0, y)))
        x = torch.where(x == -math.inf, -math.inf, torch.where(x == math.inf, x, capped))
    return x if inverse_temperature == 1 else x * inverse_temperature
