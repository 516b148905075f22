"""Every transform, against the same loss written with `jax.nn` in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unixent

N, C = 4, 6

pytestmark = pytest.mark.usefixtures("wide", "unoptimized")


def _inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(3), 3)
    x = jax.random.normal(keys[0], (N, C), "float64")
    y = jax.random.randint(keys[1], (N,), 0, C).at[2].set(-100)
    return x, y, jax.nn.softmax(jax.random.normal(keys[2], (N, C), "float64"))


W, M = np.linspace(0.5, 2, C), np.array([1.0, 0.5, 2.0, 0.25])


def reference(x: Any, target: Any, smoothing: float = 0.0, z: float = 0.0, cap: float | None = None) -> Any:
    if cap is not None:
        x = cap * jnp.tanh(x / cap)
    indexed = jnp.issubdtype(target.dtype, jnp.integer)
    v = jnp.where(target != -100, M, 0) if indexed else jnp.asarray(M)
    q = jax.nn.one_hot(jnp.where(target < 0, 0, target), C) if indexed else target
    t = W * ((1 - smoothing) * q + smoothing / C)
    rows = -(t * jax.nn.log_softmax(x)).sum(-1) + z * jax.nn.logsumexp(x, -1) ** 2
    d = v * (W * q).sum(-1) if indexed else v
    return (v * rows).sum() / d.sum()


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "z-loss and softcap": {"z": 0.3, "cap": 2.0},
    "smoothing": {"smoothing": 0.2, "z": 0.1},
}


def ours(x: Any, target: Any, smoothing: float = 0.0, z: float = 0.0, cap: float | None = None) -> Any:
    return unixent.cross_entropy(
        x, target, weight=W, mask=M, label_smoothing=smoothing, z_loss=z, softcap=cap, reduction="mean"
    )


def along(f: Callable[..., Any]) -> Callable[..., Any]:
    def tangent(x: Any, t: Any) -> Any:
        return jax.jvp(lambda x: f(x, t), (x,), (jnp.cos(x),))[1]

    return tangent


def scanned(f: Callable[..., Any]) -> Callable[..., Any]:
    def total(x: Any, t: Any) -> Any:
        return jax.lax.scan(lambda sum, scale: (sum + f(scale * x, t), None), 0.0, jnp.arange(1.0, 4.0))[0]

    return jax.grad(total)


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "value": lambda f: f,
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "jacrev": jax.jacrev,
    "jacfwd": jax.jacfwd,
    "jvp": along,
    "vjp": lambda f: lambda x, t: jax.vjp(lambda x: f(x, t), x)[1](jnp.float64(3.0)),
    "hessian": jax.hessian,
    "hessian by reverse over reverse": lambda f: jax.jacrev(jax.grad(f)),
    "third derivative": lambda f: jax.jacfwd(jax.hessian(f)),
    "vmap": lambda f: lambda x, t: jax.vmap(lambda s: f(s * x, t))(jnp.arange(1.0, 4.0)),
    "vmap of grad": lambda f: lambda x, t: jax.vmap(lambda s: jax.grad(f)(s * x, t))(jnp.arange(1.0, 4.0)),
    "scan": scanned,
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
}


CASES = [
    ("index", "default", True),
    ("index", "z-loss and softcap", True),
    ("index", "z-loss and softcap", False),
    ("index", "smoothing", True),
    ("probability", "z-loss and softcap", True),
]


def every(f: Callable[..., Any]) -> Callable[..., Any]:
    """All transforms of a loss at once: as one program they compile in half the time."""
    return lambda x, t: {name: change(f)(x, t) for name, change in TRANSFORMS.items()}


@pytest.mark.parametrize(("target_kind", "options", "traced"), CASES)
def test_every_transform_equals_that_of_the_reference(target_kind: str, options: str, traced: bool) -> None:
    x, y, q = _inputs()
    target = y if target_kind == "index" else q
    function = every(lambda x, t: ours(x, t, **OPTIONS[options]))
    expected = jax.jit(every(lambda x, t: reference(x, t, **OPTIONS[options])))(x, target)
    got = (jax.jit(function) if traced else function)(x, target)
    assert got.keys() == TRANSFORMS.keys()
    for name in TRANSFORMS:
        close(got[name], expected[name], name)


def close(got: Any, expected: Any, name: str) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13, err_msg=name), got, expected)


@pytest.mark.parametrize("transform", ["grad", "jacfwd", "hessian", "third derivative"])
def test_derivatives_with_respect_to_probabilities(transform: str) -> None:
    x, _, q = _inputs()
    change = TRANSFORMS[transform]
    got = jax.jit(change(lambda q, x: ours(x, q, smoothing=0.2, cap=3.0)))(q, x)
    expected = jax.jit(change(lambda q, x: reference(x, q, smoothing=0.2, cap=3.0)))(q, x)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)


def test_mixed_second_derivatives_equal_those_of_the_reference() -> None:
    x, _, q = _inputs()

    def mixed(f: Callable[..., Any]) -> Any:
        forward, backward = jax.jacfwd(jax.grad(f, argnums=1)), jax.jacrev(jax.grad(f), argnums=1)
        return jax.jit(lambda x, q: (forward(x, q), backward(x, q)))(x, q)

    for name, got, expected in zip(("forward", "backward"), mixed(ours), mixed(reference), strict=True):
        close(got, expected, name)


def test_second_derivatives_of_an_inactive_row_are_zero_whatever_it_holds() -> None:
    x, y, _ = _inputs()
    x = x.at[2].set(jnp.nan)
    hessian = jax.jit(jax.hessian(lambda x: unixent.cross_entropy(x, y, z_loss=0.1, softcap=5.0)))(x)
    assert not np.isnan(hessian).any()
    assert not hessian[2].any()
    assert not hessian[:, :, 2].any()


def test_export_round_trip_with_a_symbolic_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.clear_caches()
    from jax import export

    (batch,) = export.symbolic_shape("b")
    shapes = jax.ShapeDtypeStruct((batch, 512), "float32"), jax.ShapeDtypeStruct((batch,), "int32")
    exported = export.export(jax.jit(jax.value_and_grad(unixent.cross_entropy)))(*shapes)
    x = jax.random.normal(jax.random.key(0), (3, 512), "float32")
    y = jnp.array([0, 511, 7], "int32")
    loss, grad = export.deserialize(exported.serialize()).call(x, y)
    expected, grad_expected = jax.value_and_grad(unixent.cross_entropy)(x, y)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grad, grad_expected, rtol=1e-5)


@pytest.mark.parametrize("form", ["logits", "linear"])
def test_statistics_are_exported_with_a_symbolic_batch(form: str) -> None:
    from jax import export

    def values(scores: jax.Array, target: jax.Array, selected: jax.Array) -> Any:
        given: dict[str, Any] = {"outputs": unixent.PositionStats._fields, "selected": selected, "k": 2}

        def entropies(scores: jax.Array) -> Any:
            if form == "linear":
                stats = unixent.linear_position_stats(scores, jnp.eye(C), target, **given)
            else:
                stats = unixent.position_stats(scores, target, **given)
            return stats.entropy.sum() + stats.selected_log_prob.sum(), stats

        return jax.value_and_grad(entropies, has_aux=True)(scores)

    (batch,) = export.symbolic_shape("b")
    x, y, _ = _inputs()
    arrays = x, y, jnp.stack([y, 5 - y], -1) % C
    shapes = [jax.ShapeDtypeStruct((batch, *each.shape[1:]), each.dtype) for each in arrays]
    close(export.export(jax.jit(values))(*shapes).call(*arrays), values(*arrays), form)


SIZES: dict[str, Callable[[Any], Any]] = {
    "size": lambda x: x.shape[0],
    "product": lambda x: 2 * x.shape[0] * x.shape[1] + 1,
    "all": lambda x: x.size,
    "whole quotient": lambda x: x.shape[1] // 2,
    "quotient": lambda x: x.shape[1] / 2,
}


def linear(x: jax.Array, y: jax.Array, **options: Any) -> jax.Array:
    return unixent.linear_cross_entropy(x, jnp.eye(C, dtype=x.dtype), y, **options)


@pytest.mark.parametrize("form", [unixent.cross_entropy, linear, unixent.CrossEntropyLoss()])
def test_symbolic_sizes_and_expressions_of_them_are_normalizers(form: Callable[..., Any]) -> None:
    from jax import export

    rows, columns = export.symbolic_shape("rows, columns")
    shapes = jax.ShapeDtypeStruct((rows, columns, C), "float32"), jax.ShapeDtypeStruct((rows, columns), "int32")
    x, y = jnp.arange(12.0 * C, dtype="float32").reshape(3, 4, C) % 5, jnp.arange(12, dtype="int32").reshape(3, 4) % C

    def losses(x: jax.Array, y: jax.Array) -> Any:
        return {name: jax.value_and_grad(form)(x, y, normalizer=size(x)) for name, size in SIZES.items()}

    got = export.export(jax.jit(losses))(*shapes).call(x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, losses(x, y))


def test_one_trace_per_shape_and_options() -> None:
    count = 0

    @jax.jit
    def loss(x: Any, y: Any, normalizer: Any) -> Any:
        nonlocal count
        count += 1
        return unixent.CrossEntropyLoss(label_smoothing=0.1)(x, y) / normalizer

    x, y, _ = _inputs()
    for normalizer in (1.0, 2.0, 3.0):
        loss(x, y, normalizer)
    assert count == 1
    loss(x[:2], y[:2], 1.0)
    assert count == 2
