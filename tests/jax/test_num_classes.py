"""Padding of the vocabulary, whatever it holds, adds nothing: unsplit, sharded, over a mesh and inside shard_map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import unixent

N, D, C, PADDED = 4, 3, 5, 16
RNG = np.random.default_rng(7)
HIDDEN = RNG.normal(size=(N, D)).astype(np.float32)
CLASSIFIER = np.full((PADDED, D), np.nan, np.float32)
CLASSIFIER[:C] = RNG.normal(size=(C, D))
LOGITS = np.full((N, PADDED), np.nan, np.float32)
LOGITS[:, :C] = HIDDEN @ CLASSIFIER[:C].T
LOGITS[:, -1] = np.inf
INDEX = np.array([0, 4, 2, 1], np.int32)
PROBABILITIES = np.full((N, PADDED), np.nan, np.float32)
PROBABILITIES[:, :C] = RNG.dirichlet(np.ones(C), N)
TARGETS = {"index": INDEX, "probability": PROBABILITIES}
OPTIONS: dict[str, Any] = {
    "label_smoothing": 0.1,
    "weight": np.linspace(0.5, 1, C, dtype=np.float32),
    "softcap": 4.0,
    "z_loss": 0.1,
}
Loss = Callable[..., Any]


def mesh() -> Any:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def inside_shard_map(loss: Loss, specs: tuple[P, ...]) -> Loss:
    config = unixent.ParallelConfig(2, 4, token_group="data", model_group="model")

    def whole(*arrays: Any, **options: Any) -> Any:
        target = P("data") if arrays[-1].ndim == 1 else P("data", "model")
        local = jax.shard_map(
            lambda *own: loss(*own, parallel=config, **options), mesh=mesh(), in_specs=(*specs, target), out_specs=P()
        )
        return local(*arrays)

    return whole


def over_a_mesh(loss: Loss) -> Loss:
    def whole(*arrays: Any, **options: Any) -> Any:
        config = unixent.ParallelConfig.from_mesh(mesh(), data="data", model="model")
        return loss(*arrays, parallel=config, **options)

    return whole


def sharded_arrays(logits: Any, target: Any, **options: Any) -> Any:
    place = NamedSharding(mesh(), P("data", "model"))
    return unixent.cross_entropy(jax.lax.with_sharding_constraint(logits, place), target, **options)


LOGITS_FORMS = {
    "unsplit": unixent.cross_entropy,
    "sharded arrays": sharded_arrays,
    "mesh": over_a_mesh(unixent.cross_entropy),
    "shard_map": inside_shard_map(unixent.cross_entropy, (P("data", "model"),)),
}
LINEAR_FORMS = {
    "unsplit": unixent.linear_cross_entropy,
    "mesh": over_a_mesh(unixent.linear_cross_entropy),
    "shard_map": inside_shard_map(unixent.linear_cross_entropy, (P("data"), P("model"))),
}


def narrow(target: np.ndarray) -> np.ndarray:
    return target if target.ndim == 1 else target[:, :C]


@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("form", LOGITS_FORMS)
def test_padding_adds_nothing_to_logits(form: str, target_kind: str) -> None:
    target = jnp.asarray(TARGETS[target_kind])
    loss = jax.jit(jax.value_and_grad(lambda x: LOGITS_FORMS[form](x, target, num_classes=C, **OPTIONS)))
    value, grad = loss(jnp.asarray(LOGITS))
    exact, grad_exact = unixent.value_and_grad(jnp.asarray(LOGITS[:, :C]), narrow(TARGETS[target_kind]), **OPTIONS)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    np.testing.assert_allclose(grad[:, :C], grad_exact, rtol=1e-4, atol=1e-7)
    assert not grad[:, C:].any()


@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("form", LINEAR_FORMS)
def test_padding_adds_nothing_to_the_linear_form(form: str, target_kind: str) -> None:
    target = jnp.asarray(TARGETS[target_kind])
    loss = jax.jit(
        jax.value_and_grad(lambda h, w: LINEAR_FORMS[form](h, w, target, num_classes=C, **OPTIONS), argnums=(0, 1))
    )
    value, (grad, classifier_grad) = loss(jnp.asarray(HIDDEN), jnp.asarray(CLASSIFIER))
    exact, (grad_exact, classifier_exact) = unixent.linear_value_and_grad(
        jnp.asarray(HIDDEN), CLASSIFIER[:C], narrow(TARGETS[target_kind]), **OPTIONS
    )
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    np.testing.assert_allclose(grad, grad_exact, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(classifier_grad[:C], classifier_exact, rtol=1e-4, atol=1e-6)
    assert not classifier_grad[C:].any()


def test_value_and_grad_and_vmap_take_padding() -> None:
    logits = jnp.stack([jnp.asarray(LOGITS)] * 2)
    grad = jax.vmap(jax.grad(lambda x: unixent.cross_entropy(x, INDEX, num_classes=C)))(logits)
    value, own = unixent.value_and_grad(jnp.asarray(LOGITS), INDEX, num_classes=C)
    assert np.isfinite(value)
    assert own.shape == (N, PADDED)
    for each in grad:
        np.testing.assert_allclose(each, own, rtol=1e-6)


def test_an_index_in_the_padding_is_out_of_range() -> None:
    with pytest.raises(unixent.TargetRangeError):
        unixent.cross_entropy(jnp.asarray(LOGITS), np.array([0, 1, C, 2]), num_classes=C)
