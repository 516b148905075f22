"""The differentiable loss: cells whose derivatives are written out, down to the second.

MindSpore differentiates a cell through its ``bprop``, in eager mode, under ``jit``, ``jvp`` and ``vmap`` alike. A sum
must never be left to it: nested ``mindspore.grad`` through one is silently wrong in eager mode. So the loss's backward
pass is a cell of its own, whose backward pass is the curvature in closed form.

A ``construct`` may take ``*inputs``. A ``bprop`` may not: MindSpore's compiler counts its parameters and asks for those
of the forward pass by name. So they stand here once for each of the two passes, and every cell that has a derivative
says what it is in ``backward``.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn
from mindspore.ops import operations as P

from unixent_mindspore.kernel import ABSENT


class _Pass(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.zeros = P.ZerosLike()

    def of_constants(self, inputs: tuple[Tensor, ...]) -> Any:
        """The derivatives for all inputs but the first four."""
        return (
            self.zeros(inputs[4]),
            self.zeros(inputs[5]),
            self.zeros(inputs[6]),
            self.zeros(inputs[7]),
            self.zeros(inputs[8]),
        )


class ForwardPass(_Pass):
    """A function of the `INPUTS`; ``forward`` computes it, ``gradient`` is its backward pass."""

    def __init__(self, forward: Any, gradient: Any) -> None:
        super().__init__()
        self.forward, self.gradient, self.absent = forward, gradient, ABSENT

    def construct(self, *inputs: Tensor) -> Any:
        return self.forward(*inputs)

    def backward(self, inputs: tuple[Tensor, ...], out: Any, dout: Any) -> Any:
        raise NotImplementedError

    def bprop(
        self,
        logits: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        ids: Tensor,
        selected: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        inputs = (logits, classifier, bias, target, weight, mask, normalizer, ids, selected)
        return self.backward(inputs, out, dout) + self.of_constants(inputs)


class BackwardPass(_Pass):
    """A function of the `INPUTS`, the upstream gradient and what the forward pass saved, itself differentiable."""

    def __init__(self, forward: Any, curvature: Any) -> None:
        super().__init__()
        self.forward, self.curvature = forward, curvature

    def construct(self, *inputs: Tensor) -> Any:
        return self.forward(*inputs[:10])

    def backward(self, inputs: tuple[Tensor, ...], grad_output: Tensor, dout: Any) -> Any:
        """The derivatives for the first four inputs and for the upstream gradient."""
        raise NotImplementedError

    def bprop(
        self,
        logits: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        ids: Tensor,
        selected: Tensor,
        grad_output: Tensor,
        saved: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        inputs = (logits, classifier, bias, target, weight, mask, normalizer, ids, selected)
        derivatives = self.backward(inputs, grad_output, dout)
        # What was saved is a function of the logits, whose derivative is in theirs.
        return derivatives[:4] + self.of_constants(inputs) + (derivatives[4], self.zeros(saved))


class Gradient(BackwardPass):
    """The backward pass of `Loss` and `Terms`."""

    def backward(self, inputs: tuple[Tensor, ...], grad_output: Tensor, dout: Any) -> Any:
        logits_hvp, target_hvp, change = self.curvature(dout[0], dout[3], *inputs, grad_output)
        return logits_hvp, self.zeros(inputs[1]), self.zeros(inputs[2]), target_hvp, change


class ScaledGradient(BackwardPass):
    """The backward pass of `LossAndGrad`: the gradient formed in the forward pass, scaled."""

    def __init__(self, curvature: Any) -> None:
        super().__init__(None, curvature)
        self.cast = P.Cast()

    def construct(self, *inputs: Tensor) -> Any:
        return inputs[10] * self.cast(inputs[9], inputs[10].dtype)

    def backward(self, inputs: tuple[Tensor, ...], grad_output: Tensor, dout: Any) -> Any:
        logits_hvp, target_hvp, change = self.curvature(dout, dout, *inputs, grad_output)
        return logits_hvp, self.zeros(inputs[1]), self.zeros(inputs[2]), target_hvp, change


class Loss(ForwardPass):
    """The loss, differentiable for logits, or hidden, classifier and bias, and for probability targets."""

    def backward(self, inputs: tuple[Tensor, ...], out: Any, dout: Any) -> Any:
        return self.gradient(*inputs, dout, self.absent)


class Terms(ForwardPass):
    """Numerator and denominator of the loss; the denominator is a constant."""

    def backward(self, inputs: tuple[Tensor, ...], out: Any, dout: Any) -> Any:
        return self.gradient(*inputs, dout[0], self.absent)


class LossAndGrad(ForwardPass):
    """A loss that is one number, and its gradient for the logits; only the loss is differentiable."""

    def backward(self, inputs: tuple[Tensor, ...], out: Any, dout: Any) -> Any:
        grad = self.gradient(*inputs, dout[0], out[1])
        return grad, self.zeros(inputs[1]), self.zeros(inputs[2]), self.zeros(inputs[3])


class SinglePassLoss(nn.Cell):
    """The loss of `LossAndGrad`: one pass over the logits serves value and gradient.

    For compiled code, which is written to train. A call for the value alone pays for the gradient too.
    """

    def __init__(self, both: LossAndGrad, gradient: Gradient) -> None:
        super().__init__()
        self.both, self.gradient = both, gradient

    def construct(self, *inputs: Tensor) -> Any:
        return self.both(*inputs)[0]


class ValueAndGrad(nn.Cell):
    """The loss, and the gradients of the first four `INPUTS`."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell, self.gradient = cell, cell.gradient
        self.ones, self.absent = P.OnesLike(), ABSENT

    def upstream(self, grad_output: Tensor | None, loss: Tensor) -> Tensor:
        # The compiler takes no branch beside ``*inputs``.
        if grad_output is None:
            return self.ones(loss)
        return grad_output

    def construct(self, grad_output: Tensor | None, *inputs: Tensor) -> Any:
        loss = self.cell(*inputs)
        return loss, self.gradient(*inputs, self.upstream(grad_output, loss), self.absent)
