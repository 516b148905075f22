"""Statistics of positions over several devices: those of the whole, without collecting its logits."""

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
from unixent import ParallelConfig, PositionStats

GRADED = ("loss", "log_prob", "entropy", "logsumexp", "selected_log_prob")
OUTPUTS = PositionStats._fields
B, S, C, D, K = 4, 3, 12, 5, 4
RNG = np.random.default_rng(23)
LOGITS = (3 * RNG.normal(size=(B, S, C))).astype(np.float32)
LOGITS[0, 0, 7] = np.nan
LOGITS[0, 1, 2] = np.inf
LOGITS[0, 2] = -np.inf
LOGITS[1, 0, :7] = -np.inf
LOGITS[1, 1] = 0.0  # every class ties
LOGITS[1, 1, ::2] = -0.0
LOGITS[1, 2, [1, 11]] = 50.0  # the maximum twice, on the first device and on the last
LOGITS[2, 0, 4] += 40.0
LOGITS[2, 1] = np.nan
TARGET = RNG.integers(C, size=(B, S)).astype(np.int32)
TARGET[1, 0], TARGET[1, 1], TARGET[1, 2], TARGET[2, 0], TARGET[2, 2], TARGET[3, 0] = 3, 6, 11, 4, -100, 12
MASK = np.ones((B, S), np.float32)
MASK[2, 1], MASK[3, 1] = 0, 0.5
SELECTED = RNG.integers(C, size=(B, S, K)).astype(np.int32)
SELECTED[..., 1], SELECTED[3, 2, 2] = -100, 12
HIDDEN, CLASSIFIER, BIAS = (RNG.normal(size=size) for size in ((B, S, D), (C, D), (C,)))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "options": {"softcap": 4.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.1, "num_classes": 8},
}
LINEAR = ("hidden", "classifier", "bias", "target", "selected")
ROWS, FULL = P("data"), P("data", None, "model")
PLACES = {"logits": FULL, "classifier": P("model"), "bias": P("model")}


def arrays(*names: str) -> dict[str, Any]:
    every = {"logits": LOGITS, "target": TARGET, "mask": MASK, "selected": SELECTED}
    every |= {"hidden": HIDDEN, "classifier": CLASSIFIER, "bias": BIAS}
    chosen = names or ("logits", "target", "mask", "selected")
    return {name: jnp.asarray(every[name]) for name in chosen}


def stats(outputs: Any = OUTPUTS, **given: Any) -> dict[str, Any]:
    function = unixent.linear_position_stats if "hidden" in given else unixent.position_stats
    k = 5 if "top_index" in outputs else 0  # more than a device holds
    return {name: x for name, x in function(outputs=outputs, k=k, **given)._asdict().items() if x is not None}


def same(actual: Any, expected: Any, rtol: float = 2e-6) -> None:
    assert actual.keys() == expected.keys()
    for name, due in expected.items():
        close = np.testing.assert_array_equal if due.dtype.kind in "ib" else np.testing.assert_allclose
        close(actual[name], due, **({} if due.dtype.kind in "ib" else {"rtol": rtol, "atol": 1e-7}), err_msg=name)


def over_devices(mesh: Mesh, function: Callable[..., Any], given: dict[str, Any], out: Any = ROWS) -> Any:
    specs = {name: PLACES.get(name, ROWS) for name in given}
    return jax.shard_map(function, mesh=mesh, in_specs=(specs,), out_specs=out)(given)


@pytest.mark.parametrize("options", OPTIONS)
def test_inside_shard_map_every_output_is_that_of_the_whole(mesh, axes, options):
    """Ties, infinities, NaN, what does not count, what is out of range, more of the largest than a device holds."""
    given, keywords = arrays(), {**OPTIONS[options], "validate": "off"}
    local = lambda shards: stats(**shards, **keywords, parallel=axes)  # noqa: E731
    whole = jax.jit(lambda given: stats(**given, **keywords))
    same(jax.jit(lambda x: over_devices(mesh, local, x))(given), whole(given))


