"""A mean over nothing is 0 under on_empty="zero", unless a loss in it is NaN: NaN is never made a plausible number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import unixent

POSITIONS, CLASSES = 4, 6
Loss = Callable[..., jax.Array]


def logits_form(logits: jax.Array, target: np.ndarray, **options: Any) -> jax.Array:
    return unixent.cross_entropy(logits, target, validate="off", **options)


def linear_form(logits: jax.Array, target: np.ndarray, **options: Any) -> jax.Array:
    return unixent.linear_cross_entropy(logits, jnp.eye(CLASSES), target, chunk=3, validate="off", **options)


def over_a_mesh(form: Loss) -> Loss:
    def loss(logits: jax.Array, target: np.ndarray, **options: Any) -> jax.Array:
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        config = unixent.ParallelConfig.from_mesh(mesh, data="data", model="model")
        return form(logits, target, parallel=config, **options)

    return loss


def inside_shard_map(form: Loss) -> Loss:
    """The positions over the devices of a mesh; what is said of each goes with it."""

    def loss(logits: jax.Array, target: np.ndarray, **options: Any) -> jax.Array:
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
        config = unixent.ParallelConfig(2, 1, token_group="data")
        per_position = {"target": target, **{name: options.pop(name) for name in ("mask",) if name in options}}

        def local(own: jax.Array, per_position: dict[str, Any]) -> jax.Array:
            return form(own, **per_position, parallel=config, **options)

        return jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P())(logits, per_position)

    return loss


FORMS: dict[str, Loss] = {
    "logits": logits_form,
    "linear": linear_form,
    "logits over a mesh": over_a_mesh(logits_form),
    "linear over a mesh": over_a_mesh(linear_form),
    "logits inside shard_map": inside_shard_map(logits_form),
}
EMPTY: dict[str, dict[str, Any]] = {
    "normalizer of 0": {"normalizer": 0.0},
    "weights of 0": {"weight": np.zeros(CLASSES, np.float32)},
}


def nan_row() -> jax.Array:
    return jnp.zeros((POSITIONS, CLASSES)).at[1].set(jnp.nan)


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("form", FORMS)
def test_an_empty_mean_of_a_nan_row_is_nan(form: str, empty: str) -> None:
    target = np.arange(POSITIONS)
    loss = jax.jit(lambda x: FORMS[form](x, target, **EMPTY[empty]))
    assert np.isnan(loss(nan_row()))
    assert loss(jnp.zeros((POSITIONS, CLASSES))) == 0


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_mean_with_an_index_out_of_range_is_nan_with_its_gradient_row(form: str) -> None:
    target = np.array([0, 1, CLASSES, 2])
    loss, grad = jax.jit(jax.value_and_grad(lambda x: FORMS[form](x, target, mask=np.zeros(POSITIONS, np.float32))))(
        jnp.zeros((POSITIONS, CLASSES))
    )
    assert np.isnan(loss)
    assert np.isnan(grad[2]).all()
    assert not grad[jnp.array([0, 1, 3])].any()


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_mean_of_masked_nan_rows_is_zero_with_a_zero_gradient(form: str) -> None:
    mask = np.zeros(POSITIONS, np.float32)
    loss, grad = jax.jit(jax.value_and_grad(lambda x: FORMS[form](x, np.arange(POSITIONS), mask=mask)))(nan_row())
    assert loss == 0
    assert not grad.any()
