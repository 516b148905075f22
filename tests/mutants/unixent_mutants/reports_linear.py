"""Reported bugs of fused linear forms, and of distillation from a teacher's best classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent import TopK
from unixent_conformance.model import Array
from unixent_mutants.linear import Inputs, PlainLinear
from unixent_mutants.plain import Stats, mutant
from unixent_mutants.sparse import Call, RightSparse, but, is_plain, probabilities


@mutant("fused linear")
class FirstUpstreamOfAll(PlainLinear):
    """Every position takes the upstream gradient of the first (Liger-Kernel #968)."""

    def grad_scale(self, ups: Array, factor: Any, rows: slice, d: Array) -> Array:
        return super().grad_scale(np.full_like(ups, ups[0]), factor, rows, d)


@mutant("fused linear")
class SumsUnderTheFirstUpstream(PlainLinear):
    """The gradients that sum over positions are formed without the upstream one and scaled by the first of it, the
    rows of hidden by their own (Liger-Kernel #1298)."""

    def grad_scale(self, ups: Array, factor: Any, rows: slice, d: Array) -> Array:
        own = ups[rows]
        self.first = np.where(own == 0, 0, ups[0] / np.where(own == 0, 1, own))[:, None]
        return super().grad_scale(ups, factor, rows, d)

    def classifier_gradient(self, total: Array, logits_grad: Array, states: Array, given: Inputs) -> Array:
        return super().classifier_gradient(total, logits_grad * self.first, states, given)

    def bias_gradient(self, total: Array, logits_grad: Array) -> Array:
        return super().bias_gradient(total, logits_grad * self.first)


@mutant("fused linear")
class BiasTwiceAtTheTarget(PlainLinear):
    """The bias of the target is added to its logit once more (ml-cross-entropy #52)."""

    def logits(self, states: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        self.more = acc.type(0) if given.bias is None else given.bias.astype(acc)
        return super().logits(states, given, acc)

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        with np.errstate(all="ignore"):
            more = np.where(t == 0, 0, t * np.where(np.isfinite(self.more), self.more, 0)).sum(axis=1)
        return np.asarray(super().position_losses(stats, t, v) - v * more, v.dtype)


@mutant("fused linear")
class HiddenGradientOfOneShard(PlainLinear):
    """The gradients of hidden are not summed over the shards of the classes (ml-cross-entropy #42)."""

    def hidden_gradient(self, logits_grad: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        half = -(-logits_grad.shape[1] // 2)
        local = np.where(np.arange(logits_grad.shape[1]) < half, logits_grad, 0)
        return super().hidden_gradient(local.astype(logits_grad.dtype), given, acc)


@mutant("fused linear half precision", "fused linear")
class UnlikelyClassesDropped(PlainLinear):
    """In half precision, gradients of logits below 2**-12 are left out of the products (ml-cross-entropy #14)."""

    def finish_logits_grad(self, logits_grad: Array, given: Inputs) -> Array:
        if given.hidden.dtype.itemsize != 2:
            return logits_grad
        return np.where(abs(logits_grad) < 2**-12, 0, logits_grad).astype(logits_grad.dtype)


@mutant("sparse targets")
class TeacherClamped(RightSparse):
    """The teacher's log-probabilities are -10 at the least (verl's log_prob_min_clamp)."""

    def given(self, logits: Array, target: TopK, options: dict[str, Any]) -> Call:
        least = -10 if target.log_probs is not None else np.exp(-10)
        return logits, but(target, values=np.maximum(target.values, least)), options


@mutant("sparse targets")
class StudentClamped(RightSparse):
    """The student's log-probabilities are -10 at the least (verl's log_prob_min_clamp)."""

    def change(self, value: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        if not is_plain(logits, target, options) or target.tail != "drop":
            return value
        x = logits.astype(np.float64)
        log_p = x - x.max(axis=1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        chosen = np.take_along_axis(log_p, np.where(target.ids < 0, 0, target.ids), axis=1)
        if not (chosen < -10).any() or not np.isfinite(chosen).all():
            return value
        loss = -(probabilities(target, options) * np.maximum(chosen, -10)).sum(axis=1)
        return np.asarray(loss, value.dtype)
