"""The derivative of the pass's gradients, composed of MindSpore's primitives."""

from __future__ import annotations

from mindspore import Tensor

from unixent_mindspore.kernel.composed import Rows


class RowCurvature(Rows):
    r"""The derivative of ``<a, d loss/d logits> + <b, d loss/d target>`` for logits, probabilities and grad_scale.

    With u the grad_scale of a position, T and t the sum of its target coefficients and each of them, p the softmax:

    .. code-block:: text

        d / d x  =  u [T + 2 z lse] (p a - p <p, a>) + 2 z u <p, a> p  +  u (1 - s) [p <w, b> - w b]
        d / d q  =  u (1 - s) w (<p, a> - a)
        d / d u  =  <a, d loss/d x> / u + <b, d loss/d q> / u

    and the chain rule through x' = b a tanh(x / a). The last one is left to be scaled.
    """

    def construct(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor,
        position_weight: Tensor,
        grad_scale: Tensor,
        a: Tensor,
        b: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, transform_grad = self.transform(logits)
        coefs, is_pivot = self.target_coefs(x, target, weight), self.pivots(x, target)
        coef_sum, stats = self.sum(coefs), self.statistics(x, is_pivot)
        loss, logsumexp, p_pivot, _, other_p = stats
        p = self.where(is_pivot, p_pivot, other_p)
        a = self.cast(a, self.dtype)
        a_transformed = a * transform_grad
        mean = self.sum(self.times(p, a_transformed))
        grads = self.transformed_logit_grads(is_pivot, coefs, coef_sum, stats)
        p_coef = coef_sum
        if self.has_z_loss:
            p_coef = p_coef + self.two_z_loss * logsumexp
        hvp = p_coef * (self.times(p, a_transformed) - p * mean)
        if self.has_z_loss:
            hvp = hvp + self.two_z_loss * mean * p
        scale_grad = self.sum(self.times(grads, a_transformed))
        target_hvp = self.zeros(target)
        if not self.indexed:
            share = self.probability_coefs(x, weight)
            b = self.cast(b, self.dtype)
            hvp = hvp + self.sum(share * b) * p - share * b
            losses = self.logit_gaps(x, is_pivot) + loss
            scale_grad = scale_grad + self.sum(self.times(share * b, losses))
            target_hvp = self.at_positions(grad_scale * share * (mean - a_transformed), position_weight)
        hvp = self.through_transform(hvp * transform_grad, x, a_transformed, grads)
        return self.at_positions(grad_scale * hvp, position_weight), target_hvp, scale_grad
