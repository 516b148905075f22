"""What the statistics of rows leave for their gradients."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from unixent_torch.kernel.spec import KernelSpec


class RowColumns(NamedTuple):
    """What the statistics of the rows leave for their gradients.

    Attributes:
        columns: float32 [quantity, N]; see `programs.combine_index` and `programs.combine_mixed`.
        pivot: int64 [N], the class that each row's exponentials leave out.
    """

    columns: Tensor
    pivot: Tensor


def num_columns(target: Tensor, spec: KernelSpec) -> int:
    """How many quantities of a row are kept: 5 where every class has a coefficient, 3 where the target alone has."""
    return 5 if target.is_floating_point() or spec.label_smoothing > 0 else 3
