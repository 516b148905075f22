"""The adapter: MindSpore tensors described, handed over and sent to the cell that computes their loss."""

from __future__ import annotations

from typing import Any, cast

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from unixent.options import ParallelConfig
from unixent.protocol import (
    ArrayInfo,
    Capabilities,
    Device,
    LinearProblem,
    LossTerms,
    PositionStats,
    Problem,
    SparseBackend,
    StatsProblem,
)
from unixent.registry import get_backend
from unixent.row_statistics import Along
from unixent_mindspore import kernel
from unixent_mindspore.collectives import all_gather, group_size, refuse_automatic_parallel
from unixent_mindspore.compat import is_recording
from unixent_mindspore.kernel.spec import FLOATS
from unixent_mindspore.logits.host import from_host, host_arrays, host_dtype, host_loss, numpy_value_and_grad, to_host
from unixent_mindspore.logits.problem import (
    LossSpec,
    dtype_name,
    existing_share,
    operands,
    pad_classes,
    take_classes,
)
from unixent_mindspore.loss_cell import eager_cell, stats_cell, value_and_grad_cell
from unixent_mindspore.positions.host import eager_stats
from unixent_mindspore.positions.problem import named, stats_operands
from unixent_native import kernel_name


def _capabilities(on_host: bool) -> Capabilities:
    targets = frozenset({"index", "probability"} | ({"sparse"} if on_host else set()))
    return Capabilities(
        dtypes=frozenset(FLOATS),
        targets=targets,
        transforms=frozenset({"grad", "grad_of_grad", "jit", "jvp", "vmap"}),
        linear=on_host,
        parallel=True,
        position_stats=on_host,
        parallel_position_stats=on_host,
        parallel_targets=targets,
    )


_CAPABILITIES = {on_host: _capabilities(on_host) for on_host in (False, True)}


def _cast_across(array: Any, dtype: str) -> Any:
    """A tensor as a NumPy array of that dtype, and a NumPy array as a tensor of it."""
    if isinstance(array, Tensor):
        return to_host(array).astype(host_dtype(dtype), copy=False)
    return from_host(np.ascontiguousarray(array).astype(host_dtype(dtype), copy=False), dtype)


