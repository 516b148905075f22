"""The fused form with the classifier over classes and hidden states over positions, against the oracle."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import unixent
from unixent import ParallelConfig
from unixent_conformance.expected import expected
from unixent_conformance.model import Call

RNG = np.random.default_rng(12)
N, D, C = 8, 5, 12
HIDDEN, CLASSIFIER, BIAS = (RNG.normal(size=size).astype(np.float32) for size in ((N, D), (C, D), C))
INDEX = RNG.integers(C, size=N).astype(np.int32)
INDEX[3] = -100
PROBABILITIES = RNG.dirichlet(np.ones(C), N).astype(np.float32)
WEIGHT = RNG.random(C).astype(np.float32)
MASK = (RNG.random(N) * (RNG.random(N) > 0.3)).astype(np.float32)
UPSTREAM = RNG.normal(size=N).astype(np.float32)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "none": {"reduction": "none", "mask": MASK, "grad_output": UPSTREAM, "label_smoothing": 0.1},
    "all": {"label_smoothing": 0.2, "weight": WEIGHT, "mask": MASK, "z_loss": 0.1, "softcap": 3.0},
    "normalizer": {"mask": MASK, "normalizer": 7.0},
}
KINDS = ["index", "probability"]
PLACES = {
    "hidden": P("data"),
    "classifier": P("model"),
    "bias": P("model"),
    "weight": P(),
    "mask": P("data"),
    "grad_output": P("data"),
}
GATHERS = re.compile(r"= .*?\b(all-gather|all-to-all|collective-permute|reduce-scatter)")


def build(target_kind: str, options: str, bias: bool = True, dtype: str = "float32") -> Call:
    given = dict(OPTIONS[options])
    extra = {name: given.pop(name) for name in ("weight", "mask", "grad_output") if name in given}
    narrow = np.asarray(jnp.zeros(0, dtype)).dtype
    arrays = {"hidden": HIDDEN.astype(narrow), "classifier": CLASSIFIER.astype(narrow)}
    if bias:
        arrays["bias"] = BIAS.astype(narrow)
    return Call(None, INDEX if target_kind == "index" else PROBABILITIES, options=given, **arrays, **extra)


def arrays_of(call: Call) -> dict[str, Any]:
    arrays = {**call.arrays(), **({} if call.grad_output is None else {"grad_output": call.grad_output})}
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def places(call: Call) -> dict[str, P]:
    specs = {**PLACES, "target": P("data", "model") if call.target.ndim == 2 else P("data")}
    return {name: specs[name] for name in arrays_of(call)}


def gradients(call: Call, config: ParallelConfig, arrays: dict[str, Any]) -> Any:
    rest = dict(arrays)
    grad_output = rest.pop("grad_output", None)
    wrt = call.differentiable()
    return unixent.linear_value_and_grad(
        **rest, **call.options, chunk=3, grad_output=grad_output, wrt=wrt, parallel=config
    )


def check(call: Call, actual: Any) -> None:
    loss, grads = actual
    for part, got in zip(expected(call, "linear gradients"), (loss, *grads), strict=True):
        comparison = part.compare(np.asarray(got))
        assert comparison.ok, (part.name, comparison)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("target_kind", KINDS)
def test_inside_shard_map(mesh, axes, target_kind, options):
    """Each gradient is that of the global loss, summed once over what its argument is the same on."""
    given = build(target_kind, options)
    own = places(given)
    out = (P("data") if options == "none" else P(), tuple(own[name] for name in given.differentiable()))

    def part(arrays: Any) -> Any:
        return gradients(given, axes, arrays)

    check(given, jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(own,), out_specs=out))(arrays_of(given)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_accumulates_in_float32(mesh, axes, dtype):
    given = build("index", "plain", dtype=dtype)
    own = places(given)
    out = (P(), tuple(own[name] for name in given.differentiable()))

    def part(arrays: Any) -> Any:
        return gradients(given, axes, arrays)

    check(given, jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(own,), out_specs=out))(arrays_of(given)))


@pytest.mark.parametrize("options", ["none", "all"])
def test_gradient_taken_outside(mesh, axes, options):
    given = build("index", options)
    names = given.differentiable()
    arrays = arrays_of(given)

    def total(arrays: Any) -> Any:
        grad_output = arrays.pop("grad_output", None)
        loss = unixent.linear_cross_entropy(**arrays, **given.options, chunk=3, parallel=axes)
        return loss if grad_output is None else lax.psum(jnp.sum(loss * grad_output), "data")

    whole = jax.shard_map(total, mesh=mesh, in_specs=(places(given),), out_specs=P())
    actual = jax.jit(jax.grad(lambda own: whole({**arrays, **own})))({name: arrays[name] for name in names})
    for part, name in zip(expected(given, "linear gradients")[1:], names, strict=True):
        assert part.compare(np.asarray(actual[name])).ok, name


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(("target_kind", "options"), [("index", "all"), ("index", "none"), ("probability", "all")])
def test_over_a_mesh(target_kind, options, mode):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(mode, mode))
    config = ParallelConfig.from_mesh(mesh, data="data", model="model")
    given = build(target_kind, options)
    own = places(given)
    arrays = {name: jax.device_put(x, NamedSharding(mesh, own[name])) for name, x in arrays_of(given).items()}
    compiled = jax.jit(lambda arrays: gradients(given, config, arrays)).lower(arrays).compile()
    assert GATHERS.findall(compiled.as_text()) == []
    loss, grads = compiled(arrays)
    check(given, (loss, grads))
    for name, grad in zip(given.differentiable(), grads, strict=True):
        assert grad.sharding.is_equivalent_to(arrays[name].sharding, grad.ndim), name


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_sizes_that_do_not_divide_are_padded(mesh, jit):
    given = build("index", "all", bias=False)
    given = Call(
        None,
        np.where(given.target > 9, 1, given.target)[:7],
        options=given.options,
        hidden=given.hidden[:7],
        classifier=given.classifier[:10],
        weight=given.weight[:10],
        mask=given.mask[:7],
    )
    config = ParallelConfig.from_mesh(mesh, data="data", model="model")
    function = lambda arrays: gradients(given, config, arrays)  # noqa: E731
    check(given, (jax.jit(function) if jit else function)(arrays_of(given)))


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("transform", ["jvp", "hessian"])
def test_forward_mode_and_second_order(wide, mesh, axes, target_kind, transform):
    given = build(target_kind, "all")
    names = given.differentiable()[:3]
    arrays = {name: x.astype(float) if x.dtype.kind == "f" else x for name, x in arrays_of(given).items()}
    own = {name: arrays.pop(name) for name in names}

    def split(own: Any) -> Any:
        def part(local: Any) -> Any:
            return unixent.linear_cross_entropy(**local, **given.options, chunk=3, parallel=axes)

        return jax.shard_map(part, mesh=mesh, in_specs=(places(given),), out_specs=P())({**arrays, **own})

    def whole(own: Any) -> Any:
        logits = own["hidden"] @ own["classifier"].T + own["bias"]
        return unixent.cross_entropy(logits, **arrays, **given.options)

    def along(f: Any) -> Any:
        return lambda own: jax.jvp(f, (own,), (jax.tree.map(jnp.cos, own),))

    change = along if transform == "jvp" else jax.hessian
    actual, expected = (jax.jit(change(f))(own) for f in (split, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), actual, expected)


def test_a_gradient_crosses_devices_once_and_not_chunk_by_chunk(mesh, axes):
    """The loop over chunks sends what a row is boiled down to, and nothing of the width of hidden."""
    shapes = {"hidden": (64, 40), "classifier": (48, 40), "target": (64,)}
    arrays = {name: jax.ShapeDtypeStruct(s, "int32" if name == "target" else "float32") for name, s in shapes.items()}
    for reduction in ("mean", "none"):

        def total(arrays: Any, reduction: str = reduction) -> Any:
            loss = unixent.linear_cross_entropy(**arrays, reduction=reduction, chunk=8, parallel=axes)
            return loss if reduction == "mean" else lax.psum(jnp.sum(loss**2), "data")

        specs = {"hidden": P("data"), "classifier": P("model"), "target": P("data")}
        whole = jax.shard_map(total, mesh=mesh, in_specs=(specs,), out_specs=P())

        def grad(hidden: Any, classifier: Any, target: Any, whole: Any = whole) -> Any:
            given = {"hidden": hidden, "classifier": classifier, "target": target}
            return jax.grad(lambda h, w: whole({**given, "hidden": h, "classifier": w}), (0, 1))(hidden, classifier)

        text = jax.jit(grad).lower(**arrays).compile().as_text()
        reduced = re.findall(r"f32\[([\d,]+)\][^=\n]*? all-reduce", text)
        wide = [shape for shape in reduced if shape.endswith(",40")]
        assert sorted(wide) == ["12,40", "32,40"], (reduction, reduced)


def test_each_argument_must_be_a_part(mesh, axes):
    given = build("index", "plain", bias=False)

    def own(arrays: Any) -> Any:
        return unixent.linear_cross_entropy(**arrays, parallel=axes)

    for name in ("hidden", "classifier"):
        specs = {**places(given), name: P()}
        specs["target"] = specs["hidden"]
        mapped = jax.shard_map(own, mesh=mesh, in_specs=(specs,), out_specs=P())
        with pytest.raises(unixent.BackendError, match=f"{name}: expected an array that differs along"):
            mapped(arrays_of(given))
