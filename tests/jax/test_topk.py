"""Sparse targets in JAX: every derivative and transform, in both forms, against the usual formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import unixent
from unixent import TopK

TAILS = ("drop", "renormalize", "bucket")
OPTIONS: dict[str, Any] = {"softcap": 4.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.05}
rng = np.random.default_rng(0)
X, Q = 3 * rng.normal(size=(5, 7)), rng.random((5, 3)) / 3
IDS = np.argsort(rng.random((5, 7)))[:, :3]
IDS[1] = IDS[1, 0]
IDS[2, 1:] = -100
MASK, WEIGHT = np.array([1.0, 0.5, 1.0, 0.0, 1.0]), rng.random(7) + 0.5

Loss = Callable[[Array, Array], Array]

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(autouse=True)
def _in_float64() -> Any:
    with jax.enable_x64(True):
        yield


def ours(tail: Any, log: bool) -> Loss:
    def loss(x: Array, q: Array) -> Array:
        target = TopK(IDS, log_probs=q, tail=tail) if log else TopK(IDS, probs=q, tail=tail)
        each = unixent.cross_entropy(x, target, reduction="none", mask=MASK, weight=WEIGHT, **OPTIONS)
        return jnp.sin(each).sum() + unixent.cross_entropy(x, target, mask=MASK)

    return loss


def usual(tail: str, log: bool) -> Loss:
    def each(x: Array, q: Array, weight: Array, s: float, z: float) -> Array:
        nll = -jax.nn.log_softmax(x)
        padding, index = IDS < 0, np.maximum(IDS, 0)
        q = jnp.where(padding, 0, jnp.exp(q) if log else q)
        total = q.sum(-1)
        part = (weight[index] * q * jnp.take_along_axis(nll, index, -1)).sum(-1)
        if tail == "renormalize":
            part = part / total
        if tail == "bucket":
            free = ((index[..., None] == np.arange(7)) & ~padding[..., None]).sum(-2) == 0
            part = part + jnp.maximum(1 - total, 0) * -jax.nn.logsumexp(jnp.where(free, -nll, -jnp.inf), axis=-1)
        lse = jax.nn.logsumexp(x, axis=-1)
        return MASK * ((1 - s) * part + s / 7 * (weight * nll).sum(-1) + z * lse**2)

    def loss(x: Array, q: Array) -> Array:
        first = jnp.sin(each(4.0 * jnp.tanh(x / 4.0) / 0.7, q, jnp.asarray(WEIGHT), 0.1, 0.05)).sum()
        return first + each(x, q, jnp.ones(7), 0.0, 0.0).sum() / MASK.sum()

    return loss


def close(got: Any, due: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, due)


def every(loss: Loss) -> Any:
    """All transforms, as one program: alone, each of their operations is compiled by itself."""

    @jax.jit
    def transforms(x: Array, q: Array) -> dict[str, Any]:
        batch = jnp.stack([x, 2 * x, -x]), jnp.stack([q, q / 2, q / 3])
        return {
            "gradients": jax.value_and_grad(loss, (0, 1))(x, q),
            "hessian": jax.hessian(loss, (0, 1))(x, q),
            "tangent": jax.jvp(loss, (x, q), (jnp.cos(x), jnp.cos(q))),
            "batch": jax.vmap(jax.grad(loss))(*batch),
        }

    return transforms


@pytest.mark.parametrize(("tail", "log"), [("drop", False), ("renormalize", True), ("bucket", False)])
def test_values_and_derivatives_of_every_order_and_transform(tail: str, log: bool) -> None:
    loss, x, q = ours(tail, log), jnp.asarray(X), jnp.asarray(np.log(Q) if log else Q)
    due = every(usual(tail, log))(x, q)
    close(every(loss)(x, q), due)
    close(jax.value_and_grad(loss, (0, 1))(x, q), due["gradients"])


@pytest.mark.parametrize("tail", TAILS)
def test_the_linear_form_has_the_gradients_of_its_logits(tail: Any) -> None:
    hidden, classifier, bias = (jnp.asarray(rng.normal(size=shape)) for shape in ((5, 4), (7, 4), (7,)))
    options, q = {**OPTIONS, "mask": MASK, "weight": WEIGHT}, jnp.asarray(Q)
    names = ("hidden", "classifier", "bias", "target")
    value, gradients = unixent.linear_value_and_grad(
        hidden, classifier, TopK(IDS, probs=q, tail=tail), bias=bias, wrt=names, chunk=2, **options
    )

    def of_logits(hidden: Array, classifier: Array, bias: Array, q: Array) -> Array:
        return unixent.cross_entropy(hidden @ classifier.T + bias, TopK(IDS, probs=q, tail=tail), **options)

    due = jax.jit(jax.value_and_grad(of_logits, (0, 1, 2, 3)))(hidden, classifier, bias, q)
    close((value, gradients), due)


def test_a_target_passes_the_boundaries_of_transforms() -> None:
    target = TopK(jnp.asarray(IDS), probs=jnp.asarray(Q), tail="bucket")
    due = unixent.cross_entropy(X, target, reduction="none")

    @jax.jit
    def loss(x: Array, target: TopK) -> Array:
        return unixent.cross_entropy(x, target, reduction="none")

    close(loss(X, target), due)
    close(jax.vmap(loss)(X, target), due)
    leaves, tree = jax.tree.flatten(target)
    assert len(leaves) == 2
    assert jax.tree.unflatten(tree, leaves).tail == "bucket"
    assert jax.tree.map(lambda leaf: None, TopK(IDS, log_probs=Q)).probs is None


def test_an_id_out_of_range_is_nan_where_it_cannot_be_read() -> None:
    target = TopK(jnp.asarray(IDS).at[0, 1].set(7), probs=jnp.asarray(Q))

    def loss(x: Array) -> Array:
        return unixent.cross_entropy(x, target, reduction="none")

    with pytest.raises(unixent.TargetRangeError, match=r"target.ids: .* got 7 at position \(0, 1\)"):
        loss(jnp.asarray(X))
    jitted = jax.jit(lambda x, ids: unixent.cross_entropy(x, TopK(ids, probs=Q), reduction="none"))
    losses = jitted(X, target.ids)
    np.testing.assert_array_equal(np.isnan(losses), np.arange(5) == 0)
    gradient = jax.grad(lambda x: jitted(x, target.ids).sum())(jnp.asarray(X))
    assert jnp.isnan(gradient[0]).all()
    assert jnp.isfinite(gradient[1:]).all()


def test_a_probability_of_an_impossible_class_has_an_infinite_derivative() -> None:
    x, ids = jnp.array([[-jnp.inf, 0.0, 1.0]]), np.array([[0, 1]])

    @jax.jit
    def gradients(x: Array, q: Array) -> Any:
        return jax.grad(lambda x, q: unixent.cross_entropy(x, TopK(ids, probs=q)), (0, 1))(x, q)

    for_x, for_q = gradients(x, jnp.array([[0.0, 0.5]]))
    assert for_q[0, 0] == jnp.inf
    assert jnp.isfinite(for_x).all()


def test_no_dense_target_and_no_logits_of_all_positions_exist() -> None:
    ids, q = jnp.zeros((4096, 4), jnp.int32), jnp.ones((4096, 4), jnp.float32)
    hidden, classifier = jnp.ones((4096, 8), jnp.float32), jnp.ones((4096, 8), jnp.float32)

    def loss(hidden: Array, classifier: Array) -> Array:
        return unixent.linear_cross_entropy(hidden, classifier, TopK(ids, probs=q, tail="bucket"), chunk=64)

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, classifier).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.2 * 4 * 4096 * 4096


def test_the_entropy_of_a_teacher_is_that_of_numpy() -> None:
    for tail in TAILS:
        got = unixent.entropy_of(TopK(jnp.asarray(IDS), probs=jnp.asarray(Q), tail=tail))
        close(got, unixent.entropy_of(TopK(IDS, probs=Q, tail=tail)))
