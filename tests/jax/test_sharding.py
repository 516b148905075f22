"""The compiled program of value and gradient never collects logits, however they are sharded."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import unixent

LAYOUTS = {
    "positions": ((16, 64), P("data", None), 1),
    "classes": ((16, 64), P(None, "model"), 1),
    "positions and classes": ((16, 64), P("data", "model"), 1),
    "batch, sequence": ((4, 8, 64), P("data", "model", None), 2),
    "sequence": ((4, 8, 64), P(None, ("data", "model"), None), 2),
    "sequence, classes": ((4, 8, 64), P(None, "data", "model"), 2),
    "classes in the middle": ((4, 64, 8), P("data", "model", None), 1),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "all": {"weight": True, "mask": True, "z_loss": 0.1, "softcap": 10.0},
    "smoothing": {"weight": True, "label_smoothing": 0.1},
    "probabilities": {"mask": True},
}
MOVES = re.compile(r"= .*?\b(all-gather|all-to-all|collective-permute|reduce-scatter)")


MODES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
# Every layout with every option on one kind of mesh: each layout and each option meets both kinds.
CASES = [
    (layout, options, list(MODES)[(i + j) % 2]) for i, layout in enumerate(LAYOUTS) for j, options in enumerate(OPTIONS)
]


@pytest.mark.parametrize(("layout", "options", "mode"), CASES)
def test_only_sums_cross_devices(layout: str, options: str, mode: str) -> None:
    shape, spec, axis = LAYOUTS[layout]
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(MODES[mode],) * 2)
    positions = P(*(name for i, name in enumerate(spec) if i != axis))
    rng = np.random.default_rng(0)
    host = rng.normal(size=shape).astype(np.float32)
    indices = rng.integers(shape[axis], size=[n for i, n in enumerate(shape) if i != axis])
    keywords = dict(OPTIONS[options])
    if options == "probabilities":
        target, target_spec = rng.dirichlet(np.ones(shape[axis]), indices.shape).astype(np.float32), spec
        target = np.moveaxis(target, -1, axis)
    else:
        target, target_spec = indices.astype(np.int32), positions
    extra = {}
    if keywords.pop("weight", False):
        extra["weight"] = (np.linspace(0.5, 1, shape[axis], dtype=np.float32), P())
    if keywords.pop("mask", False):
        extra["mask"] = (rng.random(indices.shape).astype(np.float32), positions)

    def loss(x: Any, t: Any, extra: Any) -> Any:
        return unixent.cross_entropy(x, t, axis=axis, **extra, **keywords)

    whole = {name: value for name, (value, _) in extra.items()}
    expected, grad_expected = jax.jit(jax.value_and_grad(loss))(host, target, whole)
    with jax.set_mesh(mesh):
        put = {name: jax.device_put(value, NamedSharding(mesh, where)) for name, (value, where) in extra.items()}
        x = jax.device_put(host, NamedSharding(mesh, spec))
        t = jax.device_put(target, NamedSharding(mesh, target_spec))
        compiled = jax.jit(jax.value_and_grad(loss)).lower(x, t, put).compile()
        value, gradient = compiled(x, t, put)

    assert MOVES.findall(compiled.as_text()) == []
    assert gradient.sharding.is_equivalent_to(x.sharding, len(shape))
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(gradient, grad_expected, rtol=2e-5, atol=1e-8)


def test_the_check_for_collected_logits_can_fail() -> None:
    """Sorting a sharded row collects it."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones((4, 64)), NamedSharding(mesh, P(None, "model")))
    assert MOVES.findall(jax.jit(lambda x: jnp.sort(x, -1)).lower(x).compile().as_text())


def test_loss_terms_add_up_over_positions_inside_shard_map() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (16, 64))
    y = jax.random.randint(jax.random.key(1), (16,), 0, 64)

    def local(x: Any, y: Any) -> Any:
        terms = unixent.loss_terms(x, y)
        numerator, denominator = (jax.lax.psum(term, "data") for term in terms)
        return numerator / denominator

    whole = jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P())
    loss, grad = jax.value_and_grad(whole)(x, y)
    expected, grad_expected = jax.value_and_grad(unixent.cross_entropy)(x, y)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grad, grad_expected, rtol=1e-5, atol=1e-9)
