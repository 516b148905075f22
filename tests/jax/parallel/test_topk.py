"""Sparse targets over several devices: the loss and the gradients of the whole, by ids of the whole vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import unixent
from unixent import ParallelConfig, TopK

B, S, C, D, K = 4, 3, 12, 5, 4
RNG = np.random.default_rng(29)
LOGITS = 3 * RNG.normal(size=(B, S, C))
LOGITS[1, 0] = np.nan  # masked
LOGITS[1, 1, :7] = -np.inf
LOGITS[1, 2, 4] += 40
LOGITS[2, 0, [1, 11]] = 50
PROBS = RNG.dirichlet(np.ones(K), (B, S)) * 0.9
PROBS[0, 1], PROBS[0, 2] = 0, [0.25, 0.25, 0.25, 0.25]
IDS = np.argsort(RNG.random((B, S, C)), -1)[..., :K].astype(np.int32)
IDS[2, 0] = [1, 11, 1, 0]  # a repeated class, on the first device
IDS[1, 1] = [7, 8, 9, 10]
IDS[2, 1, 1:], IDS[2, 2] = -100, -100
MASK = RNG.random((B, S)) + 0.5
MASK[1, 0] = 0
HIDDEN, CLASSIFIER, BIAS = (RNG.normal(size=size) for size in ((B, S, D), (C, D), (C,)))
WEIGHT = RNG.random(C) + 0.5
UPSTREAM = RNG.normal(size=(B, S))
OPTIONS: dict[str, dict[str, Any]] = {
    "options": {
        **{"softcap": 4.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.1},
        **{"weight": WEIGHT, "reduction": "none"},
    },
    "padded vocabulary": {"num_classes": 8, "label_smoothing": 0.1, "reduction": "none"},  # a device has padding alone
}
ROWS, FULL = P("data"), P("data", None, "model")
PLACES = {"logits": FULL, "classifier": P("model"), "bias": P("model"), "normalizer": P()}


def arrays(form: str, num_classes: int = C) -> dict[str, Any]:
    scores = {"logits": LOGITS} if form == "logits" else {"hidden": HIDDEN, "classifier": CLASSIFIER, "bias": BIAS}
    given = {**scores, "ids": IDS % num_classes * (IDS >= 0) + IDS * (IDS < 0), "probs": PROBS, "mask": MASK}
    return {name: jnp.asarray(array) for name, array in given.items()}


def loss_and_grads(given: dict[str, Any], tail: Any, form: str, log: bool = False, **keywords: Any) -> Any:
    rest = dict(given)
    ids, q = rest.pop("ids"), rest.pop("probs")
    target = TopK(ids, log_probs=jnp.log(q), tail=tail) if log else TopK(ids, probs=q, tail=tail)
    if form == "logits":
        return unixent.value_and_grad(target=target, wrt=("logits", "target"), **rest, **keywords)
    names = ("hidden", "classifier", "bias", "target")
    return unixent.linear_value_and_grad(target=target, wrt=names, chunk=2, **rest, **keywords)


def over_devices(mesh: Mesh, function: Callable[..., Any], given: dict[str, Any], out: Any) -> Any:
    specs = {name: PLACES.get(name, ROWS) for name in given}
    return jax.shard_map(function, mesh=mesh, in_specs=(specs,), out_specs=out)(given)


def close(actual: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), actual, expected)


@pytest.mark.parametrize("form", ["logits", "linear"])
@pytest.mark.parametrize(
    ("tail", "options"),
    [("drop", "padded vocabulary"), ("renormalize", "options"), ("bucket", "options"), ("bucket", "padded vocabulary")],
)
def test_inside_shard_map_value_and_gradients_are_those_of_the_whole(wide, axes, form, options, tail):
    """Classes of a position on one device and on several, repeated ones, padding, and masked rows of NaN."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    keywords = OPTIONS[options]
    given = {**arrays(form, keywords.get("num_classes", C)), "grad_output": jnp.asarray(UPSTREAM)}
    function = lambda x, **more: loss_and_grads(x, tail, form, log=options == "options", **keywords, **more)  # noqa: E731
    names = ("logits",) if form == "logits" else ("hidden", "classifier", "bias")
    grads = tuple(PLACES.get(name, ROWS) for name in (*names, "target"))
    local = lambda shards: function(shards, parallel=axes)  # noqa: E731
    actual = jax.jit(lambda x: over_devices(mesh, local, x, (ROWS, grads)))(given)
    expected = function(given)
    assert not np.isnan(expected[0]).any()
    close(actual, expected)


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "hessian": jax.hessian,
    "vmap of grad": lambda f: lambda x: jax.vmap(jax.grad(f))(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), x)),
    "jvp of grad": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (jax.tree.map(jnp.cos, x),)),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
}


