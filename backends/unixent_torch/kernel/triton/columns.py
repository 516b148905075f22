"""What the statistics of rows leave for their gradients."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RowColumns(NamedTuple):
    """What the statistics of the rows leave for their gradients.

    Attributes:
        columns: float32 [quantity, N]; see `programs.combine_index` and `programs.combine_mixed`.
        pivot: int64 [N], the class that each row's exponentials leave out.
    """

    columns: Tensor
    pivot: Tensor
