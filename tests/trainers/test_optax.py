"""optax's signatures: ``axis`` and ``where`` against optax, values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax as original
import pytest
from originals import parameters

from unixent_jax.trainers import optax as ours

INTEGER, PROBABILITY = "softmax_cross_entropy_with_integer_labels", "softmax_cross_entropy"
SHAPE = (3, 4, 5)
AXES = [-1, 0, 1, (1, 2), (0, 2), (2, 0)]


def _logits():
    return 4 * jax.random.normal(jax.random.key(0), SHAPE)


def _labels(name, axis):
    """Labels for the classes along an axis or several."""
    axes = (axis,) if isinstance(axis, int) else axis
    dropped = {each % 3 for each in axes}
    if name == PROBABILITY:
        return jax.nn.softmax(_logits()[::-1], axis=axis)
    positions = tuple(size for index, size in enumerate(SHAPE) if index not in dropped)
    classes = int(np.prod([SHAPE[each] for each in axes]))
    return jax.random.randint(jax.random.key(1), positions, 0, classes)


def _same(name, axis, where=None, jit=False):
    labels = _labels(name, axis)

    def value_and_grad(module, logits):
        function = getattr(module, name)

        def total(x):
            losses = function(x, labels, axis=axis, where=where)
            return (losses * jnp.linspace(1, 2, losses.size).reshape(losses.shape)).sum(), losses

        computed = jax.value_and_grad(total, has_aux=True)
        (_, losses), grad = (jax.jit(computed) if jit else computed)(logits)
        return losses, grad

    actual, expected = (value_and_grad(module, _logits()) for module in (ours, original))
    for value, truth in zip(actual, expected, strict=True):
        assert value.shape == truth.shape
        assert value.dtype == truth.dtype
        np.testing.assert_allclose(value, truth, rtol=0, atol=2e-6 * float(jnp.abs(truth).max()))


@pytest.mark.parametrize("name", [INTEGER, PROBABILITY])
def test_signatures_are_those_of_optax(name):
    assert parameters(getattr(ours, name)) == parameters(getattr(original, name))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", [INTEGER, PROBABILITY])
def test_any_axis_gives_the_values_of_optax(name, axis):
    _same(name, axis, jit=axis == -1)


def test_all_axes_together_give_the_value_of_optax():
    labels = jax.nn.softmax(_logits()[::-1], axis=None)
    actual, expected = (m.softmax_cross_entropy(_logits(), labels, axis=None) for m in (ours, original))
    np.testing.assert_allclose(actual, expected, rtol=2e-6)


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("name", [INTEGER, PROBABILITY])
def test_where_of_positions_gives_the_values_of_optax(name, axis):
    shape = tuple(size for index, size in enumerate(SHAPE) if index != axis % 3)
    where = jax.random.bernoulli(jax.random.key(2), 0.6, shape)
    if name == PROBABILITY:
        _same(name, axis, jnp.broadcast_to(jnp.expand_dims(where, axis), SHAPE))
    else:  # the gradient of a position that does not count is tested below
        labels = _labels(name, axis)
        actual, expected = (getattr(m, name)(_logits(), labels, axis, where) for m in (ours, original))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "axis"), [(INTEGER, -1), (INTEGER, (1, 2)), (PROBABILITY, -1)])
def test_where_of_classes_gives_the_values_of_optax(name, axis):
    where = jnp.ones(SHAPE, bool).at[..., 1].set(False)
    # A class that exists; optax has a loss below 0 for one that does not, ours is infinite.
    labels = _labels(name, axis) if name == PROBABILITY else jnp.zeros(SHAPE[:-1] if axis == -1 else SHAPE[:1], int)
    actual, expected = (getattr(m, name)(_logits(), labels, axis, where) for m in (ours, original))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [INTEGER, PROBABILITY])
def test_positions_that_do_not_count_have_gradient_zero_whatever_they_hold(name):
    logits, where = jnp.array([[1.0, 2.0], [jnp.nan, 0.0]]), jnp.array([True, False])
    labels = jnp.array([0, 1]) if name == INTEGER else jnp.eye(2)
    grad = jax.grad(lambda x: getattr(ours, name)(x, labels, where=where).sum())(logits)
    np.testing.assert_array_equal(grad[1], 0)
    assert jnp.isfinite(grad).all()


def test_a_class_of_probability_zero_leaves_the_loss_finite():
    logits, labels = jnp.array([0.0, -jnp.inf, 0.0]), jnp.array([1.0, 0.0, 0.0])
    assert jnp.isnan(original.softmax_cross_entropy(logits, labels))
    np.testing.assert_allclose(ours.softmax_cross_entropy(logits, labels), np.log(2), rtol=1e-6)


def test_the_loss_is_infinite_where_the_class_of_the_label_is_excluded():
    logits, labels, where = jnp.array([[1.0, 2.0, 0.0]]), jnp.array([1]), jnp.array([[True, False, True]])
    assert original.softmax_cross_entropy_with_integer_labels(logits, labels, where=where) < 0
    assert jnp.isposinf(ours.softmax_cross_entropy_with_integer_labels(logits, labels, where=where)).all()


def test_a_negative_label_is_no_class():
    logits, labels = _logits()[0], jnp.array([0, 1, 2, -1])
    assert jnp.isfinite(original.softmax_cross_entropy_with_integer_labels(logits, labels)).all()  # the last class
    with pytest.raises(IndexError, match="got -1 at position"):
        ours.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert jnp.isnan(jax.jit(ours.softmax_cross_entropy_with_integer_labels)(logits, labels)[3])
