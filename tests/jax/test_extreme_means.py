"""Means whose sum, or whose denominator, the accumulation dtype cannot hold, though value and gradients it can."""

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

POSITIONS, CLASSES = 8, 4
LARGE = 1.5e38  # eight of them are no float32
Loss = Callable[..., jax.Array]


def logits_form(logits: jax.Array, **options: Any) -> jax.Array:
    return unixent.cross_entropy(logits, np.ones(POSITIONS, int), **options)


def probabilities(logits: jax.Array, **options: Any) -> jax.Array:
    return unixent.cross_entropy(logits, np.eye(CLASSES)[np.ones(POSITIONS, int)], **options)


def linear_form(logits: jax.Array, **options: Any) -> jax.Array:
    return unixent.linear_cross_entropy(logits, jnp.eye(CLASSES), np.ones(POSITIONS, int), chunk=3, **options)


def over_a_mesh(form: Loss) -> Loss:
    def loss(logits: jax.Array, **options: Any) -> jax.Array:
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        config = unixent.ParallelConfig.from_mesh(mesh, data="data", model="model")
        return form(logits, parallel=config, **options)

    return loss


def inside_shard_map(logits: jax.Array, **options: Any) -> jax.Array:
    """No device's own sum is beyond float32."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    config = unixent.ParallelConfig(8, 1, token_group="data")

    def local(shard: jax.Array) -> jax.Array:
        return unixent.cross_entropy(shard, np.ones(1, int), parallel=config, **options)

    return jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P())(logits)


FORMS: dict[str, Loss] = {
    "logits": logits_form,
    "probabilities": probabilities,
    "linear": linear_form,
    "logits over a mesh": over_a_mesh(logits_form),
    "linear over a mesh": over_a_mesh(linear_form),
    "inside shard_map": inside_shard_map,
}


def large_rows() -> jax.Array:
    return jnp.zeros((POSITIONS, CLASSES)).at[:, 0].set(LARGE)


@pytest.mark.parametrize("options", [{}, {"normalizer": 4.0}, {"on_empty": "nan", "normalizer": np.float32(16)}])
@pytest.mark.parametrize("form", FORMS)
def test_the_mean_of_finite_losses_is_finite_though_their_sum_is_not(form: str, options: dict[str, Any]) -> None:
    def mean(x: jax.Array) -> jax.Array:
        return FORMS[form](x, **options)

    denominator = float(options.get("normalizer", POSITIONS))

    @jax.jit
    def derivatives(x: jax.Array) -> Any:
        value, grad = jax.value_and_grad(mean)(x)
        return value, jax.jvp(mean, (x,), (jnp.ones_like(x).at[:, 0].set(2),)), grad

    value, (beside, tangent), grad = derivatives(large_rows())
    expected = LARGE / denominator * POSITIONS
    for each in (value, beside, mean(large_rows())):
        np.testing.assert_allclose(each, expected, rtol=1e-6)
    np.testing.assert_allclose(tangent, POSITIONS / denominator, rtol=1e-6)
    np.testing.assert_allclose(grad, np.array([[1, -1, 0, 0]] * POSITIONS) / denominator, rtol=1e-6)


def test_large_and_small_means_stand_side_by_side_under_vmap() -> None:
    rows = jnp.stack([large_rows(), jnp.zeros((POSITIONS, CLASSES)), large_rows().at[0, 0].set(jnp.inf)])
    values, grads = jax.vmap(jax.value_and_grad(logits_form))(rows)
    np.testing.assert_allclose(values, [LARGE, np.log(CLASSES), np.nan], rtol=1e-6)
    np.testing.assert_allclose(grads[0], np.array([[1, -1, 0, 0]] * POSITIONS) / POSITIONS)


def test_an_infinite_loss_has_an_infinite_mean_and_an_overflowing_sum_stays_infinite() -> None:
    impossible = jnp.zeros((POSITIONS, CLASSES)).at[3, 1].set(-jnp.inf)
    assert logits_form(impossible) == np.inf
    assert logits_form(large_rows(), reduction="sum") == np.inf
    assert unixent.loss_terms(large_rows(), np.ones(POSITIONS, int)).numerator == np.inf


def tiny_gradients(form: str, normalizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """A class without probability, a row that is masked, and gradients so small that even 1e50 of them are numbers."""
    x = jnp.zeros((POSITIONS, CLASSES), "float32").at[:, 1].set(50.0).at[:, 3].set(-jnp.inf if "mesh" in form else -1e3)
    mask = np.arange(POSITIONS) != 2
    static = 1 if isinstance(normalizer, float) else ()
    grad = jax.jit(jax.grad(lambda x, n: FORMS[form](x, normalizer=n, mask=mask)), static_argnums=static)
    odds = np.exp([-50.0, -np.inf, -50.0, -np.inf])
    exact = mask[:, None] * (odds - [0, odds.sum(), 0, 0])
    return np.asarray(grad(x, normalizer), float), exact


@pytest.mark.parametrize("normalizer", [1e-50, 1e-39, 1e-300])
@pytest.mark.parametrize("form", ["logits", "linear", "logits over a mesh"])
def test_gradients_under_a_normalizer_beyond_float32_are_zero_or_right(form: str, normalizer: float) -> None:
    got, exact = tiny_gradients(form, normalizer)
    with np.errstate(over="ignore"):
        expected = np.where(exact == 0, 0, exact / normalizer).astype(np.float32)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.usefixtures("wide")
def test_a_float64_normalizer_of_float32_logits_divides_as_it_is_under_jit() -> None:
    got, exact = tiny_gradients("logits", np.asarray(1e-50))
    np.testing.assert_allclose(got, exact / 1e-50, rtol=1e-5)
    loss = jax.jit(lambda n: unixent.cross_entropy(jnp.zeros((2, 3), "float32"), np.array([0, 1]), normalizer=n))
    assert loss(1e-50) == np.inf
    assert loss(0.0) == 0


def test_second_derivatives_are_multiplied_by_an_extreme_normalizer_once() -> None:
    x, y = jnp.array([[80.0, 0.0]]), np.array([0])
    hessian = jax.hessian(lambda x: unixent.cross_entropy(x, y, normalizer=1e-50))(x).reshape(2, 2)
    np.testing.assert_allclose(hessian[1], np.exp(-80) / 1e-50 * np.array([-1, 1]), rtol=1e-5)


@pytest.mark.parametrize("normalizer", [1e-39, 1e-50, 1e-300])
def test_no_product_of_scales_is_formed_that_meets_a_zero(normalizer: float) -> None:
    """XLA joins the scales of a gradient where it can: their product is infinite."""
    hidden, classifier, bias = jnp.ones((2, 3)), jnp.eye(4, 3), jnp.array([0.0, 1.0, 2.0, -jnp.inf])

    def loss(target: Any, *arrays: jax.Array) -> jax.Array:
        return unixent.linear_cross_entropy(*arrays[:2], target, bias=arrays[2], normalizer=normalizer)

    grads = jax.jit(jax.grad(lambda *arrays: loss(np.array([0, 1]), *arrays), (0, 1, 2)))(hidden, classifier, bias)
    assert not any(np.isnan(grad).any() for grad in grads)
    assert not grads[1][3].any()
    assert grads[2][3] == 0
    assert jax.jit(lambda *arrays: loss(np.array([-100, -100]), *arrays))(hidden, classifier, bias) == 0