@pytest.mark.parametrize("options", OPTIONS)
def test_the_linear_form_inside_shard_map_is_that_of_the_whole(mesh, axes, options):
    given, keywords = arrays(*LINEAR), {**OPTIONS[options], "validate": "off", "chunk": 2}
    local = lambda shards: stats(**shards, **keywords, parallel=axes)  # noqa: E731
    whole = jax.jit(lambda given: stats(**given, **keywords))
    same(jax.jit(lambda x: over_devices(mesh, local, x))(given), whole(given), 2e-5)


FINITE = np.where(np.isfinite(LOGITS), LOGITS, 1.0)[:2, :1, :8]
INDEX = np.array([[3], [6]], np.int32)
CHOSEN = np.array([[[0, 7, 0]], [[6, -100, 2]]], np.int32)


def total(given: dict[str, Any], **keywords: Any) -> Any:
    values = stats((*GRADED, "prediction", "log_sum_sq"), **given, **keywords)
    return sum(jnp.sum(jnp.sin(values[name])) for name in GRADED)


TRANSFORMS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "logits": {
        "hessian": jax.hessian,
        "reverse over reverse": lambda f: jax.jacrev(jax.grad(f)),
        "vmap of grad": lambda f: lambda x: jax.vmap(jax.grad(f))(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), x)),
        "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    },
    "linear": {"jvp of grad": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (jax.tree.map(jnp.cos, x),))},
}


def every(form: str, f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(lambda x: {name: change(f)(x) for name, change in TRANSFORMS[form].items()})


@pytest.mark.parametrize("form", TRANSFORMS)
def test_transforms_inside_shard_map_are_those_of_the_whole(wide, axes, form):
    """Of the whole shard_map, all as one program."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    fixed = {"target": jnp.asarray(INDEX), "selected": jnp.asarray(CHOSEN)}
    keywords = {"softcap": 4.0, "temperature": 0.7}
    if form == "logits":
        moving, keywords["z_loss"] = {"logits": jnp.asarray(FINITE, float)}, 0.1
    else:
        moving = {"hidden": HIDDEN[:2, :1, :2], "classifier": CLASSIFIER[:8, :2], "bias": BIAS[:8]}
        moving = {name: jnp.asarray(x) for name, x in moving.items()}

    def split(moving: Any) -> Any:
        def local(shards: Any) -> Any:
            return jax.lax.psum(total(shards, **keywords, parallel=axes), "data")

        return over_devices(mesh, local, {**moving, **fixed}, P())

    actual = every(form, split)(moving)
    expected = every(form, lambda moving: total({**moving, **fixed}, **keywords))(moving)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), actual, expected)


def test_gradients_by_a_function_inside_shard_map_are_those_of_the_whole(wide, mesh, axes):
    given = {"logits": jnp.asarray(np.tile(FINITE, (2, 3, 2))[..., :C], float), **arrays("target", "mask", "selected")}
    upstream = {name: jnp.asarray(RNG.normal(size=(B, S, *([K] if "sel" in name else [])))) for name in GRADED}

    def both(given: Any, **keywords: Any) -> Any:
        rest = dict(given)
        up = PositionStats(**{name: rest.pop(f"upstream {name}") for name in GRADED})
        result, grad = unixent.position_stats_and_grad(
            **rest, grad_output=up, outputs=(*GRADED, "rank"), validate="off", **keywords
        )
        return result.rank, grad

    given |= {f"upstream {name}": x for name, x in upstream.items()}
    local = lambda shards: both(shards, parallel=axes)  # noqa: E731
    actual = jax.jit(lambda x: over_devices(mesh, local, x, (ROWS, FULL)))(given)
    for got, due in zip(actual, both(given), strict=True):
        np.testing.assert_allclose(got, due, rtol=1e-11, atol=1e-13)


def messages(compiled: Any) -> list[tuple[str, int]]:
    """The collectives of a compiled program, with the number of elements of what each gives."""
    pattern = re.compile(r"= (.*?) (all-[\w-]+?|collective-[\w-]+?|reduce-scatter)(?:-start)?\(")
    sent = []
    for shapes, name in pattern.findall(compiled.as_text()):
        sizes = re.findall(r"\w+\[([\d,]*)\]", shapes)
        sent.append((name, sum(int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes)))
    return sent


BIG = 1024  # classes, of 16 positions


def big(mesh: Mesh) -> dict[str, Any]:
    given = {"logits": RNG.normal(size=(4, 4, BIG)).astype(np.float32)}
    given |= {"target": RNG.integers(BIG, size=(4, 4)), "selected": RNG.integers(BIG, size=(4, 4, 2))}
    return {name: jax.device_put(x, NamedSharding(mesh, PLACES.get(name, ROWS))) for name, x in given.items()}


def value_and_grads(given: Any, **keywords: Any) -> Any:
    return unixent.position_stats_and_grad(**given, outputs=OUTPUTS, k=3, **keywords)


@pytest.mark.parametrize(
    ("way", "mode"), [("jit", AxisType.Auto), ("jit", AxisType.Explicit), ("mesh", AxisType.Explicit)]
)
def test_only_reductions_of_few_numbers_cross_devices(way, mode):
    """Under jit alone and with a mesh, by values and gradient of every output, which lie where their positions do."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(mode,) * 2)
    given = big(mesh)
    keywords = {} if way == "jit" else {"parallel": ParallelConfig.from_mesh(mesh, data="data", model="model")}
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda given: value_and_grads(given, **keywords)).lower(given).compile()
    sent = messages(compiled)
    assert {name for name, _ in sent} == {"all-reduce"}
    # In all, less than a quarter of a device's own logits.
    assert sum(size for _, size in sent) < 2 * 4 * BIG // 4 // 4
    actual, grad = compiled(given)
    expected, due = value_and_grads(jax.device_get(given), backend="jax")
    same(actual._asdict(), expected._asdict())
    # Terms of up to 1 that cancel: the loss is the log-probability with the other sign.
    np.testing.assert_allclose(grad, due, rtol=1e-5, atol=4 * 2**-24)
    assert grad.sharding.is_equivalent_to(given["logits"].sharding, 3)
    for name, each in actual._asdict().items():
        assert each.sharding.is_equivalent_to(NamedSharding(mesh, ROWS), each.ndim), name


