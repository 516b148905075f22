"""The loss of sparse targets under plain reverse mode, its gradient formed in the forward pass.

The loss is linear in the statistics of its rows, so the gradient of a scalar loss is known where they are: the
exponentials of a row, or a chunk of logits, are at hand. It is scaled in the backward pass, as that of
`unixent_torch.logits.autograd.ReverseLoss`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress, islice
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from unixent import sparse_targets
from unixent.row_statistics import WIDE
from unixent.sparse_targets import Shares
from unixent_torch import compat
from unixent_torch.linear.chunks import LinearOperands, LinearSpec
from unixent_torch.logits.autograd import is_transformed
from unixent_torch.logits.gradient import owned, scaled
from unixent_torch.logits.reduction import Denominator, LossSpec, expand_to, grad_scale_of, reduce
from unixent_torch.positions.kernel import row_statistics
from unixent_torch.positions.linear import NAMES, composed_gradients, linear_stats, whole_logits
from unixent_torch.positions.rows import ALONG, Columns, StatsSpec, row_gradient, row_stats


class SparseSpec(NamedTuple):
    """The static side: of the statistics, of the loss, and 1 - s."""

    stats: StatsSpec
    loss: LossSpec
    one_minus_smoothing: float

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.stats.outputs


Scores: TypeAlias = "tuple[Tensor | None, ...]"


def position_losses(
    shares: Shares, factor: Tensor, one_minus_smoothing: float, stats: dict[str, Tensor], v: Tensor | None
) -> Tensor:
    """The loss of each position, P, with its position weight, from statistics as `row_statistics` has them."""
    by_row = {name: each if name in WIDE else each.unsqueeze(-1) for name, each in stats.items()}
    losses: Tensor = sparse_targets.losses(ALONG, shares, factor, one_minus_smoothing, by_row).squeeze(-1)
    return losses if v is None else torch.where(v == 0, 0, v * losses)


def stats_upstream(
    shares: Shares, factor: Tensor, one_minus_smoothing: float, scale: Tensor, outputs: tuple[str, ...]
) -> dict[str, Tensor]:
    """The gradients of ``sum(scale * losses)`` for the statistics, with ``scale`` P + (1,)."""
    above = sparse_targets.upstream(shares, factor, one_minus_smoothing, scale, outputs)
    return {name: each if name in WIDE else each.squeeze(-1) for name, each in above.items()}


class Request(NamedTuple):
    """What is asked of the scores: statistics, and the gradients of ``sum(upstream * statistics)`` for ``wrt``."""

    columns: Columns
    spec: StatsSpec
    upstream: dict[str, Tensor]
    wrt: tuple[str, ...]


class LogitsForm:
    """Statistics, and gradients of statistics, as functions of the logits."""

    names = ("logits",)

    def solve(self, scores: Scores, request: Request) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """The statistics, and the gradients asked for."""
        columns, spec, upstream, wrt = request
        stats, grad, _ = row_statistics(self.logits(scores), columns, spec, upstream if wrt else None)
        return stats, () if grad is None else (grad,)

    def gradients(self, scores: Scores, request: Request) -> tuple[Tensor, ...]:
        """The gradients by functional operations."""
        columns, spec, upstream, wrt = request
        return (row_gradient(self.logits(scores), upstream, columns, spec),) if wrt else ()

    def logits(self, scores: Scores) -> Tensor:
        """All logits, by functional operations."""
        return _given(scores[0])


class LinearForm(NamedTuple):
    """The same of hidden states, classifier and bias."""

    constants: tuple[Any, ...]  # the operands after these
    chunked: LinearSpec
    names: tuple[str, ...] = NAMES

    def solve(self, scores: Scores, request: Request) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        columns, spec, upstream, wrt = request
        return linear_stats(self._operands(scores), columns, spec, self.chunked, upstream, wrt)[:2]

    def gradients(self, scores: Scores, request: Request) -> tuple[Tensor, ...]:
        columns, spec, upstream, wrt = request
        return composed_gradients(self._operands(scores), columns, spec, self.chunked, upstream, wrt) if wrt else ()

    def logits(self, scores: Scores) -> Tensor:
        return whole_logits(self._operands(scores), self.chunked)

    def _operands(self, scores: Scores) -> LinearOperands:
        return LinearOperands(*scores, *self.constants)  # type: ignore[arg-type]


Form: TypeAlias = "LogitsForm | LinearForm"


def _given(score: Tensor | None) -> Tensor:
    assert score is not None
    return score


class EarlyLoss(Function):
    """The reduced loss as a function of the shares q, P + (K,), what is left and their factor, P + (1,) or None, and of
    the scores."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        rest: Tensor | None,
        shares_factor: Tensor | None,
        factor: Tensor,
        columns: Columns,
        spec: SparseSpec,
        denominator: Denominator,
        form: Form,
        *scores: Tensor | None,
    ) -> Tensor:
        shares = Shares(q, None, rest, shares_factor)
        ctx.spec, ctx.denominator, ctx.form = spec, denominator, form
        wrt = tuple(compress(form.names, ctx.needs_input_grad[-len(scores) :]))
        upstream: dict[str, Tensor] = {}
        if wrt:
            one = torch.ones((), dtype=factor.dtype, device=factor.device)
            upstream = stats_upstream(
                shares, factor, spec.one_minus_smoothing, _scale(one, columns, spec, denominator, factor), spec.outputs
            )
        stats, grads = form.solve(scores, Request(columns, spec.stats, upstream, wrt))
        ctx.save_for_backward(q, rest, shares_factor, factor, *columns, *scores, *stats.values(), *grads)
        losses = position_losses(shares, factor, spec.one_minus_smoothing, stats, columns.position_weight)
        return reduce(losses, denominator, spec.loss, spec.stats.kernel.readable)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        spec, form, saved = ctx.spec, ctx.form, iter(ctx.saved_tensors)
        (q, rest, shares_factor, factor), columns = take(saved, 4), Columns(*take(saved, len(Columns._fields)))
        shares = Shares(q, None, rest, shares_factor)
        scores = take(saved, len(form.names))
        stats, grads = dict(zip(spec.outputs, saved, strict=False)), tuple(saved)
        for_q, for_rest, for_factor, *_ = ctx.needs_input_grad
        wrt = tuple(compress(form.names, ctx.needs_input_grad[-len(scores) :]))
        scale = _scale(grad_output, columns, spec, ctx.denominator, factor)
        upstream = stats_upstream(shares, factor, spec.one_minus_smoothing, scale, spec.outputs)
        if torch.is_grad_enabled() or is_transformed(grad_output):
            grads = form.gradients(scores, Request(columns, spec.stats, upstream, wrt))
            stats = row_stats(form.logits(scores), columns, spec.stats) if for_q or for_rest else {}
        elif spec.stats.kernel.readable and grad_output.item() == 1:
            grads = owned(grads)
        elif all(grad.dtype == factor.dtype for grad in grads):
            in_place = not compat.keeps_graph()
            grads = tuple(scaled(name, grad, grad_output, in_place) for name, grad in zip(wrt, grads, strict=True))
        else:  # a rounded gradient can't be scaled: what underflowed stays lost
            grads = form.solve(scores, Request(columns, spec.stats.of(()), upstream, wrt))[1]
        by_name = dict(zip(wrt, grads, strict=True))
        of_scores = [
            by_name[name].to(_given(score).dtype) if name in by_name else None
            for name, score in zip(form.names, scores, strict=True)
        ]
        of_q = of_rest = of_factor = None
        if for_q:
            of_q = ALONG.product(scale * factor, 0 - stats["selected_log_prob"])
            of_factor = ALONG.sum(ALONG.product(q, of_q)) if for_factor else None
            of_q = of_q if shares_factor is None else of_q * shares_factor
        if for_rest:
            of_rest = ALONG.product(scale * spec.one_minus_smoothing, 0 - stats["rest_log_prob"].unsqueeze(-1))
        return of_q, of_rest, of_factor, None, None, None, None, None, *of_scores


def take(values: Iterator[Any], count: int) -> tuple[Any, ...]:
    return tuple(islice(values, count))


def _scale(grad_output: Tensor, columns: Columns, spec: SparseSpec, denominator: Denominator, factor: Tensor) -> Tensor:
    """What the derivatives of the losses without position weights are multiplied with, P + (1,)."""
    scale, v = expand_to(grad_scale_of(grad_output, denominator, spec.loss), factor.shape[:-1]), columns.position_weight
    return (scale if v is None else torch.where(v == 0, 0, v * scale)).unsqueeze(-1)
