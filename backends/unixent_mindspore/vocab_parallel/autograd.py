"""A loss split over processes: its gradient is formed with it, so that the backward pass communicates nothing.

Never is a collective differentiated: MindSpore would multiply the gradient by the size of the group. The forward pass
returns ``(loss or numerator, denominator, gradients of the first four inputs)``, `ABSENT` for what there is not; the
gradients are those of the global loss, in the accumulation dtype, and the backward pass scales them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from mindspore.ops import operations as P

from unixent_mindspore.collectives import Array
from unixent_mindspore.kernel import ABSENT, DTYPES
from unixent_mindspore.logits.autograd import BackwardPass, ForwardPass, ValueAndGrad
from unixent_mindspore.logits.host import from_host, host_arrays, numpy_value_and_grad
from unixent_mindspore.logits.problem import LossSpec

ONE_DERIVATIVE = (
    "unixent: expected one derivative of a loss that is split over processes on the mindspore backend; got a second "
    "one or forward mode"
)


def _saved(spec: LossSpec, arrays: list[Array | None]) -> tuple[Array, ...]:
    """The forward pass on NumPy arrays in the order of `INPUTS`."""
    wide = list(arrays)
    for i in spec.wrt:
        # A half-precision gradient must meet its upstream gradient (a loss scale, say) before it is rounded.
        wide[i] = np.asarray(arrays[i]).astype(spec.acc_dtype, copy=False)
    loss, grads = numpy_value_and_grad(spec, wide, None, spec.wrt_names)
    by_input = dict(zip(spec.wrt, grads, strict=True))
    pair = loss if spec.return_terms else (loss, np.zeros(1, np.float32))
    return (*pair, *(by_input.get(i, np.zeros(1, np.float32)) for i in range(4)))


def host_loss_and_grads(spec: LossSpec) -> Callable[..., Any]:
    """The forward pass on eager tensors in host memory."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss, denominator, *grads = _saved(spec, host_arrays(spec, inputs))
        return (
            from_host(loss, spec.result_dtype),
            from_host(denominator, spec.result_dtype) if spec.return_terms else ABSENT,
            *(Tensor.from_numpy(item) for item in grads),
        )

    return run


class OnceDifferentiated(nn.Cell):
    """A gradient, as it is; its own is refused."""

    def construct(self, value: Tensor) -> Tensor:
        return value

    def bprop(self, value: Tensor, out: Tensor, dout: Tensor) -> Any:
        raise NotImplementedError(ONE_DERIVATIVE)


class RecomputedGradient(BackwardPass):
    """The backward pass of a split loss that is not formed with its value."""

    def backward(self, inputs: tuple[Tensor, ...], grad_output: Tensor, dout: Any) -> Any:
        raise NotImplementedError(ONE_DERIVATIVE)


class SavedGradient(nn.Cell):
    """The backward pass: saved and upstream gradients, and the inputs, -> the gradients of the first four."""

    def __init__(self, spec: LossSpec) -> None:
        super().__init__()
        self.axis, self.per_position = spec.axis, spec.per_position
        self.target_axis = spec.axis if spec.teacher is None else -1
        self.dtypes = tuple(DTYPES[str(spec.dtypes[i])] if i in spec.wrt else None for i in range(4))
        self.cast, self.expand, self.zeros = P.Cast(), P.ExpandDims(), P.ZerosLike()
        self.equal, self.where, self.last = P.Equal(), P.Select(), OnceDifferentiated()
        self.logical_and, self.logical_or, self.absolute = P.LogicalAnd(), P.LogicalOr(), P.Abs()
        self.inf = Tensor(np.inf, DTYPES[spec.acc_dtype])

    def scaled(self, grad: Tensor, grad_output: Tensor, like: Tensor, dtype: Any) -> Tensor:
        if dtype is None:
            return self.zeros(like)
        upstream, zeros = self.cast(grad_output, grad.dtype), self.zeros(grad)
        # An inactive position contributes exactly zero, not 0 times a NaN; and so does an infinite gradient times 0.
        infinite = self.equal(self.absolute(grad), self.inf)
        vanishes = self.logical_or(self.equal(grad, zeros), self.logical_and(infinite, self.equal(upstream, 0)))
        return self.last(self.cast(self.where(vanishes, zeros, grad * upstream), dtype))

    def construct(self, grads: tuple[Tensor, ...], grad_output: Tensor, *inputs: Tensor) -> Any:
        target_upstream = grad_output
        if self.per_position:
            target_upstream = self.expand(grad_output, self.target_axis)
            grad_output = self.expand(grad_output, self.axis)
        return (
            self.scaled(grads[0], grad_output, inputs[0], self.dtypes[0]),
            self.scaled(grads[1], grad_output, inputs[1], self.dtypes[1]),
            self.scaled(grads[2], grad_output, inputs[2], self.dtypes[2]),
            self.scaled(grads[3], target_upstream, inputs[3], self.dtypes[3]),
        )


class ShardedLossAndGrads(ForwardPass):
    """The forward pass; only the loss is differentiable."""

    def backward(self, inputs: tuple[Tensor, ...], out: Any, dout: Any) -> Any:
        return self.gradient(out[2:], dout[0], *inputs)


class ShardedLoss(nn.Cell):
    """The loss, or the two terms, of `ShardedLossAndGrads`."""

    def __init__(self, spec: LossSpec, forward: Any) -> None:
        super().__init__()
        self.gradient = SavedGradient(spec)
        self.both = ShardedLossAndGrads(forward, self.gradient)
        self.return_terms = spec.return_terms

    def construct(self, *inputs: Tensor) -> Any:
        return self.value(self.both(*inputs))

    def value(self, results: tuple[Any, ...]) -> Any:
        if self.return_terms:
            return results[0], results[1]
        return results[0]


class ShardedValueAndGrad(ValueAndGrad):
    """The loss, and the gradients of the first four `INPUTS`."""

    def construct(self, grad_output: Tensor | None, *inputs: Tensor) -> Any:
        results = self.cell.both(*inputs)
        return results[0], self.gradient(results[2:], self.upstream(grad_output, results[0]), *inputs)
