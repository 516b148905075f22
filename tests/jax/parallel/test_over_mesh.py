"""Whole arrays and a mesh: the library's own shard_map, under jit and eagerly, on automatic and explicit meshes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import unixent
from unixent import ParallelConfig
from unixent_conformance.expected import expected
from unixent_conformance.model import Call

GATHERS = re.compile(r"= .*?\b(all-gather|all-to-all|collective-permute|reduce-scatter)")
MODES = pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def cube(mode: AxisType) -> Mesh:
    return jax.make_mesh((2, 2, 2), ("data", "context", "model"), axis_types=(mode,) * 3)


def config_of(mesh: Mesh) -> ParallelConfig:
    return ParallelConfig.from_mesh(mesh, data="data", context="context", model="model")


def check(call: Call, quantity: Any, actual: Any) -> None:
    for part, got in zip(expected(call, quantity), actual, strict=True):
        comparison = part.compare(np.asarray(got))
        assert comparison.ok, (part.name, comparison)


def even(call: Call) -> Call:
    """The same with four steps in the sequence, which two devices can share."""

    def longer(array: Any) -> Any:
        return None if array is None else np.concatenate([array, array[:, :1]], axis=1)

    return replace(
        call,
        logits=longer(call.logits),
        target=longer(call.target),
        mask=longer(call.mask),
        grad_output=longer(call.grad_output),
    )


def grad(call: Call, config: ParallelConfig, arrays: dict[str, Any]) -> Any:
    rest = dict(arrays)
    grad_output = rest.pop("grad_output", None)
    return unixent.value_and_grad(**rest, **call.options, grad_output=grad_output, parallel=config)


def arrays_of(call: Call) -> dict[str, Any]:
    return {**call.arrays(), **({} if call.grad_output is None else {"grad_output": call.grad_output})}


@MODES
@pytest.mark.parametrize(
    ("target_kind", "options"), [("index", "none"), ("index", "smoothing"), ("probability", "z-loss and softcap")]
)
def test_gradients_keep_the_sharding_of_the_logits(call, target_kind, options, mode):
    """Only sums cross devices, and the gradient lies where the logits do."""
    mesh, given = cube(mode), even(call(target_kind, options))
    full = P("data", "context", "model")
    places = {"logits": full, "target": full if target_kind == "probability" else P("data", "context"), "weight": P()}
    arrays = {
        name: jax.device_put(array, NamedSharding(mesh, places.get(name, P("data", "context"))))
        for name, array in arrays_of(given).items()
    }
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda arrays: grad(given, config_of(mesh), arrays)).lower(arrays).compile()
    assert GATHERS.findall(compiled.as_text()) == []
    loss, logits_grad = compiled(arrays)
    check(given, "logits gradient", (loss, logits_grad))
    assert logits_grad.sharding.is_equivalent_to(arrays["logits"].sharding, 3)
    assert loss.sharding.is_fully_replicated == (given.options.get("reduction") != "none")


# Half of all combinations, in which any three of the four meet in every way.
UNEVEN = [
    (target_kind, options, jit, (AxisType.Auto, AxisType.Explicit)[(i + j + jit) % 2])
    for i, target_kind in enumerate(("index", "probability"))
    for j, options in enumerate(("none", "smoothing"))
    for jit in (False, True)
]


@pytest.mark.parametrize(("target_kind", "options", "jit", "mode"), UNEVEN)
def test_sizes_that_do_not_divide_are_padded(call, target_kind, options, jit, mode):
    """Three steps and eleven classes over two by two; arrays that lie on no mesh yet."""
    if mode == AxisType.Explicit and not hasattr(jax, "reshard"):
        pytest.skip("jax 0.7 cannot differentiate through filling up under an explicit mesh, and says so")
    mesh, given = cube(mode), call(target_kind, options)
    given = replace(
        given,
        logits=given.logits[..., :11],
        target=given.target[..., :11]
        if target_kind == "probability"
        else np.where(given.target == 11, 3, given.target),
        weight=None if given.weight is None else given.weight[:11],
    )
    function = lambda arrays: grad(given, config_of(mesh), arrays)  # noqa: E731
    arrays = jax.tree.map(jnp.asarray, arrays_of(given))
    check(given, "logits gradient", (jax.jit(function) if jit else function)(arrays))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (3, 1, 2)])
def test_any_shape_of_positions(shape):
    mesh = cube(AxisType.Auto)
    rng = np.random.default_rng(0)
    target = rng.integers(7, size=shape).astype(np.int32)
    given = Call(rng.normal(size=(*shape, 7)).astype(np.float32), target, grad_output=np.float32(2))
    arrays = jax.tree.map(jnp.asarray, arrays_of(given))
    check(given, "logits gradient", grad(given, config_of(mesh), arrays))
    none = unixent.cross_entropy(given.logits, target, reduction="none", parallel=config_of(mesh), backend="jax")
    check(replace(given, options={"reduction": "none"}), "loss", (none,))


def test_classes_in_the_middle(call):
    given = call("probability", "normalizer")
    moved = {"logits": np.moveaxis(given.logits, -1, 1), "target": np.moveaxis(given.target, -1, 1)}
    given = replace(given, **moved, options={**given.options, "axis": 1})
    check(
        given,
        "logits gradient",
        grad(given, config_of(cube(AxisType.Auto)), jax.tree.map(jnp.asarray, arrays_of(given))),
    )


@MODES
def test_jax_grad_and_terms(call, mode):
    mesh, given = cube(mode), even(call("index", "smoothing"))
    config = config_of(mesh)
    arrays = jax.tree.map(jnp.asarray, given.arrays())

    def loss(logits: Any) -> Any:
        return unixent.cross_entropy(**{**arrays, "logits": logits}, **given.options, parallel=config)

    # Values typed by an explicit mesh are worked on eagerly inside that mesh only.
    with jax.set_mesh(mesh):
        check(given, "logits gradient", jax.value_and_grad(loss)(arrays["logits"]))
        check(given, "terms", unixent.loss_terms(**arrays, **given.options, parallel=config))


def test_second_order_through_the_mesh(wide, call):
    given = call("index", "z-loss and softcap")
    config = config_of(cube(AxisType.Auto))
    logits, target = jnp.asarray(given.logits[:2, :1, :5], float), jnp.asarray([[1], [4]])

    def hessian(**options: Any) -> Any:
        return jax.jit(jax.hessian(lambda x: unixent.cross_entropy(x, target, z_loss=0.1, softcap=4.0, **options)))

    np.testing.assert_allclose(hessian(parallel=config)(logits), hessian()(logits), rtol=1e-12, atol=1e-14)


def test_vmap_over_the_mesh(call):
    """Four losses at a time, each of them over all devices."""
    given = call("index", "plain")
    config = config_of(cube(AxisType.Auto))
    actual = jax.vmap(lambda x, y: unixent.cross_entropy(x, y, parallel=config))(given.logits, given.target)
    expected = jax.vmap(unixent.cross_entropy)(jnp.asarray(given.logits), given.target)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_concrete_global_arrays_are_validated(call):
    config = config_of(cube(AxisType.Auto))
    given = call("index", "plain")
    target = given.target.copy()
    target[2, 1] = 12
    logits = jnp.asarray(given.logits)
    with pytest.raises(unixent.TargetRangeError, match=r"got 12 at position \(2, 1\)"):
        unixent.cross_entropy(logits, target, parallel=config)
    with pytest.raises(unixent.EmptyMeanError):
        unixent.cross_entropy(logits, given.target, mask=np.zeros((4, 3)), on_empty="raise", parallel=config)
    loss = unixent.cross_entropy(logits, target, reduction="none", validate="off", parallel=config)
    assert np.argwhere(np.isnan(loss)).tolist() == [[2, 1]]


def test_checkify_finds_an_index_out_of_range(call):
    from jax.experimental import checkify

    given = call("index", "plain")
    config = config_of(cube(AxisType.Auto))
    loss = jax.jit(lambda x, y: unixent.cross_entropy(x, y, validate="full", parallel=config))
    target = jnp.asarray(given.target).at[2, 1].set(12)
    error, _ = checkify.checkify(loss)(given.logits, target)
    assert "got 12 at flat position 7" in error.get()


def test_a_constant_is_not_differentiated(call):
    given = call("index", "smoothing")
    config = config_of(cube(AxisType.Auto))

    def loss(weight: Any) -> Any:
        return unixent.cross_entropy(given.logits, given.target, weight=weight, parallel=config, backend="jax")

    with pytest.raises(unixent.OptionError, match="weight"):
        jax.grad(loss)(jnp.asarray(given.weight))


def test_a_mesh_of_one_device_and_unnamed_axes_work(call):
    given = call("index", "smoothing")
    arrays = jax.tree.map(jnp.asarray, arrays_of(given))
    one = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    check(given, "logits gradient", grad(given, ParallelConfig.from_mesh(one, data="data", model="model"), arrays))
    part = ParallelConfig.from_mesh(cube(AxisType.Auto), model="model")
    check(given, "logits gradient", jax.jit(lambda arrays: grad(given, part, arrays))(arrays))
