"""The operands of a fused linear call, and its positions as rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from unixent.protocol import LinearProblem
from unixent_jax import compat
from unixent_jax.collectives import ShardAxes, vary_over
from unixent_jax.kernel import is_index
from unixent_jax.kernel.class_axis import class_indices
from unixent_jax.linear.products import takes_halves
from unixent_jax.logits.problem import LossSpec, Positions, normalizer_of, positions_of


class LinearSpec(NamedTuple):
    """What is static about a call. The logits of a chunk are (rows, classes)."""

    loss: LossSpec
    chunk: int | None

    def on_shards(self, axes: ShardAxes) -> LinearSpec:
        """The spec of a device's shard, inside `jax.shard_map`."""
        return self._replace(loss=self.loss.on_shards(axes))


class LinearArrays(NamedTuple):
    """What is traced; absent arrays are None."""

    hidden: Array
    classifier: Array
    bias: Array | None
    target: Array
    weight: Array | None
    mask: Array | None
    normalizer: Array | float | None
    ids: Array | None = None

    @classmethod
    def of(cls, problem: LinearProblem) -> LinearArrays:
        given = cls(*(getattr(problem, name) for name in cls._fields))
        return given._replace(normalizer=normalizer_of(problem))


class LinearRows(NamedTuple):
    """The same with the positions as rows, in the accumulation dtype but for class indices, which are safe."""

    hidden: Array
    classifier: Array
    bias: Array | None
    target: Array
    weight: Array | None
    position_weight: Array
    ids: Array | None
    half_hidden: Array | None = None  # what the two were widened from, where a GPU may take that
    half_classifier: Array | None = None

    @property
    def active(self) -> Array:
        return self.position_weight != 0

    def recomputed(self, of_chunk: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a chunk that is evaluated anew for the gradient, so that no logits are kept."""
        # The barrier that JAX sets would keep wide operands alive that no product is made of on a GPU.
        recomputed: Callable[..., Any] = jax.checkpoint(of_chunk, prevent_cse=self.half_classifier is None)
        return recomputed


def positions_by_row(spec: LossSpec, arrays: LinearArrays) -> Positions:
    """What prepared arrays say of positions, as rows."""
    mask = None if arrays.mask is None else arrays.mask.reshape(-1)
    if is_index(arrays.target):
        return positions_of(spec, arrays.target.reshape(-1), mask)
    target = arrays.target.reshape(-1, arrays.target.shape[-1]).astype(spec.kernel.acc_dtype)
    return positions_of(spec, target, mask)


def rows_of(spec: LossSpec, arrays: LinearArrays, positions: Positions) -> LinearRows:
    """The operands by rows."""
    dtype = jnp.dtype(spec.kernel.acc_dtype)
    *positions_shape, width = arrays.hidden.shape
    hidden = arrays.hidden.reshape(math.prod(positions_shape), width)
    weight = jnp.ones(hidden.shape[0], dtype) if positions.weight is None else positions.weight
    # 0 times a NaN in an inactive row would reach the classifier's gradient.
    hidden = jnp.where((weight != 0)[:, None], hidden, 0)
    classifier = arrays.classifier
    bias = None if arrays.bias is None else arrays.bias.astype(dtype)
    classes = spec.kernel.class_axis._replace(axis=0)
    if classes.num_padded_classes(classifier) != spec.kernel.num_classes:
        # The gradient for hidden multiplies the padding by 0, whatever it holds.
        exists = class_indices(classifier, classifier, classes) < spec.kernel.num_classes
        classifier = jnp.where(exists, classifier, 0)
        bias = None if bias is None else jnp.where(exists[:, 0], bias, 0)
    half = (hidden, classifier)
    # What a gradient is summed over inside `jax.shard_map` is settled here, so that no chunk's is sent by itself.
    axes = frozenset().union(*map(compat.varying_axes, (*half, positions.target)))
    hidden, classifier = (vary_over(array.astype(dtype), axes) for array in half)
    bias = None if bias is None else vary_over(bias, axes)
    ids = arrays.ids
    if ids is not None:
        ids = ids.reshape(hidden.shape[0], ids.shape[-1])
    rows = LinearRows(hidden, classifier, bias, positions.target, arrays.weight, weight, ids)
    if not takes_halves(*half, spec.kernel):
        return rows
    # Without a derivative, which is that of the wide arrays.
    half_hidden, half_classifier = (vary_over(lax.stop_gradient(array), axes) for array in half)
    return rows._replace(half_hidden=half_hidden, half_classifier=half_classifier)
