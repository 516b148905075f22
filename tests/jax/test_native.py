"""The native kernel in a program of JAX: where it is used, and that it says what XLA's own operators say."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unixent
from unixent_jax.kernel import native
from unixent_native import load

ROOT = Path(__file__).parents[2]
CUSTOM_CALL = f"custom_call @{native.TARGET}"
X = jax.random.normal(jax.random.key(0), (6, 33)) * 3
Y = jnp.array([1, 32, -100, 0, 7, 8])
Q = jax.nn.softmax(jax.random.normal(jax.random.key(1), (6, 33)))
W = jax.random.uniform(jax.random.key(2), (33,))

pytestmark = pytest.mark.skipif(load() is None, reason="the native kernel was not built, or is switched off")


def gradient(x: jax.Array, **options: object) -> tuple[jax.Array, jax.Array]:
    return jax.value_and_grad(lambda x: unixent.cross_entropy(x, Y, **options))(x)  # type: ignore[call-overload, no-any-return]


def lowered(x: jax.Array) -> str:
    return jax.jit(gradient).lower(x).as_text()


def by_xla(monkeypatch: pytest.MonkeyPatch, function, *arguments):  # type: ignore[no-untyped-def]
    """The result of a function without the kernel."""
    with monkeypatch.context() as patched:
        patched.setattr(native, "takes", lambda x, spec: False)
        jax.clear_caches()
        expected = jax.tree.map(np.asarray, function(*arguments))
    jax.clear_caches()
    return expected


def assert_close(actual, expected, wide: bool = False) -> None:  # type: ignore[no-untyped-def]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, *((1e-13, 1e-14) if wide else (2e-5, 2e-6))), actual, expected
    )


def test_a_program_of_one_device_calls_the_library(single_device: None) -> None:
    assert CUSTOM_CALL in lowered(X)


def test_half_precision_is_computed_by_xla_which_widens_it_as_it_reads(single_device: None) -> None:
    assert CUSTOM_CALL not in lowered(X.astype("bfloat16"))


def test_arrays_of_a_mesh_are_left_to_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CUSTOM_CALL not in lowered(X)  # of eight devices
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.clear_caches()
    assert CUSTOM_CALL in lowered(X)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", None))
    assert CUSTOM_CALL not in lowered(jax.device_put(X, sharding))
    jax.clear_caches()


def test_an_exported_program_does_not_need_the_library(single_device: None) -> None:
    exported = jax.export.export(jax.jit(gradient))(X)
    assert CUSTOM_CALL not in exported.mlir_module()
    assert_close(exported.call(X), gradient(X))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": W, "label_smoothing": 0.1, "z_loss": 1e-2},
        {"softcap": 4.0, "mask": jnp.array([1.0, 0.5, 1, 0, 2, 1]), "reduction": "sum"},
        {"normalizer": 7.0},
    ],
    ids=str,
)
def test_value_and_gradient_are_those_of_xla(
    single_device: None, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    assert_close(gradient(X, **options), by_xla(monkeypatch, lambda: gradient(X, **options)))


@pytest.mark.usefixtures("single_device", "wide")
def test_doubles_and_gradients_of_probabilities_are_those_of_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> object:
        x, q = X.astype("float64"), Q.astype("float64")
        return jax.value_and_grad(lambda x, q: unixent.cross_entropy(x, q, weight=W), argnums=(0, 1))(x, q)

    assert_close(gradients(), by_xla(monkeypatch, gradients), wide=True)


def test_classes_lie_along_any_axis(single_device: None) -> None:
    x, y = X.reshape(2, 3, 33), Y.reshape(2, 3)
    expected = jax.value_and_grad(lambda x: unixent.cross_entropy(x, y))(x)
    for axis in (0, 1):
        value, grad = jax.value_and_grad(lambda x: unixent.cross_entropy(x, y, axis=axis))(jnp.moveaxis(x, 2, axis))  # noqa: B023
        assert_close((value, jnp.moveaxis(grad, axis, 2)), expected)


def test_second_derivatives_and_forward_mode_are_those_of_xla(
    single_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(x: jax.Array, q: jax.Array) -> jax.Array:
        return unixent.cross_entropy(x, q, z_loss=0.1)

    @jax.jit
    def derivatives(x: jax.Array, q: jax.Array) -> object:
        return jax.hessian(loss, (0, 1))(x, q), jax.jvp(loss, (x, q), (q, x)), jax.jacrev(jax.grad(loss))(x, q)

    assert_close(derivatives(X, Q), by_xla(monkeypatch, derivatives, X, Q))


@pytest.mark.parametrize("batched", ["logits", "target", "weight", "mask", "all"])
def test_a_batch_of_any_argument_is_the_loop_over_it(single_device: None, batched: str) -> None:
    arguments = {"logits": X, "target": Y, "weight": W, "mask": jnp.linspace(0.0, 1.0, 6)}
    second = {"logits": X[::-1], "target": Y[::-1], "weight": W[::-1], "mask": jnp.linspace(1.0, 0.5, 6)}
    moving = {name for name in arguments if batched in (name, "all")}

    def gradient_of(arguments: dict[str, jax.Array]) -> object:
        return jax.value_and_grad(lambda x: unixent.cross_entropy(**arguments | {"logits": x}))(arguments["logits"])

    stacked = {
        name: jnp.stack([arguments[name], second[name]], 1) if name in moving else arguments[name] for name in arguments
    }
    values, grads = jax.vmap(gradient_of, ({name: 1 if name in moving else None for name in arguments},))(stacked)
    for i, each in enumerate(
        [arguments, {name: second[name] if name in moving else arguments[name] for name in arguments}]
    ):
        assert_close((values[i], grads[i]), gradient_of(each))


def test_no_position_and_no_jit_are_no_special_cases(single_device: None) -> None:
    losses = jax.jit(lambda x, y: unixent.cross_entropy(x, y, reduction="none"))(X[:0], Y[:0])
    assert losses.shape == (0,)
    with jax.disable_jit():
        unjitted = gradient(X)
    assert_close(unjitted, gradient(X))


def test_the_declarations_are_those_of_the_header_of_xla() -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folders = [f"-I{jax.ffi.include_dir()}", f"-I{ROOT / 'backends' / 'unixent_native' / 'source'}"]
    source = ROOT / "tests" / "native" / "xla_declarations.c"
    flags = ["-std=gnu11", "-Werror", "-Wno-enum-compare", "-fsyntax-only"]
    subprocess.run([compiler, *flags, *folders, os.fspath(source)], check=True)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradients_of_the_linear_form_move_forward_as_those_by_xla(
    single_device: None, wide: None, monkeypatch: pytest.MonkeyPatch, reduction: str
) -> None:
    hidden, classifier = (jax.random.normal(jax.random.key(k), (n, 4), float) for k, n in ((3, 6), (4, 33)))
    options = {"chunk": 4, "reduction": reduction, "z_loss": 0.1, "softcap": 3.0, "temperature": 0.7}

    def moved(hidden: jax.Array, classifier: jax.Array) -> tuple[jax.Array, ...]:
        def loss(hidden: jax.Array, classifier: jax.Array) -> jax.Array:
            return unixent.linear_cross_entropy(hidden, classifier, Y, **options).sum()  # type: ignore[arg-type]

        along = (jnp.cos(hidden), jnp.cos(classifier))
        return jax.jvp(jax.grad(loss, (0, 1)), (hidden, classifier), along)[1]  # type: ignore[no-any-return]

    assert CUSTOM_CALL in jax.jit(moved).lower(hidden, classifier).as_text()
    assert_close(moved(hidden, classifier), by_xla(monkeypatch, moved, hidden, classifier), wide=True)
