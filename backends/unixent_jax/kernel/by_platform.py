"""Rows by one form on GPUs and by another elsewhere, where that is known when a program is lowered.

A primitive, since a form for GPUs need not be one that JAX can differentiate: `jax.lax.platform_dependent` would
differentiate both, on every platform. Its derivatives are those of the other form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from unixent_jax import compat
from unixent_jax.collectives import vary_over
from unixent_jax.kernel.class_axis import can_gather
from unixent_jax.kernel.rows import RowSpec


class Forms(NamedTuple):
    """Functions of (spec, x, *operands) with the same results: losses, one for each row, and so many gradients.

    x has rows along the class axis of the spec. Each operand is a number, or has size 1 or that of x along every axis.
    """

    default: Callable[..., tuple[Array, ...]]
    gpu: Callable[..., tuple[Array, ...]]
    num_grads: int


def rows(forms: Forms, spec: RowSpec, x: Array, *operands: Array) -> tuple[Array, ...]:
    """By the form for the platform that the program is lowered for; the default where classes may be sharded."""
    if not can_gather(x, spec.classes):
        return forms.default(spec, x, *operands)
    axes = frozenset().union(*map(compat.varying_axes, (x, *operands)))
    return tuple(rows_p.bind(*(vary_over(array, axes) for array in (x, *operands)), forms=forms, spec=spec))


def _default(*arrays: Array, forms: Forms, spec: RowSpec) -> Sequence[Array]:
    return forms.default(spec, *arrays)


def _gpu(*arrays: Array, forms: Forms, spec: RowSpec) -> Sequence[Array]:
    return forms.gpu(spec, *arrays)


def _results(x: Any, *_: Any, forms: Forms, spec: RowSpec) -> list[Any]:
    shape = [1 if axis == spec.classes.axis else size for axis, size in enumerate(x.shape)]
    losses = x.update(shape=tuple(shape), weak_type=False)
    return [losses, *[x.update(weak_type=False)] * forms.num_grads]


def differentiate_as(primitive: Primitive, function: Callable[..., Sequence[Array]]) -> None:
    """Gives a primitive the derivatives of a function of the same arrays and parameters.

    A rule of the primitive itself: JAX inlines that of a function where it linearizes a scan which calls it.
    """

    def jvp(arrays: Any, given: Any, **params: Any) -> tuple[Sequence[Array], Sequence[Array]]:
        moving = {i: tangent for i, tangent in enumerate(given) if not isinstance(tangent, ad.Zero)}

        def of(moved: dict[int, Array]) -> Sequence[Array]:
            return function(*[moved.get(i, array) for i, array in enumerate(arrays)], **params)

        _, tangents = jax.jvp(of, ({i: arrays[i] for i in moving},), (moving,))
        return primitive.bind(*arrays, **params), tangents

    ad.primitive_jvps[primitive] = jvp


def _batch(arrays: Any, dims: Any, *, forms: Forms, spec: RowSpec) -> tuple[list[Array], list[int]]:
    """A batch is one more axis of rows, the first."""
    size = next(array.shape[dim] for array, dim in zip(arrays, dims, strict=True) if dim is not None)
    num_axes = arrays[0].ndim + (dims[0] is None)

    def moved(array: Array, dim: int | None) -> Array:
        if dim is None:
            return jnp.broadcast_to(array, (size, *array.shape)) if array.ndim else array
        array = jnp.moveaxis(array, dim, 0)
        return array if array.ndim > 1 else array.reshape(size, *[1] * (num_axes - 1))

    classes = spec.classes._replace(axis=spec.classes.axis + 1)
    results = rows_p.bind(*map(moved, arrays, dims), forms=forms, spec=spec._replace(classes=classes))
    return results, [0] * len(results)


rows_p = Primitive("rows_by_platform")
rows_p.multiple_results = True
rows_p.def_abstract_eval(_results)
rows_p.def_impl(_default)  # under `jax.disable_jit`
differentiate_as(rows_p, _default)
batching.primitive_batchers[rows_p] = _batch
mlir.register_lowering(rows_p, mlir.lower_fun(_default, multiple_results=True))
for _platform in ("cuda", "rocm"):
    mlir.register_lowering(rows_p, mlir.lower_fun(_gpu, multiple_results=True), platform=_platform)
