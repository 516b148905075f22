"""Statistics of positions in JAX: every derivative and transform, in both forms, against the usual formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import unixent
from unixent import PositionStats

GRADED = ("log_prob", "entropy", "logsumexp", "selected_log_prob", "loss")
OPTIONS: dict[str, Any] = {"scale": 0.5, "softcap": 4.0, "temperature": 0.7}
rng = np.random.default_rng(0)
X, Y, SELECTED = 3 * rng.normal(size=(5, 7)), rng.integers(0, 7, 5), rng.integers(0, 7, (5, 3))


pytestmark = pytest.mark.usefixtures("formulation", "wide", "unoptimized")


def ours(x: Array) -> Array:
    stats = unixent.position_stats(x, Y, outputs=(*GRADED, "prediction"), selected=SELECTED, **OPTIONS)
    return sum(jnp.sin(getattr(stats, name)).sum() for name in GRADED)


def usual(x: Array) -> Array:
    x = 4.0 * jnp.tanh(x * 0.5 / 4.0) / 0.7
    log_p = jax.nn.log_softmax(x)
    own = log_p[jnp.arange(5), Y]
    chosen = jnp.take_along_axis(log_p, SELECTED, 1)
    each = (own, -(jnp.exp(log_p) * log_p).sum(1), jax.nn.logsumexp(x, 1), chosen, -own)
    return sum(jnp.sin(one).sum() for one in each)


def scanned(of: Any) -> Any:
    return lambda batch: jax.lax.scan(lambda sum, x: (sum + of(x), None), 0.0, batch)[0]


def close(got: Any, due: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), got, due)


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "value and gradient": jax.value_and_grad,
    "hessian": jax.hessian,
    "tangent": lambda of: lambda x: jax.jvp(of, (x,), (jnp.cos(x),)),
    "checkpoint": lambda of: jax.grad(jax.checkpoint(of)),
    "scan": lambda of: lambda x: jax.grad(scanned(of))(batch_of(x)),
    "batch": lambda of: lambda x: jax.vmap(jax.grad(of))(batch_of(x)),
}


def batch_of(x: Array) -> Array:
    return jnp.stack([x, 2 * x, -x])


def every(of: Any) -> Any:
    """All transforms, as one program: alone, each of their operations is compiled by itself."""
    return jax.jit(lambda x: {name: transform(of)(x) for name, transform in TRANSFORMS.items()})


def test_values_and_derivatives_of_every_order_and_transform() -> None:
    x = jnp.asarray(X)
    due = every(usual)(x)
    close(every(ours)(x), due)
    close(jax.value_and_grad(ours)(x), due["value and gradient"])
    close(jax.jvp(jax.jit(ours), (x,), (jnp.cos(x),)), due["tangent"])


HIDDEN, CLASSIFIER, BIAS = (rng.normal(size=shape) for shape in ((23, 4), (7, 4), (7,)))
INDEX = np.where(np.arange(23) == 3, -100, rng.integers(0, 7, 23))


def linear(hidden: Array, classifier: Array, bias: Array) -> Array:
    outputs = ("log_prob", "entropy", "top_index")
    stats = unixent.linear_position_stats(hidden, classifier, INDEX, bias=bias, outputs=outputs, k=2, chunk=5)
    return (stats.log_prob * stats.entropy).sum()


def linear_usual(hidden: Array, classifier: Array, bias: Array) -> Array:
    log_p = jax.nn.log_softmax(hidden @ classifier.T + bias)
    own = log_p[jnp.arange(23), np.maximum(INDEX, 0)]
    return jnp.where(INDEX < 0, 0, own * -(jnp.exp(log_p) * log_p).sum(1)).sum()


def test_the_linear_form_has_derivatives_of_both_orders() -> None:
    given = tuple(map(jnp.asarray, (HIDDEN, CLASSIFIER, BIAS)))

    def both(function: Any) -> Any:
        """The gradient and its tangent."""
        return jax.jit(lambda *given: jax.jvp(jax.grad(function, (0, 1, 2)), given, tuple(map(jnp.cos, given))))

    due = both(linear_usual)(*given)
    close(both(linear)(*given), due)
    close(jax.grad(linear, (0, 1, 2))(*given), due[0])


def test_the_linear_form_keeps_no_logits() -> None:
    with jax.enable_x64(False):
        hidden, classifier = jnp.ones((4096, 16), jnp.float32), jnp.ones((4096, 16), jnp.float32)

        def entropy(hidden: Array, classifier: Array) -> Array:
            return unixent.linear_position_stats(hidden, classifier, outputs="entropy", chunk=64).entropy.sum()

        compiled = jax.jit(jax.grad(entropy, (0, 1))).lower(hidden, classifier).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 0.2 * 4 * 4096 * 4096


def test_gradients_by_a_function_are_those_of_jax() -> None:
    upstream = PositionStats(log_prob=rng.random(23), entropy=rng.random(23), loss=rng.random(23))
    outputs, given = ("log_prob", "entropy", "loss", "correct"), tuple(map(jnp.asarray, (HIDDEN, CLASSIFIER, BIAS)))
    stats, grads = unixent.linear_position_stats_and_grad(
        given[0], given[1], INDEX, bias=given[2], grad_output=upstream, outputs=outputs, chunk=5
    )

    def graded(hidden: Array, classifier: Array, bias: Array) -> Array:
        again = unixent.linear_position_stats(hidden, classifier, INDEX, bias=bias, outputs=outputs)
        return sum((getattr(again, name) * getattr(upstream, name)).sum() for name in outputs[:3])

    close(grads, jax.jit(jax.grad(graded, (0, 1, 2)))(*given))
    assert stats.correct.dtype == bool


def test_indices_are_as_wide_as_jax_has_them() -> None:
    x = jnp.asarray(X, jnp.float32)
    assert unixent.position_stats(x, outputs="prediction").prediction.dtype == jnp.int64
    with jax.enable_x64(False):
        assert unixent.position_stats(x, outputs="prediction").prediction.dtype == jnp.int32


@pytest.mark.parametrize("name", ["log_prob", "entropy", "logsumexp"])
def test_a_tie_at_the_largest_logit_has_second_derivatives(name: str) -> None:
    x, target = jnp.array([[1.0, 1, 1, 0], [2, 2, 0, 0]]), jnp.array([0, 1])

    def value(x: Array) -> Array:
        return getattr(unixent.position_stats(x, target, outputs=name), name).sum()

    def usual(x: Array) -> Array:
        log_p = jax.nn.log_softmax(x)
        of = {"log_prob": log_p[jnp.arange(2), target], "entropy": -(jnp.exp(log_p) * log_p).sum(-1)}
        return of.get(name, jax.nn.logsumexp(x, axis=-1)).sum()

    got, due = (jax.jit(jax.hessian(function))(x) for function in (value, usual))
    np.testing.assert_allclose(got, due, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.vmap, jax.jit], ids=["eager", "vmap", "jit"])
def test_the_only_class_as_padding_has_0_beside_a_logit_that_is_nan(wrap: Any) -> None:
    def stats(x: Array, selected: Array) -> Array:
        given: dict[str, Any] = {"outputs": "selected_log_prob", "ignore_index": 0, "validate": "off"}
        return unixent.position_stats(x, selected=selected, **given).selected_log_prob

    x, selected = jnp.array([[[jnp.nan], [1.0]]]), jnp.array([[[0, 0], [0, 1]]], jnp.int8)
    np.testing.assert_array_equal(wrap(stats)(x, selected), [[[0, 0], [0, np.nan]]])
