"""Empty, deleted and widthless arrays give the right value, or an error of ours that names the argument."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unixent

Y = jnp.array([0, 1])


def test_full_validation_takes_no_positions_at_all() -> None:
    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return unixent.cross_entropy(x, y, validate="full")

    empty = jnp.zeros((0, 3)), jnp.zeros(0, "int32")
    assert loss(*empty) == 0
    assert jax.jit(loss)(*empty) == 0


@pytest.mark.parametrize("name", ["logits", "target", "weight", "mask"])
def test_a_deleted_array_is_refused_by_name(name: str) -> None:
    arrays = {"logits": jnp.ones((2, 3)), "target": Y + 0, "weight": jnp.ones(3), "mask": jnp.ones(2)}
    arrays[name].delete()
    with pytest.raises(unixent.BackendError, match=f"{name}: .* deleted"):
        unixent.cross_entropy(**arrays)


@pytest.mark.parametrize("positions", [(2,), ()])
def test_hidden_states_of_width_0_give_the_loss_of_equal_logits(positions: tuple[int, ...]) -> None:
    hidden, classifier, target = jnp.zeros((*positions, 0)), jnp.zeros((3, 0)), jnp.zeros(positions, "int32")
    loss, grads = unixent.linear_value_and_grad(hidden, classifier, target)
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
    np.testing.assert_allclose(unixent.linear_cross_entropy(hidden, classifier, target), loss)
    assert [grad.shape for grad in grads] == [hidden.shape, classifier.shape]


def over_a_mesh(hidden: jax.Array, classifier: jax.Array, target: jax.Array, normalizer: float) -> jax.Array:
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    config = unixent.ParallelConfig.from_mesh(mesh, data="data", model="model")
    return unixent.cross_entropy(hidden @ classifier.T, target, normalizer=normalizer, parallel=config)


@pytest.mark.parametrize("form", ["logits", "linear", "mesh"])
def test_a_normalizer_beyond_float32_divides_as_it_is(form: str) -> None:
    hidden, classifier = jnp.ones((2, 4)), jnp.arange(12.0).reshape(3, 4) * 1e-3
    loss = {
        "logits": lambda h, w, y, **options: unixent.cross_entropy(h @ w.T, y, **options),
        "linear": unixent.linear_cross_entropy,
        "mesh": over_a_mesh,
    }[form]
    assert loss(hidden, classifier, Y, normalizer=1e-50) == np.inf
    assert loss(hidden, classifier, Y, normalizer=1e300) == 0
    confident = jnp.array([[20.0] * 4, [0.0] * 4, [-20.0] * 4])
    small = loss(hidden, confident, jnp.array([0, 0]), normalizer=1e-39)
    np.testing.assert_allclose(small, 2 * np.exp(-80) / 1e-39, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["int2", "int4", "uint2", "uint4"])
def test_integers_of_less_than_a_byte_are_class_indices(dtype: str) -> None:
    logits, y = jnp.eye(4, 2), jnp.array([1, 0, 1, 1])
    narrow = y.astype(dtype)
    value, gradient = jax.value_and_grad(unixent.cross_entropy)(logits, y)
    assert unixent.cross_entropy(logits, narrow) == value
    assert jax.jit(unixent.cross_entropy)(logits, narrow) == value
    np.testing.assert_array_equal(jax.grad(unixent.cross_entropy)(logits, narrow), gradient)
    with pytest.raises(unixent.TargetRangeError, match="got 1"):
        unixent.cross_entropy(logits[:, :1], narrow)
