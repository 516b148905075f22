"""What only JAX does: values that cannot be read, narrowing to 32 bits, constants, checkify, compiled memory."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import unixent

X = jnp.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
OUT_OF_RANGE = jnp.array([0, 3])


def test_an_index_out_of_range_raises_where_it_can_be_read() -> None:
    with pytest.raises(unixent.TargetRangeError, match=r"got 3 at position \(1,\)"):
        unixent.cross_entropy(X, OUT_OF_RANGE)
    with pytest.raises(unixent.TargetRangeError):
        jax.grad(unixent.cross_entropy)(X, OUT_OF_RANGE)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_index_out_of_range_is_nan_under_a_trace(smoothing: float) -> None:
    loss = jax.jit(lambda x, y: unixent.cross_entropy(x, y, reduction="none", label_smoothing=smoothing))
    grad = jax.jit(jax.grad(lambda x, y: unixent.cross_entropy(x, y, label_smoothing=smoothing)))(X, OUT_OF_RANGE)
    assert np.isnan(loss(X, OUT_OF_RANGE)).tolist() == [False, True]
    assert np.isnan(grad).tolist() == [[False] * 3, [True] * 3]


def test_checkify_reports_an_index_out_of_range() -> None:
    full = checkify.checkify(jax.jit(jax.grad(lambda x, y: unixent.cross_entropy(x, y, validate="full"))))
    error, _ = full(X, OUT_OF_RANGE)
    assert "got 3 at flat position 1" in str(error.get())
    error, _ = full(X, jnp.array([0, -100]))
    assert error.get() is None


def test_full_validation_can_be_traced_without_checkify() -> None:
    loss = jax.jit(lambda x, y: unixent.cross_entropy(x, y, validate="full"))(X, OUT_OF_RANGE)
    assert np.isnan(loss)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", ["weight", "mask", "normalizer"])
def test_a_gradient_of_a_constant_raises(name: str, traced: bool) -> None:
    value = {"weight": jnp.ones(3), "mask": jnp.ones(2), "normalizer": jnp.float32(2)}[name]

    def loss(value: jax.Array) -> jax.Array:
        return unixent.cross_entropy(X, jnp.array([0, 1]), **{name: value})

    grad = jax.grad(loss)
    with pytest.raises(unixent.OptionError, match=f"{name}: expected a constant"):
        (jax.jit(grad) if traced else grad)(value)
    jax.grad(lambda v: loss(jax.lax.stop_gradient(v)))(value)


def test_a_mask_made_from_differentiated_values_by_comparison_is_a_constant() -> None:
    grad = jax.grad(lambda x: unixent.cross_entropy(x, jnp.array([0, 1]), mask=(x.sum(1) > 0).astype("float32")))(X)
    assert np.isfinite(grad).all()


def test_an_integer_that_would_wrap_without_x64_raises() -> None:
    with pytest.raises(unixent.BackendError, match="jax_enable_x64 is off"):
        unixent.cross_entropy(X, np.array([0, 2**32 + 1]), validate="off")
    assert np.isfinite(unixent.cross_entropy(X, np.array([0, 1])))


def test_float64_results_need_x64() -> None:
    with pytest.raises(unixent.BackendError, match="jax_enable_x64"):
        unixent.cross_entropy(X, np.array([0, 1]), dtype="float64")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_half_precision_losses_neither_overflow_nor_round_early(dtype: str) -> None:
    rows = 100_000
    x = jnp.zeros((rows, 8), dtype)
    loss = unixent.cross_entropy(x, np.zeros(rows, np.int32))
    assert loss.dtype == dtype
    assert loss == jnp.asarray(np.log(8), dtype)
    assert unixent.loss_terms(x, np.zeros(rows, np.int32)).denominator == rows
    # The upstream gradient meets the gradient in float32: 1/rows alone would not be a float16.
    _, grad = unixent.value_and_grad(x, np.zeros(rows, np.int32), grad_output=np.float32(65536.0))
    assert grad[0, 0] == jnp.asarray(-65536 / rows * 7 / 8, dtype)


def test_an_empty_mean_raises_where_it_can_be_read() -> None:
    y = jnp.array([-100, -100])
    with pytest.raises(unixent.EmptyMeanError):
        unixent.cross_entropy(X, y, on_empty="raise")
    traced = jax.jit(jax.value_and_grad(lambda x: unixent.cross_entropy(x, y, on_empty="raise")))
    loss, grad = traced(X)
    assert np.isnan(loss)
    assert not grad.any()


def test_arrays_on_different_devices_raise_and_name_both() -> None:
    first, second, *_ = jax.devices()
    with pytest.raises(unixent.BackendError, match=f"{first}.*{second}"):
        unixent.cross_entropy(jax.device_put(X, first), jax.device_put(jnp.array([0, 1]), second))
    # What is bound to no device goes to where the logits are.
    assert unixent.cross_entropy(jax.device_put(X, second), np.array([0, 1])).devices() == {second}


def test_narrowing_numpy_arrays_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unixent.cross_entropy(np.zeros((2, 3)), np.array([0, 1]), weight=np.ones(3), backend="jax")


@pytest.mark.parametrize("shape", [(1024, 32000), (256, 128256)])
def test_value_and_gradient_need_no_more_memory_than_optax(single_device: None, shape: tuple[int, int]) -> None:
    def temporaries(loss: object) -> int:
        arguments = jax.ShapeDtypeStruct(shape, "float32"), jax.ShapeDtypeStruct(shape[:1], "int32")
        compiled = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()  # type: ignore[arg-type]
        return int(compiled.memory_analysis().temp_size_in_bytes)

    def stock(x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    assert temporaries(unixent.cross_entropy) <= temporaries(stock)