@pytest.mark.parametrize(
    ("tail", "log", "names"), [("renormalize", True, ("jvp of grad",)), ("bucket", False, tuple(TRANSFORMS))]
)
def test_transforms_inside_shard_map_are_those_of_the_whole(wide, axes, tail, log, names):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    given = {"logits": jnp.asarray(LOGITS[2:, 1:2, :8]), "probs": jnp.asarray(PROBS[2:, 1:2] / 2)}
    ids = jnp.asarray(np.array([[[0, 7, 3, 0]], [[6, -100, 2, 1]]]))
    keywords = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 4.0}

    def loss(given: Any, ids: Any, **more: Any) -> Any:
        q = given["probs"]
        target = TopK(ids, log_probs=jnp.log(q), tail=tail) if log else TopK(ids, probs=q, tail=tail)
        return jnp.sin(unixent.cross_entropy(given["logits"], target, reduction="none", **keywords, **more)).sum()

    def split(given: Any) -> Any:
        def local(shards: Any) -> Any:
            return jax.lax.psum(loss(shards, shards.pop("ids"), parallel=axes), "data")

        return over_devices(mesh, local, {**given, "ids": ids}, P())

    of = lambda f: jax.jit(lambda x: {name: TRANSFORMS[name](f)(x) for name in names})  # noqa: E731
    actual, expected = of(split)(given), of(lambda given: loss(given, ids))(given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), actual, expected)


@pytest.mark.parametrize(("form", "tail"), [("logits", "bucket"), ("linear", "renormalize")])
def test_global_arrays_that_do_not_divide_are_padded(wide, form, tail):
    """Three steps over two devices and eleven classes over two, in a cube of data, context and model."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "context", "model"), axis_types=(AxisType.Auto,) * 3)
    config = ParallelConfig.from_mesh(mesh, data="data", context="context", model="model")
    given = arrays(form, 11)
    for name in {"logits", "classifier", "bias"} & given.keys():
        given[name] = given[name][..., :11] if name == "logits" else given[name][:11]
    keywords = {"label_smoothing": 0.1}
    close(loss_and_grads(given, tail, form, parallel=config, **keywords), loss_and_grads(given, tail, form, **keywords))


@pytest.mark.parametrize("shape", [(), (0,), (5,)])
def test_any_shape_of_positions_and_any_class_axis(mesh, shape):
    config = ParallelConfig.from_mesh(mesh, data="data", model="model")
    target = TopK(RNG.integers(7, size=(*shape, 2)), probs=RNG.random((*shape, 2)).astype("float32") / 2, tail="bucket")
    logits = jnp.asarray(RNG.normal(size=(7, *shape)), "float32")
    call = lambda **more: unixent.value_and_grad(logits, target, axis=0, label_smoothing=0.1, **more)  # noqa: E731
    for got, due in zip(call(parallel=config), call(), strict=True):
        np.testing.assert_allclose(got, due, rtol=2e-5, atol=1e-7)


def test_an_id_out_of_range_raises_or_is_nan_on_every_device(mesh, axes):
    config = ParallelConfig.from_mesh(mesh, data="data", model="model")
    ids, probs, logits = IDS.copy(), PROBS.astype(np.float32), np.ones((B, S, C), np.float32)
    ids[3, 1, 2] = C
    given = {"logits": jnp.asarray(logits), "ids": jnp.asarray(ids), "probs": jnp.asarray(probs)}

    def loss(given: Any, **more: Any) -> Any:
        target = TopK(given["ids"], probs=given["probs"], tail="bucket")
        return unixent.cross_entropy(given["logits"], target, reduction="none", **more)

    with pytest.raises(unixent.TargetRangeError, match=r"target.ids: .* got 12 at position \(3, 1, 2\)"):
        loss(given, parallel=config)
    for result in (
        jax.jit(lambda x: loss(x, parallel=config))(given),
        jax.jit(lambda x: over_devices(mesh, lambda shards: loss(shards, parallel=axes), x, ROWS))(given),
    ):
        np.testing.assert_array_equal(np.isnan(result), np.arange(B * S).reshape(B, S) == 3 * S + 1)


def test_only_reductions_of_few_numbers_cross_devices():
    """Neither logits nor a dense target, forward or backward."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    config, classes = ParallelConfig.from_mesh(mesh, data="data", model="model"), 4096
    logits = jax.device_put(jnp.ones((8, classes)), NamedSharding(mesh, P("data", "model")))
    ids, probs = jnp.zeros((8, K), jnp.int32), jnp.ones((8, K)) / 8
    compiled = (
        jax.jit(lambda x, ids, q: unixent.value_and_grad(x, TopK(ids, probs=q, tail="bucket"), parallel=config))
        .lower(logits, ids, probs)
        .compile()
    )
    sent = re.findall(r"= (.*?) (all-[\w-]+?|collective-[\w-]+?|reduce-scatter)(?:-start)?\(", compiled.as_text())
    sizes = [re.findall(r"\w+\[([\d,]*)\]", shapes) for shapes, _ in sent]
    assert {name for _, name in sent} == {"all-reduce"}
    numbers = sum(int(np.prod([int(n) for n in size.split(",") if n])) for shapes in sizes for size in shapes)
    # A position: six and the classes of the pass over the rows, the bucket's four and its gradient's; and the mean's.
    assert numbers <= 4 * (6 + K + 8) + 4
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4 * 8 * classes / 8


def test_the_linear_form_over_a_mesh_keeps_no_logits():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    config = ParallelConfig.from_mesh(mesh, data="data", model="model")
    count, width = 2048, 16
    ids, q = jnp.zeros((count, 4), jnp.int32), jnp.ones((count, 4), jnp.float32) / 8

    def loss(hidden: Any, classifier: Any) -> Any:
        target = TopK(ids, probs=q, tail="bucket")
        return unixent.linear_cross_entropy(hidden, classifier, target, chunk=32, parallel=config)

    ones = jnp.ones((count, width), jnp.float32)
    put = [jax.device_put(ones, NamedSharding(mesh, P(name))) for name in ("data", "model")]
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*put).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.4 * 4 * count * count / 8
