"""PyTorch: eager by `value_and_grad`, by autograd, traced whole by the compiler, by forward mode, and under vmap.

The compiled mode stops before code generation, which takes tens of seconds a case: what is captured, differentiated and
decomposed runs as it is. Forward mode gives a gradient one element at a time. Second derivatives are taken twice
backward (autograd) and forward over backward (forward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.autograd import forward_ad

from unixent_conformance.harness import EAGER, Derivative, Harness, Mode
from unixent_conformance.model import Array, Tier

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class TorchHarness(Harness):
    name = "torch"
    modes: tuple[Mode, ...] = (
        EAGER,
        Mode("autograd", autodiff=True),
        Mode("compile", traced=True, autodiff=True, tier=Tier.CORE, transform="jit"),
        Mode("forward", autodiff=True, tier=Tier.FEW, transform="jvp"),
        Mode("vmap", traced=True, autodiff=True, tier=Tier.FEW, transform="vmap"),
    )

    device = torch.device("cpu")

    def on(self, device: str) -> TorchHarness:
        moved = copy(self)
        try:
            moved.device = torch.device(device)
            torch.empty(0, device=moved.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"device: torch has no {device!r} here: {error}") from error
        return moved

    def version(self) -> str:
        where = "" if self.device.type == "cpu" else f" on {self.device}"
        return f"torch {torch.__version__}{where}, {torch.get_num_threads()} threads"

    def from_numpy(self, array: Array) -> torch.Tensor:
        if any(step < 0 for step in array.strides):  # no tensor has such strides
            array = np.ascontiguousarray(array)
        # Strides are part of the case: the whole memory is copied, and the same view taken of it.
        flat, strides = np.empty(_extent(array), array.dtype), array.strides
        view = np.lib.stride_tricks.as_strided(flat, array.shape, strides)
        view[...] = array
        if array.dtype == _BFLOAT16:
            tensor = torch.from_numpy(flat.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(flat)
        # One upload of the whole memory.
        tensor = tensor.to(self.device)
        return tensor.as_strided(array.shape, [step // array.itemsize for step in strides])

    def to_numpy(self, array: torch.Tensor) -> Array:
        array = array.detach().cpu()
        if array.dtype is torch.bfloat16:
            bits: Array = array.contiguous().view(torch.int16).numpy()
            return bits.view(_BFLOAT16)
        values: Array = array.numpy()
        return values

    def read_all(self, arrays: Sequence[torch.Tensor]) -> Array:
        return self.to_numpy(torch.stack(tuple(arrays)))

    def owns(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        if mode.batched:
            return torch.func.vmap(function)(*arrays)
        if mode.traced:
            # Each case is a function of its own to the compiler, which gives up on one code object after a few.
            torch.compiler.reset()
            return torch.compile(function, fullgraph=True, backend="aot_eager")(*arrays)
        return function(*arrays)

    def gradient(self, of: Derivative, mode: Mode) -> tuple[Any, tuple[Any, ...]]:
        if mode.name == "forward":
            return self.forward_gradient(of, of.function(*of.arrays), partial(_jvp, of))
        if mode.batched:
            return torch.func.vmap(partial(_vjp, of))(*of.inputs)  # type: ignore[no-any-return]
        leaves = _leaves(of)
        value = self.call(leaves.function, leaves.arrays, mode)
        # What the loss does not depend on has no gradient, which an optimiser takes for 0.
        seed = _seed(value, of.grad_output)
        return value, torch.autograd.grad(value, leaves.moving, seed, materialize_grads=True)

    def gradients(self, of: Derivative, upstream: Sequence[Any], mode: Mode) -> list[tuple[Any, ...]]:
        leaves = _leaves(of)
        value = self.call(leaves.function, leaves.arrays, mode)
        seeds = [_seed(value, each) for each in upstream]
        grad = partial(torch.autograd.grad, value, leaves.moving, retain_graph=True, materialize_grads=True)
        return [grad(seed) for seed in seeds]

    def hvp(self, of: Derivative, directions: Sequence[Any], mode: Mode) -> tuple[Any, ...]:
        leaves = _leaves(of)
        if mode.name != "forward":
            value = leaves.function(*leaves.arrays)
            grads = torch.autograd.grad(value, leaves.moving, _seed(value, of.grad_output), create_graph=True)
            pairs = [(grad, step) for grad, step in zip(grads, directions, strict=True) if grad.requires_grad]
            if not pairs:  # constants to autograd: a penalty on them would add nothing to any gradient
                return tuple(map(torch.zeros_like, leaves.moving))
            outputs, steps = zip(*pairs, strict=True)
            return torch.autograd.grad(outputs, leaves.moving, steps, materialize_grads=True)
        with forward_ad.dual_level():
            duals = tuple(map(forward_ad.make_dual, leaves.moving, directions))
            value = leaves.of_moving(*duals)
            grads = torch.autograd.grad(value, duals, _seed(value, of.grad_output), create_graph=True)
            tangents = [forward_ad.unpack_dual(grad).tangent for grad in grads]
            return tuple(torch.zeros_like(a) if t is None else t for a, t in zip(leaves.moving, tangents, strict=True))

    def raised(self, error: BaseException) -> tuple[type[BaseException], ...]:
        """The compiler stands in for an error of what it traces with a class that it makes for that."""
        classes = super().raised(error)
        stands_for = {own: given for given, own in getattr(torch._dynamo.exc, "observed_exception_map", {}).items()}
        return (*classes, *(stands_for[cls] for cls in classes if cls in stands_for))

    def has_no_rule(self, error: Exception, mode: Mode) -> bool:
        return super().has_no_rule(error, mode) or any(word in str(error) for word in NO_RULE)


# How torch says that a function has no forward derivative, no second one, or no rule for a transform.
NO_RULE = ("once_differentiable", "forward AD", "forward mode AD", "vmap", "setup_context", "is not implemented")


def _seed(value: torch.Tensor, grad_output: Any) -> torch.Tensor:
    return torch.ones_like(value) if grad_output is None else grad_output.to(value.dtype)


def _leaves(of: Derivative) -> Derivative:
    """The same at leaves of autograd's graph."""
    leaves = [array.detach().requires_grad_(i in of.wrt) for i, array in enumerate(of.arrays)]
    return replace(of, arrays=leaves)


def _jvp(of: Derivative, i: int, direction: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        moving = forward_ad.make_dual(of.arrays[i], direction)
        value, tangent = forward_ad.unpack_dual(replace(of, wrt=[i]).of_moving(moving))
        return torch.zeros_like(value) if tangent is None else tangent


def _vjp(of: Derivative, *inputs: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
    of = of.at(inputs)
    value, pullback = torch.func.vjp(of.of_moving, *of.moving)
    return value, pullback(_seed(value, of.grad_output))


def _extent(array: Array) -> int:
    """Number of elements that an array with these strides spans."""
    if array.size == 0:
        return 0
    reach = sum((size - 1) * step for size, step in zip(array.shape, array.strides, strict=True))
    return int(reach // array.itemsize + 1)


harness = TorchHarness()
