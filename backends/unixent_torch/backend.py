"""The adapter: tensors described and handed over, and a problem sent the way that suits where it runs."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unixent.errors import BackendError
from unixent.options import ParallelConfig
from unixent.protocol import ArrayInfo, Capabilities, LinearProblem, LossProblem, LossTerms, Problem
from unixent_torch import compat
from unixent_torch.collectives import gather, is_dtensor
from unixent_torch.linear.problem import PreparedLinear
from unixent_torch.logits.fast_path import small_loss
from unixent_torch.logits.positions import first_invalid
from unixent_torch.logits.problem import PreparedLogits
from unixent_torch.vocab_parallel import problem as split

_DTYPE_NAMES = {
    getattr(torch, name): name
    for name in (
        "float16", "bfloat16", "float32", "float64", "bool",
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    )
}  # fmt: skip


class TorchBackend:
    """`unixent.Backend` for torch tensors, on any device."""

    name = "torch"
    version = torch.__version__
    capabilities = Capabilities(
        dtypes=frozenset({"float16", "bfloat16", "float32", "float64"}),
        transforms=frozenset({"grad", "jvp", "vmap", "hessian", "jit", "export"}),
        linear=True,
        parallel=True,
        batch_invariant=True,
        fast_path=True,
    )
    try_fast_cross_entropy = staticmethod(small_loss)

    def devices(self) -> tuple[str, ...]:
        found = ["cpu"]
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is not None:
            found += [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
        return tuple(found)

    def owns(self, array: object) -> bool:
        return isinstance(array, Tensor)

    def describe(self, arrays: tuple[Tensor, ...]) -> tuple[ArrayInfo, ...]:
        eager, differentiated = not (compat.is_traced() or compat.transforms_active()), torch.is_grad_enabled()
        infos = []
        for array in arrays:
            host, concrete = array.is_cpu, eager and not array.is_meta
            infos.append(
                ArrayInfo(
                    tuple(array.shape),
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
            # torch warns of memory that it must not write to, and has no foreign byte orders, no negative strides and
            # none that are not a multiple of the item.
            steps = all(step >= 0 and step % value.itemsize == 0 for step in value.strides)
            usable = steps and value.flags.writeable and value.dtype.isnative
            tensor = torch.from_numpy(value if usable else value.astype(value.dtype.newbyteorder("=")))
        return tensor if like is None else tensor.to(like.device)

    def first_invalid_target(self, target: Tensor, num_classes: int, ignore_index: int) -> tuple[int, int] | None:
        # Asked of a DTensor under validate="full" alone, and then by every process.
        whole = target.full_tensor() if is_dtensor(target) else target
        return first_invalid(whole, num_classes, ignore_index)

    def first_nonfinite(self, array: Tensor) -> int | None:
        bad = ~torch.isfinite(array.detach()).reshape(-1)
        return int(bad.to(torch.uint8).argmax()) if bad.any() else None

    def cross_entropy(self, problem: Problem) -> Tensor | LossTerms:
        if _is_split(problem, problem.logits):
            return split.cross_entropy(problem)
        found = PreparedLogits(problem)
        loss = found.loss()
        if not problem.return_terms:
            return found.finish(loss)
        return LossTerms(found.finish(loss), found.finish(found.total()))

    def value_and_grad(
        self, problem: Problem, grad_output: Tensor | None, wrt: tuple[str, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if _is_split(problem, problem.logits):
            return split.value_and_grad(problem, grad_output, wrt)
        found = PreparedLogits(problem)
        loss, grads = found.loss_and_grads(grad_output, wrt)
        return found.finish(loss), tuple(grad.movedim(-1, problem.axis) for grad in grads)

    def linear_cross_entropy(self, problem: LinearProblem) -> Tensor | LossTerms:
        if _is_split(problem, problem.hidden) or _is_split(problem, problem.classifier):
            return split.linear_cross_entropy(problem)
        found = PreparedLinear(problem)
        loss = found.loss()
        if not problem.return_terms:
            return found.finish(loss)
        return LossTerms(found.finish(loss), found.finish(found.total()))

    def linear_value_and_grad(
        self, problem: LinearProblem, grad_output: Tensor | None, wrt: tuple[str, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if _is_split(problem, problem.hidden) or _is_split(problem, problem.classifier):
            return split.linear_value_and_grad(problem, grad_output, wrt)
        found = PreparedLinear(problem)
        loss, grads = found.loss_and_grads(grad_output, wrt)
        return found.finish(loss), grads

    def is_global(self, array: object, config: ParallelConfig) -> bool:
        return is_dtensor(array)

    def is_single_program(self) -> bool:
        return bool(torch.compiler.is_compiling())

    def group_size(self, group: Any) -> int:
        return torch.distributed.get_world_size(group)

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        return gather(row, group)


def _is_split(problem: LossProblem, lead: Tensor) -> bool:
    """Whether this is a share of a loss, or a whole one over a mesh. Local scores don't mix with DTensors."""
    if torch.compiler.is_compiling():
        return problem.sharding is not None or (type(lead) is not Tensor and is_dtensor(lead))
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return problem.sharding is not None
    if isinstance(lead, module.DTensor):
        return True
    for name in ("target", "weight", "mask", "normalizer"):
        if isinstance(getattr(problem, name), module.DTensor):
            raise BackendError(f"{name}: expected a local tensor, since logits or hidden are; got a DTensor")
    return problem.sharding is not None
