"""The oracle's sparse targets against mpmath, from the textbook formulas with no thought for cancellation."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

from unixent_conformance.cases import catalogue
from unixent_conformance.cases.sparse import FEATURE
from unixent_conformance.expected import expected
from unixent_conformance.model import Call, Case

Rows = list[list[mpmath.mpf]]

# What the textbook formulas have no number for.
SPECIAL = ("infinity", "NaN", "out-of-range", "no-positions", "wide", "terms", "every-class", "no-probability")
CASES = [
    case
    for case in catalogue(features=(FEATURE,))
    if "/float32/" in case.id and not any(word in case.id for word in SPECIAL)
]


def rows_of(call: Call, step: mpmath.mpf, direction: Any) -> Rows:
    """x' of each row where the logits have moved, over the classes that exist, exactly."""
    o = call.options
    k, a, t = o.get("scale", 1.0), o.get("softcap"), o.get("temperature", 1.0)
    axis = o.get("axis", -1)
    flat = np.moveaxis(call.logits, axis, -1).reshape(-1, call.logits.shape[axis])
    along = np.moveaxis(direction, axis, -1).reshape(flat.shape)
    result = []
    for row, moved in zip(flat, along, strict=True):
        known = range(o.get("num_classes", len(row)))
        x = [mpmath.mpf(k) * (mpmath.mpf(float(row[c])) + step * mpmath.mpf(float(moved[c]))) for c in known]
        result.append([(a * mpmath.tanh(e / a) if a else e) / mpmath.mpf(t) for e in x])
    return result


def loss(call: Call, x: list[mpmath.mpf], ids: list[int], values: list[mpmath.mpf]) -> mpmath.mpf:
    """l_n without v_n."""
    o, classes = call.options, range(len(x))
    w = [mpmath.mpf(1) if call.weight is None else mpmath.mpf(float(call.weight[c])) for c in classes]
    s, z = (mpmath.mpf(o.get(name, 0)) for name in ("label_smoothing", "z_loss"))
    ignored = o.get("ignore_index", -100)
    lse = mpmath.log(sum(mpmath.exp(e) for e in x))
    nll = [lse - e for e in x]
    kept = [(c, mpmath.exp(q) if call.log_probs else q) for c, q in zip(ids, values, strict=True) if c != ignored]
    total = sum((q for _, q in kept), mpmath.mpf(0))
    part = sum((w[c] * q * nll[c] for c, q in kept), mpmath.mpf(0))
    if call.tail == "renormalize":
        part = part / total if kept else mpmath.mpf(0)
    if call.tail == "bucket":
        rest = sum((mpmath.exp(-nll[c]) for c in classes if c not in dict(kept)), mpmath.mpf(0))
        part += max(mpmath.mpf(0), 1 - total) * -mpmath.log(rest)
    return (1 - s) * part + s / len(x) * sum(a * b for a, b in zip(w, nll, strict=True)) + z * lse**2


def losses(call: Call, step: Any = 0, for_logits: Any = None, for_target: Any = None) -> list[mpmath.mpf]:
    """v_n l_n, over the denominator of a mean."""
    step = mpmath.mpf(step)
    moved = np.zeros(call.logits.shape) if for_logits is None else for_logits
    rows, n = rows_of(call, step, moved), int(np.prod(call.ids.shape[:-1]))
    mask = np.ones(n) if call.mask is None else call.mask.reshape(-1)
    given, ids = (array.reshape(n, -1) for array in (call.target, call.ids))
    along = np.zeros(given.shape) if for_target is None else for_target.reshape(given.shape)
    result = []
    for i in range(n):
        values = [mpmath.mpf(float(q)) + step * mpmath.mpf(float(d)) for q, d in zip(given[i], along[i], strict=True)]
        v = mpmath.mpf(float(mask[i]))
        result.append(v * loss(call, rows[i], ids[i].tolist(), values) if v else v)
    if call.reduction == "none":
        return result
    normalizer = call.options.get("normalizer")
    divisor = sum(mpmath.mpf(float(v)) for v in mask) if normalizer is None else mpmath.mpf(float(normalizer))
    return [sum(result) / divisor]


def wide(value: Any) -> mpmath.mpf:
    high = float(value)
    return mpmath.mpf(high) + mpmath.mpf(float(np.longdouble(value) - np.longdouble(high)))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES if case.quantity == "loss"])
def test_a_value_is_that_of_exact_arithmetic(case: Case) -> None:
    call = case.build()
    (part,) = expected(call, "loss")
    with mpmath.workdps(120):
        due = losses(call)
        for got, exact in zip(np.ravel(part.estimate.value), due, strict=True):
            assert abs(wide(got) - exact) <= mpmath.mpf(2) ** -50 * abs(exact)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES if "gradient" in case.quantity])
def test_a_gradient_is_the_difference_quotient_of_exact_arithmetic(case: Case) -> None:
    call = case.build()
    gradient = expected(call, case.quantity)[1].estimate.value
    direction, step = np.random.default_rng(3).integers(-8, 9, gradient.shape) / 8, mpmath.mpf(10) ** -40
    moving = {"for_logits" if case.quantity == "logits gradient" else "for_target": direction}
    with mpmath.workdps(140):
        up = [mpmath.mpf(float(u)) for u in np.ravel(call.grad_output)]
        change = [
            u * (a - b) for u, a, b in zip(up, losses(call, step, **moving), losses(call, -step, **moving), strict=True)
        ]
        exact = sum(change) / (2 * step)
        got = sum(
            (wide(g * np.longdouble(d)) for g, d in zip(gradient.flat, direction.flat, strict=True)), mpmath.mpf(0)
        )
        assert abs(got - exact) <= 1e-14 * float(abs(gradient * direction).sum()) + 1e-60


def test_every_tail_is_asked_in_its_value_and_in_both_gradients() -> None:
    asked = {(case.build().tail, case.quantity) for case in catalogue(features=(FEATURE,))}
    assert {
        (t, q) for t in ("drop", "renormalize", "bucket") for q in ("loss", "logits gradient", "target gradient")
    } <= asked
    assert len(catalogue(features=(FEATURE,))) < 200
