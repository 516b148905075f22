"""Inside the caller's shard_map, by the names of axes: the whole loss and the whole gradients, from a device's part."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import unixent
from unixent_conformance.expected import expected
from unixent_conformance.model import Call

KINDS = ["index", "probability"]
OPTIONS = [
    *("plain", "weight", "none", "normalizer", "smoothing", "smoothing alone", "z-loss and softcap"),
    *("empty", "empty, nan"),
]
FULL = P("data", None, "model")
PLACES = {"logits": FULL, "weight": P(), "mask": P("data"), "grad_output": P("data")}


def arrays_of(call: Call) -> dict[str, Any]:
    return {**call.arrays(), **({} if call.grad_output is None else {"grad_output": call.grad_output})}


def places(call: Call) -> dict[str, P]:
    specs = {**PLACES, "target": FULL if call.target.dtype.kind == "f" else P("data")}
    return {name: specs[name] for name in arrays_of(call)}


def over_devices(mesh: Any, call: Call, function: Callable[..., Any], out: Any) -> Any:
    """``function`` of each device's arrays by name."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=(places(call),), out_specs=out)
    return jax.jit(mapped)(jax.tree.map(jnp.asarray, arrays_of(call)))


def result_place(call: Call) -> P:
    return P("data") if call.options.get("reduction") == "none" else P()


def check(call: Call, quantity: Any, actual: Any) -> None:
    for part, got in zip(expected(call, quantity), actual, strict=True):
        comparison = part.compare(np.asarray(got))
        assert comparison.ok, (part.name, comparison)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("target_kind", KINDS)
def test_value_and_gradients_are_those_of_the_whole(mesh, axes, call, target_kind, options):
    given = call(target_kind, options)
    wrt = ("logits", "target")[: 1 if target_kind == "index" else 2]

    def own(arrays: Any) -> Any:
        grad_output = arrays.pop("grad_output", None)
        return unixent.value_and_grad(**arrays, **given.options, grad_output=grad_output, wrt=wrt, parallel=axes)

    loss, grads = over_devices(mesh, given, own, (result_place(given), (FULL,) * len(wrt)))
    check(given, "logits gradient", (loss, grads[0]))
    if target_kind == "probability":
        check(given, "target gradient", (loss, grads[1]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", ["plain", "smoothing"])
def test_half_precision_has_float32_statistics(mesh, axes, call, options, dtype):
    given = call("index", options, dtype)

    def own(arrays: Any) -> Any:
        return unixent.value_and_grad(**arrays, **given.options, parallel=axes)

    check(given, "logits gradient", over_devices(mesh, given, own, (P(), FULL)))


def test_terms_inside_shard_map_are_those_of_the_whole(mesh, axes, call):
    given = call("index", "smoothing")
    actual = over_devices(mesh, given, lambda own: unixent.loss_terms(**own, **given.options, parallel=axes), P())
    check(given, "terms", actual)


@pytest.mark.parametrize("options", ["none", "smoothing", "z-loss and softcap"])
@pytest.mark.parametrize("target_kind", KINDS)
def test_gradient_taken_outside_and_inside(mesh, axes, call, target_kind, options):
    """Both are the gradient of the global loss: the transpose of shard_map counts each sum once."""
    given = call(target_kind, options)

    def loss(logits: Any, arrays: Any) -> Any:
        weights = arrays.pop("grad_output", 1.0)
        return jnp.sum(unixent.cross_entropy(logits, **arrays, **given.options, parallel=axes) * weights)

    def inside(arrays: Any) -> Any:
        return jax.grad(lambda logits: loss(logits, dict(rest)))((rest := dict(arrays)).pop("logits"))

    def total(arrays: Any) -> Any:
        value = loss((rest := dict(arrays)).pop("logits"), rest)
        return lax.psum(value, "data") if "grad_output" in arrays else value

    @jax.jit
    def both(arrays: Any) -> Any:
        whole, within = (
            jax.shard_map(f, mesh=mesh, in_specs=(places(given),), out_specs=out)
            for f, out in ((total, P()), (inside, FULL))
        )
        return jax.grad(lambda logits: whole({**arrays, "logits": logits}))(arrays["logits"]), within(arrays)

    part = expected(given, "logits gradient")[1]
    for actual in both({name: jnp.asarray(array) for name, array in arrays_of(given).items()}):
        assert part.compare(np.asarray(actual)).ok


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),)),
    "hessian": jax.hessian,
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
    "vmap of grad": lambda f: lambda x: jax.vmap(jax.grad(f))(jnp.stack([x, 2 * x])),
    "grad of vmap": lambda f: jax.grad(lambda x: jnp.sum(jax.vmap(f)(jnp.stack([x, 2 * x])) ** 2)),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
}


