"""What there is one of per position, by Triton: targets and masks before the pass over logits, the mean after it."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent.semantics import LARGE_MEAN_SCALE
from unixent_torch.kernel.triton.position_programs import mean_of_blocks, position_columns, sums_of_blocks

# Positions of a program, and blocks that the mean's one program adds up at a time.
_ROWS = 1024
_SUMMED_ROWS = 4096
_BLOCKS = 1024


def positions_of(
    target: Tensor, mask: Tensor | None, weight: Tensor | None, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices that are classes, int64; v, NaN where a target is none; the terms d of the mean's denominator.

    Args:
        target: integers P.
        mask: P, of any dtype, or None for ones.
        weight: float32 (C,), or None for ones.
        num_classes: C.
        ignore_index: as int64; None where it does not fit.
    """
    shape, count = target.shape, target.numel()
    index = torch.empty(shape, dtype=torch.int64, device=target.device)
    v, d = (torch.empty(shape, dtype=torch.float32, device=target.device) for _ in range(2))
    if count:
        target = target.contiguous()
        mask = None if mask is None else mask.contiguous()
        with torch.cuda.device(target.device):
            position_columns[(-(-count // _ROWS),)](
                target, v if mask is None else mask, v if weight is None else weight.contiguous(), index, v, d,
                count, num_classes, ignore_index or 0, MASKED=mask is not None, WEIGHTED=weight is not None,
                IGNORES=ignore_index is not None, ROWS=_ROWS, num_warps=4,
            )  # fmt: skip
    return index, v, d


def mean(losses: Tensor, denominator: Tensor | float, empty: float) -> Tensor:
    """float32 losses over a denominator, a number or a 0-d tensor; ``empty``, 0 or NaN, where that is 0."""
    losses = losses.reshape(-1).contiguous()
    count = losses.numel()
    blocks = -(-count // _SUMMED_ROWS)
    sums, result = losses.new_empty(2 * blocks), losses.new_empty(())
    on_device = isinstance(denominator, Tensor)
    with torch.cuda.device(losses.device):
        if count:
            sums_of_blocks[(blocks,)](losses, sums, count, LARGE_MEAN_SCALE, ROWS=_SUMMED_ROWS, num_warps=8)
        mean_of_blocks[(1,)](
            sums, denominator if on_device else result, result, blocks, 1.0 if on_device else denominator,
            1 / LARGE_MEAN_SCALE, ON_DEVICE=on_device, EMPTY_IS_NAN=empty != 0, ROWS=_BLOCKS, num_warps=4,
        )  # fmt: skip
    return result
