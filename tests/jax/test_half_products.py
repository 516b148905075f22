"""The fused linear form with products of half operands, as on a GPU; the CPU widens what a GPU accumulates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import unixent
from unixent_conformance.api import subject
from unixent_conformance.cases import catalogue
from unixent_conformance.model import Case
from unixent_conformance.runner import run_case
from unixent_jax.linear import problem, products

N, C, D = 40, 70, 24
HALF = ("float16", "bfloat16")
DTYPES = {f"dtype:{name}" for name in (*HALF, "float32", "float64", "mixed")}


@pytest.fixture
def split(gpu_form: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The form for GPUs; the dtype of each gradient that became a sum of half matrices."""
    dtypes: list[str] = []
    terms_of = products.terms_of

    def counted(x: Any, dtype: Any) -> Any:
        dtypes.append(jnp.dtype(dtype).name)
        return terms_of(x, dtype)

    monkeypatch.setattr(products, "terms_of", counted)
    return dtypes


def example(dtype: str) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.integers(C, size=N), "int32")
    return jnp.asarray(rng.normal(size=(N, D)), dtype), jnp.asarray(rng.normal(size=(C, D)), dtype), target


def cases(dtype: str, of_each: int | None) -> list[Case]:
    """Those of the fused linear form in a dtype: so many of each feature and quantity, or all."""
    groups: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in catalogue():
        if case.feature.startswith("fused linear") and case.needs & DTYPES == {f"dtype:{dtype}"}:
            groups[case.feature, case.quantity].append(case)
    assert len(groups) > 8
    return [case for group in groups.values() for case in group[:: max(1, len(group) // (of_each or len(group)))]]


def match(asked: list[Case]) -> None:
    under_test = subject("jax")
    for case in asked:
        result = run_case(case, under_test)
        assert result.verdict.ok, (result.id, result.detail)


@pytest.mark.parametrize("dtype", HALF)
def test_cases_of_every_feature_match(dtype: str, split: list[str]) -> None:
    match(cases(dtype, of_each=1))
    assert set(split) == {dtype}


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", HALF)
def test_all_cases_match(dtype: str, split: list[str]) -> None:
    match(cases(dtype, of_each=None))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_the_terms_add_up(dtype: str, scale: float) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=1000) * scale, "float32")
    unit = products.unit_of(x) if dtype == "float16" else jnp.ones(())
    terms = jax.jit(lambda x: products.terms_of(x, dtype))(x / unit)
    assert {term.dtype.name for term in terms} == {dtype}
    total = sum(np.asarray(term, np.float64) for term in terms) * float(unit)
    exact = np.asarray(x, np.float64)
    assert (np.abs(total - exact) <= (2.0**-24 if dtype == "bfloat16" else 2.0**-22) * np.abs(exact)).all()


def test_an_infinite_entry_stays_infinite_beside_numbers() -> None:
    x = jnp.asarray([1.5, np.inf, -np.inf, np.nan, 0], "float32")
    for dtype in HALF:
        total = sum(np.asarray(term, np.float64) for term in products.terms_of(x, dtype))
        np.testing.assert_array_equal(total, x)
        assert products.unit_of(x) == 2.0**-14
    assert products.unit_of(x[1:]) > 0


def mean(h: Any, w: Any, y: Any) -> Any:
    return unixent.linear_cross_entropy(h, w, y, chunk=16, dtype="float32")


def of_each(h: Any, w: Any, y: Any) -> Any:
    losses = unixent.linear_cross_entropy(h, w, y, chunk=16, reduction="none", dtype="float32")
    return jnp.sum(losses * jnp.cos(jnp.arange(N)))


def entropies(h: Any, w: Any, y: Any) -> Any:
    stats = unixent.linear_position_stats(h, w, y, outputs=("entropy", "log_prob"), chunk=16)
    return jnp.mean((stats.entropy * stats.log_prob).astype("float32"))


def in_shards(h: Any, w: Any, y: Any) -> Any:
    def local(h: Any, w: Any, y: Any) -> Any:
        loss = unixent.linear_cross_entropy(h, w, y, reduction="sum", chunk=3, dtype="float32")
        return jax.lax.psum(loss, "x")

    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    return jax.shard_map(local, mesh=mesh, in_specs=(P("x"), P(), P("x")), out_specs=P())(h, w, y)


def of_batch(h: Any, w: Any, y: Any) -> Any:
    h, y = h.reshape(4, N // 4, D), y.reshape(4, N // 4)
    batched = jax.vmap(lambda h, w, y: mean(h, w, y) + jax.vmap(mean, (0, None, None))(h[None], w, y)[0], (0, None, 0))
    return jnp.sum(batched(h, w, y)) + jnp.sum(jax.vmap(mean, (None, 0, None))(h[0], jnp.stack([w, -w]), y[0]))


GRADIENTS: dict[str, Callable[..., Any]] = {
    "mean": jax.grad(mean, (0, 1)),
    "of each": jax.grad(of_each, (0, 1)),
    "statistics": jax.grad(entropies, (0, 1)),
    "forward": lambda h, w, y: jax.jvp(lambda h, w: mean(h, w, y), (h, w), (h * 2, w[::-1])),
    "in shards": jax.grad(in_shards, (0, 1)),
    "of a batch": jax.grad(of_batch, (0, 1)),
    "batch of gradients": lambda h, w, y: jax.vmap(jax.grad(mean, (0, 1)), (0, None, 0))(
        h.reshape(4, N // 4, D), w, y.reshape(4, N // 4)
    ),
    "second": lambda h, w, y: jax.jvp(lambda h, w: jax.grad(mean, (0, 1))(h, w, y), (h, w), (h * 2, w[::-1])),
    "second in reverse": jax.grad(lambda *of: jnp.sum(jax.grad(of_each, 1)(*of).astype("float32") ** 2), (0, 1)),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", GRADIENTS)
def test_derivatives_are_those_of_wide_products(
    name: str, dtype: str, split: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    got = jax.jit(GRADIENTS[name])(*example(dtype))
    assert set(split) == {dtype}
    monkeypatch.setattr(problem, "takes_halves", lambda *_: False)
    jax.clear_caches()
    due = jax.jit(GRADIENTS[name])(*example(dtype))
    assert len(jax.tree.leaves(got)) > 1
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(due), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # One rounding of the result, at most two where one is differentiated, and what float32 sums differ by.
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(a, b, rtol=2 * eps, atol=2.0**-18 * np.abs(b).max())


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e9, 1e30])
def test_what_float16_would_lose_of_a_gradient_is_scaled(size: float) -> None:
    """The smallest float16 is 2^-24, the largest 2^16."""
    _, w, _ = example("float16")
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=(N, C)) * size, "float32")
    got = products.of_halves(gradient, gradient, w, axes=("ik", "kj", "ij"))
    exact = np.asarray(gradient, np.float64) @ np.asarray(w, np.float64)
    np.testing.assert_allclose(got, exact, rtol=2.0**-18, atol=2.0**-20 * np.abs(exact).max())


@pytest.mark.parametrize("dtype", HALF)
def test_a_row_of_nan_leaves_the_others(dtype: str, split: list[str]) -> None:
    h, w, y = example(dtype)
    h = h.at[5].set(jnp.nan)
    losses, pullback = jax.vjp(lambda h: unixent.linear_cross_entropy(h, w, y, reduction="none"), h)
    (grad,) = pullback(jnp.ones_like(losses))
    others = np.arange(N) != 5
    assert split
    assert np.isfinite(np.asarray(grad, float)[others]).all()
    assert np.isnan(np.asarray(grad, float)[5]).all()


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float32"), ("float16", "bfloat16")])
def test_other_dtypes_are_widened(dtypes: tuple[str, str], split: list[str]) -> None:
    h, w, y = example("float32")
    jax.grad(mean, (0, 1))(h.astype(dtypes[0]), w.astype(dtypes[1]), y)
    assert not split


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["mean", "of each", "statistics", "of a batch", "second"])
def test_on_the_cpu_nothing_changes(
    name: str, dtype: str, single_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a bit of the results nor the memory of the program."""

    def run() -> tuple[list[bytes], int]:
        jax.clear_caches()
        compiled = jax.jit(GRADIENTS[name]).lower(*example(dtype)).compile()
        results = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(compiled(*example(dtype)))]
        return results, compiled.memory_analysis().temp_size_in_bytes

    bits, temporaries = run()
    monkeypatch.setattr(problem, "takes_halves", lambda *_: False)
    widened_bits, widened_temporaries = run()
    assert bits == widened_bits
    assert temporaries <= widened_temporaries + 64