@pytest.mark.parametrize("target_kind", KINDS)
def test_transforms_of_a_loss_inside_shard_map_are_those_of_the_whole(wide, mesh, axes, call, target_kind):
    """Of the whole shard_map, against the same of the whole loss: all as one program, which takes half as long."""
    given = call(target_kind, "z-loss and softcap")
    given = replace(given, options={**given.options, "label_smoothing": 0.1 if target_kind == "probability" else 0.0})
    arrays = {
        name: jnp.asarray(array, array.dtype if name == "target" else float)
        for name, array in {**arrays_of(given), "logits": given.logits[:, :1]}.items()
    }
    arrays["target"] = arrays["target"][:, :1]

    def split(logits: Any) -> Any:
        def own(local: Any) -> Any:
            return unixent.cross_entropy(**local, **given.options, parallel=axes)

        return jax.shard_map(own, mesh=mesh, in_specs=(places(given),), out_specs=P())({**arrays, "logits": logits})

    def whole(logits: Any) -> Any:
        return unixent.cross_entropy(**{**arrays, "logits": logits}, **given.options)

    def every(f: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(lambda x: {name: change(f)(x) for name, change in TRANSFORMS.items()})

    actual, expected = every(split)(arrays["logits"]), every(whole)(arrays["logits"])
    for name in TRANSFORMS:
        close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13, err_msg=name)
        jax.tree.map(close, actual[name], expected[name])


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("target_kind", KINDS)
def test_special_values_on_one_device(mesh, axes, call, target_kind, options):
    given = call(target_kind, "none")
    logits, target = given.logits.copy(), given.target.copy()
    logits[0, 0, 7] = np.nan
    logits[0, 2, 1] = np.inf
    logits[1, 0] = -np.inf
    logits[1, 2, :11] = -np.inf
    logits[2, 0, [0, 11]] = 50.0  # the maximum twice, on the first device and on the last
    logits[3, 0, :6] = -np.inf
    logits[3, 1] = np.nan
    mask = np.ones(given.mask.shape, np.float32)
    mask[3, 1] = 0
    if target_kind == "index":
        target[2, 1] = 12  # out of range: expected where the truth is NaN
        target[3, 0] = 3
    given = replace(given, logits=logits, target=target, mask=mask, options={"reduction": "none", **options})

    def own(arrays: Any) -> Any:
        grad_output = arrays.pop("grad_output")
        return unixent.value_and_grad(**arrays, **given.options, grad_output=grad_output, parallel=axes)

    loss, grad = over_devices(mesh, given, own, (P("data"), FULL))
    check(given, "logits gradient", (loss, grad))
    for position in [(0, 0), (0, 2), (1, 0), *([(2, 1)] if target_kind == "index" else [])]:
        assert np.isnan(loss[position])
        assert np.isnan(grad[position]).all()


def messages(compiled: Any) -> list[tuple[str, int]]:
    """The collectives of a compiled program, with the number of elements of what each gives."""
    pattern = re.compile(r"= (.*?) (all-[\w-]+?|collective-[\w-]+?|reduce-scatter)(?:-start)?\(")
    reduced = []
    for shapes, name in pattern.findall(compiled.as_text()):
        sizes = re.findall(r"\w+\[([\d,]*)\]", shapes)
        reduced.append((name, sum(int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes)))
    return reduced


