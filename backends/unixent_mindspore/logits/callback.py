"""The loss in host memory in a compiled graph: the NumPy backend, called back through ``ops.Custom``.

A callback takes no empty tensor and returns no 0-d one: a scalar travels as one element, and without a position nothing
is called back. There are no branches here: in second derivatives, MindSpore loses their blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P

from unixent_mindspore.collectives import Array
from unixent_mindspore.kernel import DTYPES
from unixent_mindspore.logits.curvature import TWO_DERIVATIVES, TwiceDifferentiated
from unixent_mindspore.logits.host import host_dtype, numpy_loss, numpy_value_and_grad
from unixent_mindspore.logits.problem import LossSpec


class _Callback(nn.Cell):
    """What the passes share."""

    def __init__(self, spec: LossSpec) -> None:
        super().__init__()
        self.spec = spec
        self.cast, self.reshape = P.Cast(), P.Reshape()
        self.host_dtypes = tuple(DTYPES[host_dtype(name or "float32")] for name in spec.dtypes)

    def operator(self, run: Callable[..., Any], shape: Callable[..., Any], dtype: Any) -> ops.Custom:
        """``run`` as an operator, which takes its number of inputs from the signature."""
        names = [Parameter(f"input_{i}", Parameter.POSITIONAL_ONLY) for i in range(len(self.host_dtypes))]
        run.__signature__ = Signature(names)  # type: ignore[attr-defined]
        return ops.Custom(run, shape, lambda *_: dtype, "pyfunc")

    def called(self, inputs: tuple[Tensor, ...]) -> Any:
        return self.call(*self.on_host(inputs))

    def on_host(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # One by one: under vmap the compiler sometimes loses what it made of a zip ("The func graph is empty").
        return (
            self.cast(inputs[0], self.host_dtypes[0]),
            self.cast(inputs[1], self.host_dtypes[1]),
            self.cast(inputs[2], self.host_dtypes[2]),
            self.cast(inputs[3], self.host_dtypes[3]),
            self.cast(inputs[4], self.host_dtypes[4]),
            self.cast(inputs[5], self.host_dtypes[5]),
            self.cast(inputs[6], self.host_dtypes[6]),
            self.cast(inputs[7], self.host_dtypes[7]),
            self.cast(inputs[8], self.host_dtypes[8]),
        )

    def present(self, inputs: tuple[Array, ...]) -> list[Array | None]:
        """The arrays on the other side."""
        return [None if dtype is None else item for item, dtype in zip(inputs, self.spec.dtypes, strict=False)]


class CallbackLoss(_Callback):
    """The forward pass: `INPUTS` -> loss."""

    def __init__(self, spec: LossSpec, compute: Callable[..., Any] = numpy_loss) -> None:
        super().__init__(spec)
        # Where the shape of the result ends and goes on in that of the logits.
        self.front, self.back = (spec.axis, spec.axis + 1) if spec.per_position else (0, 1 << 30)
        self.result_dtype, self.columns = DTYPES[spec.result_dtype], spec.columns
        dtype = DTYPES[host_dtype(spec.result_dtype)]

        def run(*inputs: Array) -> Any:
            losses = compute(spec, self.present(inputs))
            return tuple(map(np.atleast_1d, losses)) if spec.return_terms else np.atleast_1d(losses[0])

        def shape(logits: Sequence[int], *_: Any) -> Any:
            positions = (*logits[: self.front], *logits[self.back :], *self.columns) or (1,)
            return (positions, positions) if spec.return_terms else positions

        self.call = self.operator(run, shape, (dtype, dtype) if spec.return_terms else dtype)

    def construct(self, *inputs: Tensor) -> Any:
        shape = inputs[0].shape[: self.front] + inputs[0].shape[self.back :] + self.columns
        return self.cast(self.reshape(self.called(inputs), shape), self.result_dtype)


class CallbackTerms(CallbackLoss):
    """The forward pass: `INPUTS` -> numerator and denominator."""

    def construct(self, *inputs: Tensor) -> Any:
        numerator, denominator = self.called(inputs)
        return (
            self.cast(self.reshape(numerator, ()), self.result_dtype),
            self.cast(self.reshape(denominator, ()), self.result_dtype),
        )


class CallbackGradient(_Callback):
    """The backward pass: `INPUTS` and the upstream gradient -> the gradients of the first four."""

    def __init__(self, spec: LossSpec, compute: Callable[..., Any] = numpy_value_and_grad) -> None:
        super().__init__(spec)
        self.host_dtypes = (*self.host_dtypes, DTYPES[spec.acc_dtype])
        self.dtypes = tuple(DTYPES[name or "float32"] for name in spec.dtypes[:4])

        def run(*inputs: Array) -> Any:
            grad_output = np.asarray(inputs[9]) if spec.per_position else np.reshape(inputs[9], ())
            grads = iter(compute(spec, self.present(inputs), grad_output, spec.wrt_names)[1])
            first = enumerate(inputs[:4])
            return tuple(next(grads) if i in spec.wrt else np.zeros_like(np.atleast_1d(item)) for i, item in first)

        def shape(*shapes: Any) -> Any:
            return tuple(tuple(item) or (1,) for item in shapes[:4])

        self.call = self.operator(run, shape, self.host_dtypes[:4])

    def construct(self, *inputs: Tensor) -> Any:
        grads = self.call(*self.on_host(inputs), self.cast(inputs[9], self.host_dtypes[9]))
        return (
            self.cast(grads[0], self.dtypes[0]),
            self.cast(grads[1], self.dtypes[1]),
            self.cast(grads[2], self.dtypes[2]),
            self.cast(self.reshape(grads[3], inputs[3].shape), self.dtypes[3]),
        )


class CallbackCurvature(_Callback):
    """The derivative of ``<a, d loss/d logits> + <b, d loss/d target>`` for logits, target and upstream gradient.

    The inputs are a, b, the `INPUTS` and the upstream gradient; ``compute`` takes the first two last.
    """

    def __init__(self, spec: LossSpec, compute: Callable[..., Any]) -> None:
        super().__init__(spec)
        wide = DTYPES["float64"]
        self.logits_dtype, self.target_dtype = DTYPES[str(spec.dtypes[0])], DTYPES[str(spec.dtypes[3])]
        self.host_dtypes, self.wide, self.last = (*self.host_dtypes, wide, wide, wide), wide, TwiceDifferentiated()

        def run(*inputs: Array) -> Any:
            grad_output = np.asarray(inputs[9]) if spec.per_position else np.reshape(inputs[9], ())
            return tuple(map(np.ascontiguousarray, compute(spec, self.present(inputs[:9]), grad_output, *inputs[10:])))

        def shape(*shapes: Any) -> Any:
            return tuple(shapes[0]), tuple(shapes[3]), tuple(shapes[9]) or (1,)

        self.call = self.operator(run, shape, (wide, wide, wide))

    def construct(self, a: Tensor, b: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved = (self.cast(inputs[9], self.wide), self.cast(a, self.wide), self.cast(b, self.wide))
        hvps = self.call(*self.on_host(inputs), *moved)
        return (
            self.cast(hvps[0], self.logits_dtype),
            self.cast(hvps[1], self.target_dtype),
            self.cast(self.reshape(hvps[2], inputs[9].shape), inputs[9].dtype),
        )

    def bprop(
        self,
        a: Tensor,
        b: Tensor,
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
        out: Any,
        dout: Any,
    ) -> Any:
        # MindSpore does not record what a callback returns: a bprop of what is made of it would not be called.
        raise NotImplementedError(TWO_DERIVATIVES)


class CallbackLossAndGrad(_Callback):
    """Both passes at once, for a loss that is one number: `INPUTS` -> loss, and its gradient for the logits."""

    def __init__(self, spec: LossSpec) -> None:
        super().__init__(spec)
        self.result_dtype = DTYPES[spec.result_dtype]

        def run(*inputs: Array) -> Any:
            loss, grads = numpy_value_and_grad(spec, self.present(inputs), None, ("logits",))
            return np.atleast_1d(loss), grads[0]

        dtypes = DTYPES[host_dtype(spec.result_dtype)], self.host_dtypes[0]
        self.call = self.operator(run, lambda logits, *_: ((1,), tuple(logits)), dtypes)

    def construct(self, *inputs: Tensor) -> Any:
        loss, grad = self.called(inputs)
        return self.cast(self.reshape(loss, ()), self.result_dtype), grad


class EmptyLoss(nn.Cell):
    """The forward pass without a position."""

    def __init__(self, spec: LossSpec) -> None:
        super().__init__()
        self.axis, self.per_position, self.return_terms = spec.axis, spec.per_position, spec.return_terms
        self.columns = spec.columns
        self.mean = spec.options.reduction == "mean" and not spec.return_terms
        self.has_normalizer = spec.dtypes[6] is not None
        self.result_dtype = DTYPES[spec.result_dtype]
        self.zero = Tensor(0, self.result_dtype)
        self.empty_mean = Tensor(0 if spec.options.on_empty == "zero" else np.nan, self.result_dtype)
        self.where, self.equal, self.zeros = P.Select(), P.Equal(), P.Zeros()

    def construct(self, *inputs: Tensor) -> Any:
        return self.loss(inputs[0].shape, inputs[6])

    def loss(self, shape: tuple[int, ...], normalizer: Tensor) -> Any:
        loss: Any = self.zero
        if self.per_position:
            loss = self.zeros(shape[: self.axis] + shape[self.axis + 1 :] + self.columns, self.result_dtype)
        if self.return_terms:
            loss = (self.zero, self.zero)
        if self.mean:
            loss = self.empty_mean
        if self.mean and self.has_normalizer:
            is_zero = self.equal(normalizer, self.zeros((), normalizer.dtype))
            loss = self.where(is_zero, self.empty_mean, self.zero)
        return loss


class EmptyGradient(nn.Cell):
    """The backward pass without a position."""

    def __init__(self) -> None:
        super().__init__()
        self.zeros = P.ZerosLike()

    def construct(self, *inputs: Tensor) -> Any:
        return self.zeros(inputs[0]), self.zeros(inputs[1]), self.zeros(inputs[2]), self.zeros(inputs[3])


class EmptyCurvature(nn.Cell):
    """The derivative of the gradients without a position."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.zeros = TwiceDifferentiated(), P.ZerosLike()

    def construct(self, a: Tensor, b: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self.last(self.zeros(inputs[0])),
            self.last(self.zeros(inputs[3])),
            self.last(self.zeros(inputs[9])),
        )
