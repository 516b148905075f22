"""Small losses stay accurate where XLA forms the logits anew, with another rounding, in each of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import unixent

ROWS, U = 256, 2.0**-24
Loss = Callable[..., Any]


def own_cap(logits: jax.Array, softcap: float) -> jax.Array:
    """The caller's own operations, which are fused with those of the loss."""
    return softcap * jnp.tanh(logits.astype("float32") / softcap)


def over_a_mesh(x: jax.Array, target: Any, **options: Any) -> jax.Array:
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    config = unixent.ParallelConfig.from_mesh(mesh, data="data", model="model")
    return unixent.cross_entropy(x, target, parallel=config, **options)


def linear(x: jax.Array, target: Any, **options: Any) -> jax.Array:
    return unixent.linear_cross_entropy(x, jnp.eye(x.shape[1], dtype=x.dtype), target, chunk=100, **options)


FORMS: dict[str, Loss] = {
    "softcap": unixent.cross_entropy,
    "own operations": lambda x, target, softcap, **options: unixent.cross_entropy(
        own_cap(x, softcap), target, **options
    ),
    "linear": linear,
    "mesh": over_a_mesh,
}
TARGETS: dict[str, Callable[[np.ndarray, int], dict[str, Any]]] = {
    "indices": lambda y, classes: {"target": y},
    "probabilities": lambda y, classes: {"target": np.eye(classes, dtype=np.float32)[y]},
    # Rows of class 0 alone, and no other class counts.
    "smoothing with weights of 0": lambda y, classes: {
        "target": np.zeros_like(y),
        "label_smoothing": 0.1,
        "weight": np.eye(classes, dtype=np.float32)[0],
    },
}


def confident_rows(classes: int, dtype: str, own: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(ROWS, classes)) * rng.choice([1, 5, 20], (ROWS, 1))
    x[np.arange(ROWS), own] += rng.choice([10, 30, 60, 100], ROWS)
    return np.asarray(jnp.asarray(x, dtype).astype("float32"))


def exact(x: np.ndarray, own: np.ndarray, cap: float) -> tuple[np.ndarray, np.ndarray]:
    """The loss of the class ``own``, and its gradient."""
    wide, at_own = x.astype(float), np.arange(x.shape[1]) == own[:, None]
    capped = cap * np.tanh(wide / cap)
    odds = np.where(at_own, 0, np.exp(capped - capped[at_own][:, None]))
    rest = odds.sum(1, keepdims=True)
    decay = np.exp(-2 * abs(wide / cap))
    return np.log1p(rest)[:, 0], np.where(at_own, -rest, odds) / (1 + rest) * 4 * decay / (1 + decay) ** 2


@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("form", ["softcap", "own operations"])
def test_confident_rows_are_accurate_in_value_gradient_and_forward_mode(
    formulation: str, form: str, target_kind: str
) -> None:
    check(form, target_kind, "float32")


@pytest.mark.parametrize(
    ("form", "target_kind", "dtype"),
    [
        ("softcap", "probabilities", "bfloat16"),
        ("linear", "indices", "bfloat16"),
        ("linear", "probabilities", "float32"),
        ("mesh", "probabilities", "float32"),
        ("mesh", "smoothing with weights of 0", "float32"),
    ],
)
def test_confident_rows_are_accurate_in_every_form(form: str, target_kind: str, dtype: str) -> None:
    check(form, target_kind, dtype)


@pytest.mark.parametrize("classes", [8, 512])
def test_logits_that_are_constants_of_a_compiled_function_lose_nothing(formulation: str, classes: int) -> None:
    y = np.arange(ROWS) % classes
    x = confident_rows(classes, "float32", y)
    due = exact(x, y, 1e9)[0]

    def loss(target: Any) -> jax.Array:
        return unixent.cross_entropy(x, target, reduction="none", backend="jax")

    one_hot = jnp.eye(classes, dtype="float32")[y]
    of_loss, tangent = jax.jit(lambda q, dq: jax.jvp(loss, (q,), (dq,)))(one_hot, one_hot)
    for got in (jax.jit(loss)(y), of_loss, tangent):
        assert np.all(abs(np.asarray(got, float) - due) <= (8 + 2 * np.log2(classes)) * U * due + 1e-37)


def check(form: str, target_kind: str, dtype: str) -> None:
    classes, cap = 8, 30.0
    y = np.arange(ROWS) % classes
    options = TARGETS[target_kind](y, classes)
    own = np.zeros_like(y) if "weight" in options else y
    x = confident_rows(classes, dtype, own)
    coefficient = 1 - 0.1 + 0.1 / classes if "weight" in options else 1
    loss_exact, grad_exact = (coefficient * array for array in exact(x, own, cap))

    def losses(x: jax.Array) -> Any:
        return FORMS[form](x, **options, softcap=cap, reduction="none", dtype="float32")

    @jax.jit
    def all_of(x: jax.Array) -> Any:
        (_, beside), grad = jax.value_and_grad(lambda x: (jnp.sum(losses(x)), losses(x)), has_aux=True)(x)
        return (beside, jax.jvp(losses, (x,), (jnp.ones_like(x),))[0]), grad

    given = jnp.asarray(x, dtype)
    results, grad = all_of(given)
    # The rounding of a capped logit, in the exponent of what is summed.
    bound = (8 + 2 * np.log2(classes) + 4 * cap) * U
    for value in (*results, jax.jit(losses)(given)):
        assert np.all(abs(np.asarray(value, float) - loss_exact) <= bound * loss_exact + 1e-37)
    if form != "own operations":  # tanh's own derivative cancels
        rounding = 2.0**-8 if dtype == "bfloat16" else 0
        error = abs(np.asarray(grad.astype("float32"), float) - grad_exact)
        assert np.all(error <= (bound + 4 * cap * U + rounding) * abs(grad_exact) + 1e-37)


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"scale": 1e6}], ids=str)
@pytest.mark.parametrize("target_kind", ["index", "probability"])
@pytest.mark.parametrize("gap", [0.0, 2.0**-20, 4000.0])
def test_second_derivatives_of_large_products_are_those_of_rounded_ones(
    formulation: str, target_kind: str, gap: float, options: dict[str, float]
) -> None:
    """Fused with the difference that follows, the largest scaled logit would lie above the maximum by up to 128."""
    x = np.array([-970, -126, 71, 0.29, 2982 - gap, 2982], np.float32)
    target = np.array(4) if target_kind == "index" else np.full(6, 1 / 6, np.float32)

    def loss(x: jax.Array) -> jax.Array:
        return unixent.cross_entropy(x, target, **options)

    hessian = np.asarray(jax.jit(jax.hessian(loss))(jnp.asarray(x)), float)
    wide = np.float32(1e6) * x
    p = np.exp(wide.astype(float) - wide.max())
    p /= p.sum()
    exact = (np.diag(p) - np.outer(p, p)) * 1e12
    np.testing.assert_allclose(hessian, exact, rtol=1e-5, atol=1e-5 * 1e12 * np.finfo(np.float32).eps)