def test_log_probability_and_entropy_send_seven_numbers_a_position(mesh, axes):
    """The pivot's logit as a maximum, its class, its logit as a sum, the shift, two sums, the target; no gradient."""

    def local(shards: Any) -> Any:
        stats, grad = unixent.position_stats_and_grad(**shards, outputs=("log_prob", "entropy"), parallel=axes)
        return stats.log_prob, stats.entropy, grad

    given = arrays("logits", "target")
    function = jax.jit(lambda given: over_devices(mesh, local, given, (ROWS, ROWS, FULL)))
    sent = messages(function.lower(given).compile())
    assert {name for name, _ in sent} == {"all-reduce"}
    assert sum(size for _, size in sent) == 7 * B * S // 2


@pytest.mark.parametrize(("form", "mode"), [("logits", AxisType.Explicit), ("linear", AxisType.Auto)])
def test_global_arrays_that_do_not_divide_are_padded(wide, form, mode):
    """Three steps over two devices and eleven classes over two, in a cube of data, context and model."""
    if mode == AxisType.Explicit and not hasattr(jax, "reshard"):
        pytest.skip("jax 0.7 cannot differentiate through filling up under an explicit mesh, and says so")
    mesh = jax.make_mesh((2, 2, 2), ("data", "context", "model"), axis_types=(mode,) * 3)
    config = ParallelConfig.from_mesh(mesh, data="data", context="context", model="model")
    fixed = {name: jnp.where(x == 11, 3, x) for name, x in arrays("target", "selected").items()}
    if form == "logits":
        moving = {"logits": jnp.asarray(np.where(np.isfinite(LOGITS), LOGITS, 1)[..., :11], float)}
    else:
        moving = {"hidden": jnp.asarray(HIDDEN), "classifier": jnp.asarray(CLASSIFIER[:11])}
    fixed["target"] = fixed["target"].at[3, 0].set(5)
    fixed["selected"] = fixed["selected"].at[3, 2, 2].set(5)

    def values_and_grad(moving: Any, **keywords: Any) -> Any:
        grad = jax.grad(lambda moving: total({**moving, **fixed}, **keywords))(moving)
        return stats(**moving, **fixed, **keywords), grad

    with jax.set_mesh(mesh) if mode == AxisType.Explicit else jax.disable_jit(False):
        values, grad = jax.jit(lambda moving: values_and_grad(moving, parallel=config))(moving)
    expected, due = jax.jit(values_and_grad)(moving)
    same(values, expected, 1e-11)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), grad, due)


