"""The matrix products of a chunk in the accumulation dtype, of which GPUs take half operands as they are.

A GPU multiplies half matrices in a fraction of the time of float32 ones and accumulates them in float32. A gradient,
which has the digits of float32, enters as a sum of half matrices, each what rounding left of the one before
(`unixent_torch.linear.products` does the same). Elsewhere the product is that of the widened operands.

A primitive, as in `unixent_jax.kernel.by_platform`, since the platform is known when a program is lowered. It is linear
in each operand, so that its derivatives are such products again.
"""

from __future__ import annotations

from functools import partial
from string import ascii_lowercase
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from unixent_jax import compat
from unixent_jax.collectives import vary_over
from unixent_jax.kernel import KernelSpec
from unixent_jax.kernel.class_axis import can_gather

# The axes of both operands and of the product, a letter each, as in `jax.numpy.einsum`.
Axes = tuple[str, str, str]

# How many half matrices a float32 one is the sum of: 24 bits by 8 or 11 of each.
_TERMS = {"bfloat16": 3, "float16": 2}


def takes_halves(hidden: Array, classifier: Array, spec: KernelSpec) -> bool:
    """Whether a GPU may be given these operands as they are: by one device, of whole classes."""
    return (
        hidden.dtype == classifier.dtype
        and hidden.dtype.name in _TERMS
        and spec.acc_dtype == "float32"
        and can_gather(hidden, spec.class_axis)
    )


def product(a: Array, b: Array, half_a: Array | None = None, half_b: Array | None = None) -> Array:
    """``a @ b``; ``half_a`` and ``half_b`` are what they were widened from, where a GPU may take that."""
    if half_a is None and half_b is None:
        return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
    return _product(("ik", "kj", "ij"), a, b, half_a, half_b)


def _product(axes: Axes, a: Array, b: Array, half_a: Array | None = None, half_b: Array | None = None) -> Array:
    """The same along any axes."""
    if half_b is None:
        if half_a is None:
            return _wide(a, b, axes=axes)
        return _product((axes[1], axes[0], axes[2]), b, a, None, half_a)
    arrays = [a, b, half_b, *([] if half_a is None else [half_a])]
    mesh_axes = frozenset().union(*map(compat.varying_axes, arrays))
    result: Array = product_p.bind(*(vary_over(array, mesh_axes) for array in arrays), axes=axes)
    return result


def _wide(a: Array, b: Array, *_: Array, axes: Axes) -> Array:
    """In the accumulation dtype itself: by default a GPU multiplies float32 as TF32, a TPU as bfloat16."""
    return jnp.einsum(_formula(axes), a, b, precision=lax.Precision.HIGHEST)


def of_halves(a: Array, _: Array, half_b: Array, half_a: Array | None = None, *, axes: Axes) -> Array:
    """Of half matrices, accumulated in float32 and not rounded."""
    multiply = partial(jnp.einsum, _formula(axes), preferred_element_type=a.dtype)
    if half_a is not None:
        return multiply(half_a, half_b)
    unit = unit_of(a) if half_b.dtype == jnp.float16 else None
    *others, last = terms_of(a if unit is None else a / unit, half_b.dtype)
    total = multiply(last, half_b)  # the smallest first
    for term in reversed(others):
        total = total + multiply(term, half_b)
    return total if unit is None else total * unit


def terms_of(x: Array, dtype: Any) -> list[Array]:
    """Half matrices whose sum is x."""
    bits, terms = jnp.finfo(dtype), []
    for _ in range(_TERMS[bits.dtype.name] - 1):
        # XLA may take a conversion to half precision and back for nothing, but not this.
        rounded = lax.reduce_precision(x, bits.nexp, bits.nmant)
        terms.append(rounded.astype(dtype))
        x = jnp.where(jnp.isfinite(rounded), x - rounded, 0)
    return [*terms, x.astype(dtype)]


def unit_of(x: Array) -> Array:
    """A power of two, in units of which the largest finite entry of x is some 2^15: float16 ends at 2^-24 and 2^16."""
    largest = jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), initial=0)
    return jnp.clip(lax.reduce_precision(largest, 8, 0), 2.0**-100, 2.0**127) / 2**15


def _formula(axes: Axes) -> str:
    return f"{axes[0]},{axes[1]}->{axes[2]}"


def _shape(a: Any, b: Any, *_: Any, axes: Axes) -> Any:
    sizes = dict(zip(axes[0] + axes[1], a.shape + b.shape, strict=True))
    return a.update(shape=tuple([sizes[axis] for axis in axes[2]]), weak_type=False)


def _jvp(arrays: Any, tangents: Any, *, axes: Axes) -> tuple[Array, Any]:
    a, b, half_b, *half_a = arrays
    of_a, of_b = tangents[:2]
    parts = []
    if not isinstance(of_a, ad.Zero):
        parts.append(_product(axes, of_a, b, None, half_b))
    if not isinstance(of_b, ad.Zero):
        parts.append(_product(axes, a, of_b, *half_a))
    value = product_p.bind(*arrays, axes=axes)
    return value, sum(parts[1:], parts[0]) if parts else ad.Zero.from_primal_value(value)


def _transpose(cotangent: Any, a: Any, b: Array, half_b: Array, *, axes: Axes) -> list[Any]:
    """A product is linear in a tangent, which `_jvp` has as the operand a."""
    if isinstance(cotangent, ad.Zero):
        return [ad.Zero(a.aval), None, None]
    return [_product((axes[2], axes[1], axes[0]), cotangent, b, None, half_b), None, None]


def _batch(arrays: Any, dims: Any, *, axes: Axes) -> tuple[Array, int]:
    """A batch is one more axis, the first of the operands that have it."""
    letter = next(letter for letter in ascii_lowercase if letter not in "".join(axes))
    size = next(array.shape[dim] for array, dim in zip(arrays, dims, strict=True) if dim is not None)
    places = [0, 1, 1, 0]  # which operand an array is
    batched = {place for place, dim in zip(places, dims, strict=False) if dim is not None}

    def moved(place: int, array: Array, dim: int | None) -> Array:
        if place not in batched:
            return array
        return jnp.broadcast_to(array, (size, *array.shape)) if dim is None else jnp.moveaxis(array, dim, 0)

    operands = [moved(*each) for each in zip(places, arrays, dims, strict=False)]
    new = [letter * (place in batched) + axes[place] for place in (0, 1)]
    return product_p.bind(*operands, axes=(new[0], new[1], letter + axes[2])), 0


product_p = Primitive("product_by_platform")
product_p.def_abstract_eval(_shape)
product_p.def_impl(_wide)  # under `jax.disable_jit`
ad.primitive_jvps[product_p] = _jvp
ad.primitive_transposes[product_p] = _transpose
batching.primitive_batchers[product_p] = _batch
mlir.register_lowering(product_p, mlir.lower_fun(_wide, multiple_results=False))
for _platform in ("cuda", "rocm"):
    mlir.register_lowering(product_p, mlir.lower_fun(of_halves, multiple_results=False), platform=_platform)
