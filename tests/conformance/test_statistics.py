"""The oracle's statistics against mpmath, from the textbook formulas with no thought for cancellation."""

from __future__ import annotations

from dataclasses import replace

import mpmath
import numpy as np
import pytest

from unixent_conformance import tolerance
from unixent_conformance.cases import catalogue
from unixent_conformance.cases.statistics import DIFFERENTIABLE, FEATURE
from unixent_conformance.expected import expected
from unixent_conformance.model import Call, Case

NAMES = ("plain", "confident", "ignored and masked", "around a softcap", "classes that do not exist", "hopeless")
CASES = [
    case
    for case in catalogue(features=(FEATURE,))
    if case.id.endswith(("float32/value", "float64/gradient"))
    and any(f"-{name.replace(' ', '-')}/" in case.id for name in NAMES)
]


def transformed(call: Call) -> list[list[mpmath.mpf]]:
    """x' of each row, over the classes that exist, exactly."""
    o = call.options
    k, a, t = o.get("scale", 1.0), o.get("softcap"), o.get("temperature", 1.0)
    rows = np.moveaxis(call.logits, o.get("axis", -1), -1).reshape(-1, call.logits.shape[o.get("axis", -1)])
    result = []
    for row in rows[:, : o.get("num_classes", rows.shape[1])]:
        x = [mpmath.mpf(k) * mpmath.mpf(float(e)) for e in row]
        x = [a * mpmath.tanh(e / a) if a else e for e in x]
        result.append([e / mpmath.mpf(t) for e in x])
    return result


def textbook(call: Call, x: list[mpmath.mpf], row: int, target: int) -> list[mpmath.mpf]:
    """The statistic of one row, as a list."""
    lse = mpmath.log(sum(mpmath.exp(e) for e in x))
    log_p, classes = [e - lse for e in x], range(len(x))
    order = sorted(classes, key=lambda c: (-x[c], c))
    k = call.options.get("k", 0)
    selected = [] if call.selected is None else call.selected.reshape(-1, call.selected.shape[-1])[row].tolist()
    ignored = call.options.get("ignore_index", -100)
    return {
        "log_prob": lambda: [log_p[target]],
        "entropy": lambda: [-sum(mpmath.exp(e) * e for e in log_p)],
        "logsumexp": lambda: [lse],
        "selected_log_prob": lambda: [mpmath.mpf(0) if c == ignored else log_p[c] for c in selected],
        "log_sum_sq": lambda: [mpmath.log(sum(mpmath.exp(2 * e) for e in log_p))],
        "max_prob": lambda: [mpmath.exp(max(log_p))],
        "prediction": lambda: [order[0]],
        "correct": lambda: [order[0] == target],
        "rank": lambda: [order.index(target)],
        "top_log_prob": lambda: [log_p[c] for c in order[:k]],
        "top_index": lambda: order[:k],
        "mean_logit": lambda: [sum(x) / len(x)],
    }[call.statistic]()


def counted(call: Call) -> list[bool]:
    mask = np.ones(np.shape(call.target)) if call.mask is None else call.mask
    return ((call.target != call.options.get("ignore_index", -100)) & (mask != 0)).reshape(-1).tolist()


def near(got: np.longdouble, exact: mpmath.mpf, size: np.longdouble) -> bool:
    high = float(got)
    wide = mpmath.mpf(high) + mpmath.mpf(float(got - np.longdouble(high)))
    return bool(abs(wide - exact) <= mpmath.mpf(2) ** -50 * mpmath.mpf(float(size)) + mpmath.mpf(10) ** -300)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES if case.quantity == "loss"])
def test_a_value_is_that_of_exact_arithmetic(case: Case) -> None:
    call = case.build()
    (part,) = expected(call, "loss")
    columns = part.estimate.value.reshape(np.size(call.target), -1)
    with mpmath.workdps(400):
        rows = transformed(call)
        for n, (x, counts) in enumerate(zip(rows, counted(call), strict=True)):
            due = textbook(call, x, n, int(call.target.reshape(-1)[n])) if counts else [None] * columns.shape[1]
            for got, exact in zip(columns[n], due, strict=True):
                if exact is None:
                    assert got == (-1 if part.dtype == "int64" else 0)
                elif part.dtype in ("int64", "bool"):
                    assert got == exact
                else:
                    largest = max(abs(float(e)) for e in x)
                    size = abs(np.longdouble(got)) * (1 + largest)
                    assert near(got, exact, size + (largest if is_sum(call) else 0))


def is_sum(call: Call) -> bool:
    """Statistics of either sign, which may be near 0 by cancellation."""
    return call.statistic in ("logsumexp", "mean_logit")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES if case.quantity != "loss"])
def test_a_gradient_is_the_difference_quotient_of_exact_arithmetic(case: Case) -> None:
    call = case.build()
    gradient = expected(call, "logits gradient")[1].estimate.value
    axis, step = call.options.get("axis", -1), mpmath.mpf(10) ** -40
    direction = np.random.default_rng(3).integers(-8, 9, call.logits.shape) / 8
    up = call.grad_output.reshape(np.size(call.target), -1)
    flat = np.moveaxis(direction, axis, -1).reshape(-1, call.logits.shape[axis])
    with mpmath.workdps(420):
        change = mpmath.mpf(0)
        for sign in (1, -1):
            moved = shifted(call, flat, sign * step)
            for n, counts in enumerate(counted(call)):
                if counts:
                    values = textbook(call, moved[n], n, int(call.target.reshape(-1)[n]))
                    change += sign * sum(mpmath.mpf(float(u)) * v for u, v in zip(up[n], values, strict=True))
        exact = change / (2 * step)
        pairs = zip(gradient.flat, direction.flat, strict=True)
        got = sum(mpmath.mpf(float(g)) * mpmath.mpf(float(d)) for g, d in pairs)
        size = float(np.nansum(abs(gradient * direction)))
        assert abs(got - exact) <= 1e-14 * size + 1e-300


def shifted(call: Call, direction: np.ndarray, step: mpmath.mpf) -> list[list[mpmath.mpf]]:
    """x' where the logits have moved, exactly."""
    o = call.options
    k, a, t = o.get("scale", 1.0), o.get("softcap"), o.get("temperature", 1.0)
    axis = o.get("axis", -1)
    rows = np.moveaxis(call.logits, axis, -1).reshape(-1, call.logits.shape[axis])
    result = []
    for row, along in zip(rows, direction, strict=True):
        known = range(o.get("num_classes", len(row)))
        x = [mpmath.mpf(k) * (mpmath.mpf(float(row[c])) + step * mpmath.mpf(float(along[c]))) for c in known]
        result.append([(a * mpmath.tanh(e / a) if a else e) / mpmath.mpf(t) for e in x])
    return result


def test_every_output_is_asked_in_its_value_and_those_with_a_gradient_in_that() -> None:
    asked = {(case.build().statistic, case.quantity) for case in catalogue(features=(FEATURE,))}
    assert {name for name, quantity in asked if quantity != "loss"} == set(DIFFERENTIABLE)
    assert len({name for name, quantity in asked if quantity == "loss"}) == 12


def test_an_index_that_is_off_by_one_is_wrong() -> None:
    case = next(case for case in catalogue(features=(FEATURE,)) if case.build().statistic == "rank")
    (part,) = expected(case.build(), "loss")
    right = part.estimate.value.astype(np.int64)
    assert part.compare(right).ok
    assert not part.compare(right + 1).ok
    assert (
        not replace(part, estimate=tolerance.Estimate(part.estimate.value, part.estimate.bound))
        .compare(right.astype(np.int32))
        .ok
    )