@pytest.mark.parametrize("shape", [(), (0,), (5,)])
def test_any_shape_of_positions(shape):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    config = ParallelConfig.from_mesh(mesh, data="data", model="model")
    given = {"logits": jnp.asarray(RNG.normal(size=(*shape, 7)), "float32"), "target": RNG.integers(7, size=shape)}
    given["selected"] = RNG.integers(7, size=(*shape, 2))
    same(stats(**given, parallel=config), stats(**given))
    linear = {"hidden": jnp.asarray(RNG.normal(size=(*shape, 2)), "float32"), "classifier": RNG.normal(size=(7, 2))}
    linear |= {"target": given["target"], "selected": given["selected"]}
    linear["classifier"] = linear["classifier"].astype("float32")
    same(stats(**linear, parallel=config), stats(**linear), 2e-5)


def test_concrete_global_arrays_are_validated():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    config = ParallelConfig.from_mesh(mesh, data="data", model="model")
    given = arrays("logits", "target")
    with pytest.raises(unixent.TargetRangeError, match=r"got 12 at position \(3, 0\)"):
        unixent.position_stats(**given, parallel=config)


def test_the_linear_form_over_a_mesh_keeps_no_logits():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    config = ParallelConfig.from_mesh(mesh, data="data", model="model")
    count, width = 2048, 16
    hidden, classifier = jnp.ones((count, width), jnp.float32), jnp.ones((count, width), jnp.float32)

    def entropy(hidden: Any, classifier: Any) -> Any:
        given = {"outputs": ("entropy", "top_index"), "k": 4, "chunk": 32, "parallel": config}
        return unixent.linear_position_stats(hidden, classifier, **given).entropy.sum()

    put = [jax.device_put(x, NamedSharding(mesh, P(name))) for x, name in ((hidden, "data"), (classifier, "model"))]
    compiled = jax.jit(jax.grad(entropy, (0, 1))).lower(*put).compile()
    sent = messages(compiled)
    assert {name for name, _ in sent} == {"all-reduce"}
    assert max(size for _, size in sent) <= count * width // 2
    assert compiled.memory_analysis().temp_size_in_bytes < 0.4 * 4 * count * count / 8


def test_a_copy_on_every_device_is_refused(mesh, axes):
    def local(logits: Any) -> Any:
        return unixent.position_stats(logits, outputs="entropy", parallel=axes)

    with pytest.raises(unixent.BackendError, match=r"logits: expected an array that differs along .*'model'"):
        jax.shard_map(local, mesh=mesh, in_specs=ROWS, out_specs=ROWS)(jnp.asarray(LOGITS))

    def linear(hidden: Any, classifier: Any) -> Any:
        return unixent.linear_position_stats(hidden, classifier, outputs="entropy", parallel=axes)

    with pytest.raises(unixent.BackendError, match=r"classifier: expected an array that differs along .*'model'"):
        jax.shard_map(linear, mesh=mesh, in_specs=(ROWS, P()), out_specs=ROWS)(HIDDEN, CLASSIFIER)
