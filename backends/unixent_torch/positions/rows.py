"""The statistics of rows by functional operations: what transforms and compilers see, and what a block is worked by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from unixent import row_statistics
from unixent.row_statistics import GRADED, WIDE, Along, Classes, Solved
from unixent.share_statistics import along_shares
from unixent_torch.collectives import LocalShard, processes_of
from unixent_torch.kernel import KernelSpec
from unixent_torch.kernel.traced import transformed
from unixent_torch.logits.gradient import scale_infinite


def _top(x: Tensor, k: int) -> Tensor:
    return torch.sort(x, stable=True, dim=-1, descending=True).indices[..., :k]


def _top_by_reading(x: Tensor, k: int) -> Tensor:
    """The same by `torch.topk`, which takes any of equal classes: where it had a choice, they are sorted."""
    values, indices = x.topk(k)
    if not bool(((x >= values[..., -1:]).sum(-1) == k).all()):
        return _top(x, k)
    indices = indices.sort(-1).values
    return indices.gather(-1, _top(x.gather(-1, indices), k))


ALONG = Along(
    xp=torch,
    take=partial(torch.take_along_dim, dim=-1),
    sum=partial(torch.sum, dim=-1, keepdim=True),
    max=partial(torch.amax, dim=-1, keepdim=True),
    argmax=partial(torch.argmax, dim=-1, keepdim=True),
    top=_top,
    classes=lambda x: torch.arange(x.shape[-1], device=x.device),
    add_at=lambda x, index, values: x.scatter_add(-1, index, values.expand(index.shape)),
    product=lambda coef, value: scale_infinite(value, coef),
    constant=torch.Tensor.detach,
    astype=lambda x, name: x.to(getattr(torch, name)),
)
#: Where values can be read without stalling.
READING = ALONG._replace(top=_top_by_reading)


@dataclass(frozen=True, slots=True)
class StatsSpec:
    """The static side: the outputs but for the loss, how many classes from the top, the kernel's own, and how the
    classes are split, if they are."""

    kernel: KernelSpec
    outputs: tuple[str, ...]
    k: int
    shard: LocalShard | None = None

    def over(self, along: Along) -> Along:
        """``along`` over all classes."""
        return along if self.shard is None else along_shares(along, processes_of(self.shard))

    @property
    def graded(self) -> tuple[str, ...]:
        return tuple(name for name in self.outputs if name in GRADED)

    def upstream(self, grads: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
        """The upstream gradients that there are, by output, in the accumulation dtype."""
        pairs = zip(self.outputs, grads, strict=True)
        return {name: grad.to(self.kernel.acc_dtype) for name, grad in pairs if grad is not None}

    def of(self, outputs: tuple[str, ...]) -> StatsSpec:
        return StatsSpec(self.kernel, outputs, self.k, self.shard)


class Columns(NamedTuple):
    """What there is of each position, P or P + (K,): int64 indices that are safe to gather with, weights in the
    accumulation dtype.

    Attributes:
        target: y, or None.
        selected: the classes selected, or None.
        selected_weight: 1, 0 at padding, NaN where there is no such class; None for ones.
        position_weight: v, NaN where y is out of range; None for ones.
        smoothing: s w_c / C of each class, (C,), for a regularizer; None for zeros.
    """

    target: Tensor | None
    selected: Tensor | None
    selected_weight: Tensor | None
    position_weight: Tensor | None
    smoothing: Tensor | None = None

    def rows(self, rows: slice) -> Columns:
        """Those of some rows, of flattened positions."""
        target, selected, weight, position_weight = (None if each is None else each[rows] for each in self[:4])
        return Columns(target, selected, weight, position_weight, self.smoothing)

    def flattened(self, count: int) -> Columns:
        """With one axis of positions."""
        target, position_weight = (None if each is None else each.reshape(count) for each in (self[0], self[3]))
        selected, weight = (None if each is None else each.reshape(count, each.shape[-1]) for each in self[1:3])
        return Columns(target, selected, weight, position_weight, self.smoothing)

    def classes(self, kernel: KernelSpec) -> Classes:
        target = None if self.target is None else self.target.unsqueeze(-1)
        return Classes(target, self.selected, self.selected_weight, None, self.smoothing, kernel.z_loss)


class RowResults(NamedTuple):
    """What rows come to.

    Attributes:
        outputs: by name, P, P + (K,) or P + (k,) in the accumulation dtype, int64 or bool.
        gradient: of the logits, in their dtype, or None.
        kept: for the call that asks for the gradient later, or None.
    """

    outputs: dict[str, Tensor]
    gradient: Tensor | None
    kept: Tensor | None


def row_stats(x: Tensor, columns: Columns, spec: StatsSpec, along: Along = ALONG) -> dict[str, Tensor]:
    """The outputs in the accumulation dtype, P or P + (K,), of logits as they were given."""
    x, inactive = prepared(x, columns, spec)
    along = spec.over(along)
    stats: dict[str, Tensor] = {}
    for outputs in (spec.graded, tuple(name for name in spec.outputs if name not in GRADED)):
        if outputs:
            solved = row_statistics.solve(along, x if outputs == spec.graded else x.detach())
            stats |= values_of(solved, inactive, columns, spec.of(outputs), along)
    return {name: stats[name] for name in spec.outputs}


def values_of(
    solved: Solved, inactive: Tensor | None, columns: Columns, spec: StatsSpec, along: Along
) -> dict[str, Tensor]:
    """The outputs of rows that have been solved."""
    values = row_statistics.values(along, solved, spec.outputs, columns.classes(spec.kernel), spec.k)
    rest = (_undefined(solved, columns), inactive, columns.selected_weight)
    settled = {name: row_statistics.settled(torch, name, each, *rest) for name, each in values.items()}
    return {name: each if name in WIDE else each.squeeze(-1) for name, each in settled.items()}


def prepared(x: Tensor, columns: Columns, spec: StatsSpec) -> tuple[Tensor, Tensor | None]:
    """x', and where a row does not count, P + (1,): it is cleared first, since the derivative of a NaN that is dropped
    later would still be NaN."""
    x, inactive = x.to(spec.kernel.acc_dtype), None
    if columns.position_weight is not None:
        inactive = (columns.position_weight == 0).unsqueeze(-1)
        x = torch.where(inactive, 0, x)
    if not x.shape[-1]:  # of classes that are split: see `unixent.share_statistics`
        x = torch.cat((x, x.new_full((*x.shape[:-1], 1), -math.inf)), -1)
    return transformed(x, spec.kernel.transform), inactive


def _undefined(solved: Solved, columns: Columns) -> Tensor:
    undefined: Tensor = torch.isnan(solved.stats.loss)
    v = columns.position_weight
    return undefined if v is None else undefined | torch.isnan(v).unsqueeze(-1)


def row_gradient(x: Tensor, upstream: dict[str, Tensor], columns: Columns, spec: StatsSpec) -> Tensor:
    """The gradient of ``sum(upstream * outputs)`` for logits as they were given, in the accumulation dtype."""
    given, along = x.to(spec.kernel.acc_dtype), spec.over(ALONG)
    x, inactive = prepared(x, columns, spec)
    return gradient_of(row_statistics.solve(along, x), given, inactive, upstream, columns, spec, along)


def gradient_of(
    solved: Solved,
    given: Tensor,
    inactive: Tensor | None,
    upstream: dict[str, Tensor],
    columns: Columns,
    spec: StatsSpec,
    along: Along,
) -> Tensor:
    """The same of rows that have been solved, from their logits as they were given, in the accumulation dtype."""
    by_row = {name: each if name in WIDE else each.unsqueeze(-1) for name, each in upstream.items()}
    undefined = _undefined(solved, columns)
    grad = row_statistics.gradient(along, solved, by_row, columns.classes(spec.kernel))
    if not given.shape[-1]:
        grad = grad[..., :0]
    grad = grad * spec.kernel.transform.inverse_temperature
    if spec.kernel.transform.softcap is not None:
        w = torch.exp(-2 * (given / spec.kernel.transform.softcap).abs())
        grad = grad * (4 * w / (1 + w).square())
    grad = torch.where(undefined, math.nan, grad)
    return grad if inactive is None else torch.where(inactive, 0, grad)
