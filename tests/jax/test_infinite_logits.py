"""-inf means probability 0 under every option; 0 * inf is 0 in every derivative, for tangents given as zeros too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unixent

X, Q = jnp.array([[-jnp.inf, 0.0, 0.5]]), jnp.array([[0.0, 0.7, 0.3]])


def linear(x: jax.Array, target: Any, **options: Any) -> jax.Array:
    return unixent.linear_cross_entropy(jnp.zeros((1, 2)), jnp.zeros((3, 2)), target, bias=x[0], **options)


FORMS: dict[str, Callable[..., Any]] = {"logits": unixent.cross_entropy, "linear": linear}


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("form", FORMS)
def test_no_derivative_at_a_minus_infinite_logit_is_nan(form: str, cap: float | None) -> None:
    def loss(x: jax.Array, q: jax.Array) -> Any:
        return FORMS[form](x, q, softcap=cap)

    @jax.jit
    def derivatives(x: jax.Array, q: jax.Array) -> Any:
        return {
            "value": loss(x, q),
            "gradient": jax.grad(loss)(x, q),
            "still probabilities": jax.jvp(loss, (x, q), (jnp.ones_like(x), jnp.zeros_like(q)))[1],
            "still logits": jax.jvp(loss, (x, q), (jnp.zeros_like(x), jnp.array([[0.0, 1.0, -1.0]])))[1],
            "hessian": jax.hessian(loss)(x, q),
        }

    without = FORMS["logits"](X[:, 1:], Q[:, 1:], softcap=cap)
    for name, value in derivatives(X, Q).items():
        assert np.isfinite(value).all(), name
    results = derivatives(X, Q)
    np.testing.assert_allclose(results["value"], without, rtol=1e-6)
    assert results["gradient"][0, 0] == 0
    assert not results["hessian"][0, 0].any()
    assert not results["hessian"][0, :, 0, 0].any()


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("form", FORMS)
def test_reverse_over_reverse_at_a_minus_infinite_logit_is_forward_over_reverse(form: str, cap: float | None) -> None:
    def loss(x: jax.Array, q: jax.Array) -> Any:
        return FORMS[form](x, q, softcap=cap)

    def by_index(x: jax.Array) -> Any:
        return FORMS[form](x, jnp.array([1]), softcap=cap)

    def smoothed(x: jax.Array) -> Any:
        return FORMS[form](x, jnp.array([1]), softcap=cap, label_smoothing=0.1, weight=jnp.array([0.0, 1.0, 1.0]))

    @jax.jit
    def derivatives(x: jax.Array, q: jax.Array) -> Any:
        kinds = {"index": by_index, "smoothed": smoothed, "probability": lambda x: loss(x, q)}
        both = {name: (jax.jacrev(jax.grad(f))(x), jax.jacfwd(jax.grad(f))(x)) for name, f in kinds.items()}
        by_probability = jax.grad(loss, 1)
        # The gradient of a class whose logit is -inf is infinite itself, and has no derivative to speak of.
        mixed = (jac(by_probability, 0)(x, q)[0, 1:] for jac in (jax.jacrev, jax.jacfwd))
        return {**both, "mixed": tuple(mixed)}

    for name, (reverse, forward) in derivatives(X, Q).items():
        assert np.isfinite(reverse).all(), name
        np.testing.assert_allclose(reverse, forward, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_a_class_of_probability_0_has_an_infinite_derivative_only_where_its_probability_moves(form: str) -> None:
    forward = jax.jacfwd(lambda q: FORMS[form](X, q))(Q)
    backward = jax.grad(lambda q: FORMS[form](X, q))(Q)
    np.testing.assert_allclose(forward, backward, rtol=1e-6)
    assert forward[0, 0] == np.inf
    assert np.isfinite(forward[0, 1:]).all()


@pytest.mark.parametrize("form", FORMS)
def test_plus_infinity_under_a_softcap_is_nan(form: str) -> None:
    x = jnp.array([[jnp.inf, 0.0, 0.5]])
    for target in (jnp.array([0]), jnp.array([1]), Q):
        value, grad = jax.value_and_grad(lambda x, target=target: FORMS[form](x, target, softcap=5.0))(x)
        assert np.isnan(value)
        assert np.isnan(grad).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_softcap_beyond_float32_is_the_identity_or_the_smallest_cap(form: str) -> None:
    x = jnp.array([[0.0, 1.0, 3.0]])
    plain = FORMS[form](x, jnp.array([1]))
    assert FORMS[form](x, jnp.array([1]), softcap=1e300) == plain
    np.testing.assert_allclose(FORMS[form](x, jnp.array([1]), softcap=1e-50), np.log(3), rtol=1e-6)