@pytest.mark.parametrize(
    ("target_kind", "options", "numbers"),
    [("index", {}, 3), ("index", {"label_smoothing": 0.1}, 7), ("probability", {}, 7)],
)
def test_a_position_reduces_three_numbers_or_seven(mesh, axes, call, target_kind, options, numbers):
    """3 numbers a position with class indices, 7 for a mixed target; none for the gradient, and three for the mean."""
    given = replace(call(target_kind, "plain"), options=options)

    def own(arrays: Any) -> Any:
        return unixent.value_and_grad(**arrays, **options, parallel=axes)

    arrays = {name: jnp.asarray(array) for name, array in arrays_of(given).items()}
    mapped = jax.shard_map(own, mesh=mesh, in_specs=(places(given),), out_specs=(P(), FULL))
    sent = messages(jax.jit(mapped).lower(arrays).compile())
    positions = given.logits.shape[0] * given.logits.shape[1] // 2
    assert {name for name, _ in sent} == {"all-reduce"}
    assert sum(size for _, size in sent) == numbers * positions + 3


def test_classes_over_two_axes_and_an_axis_of_one(call):
    cube = jax.make_mesh((1, 2, 4), ("data", "outer", "inner"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    config = unixent.ParallelConfig.from_mesh(cube, data="data", model=("outer", "inner"))
    assert (config.token_group, config.model_group) == ("data", ("outer", "inner"))
    given = call("index", "smoothing")
    given = replace(given, logits=np.concatenate([given.logits] * 2, -1), weight=np.tile(given.weight, 2))
    full = P("data", None, ("outer", "inner"))

    def own(logits: Any, target: Any, mask: Any, weight: Any) -> Any:
        return unixent.value_and_grad(logits, target, mask=mask, weight=weight, **given.options, parallel=config)

    specs = (full, P("data"), P("data"), P())
    mapped = jax.jit(jax.shard_map(own, mesh=cube, in_specs=specs, out_specs=(P(), full)))
    check(given, "logits gradient", mapped(given.logits, given.target, given.mask, given.weight))


def test_without_vma_the_call_raises(mesh, axes, call):
    given = call("index", "plain")

    def own(logits: Any, target: Any) -> Any:
        return unixent.cross_entropy(logits, target, parallel=axes)

    mapped = jax.shard_map(own, mesh=mesh, in_specs=(FULL, P("data")), out_specs=P(), check_vma=False)
    with pytest.raises(unixent.BackendError, match=r"logits: expected an array that differs along .*check_vma=False"):
        mapped(given.logits, given.target)


def test_a_copy_on_every_device_is_refused(mesh, axes, call):
    given = call("index", "plain")

    def own(logits: Any, target: Any) -> Any:
        return unixent.cross_entropy(logits, target, parallel=axes)

    mapped = jax.shard_map(own, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data"))
    with pytest.raises(unixent.BackendError, match=r"not known to differ along 'model'\."):
        mapped(given.logits, given.target)


def test_names_need_a_shard_map_and_degrees_its_sizes(mesh, axes, call):
    given = call("index", "plain")
    with pytest.raises(unixent.BackendError, match=r"inside jax\.shard_map over 'model', or whole arrays"):
        unixent.cross_entropy(jnp.asarray(given.logits), given.target, parallel=axes)

    def own(logits: Any, target: Any) -> Any:
        return unixent.cross_entropy(logits, target, parallel=replace(axes, model_parallel=2))

    mapped = jax.shard_map(own, mesh=mesh, in_specs=(FULL, P("data")), out_specs=P())
    with pytest.raises(unixent.OptionError, match=r"model_group: expected a group of 2 processes.*got one of 4"):
        mapped(given.logits, given.target)
