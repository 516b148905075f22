"""PyTorch: eager by `value_and_grad`, by autograd, traced whole by the compiler, by forward mode, and under vmap.

The compiled mode stops before code generation, which takes tens of seconds a case: what is captured, differentiated and
decomposed runs as it is. Forward mode gives a gradient one element at a time. Second derivatives are taken twice
backward (autograd) and forward over backward (forward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.autograd import forward_ad

from unixent_conformance.harness import EAGER, Harness, Mode
from unixent_conformance.oracle import Array

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class TorchHarness(Harness):
    name = "torch"
    modes: tuple[Mode, ...] = (
        EAGER,
        Mode("autograd", autodiff=True),
        Mode("compile", traced=True, autodiff=True, cases="core", transform="jit"),
        Mode("forward", autodiff=True, cases="few", transform="jvp"),
        Mode("vmap", traced=True, autodiff=True, cases="few", transform="vmap"),
    )

    def version(self) -> str:
        return f"torch {torch.__version__}, {torch.get_num_threads()} threads"

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
        return tensor.as_strided(array.shape, [step // array.itemsize for step in strides])

    def to_numpy(self, array: torch.Tensor) -> Array:
        array = array.detach().cpu()
        if array.dtype is torch.bfloat16:
            bits: Array = array.contiguous().view(torch.int16).numpy()
            return bits.view(_BFLOAT16)
        values: Array = array.numpy()
        return values

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

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any, mode: Mode
    ) -> tuple[Any, tuple[Any, ...]]:
        if mode.name == "forward":
            return self._forward(function, arrays, wrt, upstream)
        if mode.batched:
            return self._mapped(function, arrays, wrt, upstream)
        leaves = [array.detach().requires_grad_(i in wrt) for i, array in enumerate(arrays)]
        value = self.call(function, leaves, mode)
        # What the loss does not depend on has no gradient, which an optimiser takes for 0.
        return value, torch.autograd.grad(
            value, [leaves[i] for i in wrt], _seed(value, upstream), materialize_grads=True
        )

    def _forward(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        """d sum(upstream * value)/dx_i is that of value along the i-th unit vector, contracted with upstream."""
        value = function(*arrays)
        seed = _seed(value, upstream).double()
        gradients = []
        for i in wrt:
            gradient = torch.zeros(arrays[i].numel(), dtype=torch.float64)
            for element in range(gradient.numel()):
                unit = torch.zeros(gradient.numel(), dtype=arrays[i].dtype)
                unit[element] = 1
                with forward_ad.dual_level():
                    moving = forward_ad.make_dual(arrays[i], unit.reshape(arrays[i].shape))
                    tangent = forward_ad.unpack_dual(function(*arrays[:i], moving, *arrays[i + 1 :])).tangent
                    gradient[element] = 0 if tangent is None else (seed * tangent).sum()
            gradients.append(gradient.reshape(arrays[i].shape).to(arrays[i].dtype))
        return value, tuple(gradients)

    def _mapped(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        def both(*inputs: Any) -> tuple[Any, tuple[Any, ...]]:
            given, above = inputs[: len(arrays)], inputs[len(arrays) :]

            def of(*inner: Any) -> Any:
                put = dict(zip(wrt, inner, strict=True))
                return function(*(put.get(i, array) for i, array in enumerate(given)))

            value, pull = torch.func.vjp(of, *(given[i] for i in wrt))
            return value, pull(_seed(value, above[0] if above else None))

        found: tuple[Any, tuple[Any, ...]] = torch.func.vmap(both)(*arrays, *([] if upstream is None else [upstream]))
        return found

    def curvature(
        self,
        function: Callable[..., Any],
        arrays: Sequence[Any],
        wrt: Sequence[int],
        upstream: Any,
        along: Sequence[Any],
        mode: Mode,
    ) -> tuple[Any, ...]:
        leaves = [array.detach().requires_grad_(i in wrt) for i, array in enumerate(arrays)]
        moving = [leaves[i] for i in wrt]
        if mode.name != "forward":
            value = function(*leaves)
            slopes = torch.autograd.grad(value, moving, _seed(value, upstream), create_graph=True)
            pairs = [(slope, step) for slope, step in zip(slopes, along, strict=True) if slope.requires_grad]
            if not pairs:  # constants to autograd: a penalty on them would add nothing to any gradient
                return tuple(map(torch.zeros_like, moving))
            outputs, steps = zip(*pairs, strict=True)
            return torch.autograd.grad(outputs, moving, steps, materialize_grads=True)
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(leaf, step) for leaf, step in zip(moving, along, strict=True)]
            put = dict(zip(wrt, duals, strict=True))
            value = function(*(put.get(i, leaf) for i, leaf in enumerate(leaves)))
            slopes = torch.autograd.grad(value, duals, _seed(value, upstream), create_graph=True)
            tangents = [forward_ad.unpack_dual(slope).tangent for slope in slopes]
            return tuple(torch.zeros_like(a) if t is None else t for a, t in zip(moving, tangents, strict=True))

    def lacks(self, error: Exception, mode: Mode) -> bool:
        text = str(error)
        return super().lacks(error, mode) or any(word in text for word in LACKS)


def _seed(value: torch.Tensor, upstream: Any) -> torch.Tensor:
    return torch.ones_like(value) if upstream is None else upstream.to(value.dtype)


# How torch says that a function has no forward derivative, no second one, or no rule for a transform.
LACKS = ("once_differentiable", "forward AD", "forward mode AD", "vmap", "setup_context", "is not implemented")


def _extent(array: Array) -> int:
    """Number of elements that an array with these strides spans."""
    if array.size == 0:
        return 0
    reach = sum((size - 1) * step for size, step in zip(array.shape, array.strides, strict=True))
    return int(reach // array.itemsize + 1)


harness = TorchHarness()
