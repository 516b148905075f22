"""The adapter: tensors described and handed over, and a problem sent the way that suits where it runs."""

from __future__ import annotations

import sys
import warnings
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from unixent.arguments import INDEX_NAMES, PYTHON_TYPES, refuse_array_inside
from unixent.classes import P, take_share
from unixent.errors import BackendError
from unixent.options import ParallelConfig
from unixent.protocol import (
    ArrayInfo,
    Capabilities,
    Device,
    LinearProblem,
    LossProblem,
    LossTerms,
    PositionStats,
    Problem,
    StatsProblem,
)
from unixent_native import kernel_name
from unixent_torch import compat
from unixent_torch.collectives import all_gather, is_dtensor
from unixent_torch.kernel import triton
from unixent_torch.kernel.mode import is_recorded, is_traced
from unixent_torch.linear.problem import LinearCall
from unixent_torch.logits.fast_path import try_fast_cross_entropy
from unixent_torch.logits.positions import first_invalid
from unixent_torch.logits.problem import LogitsCall
from unixent_torch.positions.call import solve_stats
from unixent_torch.positions.rows import ALONG
from unixent_torch.positions.sparse import sparse_call
from unixent_torch.vocab_parallel import problem as vocab_parallel

_DTYPE_NAMES = {
    getattr(torch, name): name
    for name in (
        "float16", "bfloat16", "float32", "float64", "bool",
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    )
}  # fmt: skip


def _layout_of(array: Tensor) -> str:
    """What the memory of a tensor is called that is not one dense block."""
    if array.is_nested:
        return "nested"
    if array.layout is torch.strided:
        return "masked"
    return str(array.layout).removeprefix("torch.").removeprefix("_")


