"""The pass over the logits, composed of MindSpore's primitives."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from unixent_mindspore.kernel.rows import RowArithmetic
from unixent_mindspore.kernel.spec import KernelSpec


class Rows(RowArithmetic):
    """What losses, gradients and their derivatives share."""

    def pivots(self, x: Tensor, target: Tensor) -> Tensor:
        """Where each position's pivot is: at its target, or at its largest logit where several classes count."""
        if self.dense_target:
            return self.is_class(self.expand(self.argmax(x), self.axis), x)
        return self.is_class(target, x)

    def statistics(self, x: Tensor, is_pivot: Tensor) -> tuple[Tensor, ...]:
        """Of the pivot: loss, logsumexp, p and 1 - p; and p of the other classes (0 at the pivot)."""
        pivot_logit = self.sum(self.where(is_pivot, x, self.zero))
        others = self.where(is_pivot, self.minus_inf, x)
        top = self.max(others)
        shift = self.where(self.equal(top, self.minus_inf), pivot_logit, top)
        exps = self.exp(others - shift)
        loss, logsumexp, _, p, one_minus_p, exp_scale = self.row_stats(shift, pivot_logit, self.sum(exps))
        return loss, logsumexp, p, one_minus_p, exps * exp_scale

    def logit_gaps(self, x: Tensor, is_pivot: Tensor) -> Tensor:
        """x_pivot - x_c."""
        return self.sum(self.where(is_pivot, x, self.zero)) - x

    def transformed_logit_grads(self, is_pivot: Tensor, coefs: Tensor, coef_sum: Tensor, stats: Any) -> Tensor:
        """The derivative of each position's loss for its x'."""
        _, logsumexp, p, one_minus_p, other_p = stats
        other_coefs = self.sum(self.where(is_pivot, self.zero, coefs))
        grads = self.where(is_pivot, other_coefs * p - coefs * one_minus_p, coef_sum * other_p - coefs)
        if self.has_z_loss:
            grads = grads + self.two_z_loss * logsumexp * self.where(is_pivot, p, other_p)
        return grads

    def through_transform(self, hvp: Tensor, x: Tensor, a_transformed: Tensor, grads: Tensor) -> Tensor:
        """``hvp``, and what the curvature of x' adds: x'' = -2 tanh(x / a) / a x'; 0 at an infinite logit."""
        if self.has_softcap:
            tanh = x / self.softcap / self.inverse_temperature
            softcap_hvp = self.where(self.is_finite(x), self.two * tanh / self.softcap, self.zero)
            hvp = hvp - softcap_hvp * a_transformed * grads
        return hvp

    def probability_coefs(self, x: Tensor, weight: Tensor) -> Tensor:
        """(1 - s) w_c: the derivative of a position's loss for q_c is that times L_c."""
        if self.has_weight:
            return self.one_minus_smoothing * self.class_weights(weight, x)
        return self.one_minus_smoothing


class RowLosses(Rows):
    """Losses of all positions and the gradients for ``wrt``; see `unixent_mindspore.kernel` for the contract."""

    def __init__(self, spec: KernelSpec, wrt: tuple[str, ...]) -> None:
        super().__init__(spec)
        self.wrt_logits, self.wrt_target = "logits" in wrt, "target" in wrt

    def construct(
        self, logits: Tensor, target: Tensor, weight: Tensor, position_weight: Tensor, grad_scale: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, transform_grad = self.transform(logits)
        coefs, is_pivot = self.target_coefs(x, target, weight), self.pivots(x, target)
        coef_sum, stats = self.sum(coefs), self.statistics(x, is_pivot)
        grads: Any = ()
        if self.wrt_logits:
            grad = grad_scale * self.transformed_logit_grads(is_pivot, coefs, coef_sum, stats) * transform_grad
            grads = (self.cast(self.at_positions(grad, position_weight), logits.dtype),)
        if self.wrt_target:
            share, class_losses = self.probability_coefs(x, weight), self.logit_gaps(x, is_pivot) + stats[0]
            grad = self.where(self.equal(share, self.zero), self.zero, share * class_losses)
            grad = self.times(grad_scale, grad)
            grads = grads + (self.cast(self.at_positions(grad, position_weight), target.dtype),)
        losses = self.times(coef_sum, stats[0])
        if self.dense_target:
            losses = losses + self.sum(self.times(coefs, self.logit_gaps(x, is_pivot)))
        if self.has_z_loss:
            losses = losses + self.half * self.two_z_loss * stats[1] * stats[1]
        return self.at_positions(position_weight * losses, position_weight), grads
