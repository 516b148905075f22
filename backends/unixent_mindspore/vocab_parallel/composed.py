"""The forward pass of a split loss in MindSpore primitives: for compiled code, and for accelerators.

The statistics, and what is reduced, are those of the NumPy backend: with class indices the pivot is the target, and a
position costs 3 numbers of communication (4 with smoothing); with probabilities it is the largest logit of all (7).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, int64
from mindspore.communication import get_rank
from mindspore.ops import operations as P

from unixent.errors import BackendError
from unixent_mindspore.collectives import SingleProcess, reduction
from unixent_mindspore.kernel import ABSENT, DTYPES
from unixent_mindspore.logits.problem import LossSpec
from unixent_mindspore.logits.reduction import Reduction
from unixent_mindspore.vocab_parallel.agreement import Agreement
from unixent_mindspore.vocab_parallel.autograd import ShardedLoss


class ShardedForward(Reduction):
    """`INPUTS` -> (loss or numerator, denominator, gradients of the first four)."""

    def __init__(self, spec: LossSpec, dtype: str, on_host: bool) -> None:
        super().__init__(spec, dtype)
        assert spec.sharding is not None
        group = spec.sharding.model_group
        rank = 0 if group is None else int(get_rank(group))
        # Logits and probabilities hold this process's classes; indices and weights those of the whole vocabulary.
        self.vocab_start = spec.sharding.vocab_start(rank)
        self.num_classes = spec.sharding.classes_per_rank[rank]
        self.vocab_end = self.vocab_start + self.num_classes
        self.class_numbers = Tensor(np.arange(self.vocab_start, self.vocab_end), int64)
        self.smooths = spec.options.label_smoothing > 0
        self.other_coefs = self.constant(spec.options.label_smoothing * (spec.num_classes - 1) / spec.num_classes)
        self.minus_rank = self.constant(-rank)
        self.grad_dtype = DTYPES[spec.acc_dtype]
        self.absent = ABSENT
        self.model_sum = reduction(group, "sum", dtype, on_host)
        self.model_max = reduction(group, "max", dtype, on_host)
        self.token_sum = reduction(spec.sharding.token_group, "sum", dtype, on_host)
        # An eager call has agreed already; on an accelerator nothing can be raised.
        signature = spec.signature if on_host else None
        self.agrees = signature is not None
        self.agreement = SingleProcess() if signature is None else Agreement(spec.sharding, signature)
        self.stack, self.new_zeros = P.Stack(0), P.Zeros()
        self.sum_before, self.sum_after = P.CumSum(exclusive=True), P.CumSum(exclusive=True, reverse=True)

    def local_weights(self, weight: Tensor, x: Tensor) -> Tensor:
        """The weights of this process's classes."""
        return self.along_classes(self.cast(weight, self.dtype)[self.vocab_start : self.vocab_end], x)

    def smoothing_coefs(self, weight: Tensor, x: Tensor) -> Tensor:
        """b_c = w_c s / C of this process's classes."""
        if self.has_weight:
            return self.smoothing_share * self.local_weights(weight, x)
        return self.smoothing_share

    def coefs_at(self, safe_index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The target's coefficient, and the sum of all others."""
        target_coef = self.one_minus_smoothing + self.smoothing_share
        if not self.has_weight:
            return target_coef, self.other_coefs
        w = self.cast(weight, self.dtype)
        other_weights = self.gather(self.sum_before(w, 0) + self.sum_after(w, 0), safe_index, 0)
        return target_coef * self.gather(w, safe_index, 0), self.smoothing_share * other_weights

    def by_index(self, x: Tensor, safe_index: Tensor, weight: Tensor, v: Tensor) -> tuple[Any, ...]:
        is_pivot = self.is_class(safe_index, x)
        target_coef, other_coefs = self.coefs_at(safe_index, weight)
        rest = self.where(is_pivot, self.minus_inf, x)
        top = self.model_max(self.max(rest))
        level = self.where(self.equal(top, self.minus_inf), self.zero, top)
        exps = self.exp(rest - level)
        smoothing_coefs = self.smoothing_coefs(weight, x)
        local: Any = (self.sum(exps), self.sum(self.where(is_pivot, x, self.zero)))
        if self.smooths:
            # The coefficients as an array: a reduced one has its class axis, even where it is one number.
            everywhere = smoothing_coefs + self.zero * self.ones(x)
            gaps = self.where(is_pivot, self.zero, self.times(everywhere, level - x))
            local = local + (self.sum(gaps),)
        sums = self.model_sum(self.stack(local))
        pivot_logit = sums[1]
        stats = self.row_stats(self.where(self.equal(top, self.minus_inf), pivot_logit, level), pivot_logit, sums[0])
        ones = self.ones(v)
        losses = self.times(target_coef * ones, stats[0])
        if self.smooths:
            losses = losses + sums[2] + self.times(other_coefs * ones, stats[2])
        return losses, stats, is_pivot, (target_coef, other_coefs), exps, smoothing_coefs, pivot_logit

    def by_probability(self, x: Tensor, target: Tensor, weight: Tensor) -> tuple[Any, ...]:
        is_largest = self.is_class(self.expand(self.argmax(x), self.axis) + self.vocab_start, x)
        largest, second = self.max(x), self.max(self.where(is_largest, self.minus_inf, x))
        pivot_logit = self.model_max(largest)
        reaches = self.equal(largest, pivot_logit)
        owner = self.model_max(self.where(reaches, self.minus_rank, self.minus_inf))
        owns_pivot = self.logical_and(reaches, self.equal(owner, self.minus_rank))
        top = self.model_max(self.where(owns_pivot, second, largest))
        level = self.where(self.equal(top, self.minus_inf), self.zero, top)
        is_pivot = self.logical_and(is_largest, owns_pivot)
        exps = self.exp(self.where(is_pivot, self.minus_inf, x) - level)
        coefs = self.one_minus_smoothing * self.cast(target, self.dtype) + self.smoothing_share
        if self.has_weight:
            coefs = self.times(self.local_weights(weight, x), coefs)
        gaps = self.sum(self.times(coefs, self.where(is_pivot, self.zero, pivot_logit - x)))
        others, own = self.sum(self.where(is_pivot, self.zero, coefs)), self.sum(self.where(is_pivot, coefs, self.zero))
        sums = self.model_sum(self.stack((self.sum(exps), gaps, others, own)))
        stats = self.row_stats(self.where(self.equal(top, self.minus_inf), pivot_logit, level), pivot_logit, sums[0])
        losses = sums[1] + (sums[2] + sums[3]) * stats[0]
        return losses, stats, is_pivot, (sums[3], sums[2]), exps, coefs, pivot_logit

    def construct(self, *inputs: Tensor) -> Any:
        logits, _, _, target, weight, mask, normalizer, _, _ = inputs
        x, transform_grad = self.transform(logits)
        if self.agrees:
            x = x + self.agreement()
        safe_target, v, denominators = self.positions(x, target, weight, mask)
        if self.indexed:
            passed = self.by_index(x, safe_target, weight, v)
        else:
            passed = self.by_probability(x, safe_target, weight)
        losses, stats, is_pivot, pivot_coefs, exps, coefs, pivot_logit = passed
        loss, logsumexp, _, p, one_minus_p, exp_scale = stats
        own, others = pivot_coefs
        z_loss_grad = self.zero
        if self.has_z_loss:
            losses = losses + self.half * self.two_z_loss * logsumexp * logsumexp
            z_loss_grad = self.two_z_loss * logsumexp
        losses = self.at_positions(v * losses, v)

        if self.per_position:
            value, denominator, grad_scale = self.reduced(losses, denominators, normalizer), self.absent, v
        else:
            sums = self.token_sum(self.stack(self.sums(losses, denominators)))
            value, denominator, scale = self.of_sums(sums, normalizer)
            grad_scale = v * scale

        at_pivot = others * p - own * one_minus_p + z_loss_grad * p
        grads = self.where(is_pivot, at_pivot, (own + others + z_loss_grad) * exp_scale * exps - coefs)
        grads = self.cast(self.at_positions(grad_scale * grads * transform_grad, v), self.grad_dtype)
        target_grads = self.absent
        if not self.indexed:
            share = self.one_minus_smoothing
            if self.has_weight:
                share = share * self.local_weights(weight, x)
            class_losses = self.where(is_pivot, self.zero, pivot_logit - x) + loss
            target_grads = self.where(self.equal(share * self.ones(x), self.zero), self.zero, share * class_losses)
            target_grads = self.at_positions(self.times(grad_scale, target_grads), v)
            target_grads = self.cast(target_grads, self.grad_dtype)
        return value, denominator, grads, self.absent, self.absent, target_grads


class ShardedEmpty(ShardedForward):
    """The forward pass of a process without a position, for which its token group still waits."""

    def construct(self, *inputs: Tensor) -> Any:
        logits, _, _, target, _, _, normalizer, _, _ = inputs
        grads, target_grads = self.cast(self.zeros(logits), self.grad_dtype), self.absent
        if not self.indexed:
            target_grads = self.cast(self.zeros(target), self.grad_dtype)
        if self.per_position:
            shape = logits.shape[: self.axis] + logits.shape[self.axis + 1 :]
            value, denominator = self.new_zeros(shape, self.result_dtype), self.absent
            if self.agrees:
                value = value + self.cast(self.agreement(), self.result_dtype)
        else:
            start = self.zero
            if self.agrees:
                start = self.reshape(self.agreement(), ())
            value, denominator, _ = self.of_sums(self.token_sum(self.stack((start, self.zero, self.zero))), normalizer)
        return value, denominator, grads, self.absent, self.absent, target_grads


def sharded_cell(spec: LossSpec, dtype: str, on_host: bool) -> ShardedLoss:
    """The split loss in primitives, between which MindSpore's own collectives run."""
    assert spec.sharding is not None
    if spec.linear:
        where = "in compiled code" if on_host else "on an accelerator"
        raise BackendError(
            f"parallel: linear_cross_entropy splits its classes eagerly on CPU with the mindspore backend; got a call "
            f"{where}, where cross_entropy(hidden @ classifier.T, ...) can be split"
        )
    if spec.teacher is not None:
        raise BackendError(
            "parallel: sparse targets are split over processes eagerly on CPU with the mindspore backend; got a call "
            "in compiled code"
        )
    if 0 in spec.sharding.classes_per_rank:
        raise BackendError(
            f"parallel: expected at least 1 class on every process in compiled code and on accelerators with the "
            f"mindspore backend; got {spec.sharding.classes_per_rank}"
        )
    return ShardedLoss(spec, (ShardedEmpty if spec.no_positions else ShardedForward)(spec, dtype, on_host))
