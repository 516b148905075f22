"""The Triton program that reads the logits a second time and writes the gradients."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from unixent_torch.kernel.triton.programs import coefficients, locate, offsets, transformed


@triton.jit(do_not_specialize=["outer_size", "inner", "tiles"])
def gradient_tiles(
    x_ptr, pivot_ptr, index_ptr, q_ptr, weight_ptr, v_ptr, scale_ptr, column_ptr, grad_ptr, target_grad_ptr,
    stride_outer, stride_inner, stride_class, q_outer, q_inner, q_class, grad_outer, grad_inner, grad_class,
    target_outer, target_inner, target_class, scale_stride,
    outer_size, inner, num_classes, tiles, softcap, inverse_temperature, one_minus_smoothing, smoothing,
    MIXED: tl.constexpr, PROBABILITIES: tl.constexpr, WEIGHTED: tl.constexpr, POSITION_WEIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, SCALED: tl.constexpr, FOR_LOGITS: tl.constexpr, FOR_TARGET: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """From the columns of `combine_index` or `combine_mixed`, times the upstream factor and the position's weight.

    logits:         v g (A exp(x_c - m) - t_c), and v g B at the pivot; no t_c where the pivot is the target
    probabilities:  v g (1 - s) w_c (x_j - x_c + L_j)
    """
    _, classes, rows, outer, along, active = locate(inner, tiles, ROWS, TILE)
    count = outer_size.to(tl.int64) * inner
    in_range = classes < num_classes
    exists = active[:, None] & in_range[None, :]
    at = offsets(outer, along, classes, stride_outer, stride_inner, stride_class)
    raw = tl.load(x_ptr + at, mask=exists, other=float("-inf")).to(tl.float32)
    x = transformed(raw, softcap, inverse_temperature, SOFTCAP, SCALED)
    scale = tl.load(scale_ptr + rows * scale_stride, mask=active, other=0.0)
    inactive = tl.full((ROWS,), 0, tl.int1)
    if POSITION_WEIGHT:
        v = tl.load(v_ptr + rows, mask=active, other=0.0)
        inactive = v == 0
        scale = v * scale
    weight = tl.full((1, TILE), 1.0, tl.float32)
    if WEIGHTED:
        weight = tl.load(weight_ptr + classes, mask=in_range, other=0.0)[None, :]
    if FOR_LOGITS:
        shift = tl.load(column_ptr + rows, mask=active, other=0.0)
        factor = tl.load(column_ptr + count + rows, mask=active, other=0.0)
        own = tl.load(column_ptr + 2 * count + rows, mask=active, other=0.0)
        is_pivot = classes[None, :] == tl.load(pivot_ptr + rows, mask=active, other=0)[:, None]
        exp = tl.exp(x - shift[:, None])
        if MIXED:
            q = x
            is_target = exists
            if PROBABILITIES:
                at = offsets(outer, along, classes, q_outer, q_inner, q_class)
                q = tl.load(q_ptr + at, mask=exists, other=0.0).to(tl.float32)
            else:
                is_target = classes[None, :] == tl.load(index_ptr + rows, mask=active, other=0)[:, None]
            coefs = coefficients(q, weight, is_target, exists, one_minus_smoothing, smoothing, PROBABILITIES)
            grad = tl.where(is_pivot, own[:, None], exp * factor[:, None] - coefs) * scale[:, None]
        else:
            grad = tl.where(is_pivot, (own * scale)[:, None], exp * (factor * scale)[:, None])
        if SOFTCAP:
            # sech^2(y) = 4 w / (1 + w)^2 with w = exp(-2 |y|); 1 - tanh^2 would cancel for large y.
            w = libdevice.exp(tl.abs(tl.div_rn(raw, softcap)) * -2.0)
            grad = grad * (4 * tl.div_rn(w, (1 + w) * (1 + w)))
        if SCALED:
            grad = grad * inverse_temperature
        grad = tl.where(inactive[:, None], 0.0, grad)
        at = offsets(outer, along, classes, grad_outer, grad_inner, grad_class)
        tl.store(grad_ptr + at, grad, mask=exists)
    if FOR_TARGET:
        top = tl.load(column_ptr + 3 * count + rows, mask=active, other=0.0)
        nll = tl.load(column_ptr + 4 * count + rows, mask=active, other=0.0)
        coef = one_minus_smoothing * weight
        grad = ((top[:, None] - x) + nll[:, None]) * coef
        grad = tl.where(coef == 0, 0.0, grad)
        infinite = tl.abs(grad) == float("inf")
        grad = tl.where((scale == 0)[:, None] & infinite, 0.0, grad * scale[:, None])
        grad = tl.where(inactive[:, None], 0.0, grad)
        at = offsets(outer, along, classes, target_outer, target_inner, target_class)
        tl.store(target_grad_ptr + at, grad, mask=exists)
