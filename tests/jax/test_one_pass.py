"""The form for GPUs, computed on the CPU: the catalogue, and what is delicate in its reductions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unixent
from unixent_conformance.api import find_tested, subject
from unixent_conformance.cases import catalogue
from unixent_conformance.model import Case
from unixent_conformance.runner import run_case
from unixent_jax.kernel import by_platform, native, one_pass

# Features whose cases are compared with the oracle.
FEATURES = """class indices, class probabilities, label smoothing, class weights, ignore_index, mask, z-loss, softcap,
temperature, axis and shape, result dtype, minus infinity, plus infinity, NaN, uncounted rows, ends of the number line,
confident rows, large inputs, num_classes, upstream gradient, combinations, second derivatives, minus infinity padding,
confident softcap, extreme options, tile edges, fused linear special values""".replace("\n", " ").split(", ")
QUANTITIES = {"loss", "logits gradient", "target gradient", "linear gradients", "second derivatives"}


DTYPES = [f"dtype:{name}" for name in ("float16", "bfloat16", "float32", "float64")]


def groups_of_cases() -> list[list[Case]]:
    """Those of each feature and quantity."""
    implementation, _ = find_tested("jax")
    groups: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in catalogue():
        if case.feature in FEATURES and case.quantity in QUANTITIES and implementation.answers(case):
            groups[case.feature, case.quantity].append(case)
    assert {feature for feature, *_ in groups} == set(FEATURES)
    return list(groups.values())


def one_of_each() -> Iterator[Case]:
    """In each dtype in turn, where the group has it."""
    for i, group in enumerate(groups_of_cases()):
        yield next((case for case in group if DTYPES[i % len(DTYPES)] in case.needs), group[0])


def match(asked: list[Case]) -> None:
    under_test = subject("jax")
    for case in asked:
        result = run_case(case, under_test)
        assert result.verdict.ok, (result.id, result.detail)


def test_cases_of_every_feature_match(gpu_form: list[str]) -> None:
    gpu_form.clear()
    asked = list(one_of_each())
    assert {*DTYPES} <= {need for case in asked for need in case.needs}
    match(asked)
    assert len(gpu_form) >= len(asked) / 2


@pytest.mark.exhaustive
def test_all_cases_match(gpu_form: list[str]) -> None:
    match([case for group in groups_of_cases() for case in group])


def reduced(x: np.ndarray, combine: Callable[..., Any]) -> tuple[float, float]:
    """The maximum of a row and the sum of its exponentials, of parts joined in pairs, neighbours first."""
    top, below = jnp.asarray(x), jnp.zeros_like(x)
    while len(top) > 1:
        odd = (0, len(top) % 2)
        top, below = jnp.pad(top, odd, constant_values=-jnp.inf), jnp.pad(below, odd)
        top, below = combine((top[::2], below[::2]), (top[1::2], below[1::2]))
    return float(top[0]), float(below[0] + jnp.exp(top[0] - one_pass.nearest_step(top[0])))


ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rising": np.sort,
    "falling": lambda x: np.sort(x)[::-1],
    "shuffled": lambda x: x,
}


def in_turn(combine: Callable[..., Any], start: tuple[float, ...], parts: tuple[Any, ...]) -> Any:
    """Parts of a row joined one after the other, as a thread of a GPU takes the hundreds that are its own."""

    def step(carried: Any, part: Any) -> Any:
        return combine(carried, part), None

    init = tuple(jnp.asarray(value, part.dtype) for value, part in zip(start, parts, strict=True))
    return jax.jit(lambda parts: jax.lax.scan(step, init, parts)[0])(parts)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ORDERS)
def test_parts_of_a_row_joined_in_any_order_keep_the_sum_accurate(wide: None, order: str, dtype: str) -> None:
    x = ORDERS[order](np.random.default_rng(0).uniform(-30, 3, 600)).astype(dtype)
    top, below = in_turn(one_pass.combine, (-np.inf, 0), (jnp.asarray(x), jnp.zeros_like(x)))
    exact = np.exp(np.longdouble(x) - x.max()).sum()
    ours = np.longdouble(below + jnp.exp(top - one_pass.nearest_step(top))) * np.exp(
        np.longdouble(one_pass.nearest_step(top)) - x.max()
    )
    assert top == x.max()
    assert abs(ours - exact) <= 16 * np.finfo(dtype).epsneg * exact


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("by", [0, 88, 110])
def test_so_do_the_sums_of_mixed_targets(wide: None, by: float, order: str, dtype: str) -> None:
    """With a pivot that leads by so much that each exponential beside its own is no normal float32."""
    x = ORDERS[order](np.append(np.random.default_rng(0).uniform(-30, 3, 599), 3 + by)).astype(dtype)
    coefs = np.random.default_rng(1).random(600).astype(dtype)
    zero = jnp.zeros_like(x)
    parts = (jnp.asarray(x), jnp.arange(600), zero, jnp.asarray(coefs), zero, zero)
    top, pivot, sum_rest, coef, others, gaps = in_turn(one_pass.combine_mixed, (-np.inf, 0, 0, 0, 0, 0), parts)
    rest = np.arange(600) != x.argmax()
    exact_sum = np.exp(np.longdouble(x) - float(one_pass.nearest_step(top)))[rest].sum() * one_pass.SCALE[dtype]
    exact_gaps = (coefs.astype(np.longdouble) * (x.max() - x.astype(np.longdouble))).sum()
    assert (top, pivot, coef) == (x.max(), x.argmax(), coefs[x.argmax()])
    u = np.finfo(dtype).epsneg
    for got, exact in ((sum_rest, exact_sum), (others, coefs[rest].astype(np.longdouble).sum()), (gaps, exact_gaps)):
        assert abs(np.longdouble(got) - exact) <= 16 * u * exact


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", range(9))
def test_nan_and_infinity_reach_the_sum_from_everywhere(value: float, place: int) -> None:
    x = np.arange(9, dtype=np.float32)
    x[place] = value
    top, total = reduced(x, one_pass.combine)
    assert np.isnan(total) or np.isnan(top)


@pytest.mark.parametrize("largest", [-np.inf, np.finfo(np.float32).min, -5.0, 0.0, np.finfo(np.float32).max])
def test_infinitely_low_classes_add_nothing(largest: float) -> None:
    x = np.full(7, -np.inf, np.float32)
    assert reduced(x, one_pass.combine) == (-np.inf, 0)
    x[4] = largest
    top, total = reduced(x, one_pass.combine)
    assert top == largest
    exact = np.exp(largest - float(one_pass.nearest_step(jnp.float32(largest))))
    assert total == pytest.approx(exact if largest > -np.inf else 0, rel=1e-6, abs=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 30.0}, {"z_loss": 0.1, "num_classes": 500}, {"label_smoothing": 0.1, "softcap": 30.0}],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_programs_for_the_cpu_stay_what_they_are(
    single_device: None, monkeypatch: pytest.MonkeyPatch, dtype: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(native, "takes", lambda x, spec: False)

    def program() -> str:
        jax.clear_caches()
        loss = jax.value_and_grad(lambda x, y: unixent.cross_entropy(x, y, **options))
        operands = (jax.ShapeDtypeStruct((64, 512), dtype), jax.ShapeDtypeStruct((64,), "int32"))
        hlo = jax.jit(loss).lower(*operands).compile().as_text()
        # Without the counters behind names, and what the operation before is called.
        names = r", metadata=\{[^}]*\}|(?<=[a-z_])(\.\d+)+|_rows_by_platform|_custom_jvp_call"
        return re.sub(names, "", hlo[hlo.index("\n%") :])

    chosen = program()
    monkeypatch.setattr(by_platform, "rows", lambda forms, spec, *arrays: forms.default(spec, *arrays))
    assert chosen == program()
