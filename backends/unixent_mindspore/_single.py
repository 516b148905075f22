"""A loss that is one number, in one pass: its gradient is formed with the value and scaled in the backward pass.

For compiled code, which is written to train. A call for the value alone pays for the gradient too.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn
from mindspore.ops import operations as P


class ScaledGradient(nn.Cell):
    """The backward pass of `Both`: the gradient formed in the forward pass, scaled."""

    def __init__(self, curvature: Any) -> None:
        super().__init__()
        self.curvature = curvature
        self.cast, self.zeros = P.Cast(), P.ZerosLike()

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
        slopes: Tensor,
    ) -> Any:
        return slopes * self.cast(upstream, slopes.dtype)

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
        slopes: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        bend, shares, along = self.curvature(scores, target, weight, mask, normalizer, upstream, dout, dout)
        return (
            bend,
            self.zeros(classifier),
            self.zeros(bias),
            shares,
            self.zeros(weight),
            self.zeros(mask),
            self.zeros(normalizer),
            along,
            self.zeros(slopes),  # a function of the logits, whose derivative is in bend
        )


class Both(nn.Cell):
    """A loss that is one number, and its gradient; only the loss is differentiable."""

    def __init__(self, forward: Any, gradient: ScaledGradient) -> None:
        super().__init__()
        self.forward, self.gradient = forward, gradient
        self.zeros = P.ZerosLike()

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
    ) -> Any:
        return self.forward(scores, classifier, bias, target, weight, mask, normalizer)

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        return (
            self.gradient(scores, classifier, bias, target, weight, mask, normalizer, dout[0], out[1]),
            self.zeros(classifier),
            self.zeros(bias),
            self.zeros(target),
            self.zeros(weight),
            self.zeros(mask),
            self.zeros(normalizer),
        )


class SinglePassLoss(nn.Cell):
    """The loss of `Both`: one pass over the logits serves value and gradient."""

    def __init__(self, both: Both, gradient: Any) -> None:
        super().__init__()
        self.both, self.gradient = both, gradient

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
    ) -> Any:
        return self.both(scores, classifier, bias, target, weight, mask, normalizer)[0]
