"""The adapter: MindSpore tensors described, handed over and sent to the cell that computes their loss."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor
from mindspore.graph.api import _pynative_executor

from unixent.options import ParallelConfig
from unixent.protocol import ArrayInfo, Capabilities, LinearProblem, LossTerms, Problem
from unixent.registry import get_backend
from unixent_mindspore._cells import eager_cell, on_cpu, pull
from unixent_mindspore._eager import arrays_of, eager_loss, from_host, to_host
from unixent_mindspore._groups import gather, refuse_shards, size_of
from unixent_mindspore._plan import ABSENT, DTYPES, FLOATS, Plan

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: Any) -> str:
    """The NumPy-style name of a MindSpore dtype."""
    return _NAMES.get(dtype) or str(dtype).lower()


class MindsporeBackend:
    """`unixent.Backend` for MindSpore tensors, eagerly; `unixent_mindspore._graph` serves compiled code."""

    name = "mindspore"
    version = ms.__version__
    capabilities = Capabilities(
        dtypes=frozenset(FLOATS),
        transforms=frozenset({"grad", "grad_of_grad", "jit", "jvp", "vmap"}),
        linear=True,
        parallel=True,
        batch_invariant=True,
    )

    def devices(self) -> tuple[str, ...]:
        return (str(ms.get_context("device_target")),)

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

    def first_invalid_target(self, target: Tensor, num_classes: int, ignore_index: int) -> tuple[int, int] | None:
        return get_backend("numpy").first_invalid_target(target.asnumpy(), num_classes, ignore_index)

    def first_nonfinite(self, array: Tensor) -> int | None:
        return get_backend("numpy").first_nonfinite(to_host(array))

    def cross_entropy(self, problem: Problem) -> Tensor | LossTerms:
        return _value(problem)

    def value_and_grad(
        self, problem: Problem, grad_output: Tensor | None, wrt: tuple[str, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return _value_and_grad(problem, grad_output, wrt)

    def linear_cross_entropy(self, problem: LinearProblem) -> Tensor | LossTerms:
        return _value(problem)

    def linear_value_and_grad(
        self, problem: LinearProblem, grad_output: Tensor | None, wrt: tuple[str, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return _value_and_grad(problem, grad_output, wrt)

    def is_global(self, array: object, config: ParallelConfig) -> bool:
        refuse_shards()
        return False

    def is_single_program(self) -> bool:
        return False

    def group_size(self, group: Any) -> int:
        return size_of(group)

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        return gather(row, group)


def _value(problem: Problem | LinearProblem) -> Tensor | LossTerms:
    inputs, plan = _eager(problem)
    # Only PyNative mode records; in graph mode a call from Python computes a value and nothing else.
    compiles = ms.get_context("mode") == ms.GRAPH_MODE
    # A split loss forms its gradient with its value, where that may be asked for.
    alone = compiles or (plan.formed and not _pynative_executor.requires_grad())
    found = (eager_loss(plan) if alone and on_cpu() else eager_cell(plan, on_cpu()))(*inputs)
    return LossTerms(*found) if problem.return_terms else found


def _value_and_grad(
    problem: Problem | LinearProblem, grad_output: Tensor | None, wrt: tuple[str, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    inputs, plan = _eager(problem)
    dtypes = {plan.name(i): plan.dtypes[i] for i in plan.wrt}
    if on_cpu() and not _pynative_executor.requires_grad():
        upstream = None if grad_output is None else to_host(grad_output)
        loss, found = plan.differentiate(arrays_of(plan, inputs), upstream, wrt)
        grads = tuple(from_host(grad, str(dtypes[name])) for grad, name in zip(found, wrt, strict=True))
        return from_host(loss, plan.result), grads
    # Under a derivative, the gradient has to be one that can be differentiated again.
    loss, found = pull(plan, on_cpu(), False)(*inputs, grad_output)
    every = {plan.name(i): found[i] for i in plan.wrt}
    return loss, tuple(every[name] for name in wrt)


def _eager(problem: Problem | LinearProblem) -> tuple[tuple[Tensor, ...], Plan]:
    """The inputs of a problem in the order of `INPUTS`, and its plan."""
    normalizer = problem.normalizer
    if isinstance(normalizer, float):
        normalizer = Tensor(normalizer, DTYPES[problem.acc_dtype])
    shared = (problem.target, problem.weight, problem.mask, normalizer)
    if isinstance(problem, Problem):
        inputs = (problem.logits, None, None, *shared)
        positions = problem.logits.shape[: problem.axis] + problem.logits.shape[problem.axis + 1 :]
    else:
        inputs = (problem.hidden, problem.classifier, problem.bias, *shared)
        positions = problem.hidden.shape[:-1]
    dtypes = tuple(None if item is None else dtype_name(item.dtype) for item in inputs)
    # NumPy takes a batch without a position as it is; collectives and callbacks do not.
    plan = Plan.of(problem, dtypes, vacant=not on_cpu() and 0 in positions)
    return tuple(ABSENT if item is None else item for item in inputs), plan