def _sizes(array: Tensor) -> tuple[int, ...]:
    """The shape under torch.jit.trace, which warns of every look at a size. Checks may look: they are not recorded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return tuple(map(int, array.shape))


class TorchBackend:
    """`unixent.Backend` for torch tensors, on any device."""

    name = "torch"
    version = torch.__version__
    capabilities = Capabilities(
        dtypes=frozenset({"float16", "bfloat16", "float32", "float64"}),
        targets=frozenset({"index", "probability", "sparse"}),
        transforms=frozenset({"grad", "jvp", "vmap", "hessian", "jit", "export"}),
        linear=True,
        position_stats=True,
        parallel_position_stats=True,
        parallel_targets=frozenset({"index", "probability", "sparse"}),
        parallel=True,
        fast_path=True,
        traces_values=True,
    )
    along = ALONG
    try_fast_cross_entropy = staticmethod(try_fast_cross_entropy)

    def devices(self) -> tuple[Device, ...]:
        devices = [Device("cpu", kernel_name("torch"), batch_invariant=True)]
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is not None:
            kernel = "Triton" if triton.is_there and accelerator.type in triton.DEVICES else "torch"
            # Not batch invariant: rows of the Triton programs are, products of matrices and torch's own sums are not.
            devices += [Device(f"{accelerator.type}:{i}", kernel) for i in range(torch.accelerator.device_count())]
        return tuple(devices)

    def owns(self, array: object) -> bool:
        return isinstance(array, Tensor)

    def describe(self, arrays: tuple[Tensor, ...]) -> tuple[ArrayInfo, ...]:
        eager, differentiated = not (is_traced() or compat.transforms_active()), torch.is_grad_enabled()
        recorded, infos = not eager and is_recorded(), []
        for array in arrays:
            host, concrete = array.is_cpu, eager and not array.is_meta
            if array.layout is not torch.strided or array.is_nested or type(array).__name__ == "MaskedTensor":
                infos.append(ArrayInfo((), "", layout=_layout_of(array)))
                continue
            infos.append(
                ArrayInfo(
                    _sizes(array) if recorded else tuple(array.shape),
                    _DTYPE_NAMES.get(array.dtype) or str(array.dtype).removeprefix("torch."),
                    "cpu" if host else str(array.device),
                    # One process can read its share only: a check that raised there would leave the others waiting.
                    host and concrete and (type(array) is Tensor or not is_dtensor(array)),
                    concrete,
                    array.requires_grad and differentiated,
                )
            )
        return tuple(infos)

    def asarray(self, value: np.ndarray[Any, Any], like: Tensor | None) -> Tensor:
        if value.dtype.name == "bfloat16":  # a dtype that torch can't read from NumPy
            tensor = torch.from_numpy(value.view(np.uint16).copy()).view(torch.bfloat16)
        else:
            # torch warns of memory that it must not write to, and has no negative strides and none that are not a
            # multiple of the item.
            steps = all(step >= 0 and step % value.itemsize == 0 for step in value.strides)
            dtype = np.dtype(value.dtype.name)  # not C's unsigned long long, which torch doesn't know
            usable = steps and value.flags.writeable and value.dtype.char == dtype.char
            tensor = torch.from_numpy(value if usable else value.astype(dtype))
        return tensor if like is None else tensor.to(like.device)

    def traced_asarray(self, name: str, value: object, like: Tensor | None) -> Tensor | None:
        if isinstance(value, (torch.SymInt, torch.SymFloat)):
            device = None if like is None else like.device
            return torch.scalar_tensor(cast(float, value), dtype=torch.float64, device=device)
        if not torch.compiler.is_dynamo_compiling() or not isinstance(value, (np.ndarray, np.generic, *PYTHON_TYPES)):
            return None
        from_python = isinstance(value, PYTHON_TYPES)
        if isinstance(value, (list, tuple)):
            refuse_array_inside(name, value)
        tensor = torch.as_tensor(np.asarray(value))
        if name in INDEX_NAMES:
            tensor = tensor if tensor.numel() else tensor.long()
        elif from_python and not tensor.is_floating_point() and tensor.dtype is not torch.bool:
            tensor = tensor.double()
        return tensor if like is None else tensor.to(like.device)

    def broadcast_to(self, array: Tensor, shape: tuple[int, ...]) -> Tensor:
        return array.expand(shape)

    def take_classes(self, array: Tensor, axis: int, num_classes: int) -> Tensor:
        # What exists of a DTensor lies on other processes in other parts: each narrows its own, in `vocab_parallel`.
        return array if is_dtensor(array) else array.narrow(axis, 0, num_classes)

    def pad_classes(self, array: Tensor, axis: int, num_classes: int) -> Tensor:
        missing = num_classes - array.shape[axis]
        zeros = array.new_zeros((*array.shape[:axis], missing, *array.shape[axis + 1 :]))
        return torch.cat((array, zeros), axis) if missing else array

    def first_invalid_target(self, target: Tensor, num_classes: int, ignore_index: int) -> tuple[int, int] | None:
        # Asked of a DTensor under validate="full" alone, and then by every process.
        if type(target) is not Tensor and is_dtensor(target):
            target = target.full_tensor()
        return first_invalid(target, num_classes, ignore_index)

    def first_nonfinite(self, array: Tensor) -> int | None:
        bad = ~torch.isfinite(array.detach()).reshape(-1)
        return int(bad.to(torch.uint8).argmax()) if bad.any() else None

    def cross_entropy(self, problem: Problem) -> Tensor | LossTerms:
        if _is_sharded(problem, problem.logits):
            return vocab_parallel.cross_entropy(self._share(problem))
        try:
            call = sparse_call(problem) if problem.target_kind == "sparse" else LogitsCall(problem)
            return call.result()
        except TypeError as error:
            _refuse_unrelated_types(problem, error)
            raise

    def value_and_grad(
        self, problem: Problem, grad_output: Tensor | None, wrt: tuple[str, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if _is_sharded(problem, problem.logits):
            return vocab_parallel.value_and_grad(self._share(problem), grad_output, wrt)
        try:
            call = sparse_call(problem) if problem.target_kind == "sparse" else LogitsCall(problem)
            return call.value_and_grad(grad_output, wrt)
        except TypeError as error:
            _refuse_unrelated_types(problem, error, grad_output)
            raise

    def linear_cross_entropy(self, problem: LinearProblem) -> Tensor | LossTerms:
        if _is_sharded(problem, problem.hidden, problem.classifier):
            return vocab_parallel.linear_cross_entropy(self._share(problem))
        try:
            call = sparse_call(problem) if problem.target_kind == "sparse" else LinearCall(problem)
            return call.result()
        except TypeError as error:
            _refuse_unrelated_types(problem, error)
            raise

    def linear_value_and_grad(
        self, problem: LinearProblem, grad_output: Tensor | None, wrt: tuple[str, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if _is_sharded(problem, problem.hidden, problem.classifier):
            return vocab_parallel.linear_value_and_grad(self._share(problem), grad_output, wrt)
        try:
            call = sparse_call(problem) if problem.target_kind == "sparse" else LinearCall(problem)
            return call.value_and_grad(grad_output, wrt)
        except TypeError as error:
            _refuse_unrelated_types(problem, error, grad_output)
            raise

    def position_stats(
        self, problem: StatsProblem, grad_output: PositionStats, wrt: tuple[str, ...]
    ) -> tuple[PositionStats, tuple[Tensor, ...]]:
        call = problem.call
        scores = (call.logits,) if isinstance(call, Problem) else (call.hidden, call.classifier)
        if _is_sharded(call, *scores):
            problem = replace(problem, call=self._share(call))
            return vocab_parallel.position_stats(problem, grad_output, wrt)
        return solve_stats(problem, grad_output, wrt)

    def _share(self, problem: P) -> P:
        """What exists of this process's share of the classes."""
        sharding = problem.sharding
        if sharding is None or sharding.model_group is None:
            return problem
        return take_share(self, problem, torch.distributed.get_rank(sharding.model_group))

    def is_global(self, array: object, config: ParallelConfig) -> bool:
        return is_dtensor(array)

    def is_single_program(self) -> bool:
        return bool(torch.compiler.is_compiling())

    def to_numpy(self, array: Tensor) -> np.ndarray[Any, Any]:
        values: np.ndarray[Any, Any] = (array.detach().float() if array.is_floating_point() else array).cpu().numpy()
        return values

    def group_size(self, group: Any) -> int:
        return torch.distributed.get_world_size(group)

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        return all_gather(row, group)