class MindsporeBackend:
    """`unixent.Backend` for MindSpore tensors, eagerly; `unixent_mindspore.compiled` serves compiled code."""

    name = "mindspore"
    version = ms.__version__

    @property
    def capabilities(self) -> Capabilities:
        """Of the device that MindSpore computes on: only in host memory are the fused linear form, statistics of
        positions and sparse targets served."""
        return _CAPABILITIES[kernel.on_host()]

    def devices(self) -> tuple[Device, ...]:
        on_host = kernel.on_host()
        name = kernel_name("NumPy") if on_host else "MindSpore"
        return (Device(str(ms.get_context("device_target")), name, batch_invariant=on_host),)

    def owns(self, array: object) -> bool:
        return isinstance(array, Tensor)

    def describe(self, arrays: tuple[Tensor, ...]) -> tuple[ArrayInfo, ...]:
        device = str(ms.get_context("device_target"))
        return tuple(
            [
                ArrayInfo(
                    array.shape,
                    dtype_name(array.dtype),
                    device,
                    readable=device == "CPU",
                    requires_grad=isinstance(array, Parameter) and bool(array.requires_grad),
                )
                for array in arrays
            ]
        )

    def asarray(self, value: np.ndarray[Any, Any], like: Tensor | None) -> Tensor:
        if value.dtype.name == "bfloat16":
            return Tensor(value.astype(np.float32)).astype(ms.bfloat16)
        if value.flags.c_contiguous and value.flags.writeable:
            return Tensor.from_numpy(value)
        return Tensor(value.copy())

    def broadcast_to(self, array: Tensor, shape: tuple[int, ...]) -> Tensor:
        return ms.ops.broadcast_to(array, shape)

    def take_classes(self, array: Tensor, axis: int, num_classes: int) -> Tensor:
        return take_classes(array, axis, num_classes)

    def pad_classes(self, array: Tensor, axis: int, num_classes: int) -> Tensor:
        return pad_classes(array, axis, num_classes)

    def first_invalid_target(self, target: Tensor, num_classes: int, ignore_index: int) -> tuple[int, int] | None:
        return get_backend("numpy").first_invalid_target(target.asnumpy(), num_classes, ignore_index)

    def first_nonfinite(self, array: Tensor) -> int | None:
        return get_backend("numpy").first_nonfinite(to_host(array))

    def cross_entropy(self, problem: Problem | LinearProblem) -> Tensor | LossTerms:
        on_host = kernel.on_host()
        inputs, spec = self._operands(problem, on_host)
        # Only PyNative mode records; in graph mode a call from Python computes a value and nothing else.
        never_recorded = ms.get_context("mode") == ms.GRAPH_MODE
        # A split loss forms its gradient with its value, where that may be asked for.
        value_alone = on_host and (never_recorded or (spec.saves_gradient and not is_recording()))
        loss = (host_loss(spec) if value_alone else eager_cell(spec, on_host))(*inputs)
        return LossTerms(*loss) if problem.return_terms else loss

    def value_and_grad(
        self, problem: Problem | LinearProblem, grad_output: Tensor | None, wrt: tuple[str, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        on_host = kernel.on_host()
        inputs, spec = self._operands(problem, on_host)
        if on_host and not is_recording():
            upstream = None if grad_output is None else to_host(grad_output)
            loss, grads = numpy_value_and_grad(spec, host_arrays(spec, inputs), upstream, wrt)
            dtypes = {name: str(spec.dtypes[i]) for i, name in zip(spec.wrt, spec.wrt_names, strict=True)}
            tensors = tuple(from_host(grad, dtypes[name]) for grad, name in zip(grads, wrt, strict=True))
            return from_host(loss, spec.result_dtype), tensors
        # Under a derivative, the gradient has to be one that can be differentiated again.
        loss, grads = value_and_grad_cell(spec, on_host, False)(grad_output, *inputs)
        by_name = {name: grads[i] for i, name in zip(spec.wrt, spec.wrt_names, strict=True)}
        return loss, tuple(by_name[name] for name in wrt)

    @property
    def along(self) -> Along:
        """NumPy's functions: tensors become arrays where they are first cast, and a last cast makes the result one."""
        return cast(SparseBackend, get_backend("numpy")).along._replace(astype=_cast_across)

    linear_cross_entropy, linear_value_and_grad = cross_entropy, value_and_grad

    def position_stats(
        self, problem: StatsProblem, grad_output: PositionStats, wrt: tuple[str, ...]
    ) -> tuple[PositionStats, tuple[Tensor, ...]]:
        inputs, spec = stats_operands(problem)
        if not is_recording():
            return eager_stats(spec, inputs, grad_output, wrt)
        if not wrt:
            return named(spec, stats_cell(spec, False, False)(*inputs)), ()
        stats, grads = stats_cell(spec, False, True)(grad_output, *inputs)
        by_name = {name: grads[i] for i, name in zip(spec.wrt, spec.wrt_names, strict=True)}
        return named(spec, stats), tuple(by_name[name] for name in wrt)

    def _operands(self, problem: Problem | LinearProblem, on_host: bool) -> tuple[tuple[Tensor, ...], LossSpec]:
        # In host memory, the NumPy backend narrows a share of the classes to those that exist.
        return operands(problem if on_host else existing_share(self, problem)[0], on_host)

    def is_global(self, array: object, config: ParallelConfig) -> bool:
        refuse_automatic_parallel()
        return False

    def is_single_program(self) -> bool:
        return False

    def to_numpy(self, array: Tensor) -> np.ndarray[Any, Any]:
        return to_host(array)

    def group_size(self, group: Any) -> int:
        return group_size(group)

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        return all_gather(row, group)
