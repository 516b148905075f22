"""The loss of sparse targets, from statistics of positions."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from unixent import sparse_targets
from unixent.protocol import LinearProblem, Problem
from unixent.row_statistics import WIDE
from unixent_torch.collectives import Groups, LocalShard
from unixent_torch.kernel.mode import Mode
from unixent_torch.kernel.rows import class_weight
from unixent_torch.linear.problem import LinearCall
from unixent_torch.logits.positions import safe_selection
from unixent_torch.logits.problem import LogitsCall, LossCall
from unixent_torch.logits.reduction import reduce
from unixent_torch.positions.call import of_hidden, of_logits
from unixent_torch.positions.early import (
    EarlyLoss,
    Form,
    LinearForm,
    LogitsForm,
    SparseSpec,
    position_losses,
    stats_upstream,
)
from unixent_torch.positions.rows import ALONG, Columns, StatsSpec


class _SparseCall(LossCall):
    """What both forms compute in the place of the pass over the logits, of the classes that ``shard`` says, if they are
    split."""

    shard: LocalShard | None = None

    def _loss(self) -> Tensor:
        return self._solve(None, ())[0]

    def value_and_grad(self, grad_output: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return LossCall.value_and_grad(self, grad_output, wrt)

    def _loss_and_grads(self, grad_output: Tensor, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        scale = self.grad_scale(grad_output)
        v = self.positions.position_weight
        if v is not None:
            scale = torch.where(v == 0, 0, v * scale)
        with torch.no_grad() if self.mode is Mode.EAGER else contextlib.nullcontext():
            return self._solve(scale.unsqueeze(-1), wrt)

    def _solve(self, scale: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss, and the gradients of ``sum(scale * losses)``, with ``scale`` P + (1,) where any are asked for."""
        problem, kernel, (target, v, _) = self._problem, self.spec.kernel, self.positions
        teacher, ids = problem.teacher, problem.ids
        assert teacher is not None
        assert ids is not None
        index, known = safe_selection(ids, problem.num_classes, problem.options.ignore_index, kernel.acc_dtype)
        padding = known == 0 if v is None else (known == 0) | (v == 0).unsqueeze(-1)
        one_minus_smoothing = 1 - kernel.label_smoothing
        ones = torch.ones_like(known)
        factor = torch.where(padding, 0, ones if self.weight is None else class_weight(self.weight, index))
        factor = one_minus_smoothing * factor
        shares = sparse_targets.shares_of(ALONG, teacher, target.to(kernel.acc_dtype), padding)
        outputs = sparse_targets.outputs_of(teacher, bool(kernel.label_smoothing or kernel.z_loss))
        smoothing = None
        if kernel.label_smoothing:
            classes = torch.ones(problem.num_classes, dtype=kernel.acc_dtype, device=target.device)
            smoothing = (classes if self.weight is None else self.weight) * (
                kernel.label_smoothing / problem.num_classes
            )
        columns = Columns(None, index, known, v, smoothing)
        scores, stats_spec = tuple(name for name in wrt if name != "target"), StatsSpec(kernel, outputs, 0, self.shard)
        call: Any = self
        form = self._early_form() if scale is None else None
        if form is not None:
            spec = SparseSpec(stats_spec, self.spec, one_minus_smoothing)
            scores = call.operands[: len(form.names)]
            constants = (factor, columns, spec, self.denominator, form)
            return EarlyLoss.apply(shares.q, shares.rest, shares.factor, *constants, *scores), ()
        above: dict[str, Tensor] = {}
        if scale is not None and scores:
            above = stats_upstream(shares, factor, one_minus_smoothing, scale, outputs)
        rest: Any = (columns, stats_spec, above, scores)
        stats, grads = of_logits(call, *rest) if isinstance(call, LogitsCall) else of_hidden(call, *rest)
        losses = position_losses(shares, factor, one_minus_smoothing, stats, v)
        by_name = dict(zip(scores, grads, strict=True))
        if "target" in wrt:
            stats = {name: each if name in WIDE else each.unsqueeze(-1) for name, each in stats.items()}
            by_name["target"] = sparse_targets.values_gradient(
                ALONG, teacher, shares, factor, one_minus_smoothing, scale, stats, padding
            ).to(target.dtype)
        loss = reduce(losses, self.denominator, self.spec, self._readable)
        return loss, tuple(by_name[name] for name in wrt)

    def _early_form(self) -> Form | None:
        """What the gradient of the scores is formed by in the forward pass, if it is."""
        plain = self.mode is Mode.EAGER and not self.spec.kept_axes and self.shard is None
        return self._form() if plain and torch.is_grad_enabled() else None

    def _form(self) -> Form | None:
        raise NotImplementedError


class SparseLogits(_SparseCall, LogitsCall):
    """The loss of logits. On accelerators their gradient costs no less in the forward pass, and would be held."""

    def _form(self) -> Form | None:
        return LogitsForm() if self._readable and self.operands[0].requires_grad else None


class SparseLinear(_SparseCall, LinearCall):
    """The fused linear form."""

    def __init__(self, problem: LinearProblem, token_groups: Groups = ()) -> None:
        super().__init__(problem, token_groups)
        # The pass over chunks cuts a target into rows, and looks at none.
        nothing = torch.zeros(self._shape, dtype=torch.int64, device=self._device)
        self.operands = self.operands._replace(target=nothing)

    def _form(self) -> Form | None:
        return LinearForm(self.operands[3:], self.linear_spec) if self.is_differentiated() else None


def sparse_call(problem: Problem | LinearProblem, shard: LocalShard | None = None) -> SparseLogits | SparseLinear:
    tokens = () if shard is None else shard.token_groups
    call = SparseLogits(problem, tokens) if isinstance(problem, Problem) else SparseLinear(problem, tokens)
    call.shard = shard if shard is not None and shard.model_groups else None
    return call
