"""Log-probabilities of targets on CUDA tensors: a loss of class indices with its sign turned, by the same programs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unixent_torch.kernel import triton
from unixent_torch.kernel.triton.columns import RowColumns
from unixent_torch.positions.rows import Columns, RowResults, StatsSpec


def row_statistics(
    x: Tensor,
    columns: Columns,
    spec: StatsSpec,
    upstream: dict[str, Tensor] | None,
    out: Tensor | None,
    keep: bool,
    kept: Tensor | None,
) -> RowResults | None:
    """See `unixent_torch.positions.kernel`; None where another output is asked for, or these tensors are not served."""
    target = columns.target
    if x.device.type not in triton.DEVICES or {*spec.outputs, *(upstream or ())} != {"log_prob"} or target is None:
        return None
    of_nll = replace(spec.kernel, label_smoothing=0.0, z_loss=0.0)
    if not triton.takes(of_nll, x, target, columns.position_weight, out, *(upstream or {}).values()):
        return None
    counts = _counts(columns.position_weight)
    outputs: dict[str, Tensor] = {}
    if kept is None:
        nll, rows = triton.row_statistics(x, target, None, counts, of_nll)
        kept = rows.columns
        if spec.outputs:
            outputs["log_prob"] = 0 - nll
    gradient = None
    if upstream is not None:
        rows = RowColumns(kept.contiguous(), target.reshape(-1).contiguous())
        scale, into = 0 - upstream["log_prob"], None if out is None else (out,)
        (gradient,) = triton.row_gradients(x, target, None, counts, scale, of_nll, rows, ("logits",), into)
    return RowResults(outputs, gradient, kept if keep else None)


def _counts(position_weight: Tensor | None) -> Tensor | None:
    """1 or 0 of each position, NaN where the target is out of range: a statistic is not weighted."""
    if position_weight is None:
        return None
    return torch.where(position_weight.isnan(), position_weight, (position_weight != 0).to(position_weight.dtype))
