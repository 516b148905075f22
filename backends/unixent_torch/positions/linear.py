"""Statistics of hidden states: a chunk of logits at a time, formed anew for the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from unixent.chunking import linear_chunk
from unixent_torch.linear.chunks import LinearSpec, without_autocast
from unixent_torch.logits.autograd import is_transformed
from unixent_torch.positions.rows import ALONG, READING, Columns, StatsSpec, row_gradient, row_stats

_NAMES = ("hidden", "classifier", "bias")


class StatsOperands(NamedTuple):
    """hidden P + (D,), classifier (C, D), bias (C,) or None."""

    hidden: Tensor
    classifier: Tensor
    bias: Tensor | None


def _counted(x: Tensor, columns: Columns) -> Tensor:
    """x, one row a position, with 0 where the position does not count: 0 times a NaN would reach a gradient."""
    weight = columns.position_weight
    return x if weight is None else x.masked_fill((weight == 0).unsqueeze(-1), 0)


def whole_logits(operands: StatsOperands, columns: Columns, spec: LinearSpec) -> Tensor:
    """All logits, for transforms, in the accumulation dtype."""
    hidden, classifier, bias = operands
    bias = None if bias is None else bias.to(spec.loss.kernel.acc_dtype)
    with without_autocast(hidden.device):
        states = _counted(spec.widen(hidden), columns)
        return torch.nn.functional.linear(states, spec.widen(classifier), bias)


class _Chunks:
    """The chunks of one call, and what their products are made of."""

    def __init__(self, operands: StatsOperands, columns: Columns, spec: LinearSpec) -> None:
        hidden, classifier, bias = operands
        self.positions, (classes, width) = hidden.shape[:-1], classifier.shape
        self.count = self.positions.numel()
        self.classifier = spec.widen(classifier)
        self._hidden, self._spec = hidden.reshape(self.count, width), spec
        self._bias = None if bias is None else bias.to(self.classifier.dtype)
        self._columns = columns.flattened(self.count)
        # The rows' exponentials, gaps and probabilities lie beside the logits.
        self._step = linear_chunk(self.count, 4 * classes, width, self.classifier.element_size(), spec.chunk)

    def __iter__(self) -> Iterator[tuple[slice, Columns, Tensor, Tensor]]:
        """The rows, their columns, states (0 where they do not count) and logits."""
        for start in range(0, self.count, self._step):
            rows = slice(start, min(start + self._step, self.count))
            columns = self._columns.rows(rows)
            states = _counted(self._spec.widen(self._hidden[rows]), columns)
            logits = states @ self.classifier.t()
            yield rows, columns, states, logits if self._bias is None else logits.add_(self._bias)


def linear_stats(operands: StatsOperands, columns: Columns, spec: StatsSpec, chunked: LinearSpec) -> dict[str, Tensor]:
    """The outputs, as `row_stats` has them."""
    with without_autocast(operands.hidden.device):
        chunks = _Chunks(operands, columns, chunked)
        along = READING if spec.kernel.readable else ALONG
        parts = [row_stats(logits, rows, spec, along) for _, rows, _, logits in chunks]
        if not parts:
            return row_stats(whole_logits(operands, columns, chunked), columns, spec)
        joined = {name: torch.cat([part[name] for part in parts]) for name in spec.outputs}
        return {name: each.view(*chunks.positions, *each.shape[1:]) for name, each in joined.items()}


def linear_gradients(
    operands: StatsOperands,
    upstream: dict[str, Tensor],
    columns: Columns,
    spec: StatsSpec,
    chunked: LinearSpec,
    wrt: tuple[str, ...],
) -> dict[str, Tensor]:
    """The gradients for ``wrt``, in the accumulation dtype."""
    with without_autocast(operands.hidden.device):
        chunks = _Chunks(operands, columns, chunked)
        dtype, axes = chunks.classifier.dtype, len(chunks.positions)
        grads = {name: torch.zeros_like(getattr(operands, name), dtype=dtype) for name in wrt}
        above = {name: each.reshape(chunks.count, *each.shape[axes:]) for name, each in upstream.items()}
        for rows, of_rows, states, logits in chunks:
            grad = row_gradient(logits, {name: each[rows] for name, each in above.items()}, of_rows, spec)
            if "hidden" in grads:
                grads["hidden"].view(chunks.count, -1)[rows] = _counted(grad @ chunks.classifier, of_rows)
            if "classifier" in grads:
                grads["classifier"].addmm_(grad.t(), states)
            if "bias" in grads:
                grads["bias"] += grad.sum(0)
        return grads


class LinearStatistics(Function):
    """The outputs under plain reverse mode: nothing is kept but the operands."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        classifier: Tensor,
        bias: Tensor | None,
        columns: Columns,
        spec: StatsSpec,
        chunked: LinearSpec,
    ) -> tuple[Tensor, ...]:
        ctx.spec, ctx.chunked = spec, chunked
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, classifier, bias, *columns)
        stats = linear_stats(StatsOperands(hidden, classifier, bias), columns, spec, chunked)
        ctx.mark_non_differentiable(*[each for name, each in stats.items() if name not in spec.graded])
        return tuple(stats.values())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        saved, spec, chunked = ctx.saved_tensors, ctx.spec, ctx.chunked
        operands, columns = StatsOperands(*saved[:3]), Columns(*saved[3:])
        upstream = spec.upstream(grad_outputs)
        wrt = tuple(name for name, needed in zip(_NAMES, ctx.needs_input_grad, strict=False) if needed)
        if not upstream:
            return (None,) * 6
        if torch.is_grad_enabled() or any(map(is_transformed, upstream.values())):
            grads = _differentiable(operands, upstream, columns, spec, chunked, wrt)
        else:
            grads = linear_gradients(operands, upstream, columns, spec, chunked, wrt)
        results = {name: grad.to(getattr(operands, name).dtype) for name, grad in grads.items()}
        return (*map(results.get, _NAMES), None, None, None)


def _differentiable(
    operands: StatsOperands,
    upstream: dict[str, Tensor],
    columns: Columns,
    spec: StatsSpec,
    chunked: LinearSpec,
    wrt: tuple[str, ...],
) -> dict[str, Tensor]:
    """The same as functions of the operands and the upstream gradients, with all logits at a time."""
    grad = row_gradient(whole_logits(operands, columns, chunked), upstream, columns, spec)
    hidden, classifier = _counted(chunked.widen(operands.hidden), columns), chunked.widen(operands.classifier)
    flat, states = grad.reshape(-1, grad.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
    grads = {"hidden": _counted(grad @ classifier, columns), "classifier": flat.t() @ states, "bias": flat.sum(0)}
    return {name: grads[name] for name in wrt}
