"""The pass over the logits by the native library: one custom call of XLA, on the CPU.

Which program it becomes part of is known when it is lowered. `jax.export`, whose programs run elsewhere, and other
platforms lower to `composed`. Derivatives of a gradient are those of `composed`, too, as are batches of examples whose
logits are the same or whose class weights differ.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from unixent_jax.kernel import class_axis, composed
from unixent_jax.kernel.by_platform import differentiate_as
from unixent_jax.kernel.spec import KernelSpec, is_index
from unixent_native import DTYPES, Strided, available_cores, load, packed_call
from unixent_native.library import Library

TARGET = "unixent_rows"

# Places of arrays among the addresses of a call, ``source/call.h``.
_X, _PROBABILITIES, _X_GRAD, _PROBABILITIES_GRAD, _INDEX, _WEIGHT, _POSITION_WEIGHT, _GRAD_SCALE, _LOSSES = range(9)
_OPTIONAL = (_WEIGHT, _POSITION_WEIGHT, _GRAD_SCALE)
_PER_POSITION = {_INDEX, _POSITION_WEIGHT, _GRAD_SCALE}
_GRADS = {"logits": _X_GRAD, "target": _PROBABILITIES_GRAD}


def takes(x: Array, spec: KernelSpec) -> bool:
    """Whether the library may compute these rows: of whole classes, in memory, in a program of one device."""
    return (
        not (spec.is_widened or spec.class_axis.is_sharded)
        and x.shape[spec.class_axis.axis] == spec.num_classes
        and class_axis.is_on_one_device(x)
        and bool(jax.typeof(x).sharding.mesh.empty)
        and jax.default_backend() == "cpu"
        and _library() is not None
    )


def row_losses(spec: KernelSpec, wrt: tuple[str, ...], operands: tuple[Array | None, ...]) -> Any:
    """Losses and gradients of `composed.row_losses`; ``operands`` are its arrays, in order."""
    losses, *grads = _rows_p.bind(
        *(array for array in operands if array is not None),
        present=tuple(array is not None for array in operands),
        spec=spec,
        wrt=wrt,
    )
    return losses, tuple(grads)


@lru_cache(maxsize=1)
def _library() -> Library | None:
    """The library, known to XLA; None where there is none."""
    library = load()
    if library is not None:
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.xla_rows), platform="cpu")
    return library


def _composed_losses(spec: KernelSpec, wrt: tuple[str, ...], operands: Any) -> tuple[Array, tuple[Array, ...]]:
    x, target, weight, position_weight, grad_scale = operands
    return composed.row_losses(x, target, weight, position_weight, grad_scale, spec, wrt)


def _composed(*arrays: Array, present: tuple[bool, ...], spec: KernelSpec, wrt: tuple[str, ...]) -> list[Array]:
    given = iter(arrays)
    losses, grads = _composed_losses(spec, wrt, [next(given) if is_there else None for is_there in present])
    return [losses, *grads]


def _results(x: Any, *_: Any, present: tuple[bool, ...], spec: KernelSpec, wrt: tuple[str, ...]) -> list[Any]:
    axis = spec.class_axis.axis
    losses = x.update(shape=x.shape[:axis] + x.shape[axis + 1 :], weak_type=False)
    return [losses, *[x.update(weak_type=False)] * len(wrt)]


def _batch(
    arrays: Any, dims: Any, *, present: tuple[bool, ...], spec: KernelSpec, wrt: tuple[str, ...]
) -> tuple[list[Array], list[int]]:
    """A batch is one more axis of positions, where the logits have it and class weights don't."""
    places = [place for place, is_there in enumerate(present) if is_there]
    given = dict(zip(places, dims, strict=True))
    params: dict[str, Any] = {"present": present, "spec": spec, "wrt": wrt}
    if given[0] is None or given.get(2) is not None:
        results = jax.vmap(partial(_composed, **params), dims)(*arrays)
        return results, [0] * len(results)
    size = arrays[0].shape[given[0]]
    moved = []
    for place, array in zip(places, arrays, strict=True):
        if place == 2:
            moved.append(array)
        elif given[place] is None:
            moved.append(jnp.broadcast_to(array, (size, *array.shape)))
        else:
            moved.append(jnp.moveaxis(array, given[place], 0))
    classes = spec.class_axis._replace(axis=spec.class_axis.axis + 1)
    results = _rows_p.bind(*moved, **params | {"spec": spec._replace(class_axis=classes)})
    return results, [0] * len(results)


def _lower(ctx: Any, *operands: Any, present: tuple[bool, ...], spec: KernelSpec, wrt: tuple[str, ...]) -> Any:
    library = _library()
    if library is None or ctx.module_context.lowering_parameters.for_export:
        return _lower_composed(ctx, *operands, present=present, spec=spec, wrt=wrt)
    x, target = ctx.avals_in[:2]
    places = [_X, _INDEX if is_index(target) else _PROBABILITIES]
    places += [place for place, is_there in zip(_OPTIONAL, present[2:], strict=True) if is_there]
    places += [_LOSSES, *(_GRADS[name] for name in wrt)]
    arrays = dict(zip(places, (*ctx.avals_in, *ctx.avals_out), strict=True))
    for place in _PER_POSITION & arrays.keys():
        assert arrays[place].shape == arrays[_LOSSES].shape, "unixent: one number for each position"
    axis = spec.class_axis.axis
    call = packed_call(
        (*arrays[_LOSSES].shape, x.shape[axis]),
        tuple(_strided(arrays[place], axis) if place in arrays else None for place in range(_INDEX)),
        int(_GRAD_SCALE in arrays),
        DTYPES[spec.acc_dtype],
        spec.label_smoothing,
        spec.z_loss,
        spec.transform,
        available_cores(),
    )
    if call is None:
        return _lower_composed(ctx, *operands, present=present, spec=spec, wrt=wrt)
    attributes = {
        "call": np.frombuffer(call, np.int64),
        "isa": np.int64(library.isa),
        "places": np.array(places, np.int64),
    }
    return jax.ffi.ffi_lowering(TARGET)(ctx, *operands, **attributes)


def _strided(array: Any, axis: int) -> Strided:
    """An array in C order, the classes' stride last."""
    strides = [array.dtype.itemsize * math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
    strides.append(strides.pop(axis))
    return Strided(0, DTYPES[array.dtype.name], tuple(strides))


_rows_p = Primitive("native_row_losses")
_rows_p.multiple_results = True
_rows_p.def_abstract_eval(_results)
_rows_p.def_impl(_composed)  # under `jax.disable_jit`
differentiate_as(_rows_p, _composed)
batching.primitive_batchers[_rows_p] = _batch
_lower_composed = mlir.lower_fun(_composed, multiple_results=True)
mlir.register_lowering(_rows_p, _lower_composed)
mlir.register_lowering(_rows_p, _lower, platform="cpu")