def _is_sharded(problem: LossProblem, *scores: Tensor) -> bool:
    """Whether this is a part of a loss, or a whole one over a mesh. Local scores don't mix with DTensors."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return problem.sharding is not None
    for array in scores:
        if type(array) is not Tensor and isinstance(array, module.DTensor):
            return True
    if not torch.compiler.is_compiling():
        for name in ("target", "ids", "weight", "mask", "normalizer"):
            if isinstance(getattr(problem, name), module.DTensor):
                raise BackendError(f"{name}: expected a local tensor, since logits or hidden are; got a DTensor")
    return problem.sharding is not None


def _refuse_unrelated_types(problem: LossProblem, error: TypeError, grad_output: Tensor | None = None) -> None:
    """Name the arguments whose types torch could not combine in an operation, if that is the error."""
    signs = ("__torch_function__", "__torch_dispatch__", "unsupported operand type(s)")
    if not any(sign in str(error) for sign in signs):
        return
    arrays = {field.name: getattr(problem, field.name) for field in fields(problem)}
    arrays["grad_output"] = grad_output
    types = {name: type(array) for name, array in arrays.items() if isinstance(array, Tensor)}
    special = {name: each.__name__ for name, each in types.items() if each not in (Tensor, torch.nn.Parameter)}
    raise BackendError(
        f"{', '.join(special)}: expected tensors of types that torch can combine; got {', '.join(special.values())} "
        "(as_subclass(torch.Tensor) makes plain tensors of subclasses that hold their own memory)"
    ) from error
