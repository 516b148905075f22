"""The Triton programs of what there is one of per position."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "ignore_index"])
def position_columns(
    target_ptr, mask_ptr, weight_ptr, index_ptr, v_ptr, d_ptr, count, num_classes, ignore_index,
    MASKED: tl.constexpr, WEIGHTED: tl.constexpr, IGNORES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`unixent.semantics.index_positions` and `denominators`: index, v (NaN out of range) and d of each position."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    active = rows < count
    target = tl.load(target_ptr + rows, mask=active, other=0).to(tl.int64)
    outside = (target < 0) | (target >= num_classes)
    ignored = outside & False
    if IGNORES:
        ignored = target == ignore_index
    index = tl.where(outside, 0, target)
    v = tl.full((ROWS,), 1.0, tl.float32)
    if MASKED:
        v = tl.load(mask_ptr + rows, mask=active, other=0).to(tl.float32)
    v = tl.where(ignored, 0.0, v)
    out_of_range = outside & (ignored == 0)
    d = v
    if WEIGHTED:
        weight = tl.load(weight_ptr + index, mask=active, other=0.0)
        d = tl.where(v == 0, 0.0, v * tl.where(out_of_range, 1.0, weight))
    tl.store(index_ptr + rows, index, mask=active)
    tl.store(v_ptr + rows, tl.where(out_of_range, float("nan"), v), mask=active)
    tl.store(d_ptr + rows, d, mask=active)


@triton.jit(do_not_specialize=["count"])
def sums_of_blocks(loss_ptr, sum_ptr, count, scale, ROWS: tl.constexpr):
    """The sum of a block of losses, and of the losses times ``scale``."""
    program = tl.program_id(0)
    rows = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    loss = tl.load(loss_ptr + rows, mask=rows < count, other=0.0)
    tl.store(sum_ptr + program, tl.sum(loss, 0))
    tl.store(sum_ptr + tl.num_programs(0) + program, tl.sum(loss * scale, 0))


@triton.jit(do_not_specialize=["blocks"])
def mean_of_blocks(
    sum_ptr, denominator_ptr, mean_ptr, blocks, denominator, inverse_scale,
    ON_DEVICE: tl.constexpr, EMPTY_IS_NAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`unixent.semantics.mean_of`, or `mean_of_large` where the sum is infinite, of the sums of blocks."""
    totals = tl.zeros((ROWS,), tl.float32)
    scaled = tl.zeros((ROWS,), tl.float32)
    for start in range(0, blocks, ROWS):
        at = start + tl.arange(0, ROWS)
        totals += tl.load(sum_ptr + at, mask=at < blocks, other=0.0)
        scaled += tl.load(sum_ptr + blocks + at, mask=at < blocks, other=0.0)
    total = tl.sum(totals, 0)
    if ON_DEVICE:
        denominator = tl.load(denominator_ptr).to(tl.float32)
    is_empty = denominator == 0
    large = tl.abs(total) == float("inf")
    quotient = tl.div_rn(tl.where(large, tl.sum(scaled, 0), total), tl.where(is_empty, 1.0, denominator))
    mean = tl.where(large, quotient * inverse_scale, quotient)
    if EMPTY_IS_NAN:
        mean = tl.where(is_empty, float("nan"), mean)
    else:
        mean = tl.where(is_empty, tl.where(total == total, 0.0, total), mean)
    tl.store(mean_ptr, mean)
