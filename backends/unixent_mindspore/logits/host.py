"""The loss in host memory, by the NumPy backend on the memory of MindSpore's own tensors; the fused linear form too.

MindSpore's CPU kernels can't keep the accuracy that unixent promises (float32 ``Exp`` is off by up to 390 units in the
last place, ``Log1p`` returns 0 for small arguments) and go over the logits once per primitive. The NumPy backend works
in blocks that stay in cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from unixent.protocol import LinearProblem, Problem, Sharding
from unixent.registry import get_backend
from unixent_mindspore.collectives import Array, HostGroup
from unixent_mindspore.logits.problem import LossSpec


def host_dtype(name: str) -> str:
    """The dtype in which NumPy sees it: bfloat16 is no NumPy dtype, so MindSpore widens and rounds it."""
    return "float32" if name == "bfloat16" else name


def to_host(tensor: Tensor) -> Array:
    """A NumPy view of an eager tensor; a widened copy of a bfloat16 one."""
    array: Array = (tensor.astype(ms.float32) if tensor.dtype == ms.bfloat16 else tensor).asnumpy()
    return array


def from_host(array: Array, dtype: str) -> Tensor:
    """The array as a tensor of that dtype, on the same memory unless it has to be rounded to bfloat16."""
    tensor = Tensor.from_numpy(array)
    return tensor.astype(ms.bfloat16) if dtype == "bfloat16" else tensor


def host_arrays(spec: LossSpec, inputs: tuple[Tensor, ...]) -> list[Array | None]:
    return [None if dtype is None else to_host(item) for item, dtype in zip(inputs, spec.dtypes, strict=False)]


def _on_host(sharding: Sharding) -> Sharding:
    """The sharding with its groups as the NumPy backend wants them."""
    model, token = (None if name is None else HostGroup(name) for name in (sharding.model_group, sharding.token_group))
    return replace(sharding, model_group=model, token_group=token)


def host_problem(spec: LossSpec, arrays: list[Array | None]) -> Problem | LinearProblem:
    logits, classifier, bias, target, weight, mask, normalizer, ids, _ = arrays
    assert logits is not None
    positions = logits.shape[: spec.axis] + logits.shape[spec.axis + 1 :]
    shared: dict[str, Any] = {
        "target": target,
        "weight": weight,
        "mask": None if mask is None else np.broadcast_to(mask, positions),
        "normalizer": None if normalizer is None else float(np.reshape(normalizer, ())),
        "options": spec.options,
        "num_classes": spec.num_classes,
        "target_kind": spec.target_kind,
        "ids": ids,
        "teacher": spec.teacher,
        "acc_dtype": spec.acc_dtype,
        "transform": spec.options.transform(spec.acc_dtype),
        "result_dtype": host_dtype(spec.result_dtype),
        "return_terms": spec.return_terms,
        "check_empty": spec.check_empty,
        "sharding": None if spec.sharding is None else _on_host(spec.sharding),
    }
    if spec.linear:
        return LinearProblem(hidden=logits, classifier=classifier, bias=bias, chunk=spec.chunk, **shared)
    return Problem(logits=logits, axis=spec.axis, **shared)


def numpy_loss(spec: LossSpec, arrays: list[Array | None]) -> tuple[Array, ...]:
    """The loss, or the two terms, of NumPy arrays in the order of `INPUTS`."""
    numpy, problem = get_backend("numpy"), host_problem(spec, arrays)
    if isinstance(problem, LinearProblem):
        loss: Any = numpy.linear_cross_entropy(problem)
    else:
        loss = numpy.cross_entropy(problem)
    return tuple(loss) if spec.return_terms else (loss,)


def numpy_value_and_grad(
    spec: LossSpec, arrays: list[Array | None], grad_output: Array | None, wrt: tuple[str, ...]
) -> tuple[Any, tuple[Array, ...]]:
    """The loss and its gradients for ``wrt``, of NumPy arrays in the order of `INPUTS`."""
    numpy, problem = get_backend("numpy"), host_problem(spec, arrays)
    if isinstance(problem, LinearProblem):
        return numpy.linear_value_and_grad(problem, grad_output, wrt)
    return numpy.value_and_grad(problem, grad_output, wrt)


def host_loss(spec: LossSpec, compute: Callable[..., Any] = numpy_loss) -> Callable[..., Any]:
    """The forward pass on eager tensors: `INPUTS` -> loss, or the two terms."""

    def run(*inputs: Tensor) -> Any:
        losses = tuple(from_host(array, spec.result_dtype) for array in compute(spec, host_arrays(spec, inputs)))
        return losses if spec.return_terms else losses[0]

    return run


def host_gradient(spec: LossSpec, compute: Callable[..., Any] = numpy_value_and_grad) -> Callable[..., Any]:
    """The backward pass on eager tensors: `INPUTS` and the upstream gradient -> the gradients of the first four."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        grads = compute(spec, host_arrays(spec, inputs), to_host(inputs[9]), spec.wrt_names)[1]
        by_input = dict(zip(spec.wrt, grads, strict=True))
        return tuple(
            from_host(by_input[i], str(spec.dtypes[i]))
            if i in by_input
            else Tensor.from_numpy(np.zeros_like(to_host(inputs[i])))
            for i in range(4)
        )

    return run
