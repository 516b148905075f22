"""Statistics of rows whose classes are split over processes: `unixent.row_statistics` by each one's share of them.

Every process holds the logits of some classes of every row, x P + (its classes,), in the order of their indices, which
count over all processes. What is reduced over them, P + (1,) or P + (n,) each:

    pivot               maximum of the largest logit here; then of -index, where that is it: the lowest of equal ones
    shift               maximum of the largest logit but the pivot
    x_j, x_y, ...       sum, of the process that holds the class and 0 of the others
    scalars             sums of exp(x_c - shift) and of exp(x_c - shift) d_c, side by side
    log sum p^2, rank, mean     a sum each
    k largest           the k largest of each process with their classes, gathered: nothing else of a logit is sent

A maximum may lose a NaN on its way, so that it travels in the sums. The gradient at the classes here follows from the
scalars (`unixent.row_statistics.solve_again`): nothing is reduced for it.

A process that holds no class passes one logit of -inf, whose index is C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from unixent.row_statistics import Along, Array


class Processes(NamedTuple):
    """The processes that share the classes of rows, as one of them sees them.

    Attributes:
        vocab_start: index of the first class here; C where there is none.
        num_classes: C.
        sum, max: ``(values) -> values``, elementwise over the processes, of floats or integers. A sum is
            differentiable where the framework is; of a maximum no derivative is asked.
        gather: ``(values P + (n,)) -> P + (processes * n,)``, in any order, of floats or integers.
        beside: as in `Along`; None where nothing is differentiated, or the framework sees to it.
    """

    vocab_start: Any
    num_classes: Any
    sum: Callable[[Array], Array]
    max: Callable[[Array], Array]
    gather: Callable[[Array], Array]
    beside: Callable[[Array], Array] | None = None


def along_shares(along: Along, processes: Processes) -> Along:
    """``along``, of the classes of one process, as `Along` of the classes of all processes.

    Example:
        >>> import numpy as np
        >>> from unixent.row_statistics import Classes, solve, values
        >>> from unixent_numpy.positions.rows import ALONG
        >>> alone = Processes(0, 3, sum=np.array, max=np.array, gather=np.array)
        >>> rows = solve(along_shares(ALONG, alone), np.array([[0.0, 1.0, 0.0]]))
        >>> values(along_shares(ALONG, alone), rows, ("prediction",), Classes(None, None, None), 0)
        {'prediction': array([[1]])}
    """
    xp, start, num_classes = along.xp, processes.vocab_start, processes.num_classes

    def local(x: Array, index: Array) -> tuple[Array, Array]:
        """Where classes lie here, and which do."""
        column = index - start
        is_here = (column >= 0) & (column < x.shape[-1])
        return xp.where(is_here, column, 0), is_here

    def take(x: Array, index: Array) -> Array:
        column, is_here = local(x, index)
        return processes.sum(xp.where(is_here, along.take(x, column), 0))

    def largest(x: Array) -> Array:
        here = along.max(x)
        return xp.where(xp.isnan(here), -math.inf, here)

    def argmax(x: Array) -> Array:
        here = largest(x)
        is_largest = here == processes.max(here)
        return 0 - processes.max(xp.where(is_largest, 0 - (along.argmax(x) + start), 0 - num_classes))

    def top(x: Array, k: int) -> Array:
        here = min(k, x.shape[-1])
        index = along.top(x, here)
        logits, index = along.take(x, index), index + start
        if here < k:
            padding = [xp.full_like(logits[..., :1], -math.inf)] * (k - here)
            logits = xp.concatenate((logits, *padding), -1)
            index = xp.concatenate((index, *[xp.full_like(index[..., :1], num_classes)] * (k - here)), -1)
        logits, index = processes.gather(logits), processes.gather(index)
        by_class = along.top(0 - index, index.shape[-1])
        logits, index = along.take(logits, by_class), along.take(index, by_class)
        return along.take(index, along.top(logits, k))

    def total(*columns: Array) -> tuple[Array, ...]:
        sums = processes.sum(columns[0] if len(columns) == 1 else xp.concatenate(columns, -1))
        return tuple([sums[..., i : i + 1] for i in range(len(columns))])

    def add_at(x: Array, index: Array, values: Array) -> Array:
        column, is_here = local(x, index)
        return along.add_at(x, column, xp.where(is_here, values, 0))

    return along._replace(
        take=take,
        max=lambda x: processes.max(largest(x)),
        argmax=argmax,
        top=top,
        classes=lambda x: along.classes(x) + start,
        add_at=add_at,
        total=total,
        beside=processes.beside or along.beside,
        num_classes=num_classes,
    )
