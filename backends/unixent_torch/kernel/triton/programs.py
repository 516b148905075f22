"""The Triton programs of the pass over the logits: statistics of tiles, their combination, gradients.

A row of C classes is cut into tiles. `index_tiles` and `mixed_tiles` give each tile statistics of its own, relative to
the largest logit of the tile and without the row's or the tile's pivot; `combine_index` and `combine_mixed` put them
together, one tile after another, and finish the row as `unixent.pivot.row_stats` does. There are no atomics and no
running rescaling: a row's bits do not depend on how many others there are, and rows that rise slowly keep their
accuracy.

Positions are two axes, `outer` and `inner`, with a stride each, so that any class axis is read in place. Offsets are
int64. What there is one of per row is stored by quantity, [quantity, row], so that neighbouring rows are read together.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def locate(inner, tiles, ROWS: tl.constexpr, TILE: tl.constexpr):
    """This program's tile, its classes, its rows in C order and on both axes, and which of the rows exist."""
    program = tl.program_id(0)
    tile = program % tiles
    group = program // tiles
    groups = tl.cdiv(inner, ROWS)
    outer = (group // groups).to(tl.int64)
    start = (group % groups) * ROWS
    along = start + tl.arange(0, ROWS)
    rows = outer * inner + along
    return tile, tile * TILE + tl.arange(0, TILE), rows, outer, along, along < inner


@triton.jit
def offsets(outer, along, classes, stride_outer, stride_inner, stride_class):
    """Where the elements of a tile lie, [ROWS, TILE]."""
    row = outer * stride_outer + along.to(tl.int64) * stride_inner
    return row[:, None] + (classes.to(tl.int64) * stride_class)[None, :]


@triton.jit
def transformed(x, softcap, inverse_temperature, SOFTCAP: tl.constexpr, SCALED: tl.constexpr):
    """x' = b a tanh(x / a); infinite logits stay."""
    if SOFTCAP:
        capped = libdevice.tanh(tl.div_rn(x, softcap)) * softcap
        x = tl.where(tl.abs(x) == float("inf"), x, capped)
    if SCALED:
        x = x * inverse_temperature
    return x


@triton.jit
def coefficients(q, weight, is_target, exists, one_minus_smoothing, smoothing, PROBABILITIES: tl.constexpr):
    """t_c = w_c ((1 - s) q_c + s / C), with the one-hot for q where targets are indices; 0 beyond the classes."""
    if PROBABILITIES:
        coefs = (one_minus_smoothing * q) * weight + smoothing * weight
    else:
        coefs = tl.where(is_target, one_minus_smoothing * weight + smoothing * weight, smoothing * weight)
    return tl.where(exists, coefs, 0.0)


@triton.jit
def times(factor, value):
    """A product in which 0 times infinity is 0."""
    return tl.where((factor == 0) & (tl.abs(value) == float("inf")), 0.0, factor * value)


@triton.jit(do_not_specialize=["outer_size", "inner", "tiles"])
def index_tiles(
    x_ptr, index_ptr, max_ptr, sum_ptr, pivot_ptr,
    stride_outer, stride_inner, stride_class, outer_size, inner, num_classes, tiles, softcap, inverse_temperature,
    SOFTCAP: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The largest logit but the target's, the sum of exponentials relative to it, and the target's own logit."""
    tile, classes, rows, outer, along, active = locate(inner, tiles, ROWS, TILE)
    count = outer_size.to(tl.int64) * inner
    index = tl.load(index_ptr + rows, mask=active, other=0)
    exists = active[:, None] & (classes < num_classes)[None, :]
    at = offsets(outer, along, classes, stride_outer, stride_inner, stride_class)
    x = tl.load(x_ptr + at, mask=exists, other=float("-inf")).to(tl.float32)
    x = transformed(x, softcap, inverse_temperature, SOFTCAP, SCALED)
    is_target = classes[None, :] == index[:, None]
    pivot_logit = tl.sum(tl.where(is_target, x, 0.0), 1)
    x = tl.where(is_target, float("-inf"), x)
    largest = tl.max(x, 1)
    level = tl.where(largest == float("-inf"), 0.0, largest)
    sum_exp = tl.sum(tl.exp(x - level[:, None]), 1)
    out = tile * count + rows
    tl.store(max_ptr + out, largest, mask=active)
    tl.store(sum_ptr + out, sum_exp, mask=active)
    tl.store(pivot_ptr + rows, pivot_logit, mask=active & (index // TILE == tile))


@triton.jit(do_not_specialize=["outer_size", "inner", "tiles"])
def mixed_tiles(
    x_ptr, index_ptr, q_ptr, weight_ptr, tile_ptr, pivot_ptr,
    stride_outer, stride_inner, stride_class, q_outer, q_inner, q_class,
    outer_size, inner, num_classes, tiles, softcap, inverse_temperature, one_minus_smoothing, smoothing,
    PROBABILITIES: tl.constexpr, WEIGHTED: tl.constexpr, SOFTCAP: tl.constexpr, SCALED: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """With a coefficient t_c of every class; the pivot is the tile's largest logit.

    Six numbers a tile: that logit, the largest of the others, their sum of exponentials, the sum of t_c (x_j - x_c),
    and the sum of t_c without the pivot's, and the pivot's.
    """
    tile, classes, rows, outer, along, active = locate(inner, tiles, ROWS, TILE)
    count = outer_size.to(tl.int64) * inner
    in_range = classes < num_classes
    exists = active[:, None] & in_range[None, :]
    at = offsets(outer, along, classes, stride_outer, stride_inner, stride_class)
    x = tl.load(x_ptr + at, mask=exists, other=float("-inf")).to(tl.float32)
    x = transformed(x, softcap, inverse_temperature, SOFTCAP, SCALED)
    weight = tl.full((1, TILE), 1.0, tl.float32)
    if WEIGHTED:
        weight = tl.load(weight_ptr + classes, mask=in_range, other=0.0)[None, :]
    q = x
    is_target = exists
    if PROBABILITIES:
        at = offsets(outer, along, classes, q_outer, q_inner, q_class)
        q = tl.load(q_ptr + at, mask=exists, other=0.0).to(tl.float32)
    else:
        is_target = classes[None, :] == tl.load(index_ptr + rows, mask=active, other=0)[:, None]
    coefs = coefficients(q, weight, is_target, exists, one_minus_smoothing, smoothing, PROBABILITIES)
    top = tl.max(x, 1)
    level = tl.where(top == float("-inf"), 0.0, top)
    gaps = tl.sum(tl.where(coefs == 0, 0.0, coefs * (level[:, None] - x)), 1)
    pivot = tl.min(tl.where(x == top[:, None], classes[None, :], 2147483647), 1)
    is_pivot = classes[None, :] == pivot[:, None]
    pivot_coef = tl.sum(tl.where(is_pivot, coefs, 0.0), 1)
    rest_coef = tl.sum(tl.where(is_pivot, 0.0, coefs), 1)
    x = tl.where(is_pivot, float("-inf"), x)
    largest = tl.max(x, 1)
    sum_exp = tl.sum(tl.exp(x - tl.where(largest == float("-inf"), 0.0, largest)[:, None]), 1)
    out = tile * count + rows
    step = tiles * count
    tl.store(tile_ptr + out, top, mask=active)
    tl.store(tile_ptr + step + out, largest, mask=active)
    tl.store(tile_ptr + 2 * step + out, sum_exp, mask=active)
    tl.store(tile_ptr + 3 * step + out, gaps, mask=active)
    tl.store(tile_ptr + 4 * step + out, rest_coef, mask=active)
    tl.store(tile_ptr + 5 * step + out, pivot_coef, mask=active)
    tl.store(pivot_ptr + out, pivot, mask=active)


@triton.jit
def row_stats(shift, pivot_logit, sum_rest):
    """`unixent.pivot.row_stats` of rows whose shift is -inf where there is no class but the pivot."""
    shift = tl.where(shift == float("-inf"), pivot_logit, shift)
    sum_rest = tl.where(pivot_logit == float("inf"), float("nan"), sum_rest)
    gap = shift - pivot_logit
    back = gap - shift
    dropped = (shift - (gap - back)) - (pivot_logit + back)
    dropped = tl.where(tl.abs(gap) < float("inf"), dropped, 0.0)
    far = gap > 0
    distance = tl.where(far, gap, -gap)
    decay = libdevice.exp(-distance)
    half = libdevice.exp(distance * -0.5)
    odds = tl.where(distance > 60.0, (sum_rest * half) * half, sum_rest * decay)
    odds = odds + odds * dropped
    decay = decay + decay * tl.where(far, -dropped, dropped)
    total = sum_rest + decay
    norm = tl.where(far, total, 1 + odds)
    log_norm = tl.where(far, libdevice.log(total), libdevice.log1p(odds))
    loss = tl.where(far, gap + (dropped + log_norm), log_norm)
    logsumexp = tl.where(far, shift, pivot_logit) + log_norm
    p = tl.div_rn(tl.where(far, decay, 1.0), norm)
    one_minus_p = tl.div_rn(tl.where(far, sum_rest, odds), norm)
    exp_scale = tl.div_rn(tl.where(far, 1.0, decay), norm)
    return shift, loss, logsumexp, p, one_minus_p, exp_scale


@triton.jit
def store_loss(loss_ptr, v_ptr, rows, loss, active, POSITION_WEIGHT: tl.constexpr):
    """The loss times the position's weight; 0 where that is 0."""
    if POSITION_WEIGHT:
        v = tl.load(v_ptr + rows, mask=active, other=0.0)
        loss = tl.where(v == 0, 0.0, loss * v)
    tl.store(loss_ptr + rows, loss, mask=active)


@triton.jit(do_not_specialize=["count", "tiles"])
def combine_index(
    max_ptr, sum_ptr, pivot_ptr, index_ptr, weight_ptr, v_ptr, loss_ptr, column_ptr, count, tiles, z_loss,
    WEIGHTED: tl.constexpr, POSITION_WEIGHT: tl.constexpr, Z_LOSS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Losses of class indices, and three columns for the gradient: the shift, the factor of every exponential, and the
    target's own entry."""
    count = count.to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    active = rows < count
    shift = tl.full((ROWS,), float("-inf"), tl.float32)
    at = rows
    for _ in range(0, tiles):
        shift = tl.maximum(shift, tl.load(max_ptr + at, mask=active, other=0.0))
        at += count
    level = tl.where(shift == float("-inf"), 0.0, shift)
    sum_rest = tl.zeros((ROWS,), tl.float32)
    at = rows
    for _ in range(0, tiles):
        largest = tl.load(max_ptr + at, mask=active, other=0.0)
        sum_rest += tl.load(sum_ptr + at, mask=active, other=0.0) * libdevice.exp(largest - level)
        at += count
    pivot_logit = tl.load(pivot_ptr + rows, mask=active, other=0.0)
    shift, loss, logsumexp, p, one_minus_p, exp_scale = row_stats(shift, pivot_logit, sum_rest)
    weight = tl.full((ROWS,), 1.0, tl.float32)
    if WEIGHTED:
        weight = tl.load(weight_ptr + tl.load(index_ptr + rows, mask=active, other=0), mask=active, other=0.0)
        loss = times(weight, loss)
    factor = weight
    own = -(weight * one_minus_p)
    if Z_LOSS:
        loss = loss + z_loss * logsumexp * logsumexp
        factor = weight + 2 * z_loss * logsumexp
        own = 2 * z_loss * logsumexp * p - weight * one_minus_p
    store_loss(loss_ptr, v_ptr, rows, loss, active, POSITION_WEIGHT)
    tl.store(column_ptr + rows, shift, mask=active)
    tl.store(column_ptr + count + rows, factor * exp_scale, mask=active)
    tl.store(column_ptr + 2 * count + rows, own, mask=active)


@triton.jit(do_not_specialize=["count", "tiles"])
def combine_mixed(
    tile_ptr, tile_pivot_ptr, v_ptr, loss_ptr, column_ptr, pivot_ptr, count, tiles, z_loss,
    POSITION_WEIGHT: tl.constexpr, Z_LOSS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Losses of smoothed indices or probabilities, and the columns: the three of `combine_index`, the pivot's logit,
    and its negative log-probability."""
    count = count.to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    active = rows < count
    step = count * tiles
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    owner = tl.zeros((ROWS,), tl.int32)
    at = tile_ptr + rows
    for tile in range(0, tiles):
        here = tl.load(at, mask=active, other=0.0)
        owner = tl.where(here > top, tile, owner)
        top = tl.maximum(top, here)
        at += count
    shift = tl.full((ROWS,), float("-inf"), tl.float32)
    at = tile_ptr + rows
    for tile in range(0, tiles):
        here = tl.load(at, mask=active, other=0.0)
        shift = tl.maximum(shift, tl.load(at + step, mask=active, other=0.0))
        shift = tl.where(owner == tile, shift, tl.maximum(shift, here))
        at += count
    level = tl.where(shift == float("-inf"), 0.0, shift)
    sum_rest = tl.zeros((ROWS,), tl.float32)
    gaps = tl.zeros((ROWS,), tl.float32)
    rest_coef = tl.zeros((ROWS,), tl.float32)
    pivot_coef = tl.zeros((ROWS,), tl.float32)
    at = tile_ptr + rows
    for tile in range(0, tiles):
        here = tl.load(at, mask=active, other=0.0)
        largest = tl.load(at + step, mask=active, other=0.0)
        sum_exp = tl.load(at + 2 * step, mask=active, other=0.0)
        coef = tl.load(at + 4 * step, mask=active, other=0.0)
        own_coef = tl.load(at + 5 * step, mask=active, other=0.0)
        owns = owner == tile
        sum_rest += sum_exp * libdevice.exp(largest - level) + tl.where(owns, 0.0, libdevice.exp(here - level))
        gap = top - tl.where(here == float("-inf"), 0.0, here)
        gaps += tl.load(at + 3 * step, mask=active, other=0.0) + times(coef + own_coef, tl.where(owns, 0.0, gap))
        rest_coef += coef + tl.where(owns, 0.0, own_coef)
        pivot_coef += tl.where(owns, own_coef, 0.0)
        at += count
    shift, nll, logsumexp, p, one_minus_p, exp_scale = row_stats(shift, top, sum_rest)
    coef_sum = rest_coef + pivot_coef
    loss = gaps + coef_sum * nll
    factor = coef_sum
    own = rest_coef * p - pivot_coef * one_minus_p
    if Z_LOSS:
        loss = loss + z_loss * logsumexp * logsumexp
        factor = coef_sum + 2 * z_loss * logsumexp
        own = own + 2 * z_loss * logsumexp * p
    store_loss(loss_ptr, v_ptr, rows, loss, active, POSITION_WEIGHT)
    tl.store(column_ptr + rows, shift, mask=active)
    tl.store(column_ptr + count + rows, factor * exp_scale, mask=active)
    tl.store(column_ptr + 2 * count + rows, own, mask=active)
    tl.store(column_ptr + 3 * count + rows, top, mask=active)
    tl.store(column_ptr + 4 * count + rows, nll, mask=active)
    pivot = tl.load(tile_pivot_ptr + owner.to(tl.int64) * count + rows, mask=active, other=0)
    tl.store(pivot_ptr + rows, pivot.to(tl.int64), mask=active)
