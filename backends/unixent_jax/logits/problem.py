"""The operands of a call: what is static about it, its arrays, and what its targets say of positions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify

from unixent import semantics
from unixent.errors import BackendError
from unixent.protocol import LossProblem, Problem
from unixent_jax.collectives import ShardAxes
from unixent_jax.kernel import ClassAxis, KernelSpec, is_index
from unixent_jax.logits.autograd import constant


class LossSpec(NamedTuple):
    """What is static about a call: the jitted functions are traced once for each spec and set of shapes.

    Attributes:
        kernel: the static side of the pass over the logits.
        reduction, on_empty, ignore_index, validate: the options of those names.
        return_terms: whether both sums are asked for.
        token_axes: the axes of a mesh whose devices share the positions, inside `jax.shard_map`.
    """

    kernel: KernelSpec
    reduction: str
    on_empty: str
    ignore_index: int
    validate: str
    return_terms: bool
    token_axes: tuple[str, ...] = ()

    @property
    def loss(self) -> LossSpec:
        """Itself, as the other forms have it."""
        return self

    @property
    def model_axes(self) -> tuple[str, ...]:
        return self.kernel.class_axis.shard_axes

    def on_shards(self, axes: ShardAxes) -> LossSpec:
        """The spec of a device's shard, inside `jax.shard_map`."""
        class_axis = self.kernel.class_axis._replace(shard_axes=axes.model)
        return self._replace(kernel=self.kernel._replace(class_axis=class_axis), token_axes=axes.tokens)


class LossArrays(NamedTuple):
    """What is traced; absent arrays are None."""

    logits: Array
    target: Array
    weight: Array | None
    mask: Array | None
    normalizer: Array | float | None
    ids: Array | None = None  # classes P + (K,): of sparse targets, whose values are the target, or of statistics

    @classmethod
    def of(cls, problem: Problem) -> LossArrays:
        normalizer = normalizer_of(problem)
        return cls(problem.logits, problem.target, problem.weight, problem.mask, normalizer, problem.ids)


def normalizer_of(problem: LossProblem) -> Any:
    """The normalizer; one that the accumulation dtype may round to 0 or infinity as a divisor and a factor, (2,)."""
    value, limits = problem.normalizer, jnp.finfo(problem.acc_dtype)
    smallest, largest = float(limits.tiny), float(limits.max)
    if isinstance(value, float):
        if value == 0 or smallest <= value <= largest:
            return value
        return _split(np, value, smallest, largest).astype(problem.acc_dtype)
    if value is None or value.dtype != "float64" or problem.acc_dtype == "float64":
        return value
    fits = ~(value > 0) | ((smallest <= value) & (value <= largest))
    one = jnp.ones_like(value)
    split = _split(jnp, jnp.where(fits, one, value), smallest, largest)
    return jnp.where(fits, jnp.stack([value, one]), split).astype(problem.acc_dtype)


def _split(xp: Any, value: Any, smallest: float, largest: float) -> Any:
    """Of like magnitude, so that sums of what one of them has multiplied do not overflow before the other is met."""
    divisor = xp.clip(xp.sqrt(value), smallest, largest)
    return xp.stack([divisor, xp.clip(divisor / value, smallest, largest)])


class Positions(NamedTuple):
    """What targets and mask say of positions, before any logit is read."""

    target: Array  # indices that are safe to gather with, or probabilities
    weight: Array | None  # v, NaN where an index is out of range; None for ones
    denominator_weight: Array | None  # v; None for ones
    out_of_range: Array | None


def loss_spec(problem: LossProblem, axis: int) -> LossSpec:
    """The spec of a problem whose arrays are not inside `jax.shard_map`."""
    if problem.result_dtype == "float64" and not jax.config.jax_enable_x64:
        raise BackendError("dtype: expected float32 or narrower, since jax_enable_x64 is off; got 'float64'")
    options = problem.options
    kernel = KernelSpec(
        ClassAxis(axis),
        problem.num_classes,
        problem.acc_dtype,
        options.label_smoothing,
        options.z_loss,
        problem.transform,
    )
    return LossSpec(
        kernel, options.reduction, options.on_empty, options.ignore_index, options.validate, problem.return_terms
    )


def prepare(spec: LossSpec, arrays: Any) -> Any:
    """The arrays of a call as a whole: constants in the accumulation dtype, every index looked at where that is asked.

    Before anything is split over devices or into chunks.
    """
    if spec.validate == "full" and is_index(arrays.target) and 0 not in arrays.target.shape:
        _debug_check(spec, arrays.target)
    dtype = jnp.dtype(spec.kernel.acc_dtype)
    names = ("weight", "mask", "normalizer")
    return arrays._replace(**{name: constant(name, getattr(arrays, name), dtype) for name in names})


def positions_of(spec: LossSpec, target: Array, mask: Array | None) -> Positions:
    """``mask``, in the accumulation dtype, has the shape of positions."""
    if not is_index(target):
        return Positions(target, mask, mask, None)
    one = jnp.ones((), spec.kernel.acc_dtype)
    index, weight, out_of_range = _index_positions(spec, target, mask, one)
    marked = jnp.where(out_of_range, jnp.nan, one if weight is None else weight)
    return Positions(index.astype(jnp.int32), marked, weight, out_of_range)


def _index_positions(
    spec: LossSpec, target: Array, mask: Array | None, one: Array
) -> tuple[Array, Array | None, Array]:
    limits = jnp.iinfo(target.dtype)
    ignore_index: Any = spec.ignore_index
    if limits.min <= ignore_index <= limits.max:
        # Of target's own dtype: JAX takes a Python integer for an int32 or int64, which not every uint64 fits into.
        ignore_index = np.asarray(ignore_index, target.dtype)[()]
    return semantics.index_positions(jnp, target, mask, one, spec.kernel.num_classes, ignore_index)


def _debug_check(spec: LossSpec, target: Array) -> None:
    num_classes = spec.kernel.num_classes
    out_of_range = _index_positions(spec, target, None, jnp.ones((), spec.kernel.acc_dtype))[2]
    first = jnp.argmax(out_of_range.reshape(-1))
    checkify.debug_check(
        ~jnp.any(out_of_range),
        f"target: expected class indices in [0, {num_classes}) or ignore_index={spec.ignore_index}; "
        "got {value} at flat position {position}",
        value=target.reshape(-1)[first],
        position=first,
    )
