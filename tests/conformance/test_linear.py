"""The fused linear form's truth against exact rationals and mpmath, and its error model against moved logits."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest

import unixent
from unixent_conformance import oracle, run, tolerance
from unixent_conformance.cases import catalogue, find, linear
from unixent_conformance.cases.linear import Linear
from unixent_conformance.expected import expected
from unixent_conformance.harnesses import load
from unixent_conformance.identity import narrowed
from unixent_conformance.model import Call
from unixent_conformance.runner import run_case
from unixent_conformance.tolerance.linear import LogitError, gamma, logit_error
from unixent_conformance.under_test import Subject
from unixent_mutants.linear import plain_linear

FEATURES = tuple(sorted({case.feature for case in linear.cases()}))

RECIPES = {
    "plain": Linear(linear.INDEX),
    "half": Linear(linear.INDEX.but(dtype="float16", reduction="sum"), bias=False),
    "options": Linear(
        linear.INDEX.but(
            weight="plain", mask="fraction", smoothing=0.2, z_loss=0.1, ignore="inside", grad_output="uneven"
        )
    ),
    "capped": Linear(linear.INDEX.but(softcap=2.0, reduction="none", grad_output="uneven")),
    "scaled": Linear(linear.INDEX.but(logit_scale=0.5, softcap=2.0, temperature=0.7)),
    "probabilities": Linear(linear.PROBABILITY.but(weight="plain", reduction="sum", dtype="float64")),
    "confident": linear.SHAPES["confident"],
}


def number(value: object) -> mpmath.mpf:
    return mpmath.mpf(float(value))  # type: ignore[arg-type]


def logits_of(call: Call) -> list[list[mpmath.mpf]]:
    """h W^T + b without a rounding: every float is a rational."""
    hidden = [[Fraction(float(e)) for e in row] for row in call.hidden.reshape(-1, call.hidden.shape[-1])]
    classifier = [[Fraction(float(e)) for e in row] for row in call.classifier]
    bias = [Fraction(0 if call.bias is None else float(call.bias[c])) for c in range(len(classifier))]
    exact = [
        [sum((a * b for a, b in zip(h, w, strict=True)), start=beta) for w, beta in zip(classifier, bias, strict=True)]
        for h in hidden
    ]
    return [[mpmath.mpf(z.numerator) / z.denominator for z in row] for row in exact]


def textbook(call: Call) -> tuple[list[mpmath.mpf], list[list[mpmath.mpf]], mpmath.mpf]:
    """Losses and logits gradients per position, from the textbook formulas, and what a mean divides by."""
    o, classes = call.options, len(call.classifier)
    w = [number(1 if call.weight is None else call.weight[c]) for c in range(classes)]
    s, z, a = (number(o.get(name) or 0) for name in ("label_smoothing", "z_loss", "softcap"))
    k, temperature = number(o.get("scale", 1.0)), number(o.get("temperature", 1.0))
    indices = call.target.dtype.kind == "i"
    losses, gradients, denominator = [], [], mpmath.mpf(0)
    for n, row in enumerate(logits_of(call)):
        scaled = [k * e for e in row]
        x = [(a * mpmath.tanh(e / a) if a else e) / temperature for e in scaled]
        chain = [(1 - mpmath.tanh(e / a) ** 2 if a else 1) * k / temperature for e in scaled]
        y = call.target.reshape(-1)[n] if indices else -1
        v = number(1 if call.mask is None else call.mask.reshape(-1)[n])
        v = v * int(not indices or y != o.get("ignore_index", -100))
        q = [number(int(c == y) if indices else call.target[n, c]) for c in range(classes)]
        t = [w[c] * ((1 - s) * q[c] + s / classes) for c in range(classes)]
        lse = mpmath.log(sum(mpmath.exp(e) for e in x))
        p = [mpmath.exp(e - lse) for e in x]
        losses.append(v * (sum(t[c] * (lse - x[c]) for c in range(classes)) + z * lse**2))
        gradients.append([v * chain[c] * (p[c] * sum(t) - t[c] + 2 * z * lse * p[c]) for c in range(classes)])
        denominator += v * (sum(w[c] * q[c] for c in range(classes)) if indices else 1)
    return losses, gradients, denominator


def exactly(wide: np.longdouble) -> mpmath.mpf:
    """A longdouble as an mpf, nothing lost: two float64 hold its 64 bits."""
    high = float(wide)
    return mpmath.mpf(high) + mpmath.mpf(float(wide - np.longdouble(high)))


@pytest.mark.parametrize("name", RECIPES)
def test_the_truth_is_that_of_exact_arithmetic(name: str) -> None:
    """Every estimate within 2^-52 of its terms' magnitudes; the bounds themselves are far above."""
    call = RECIPES[name].call()
    estimates = tolerance.estimates(oracle.solve(call), call.differentiable())
    reduction = call.options.get("reduction", "mean")
    with mpmath.workdps(60):
        losses, gradients, denominator = textbook(call)
        scale = 1 / denominator if reduction == "mean" else mpmath.mpf(1)
        up = np.broadcast_to(1.0 if call.grad_output is None else call.grad_output, call.hidden.shape[:-1]).reshape(-1)
        flow = [[number(up[n]) * scale * g for g in row] for n, row in enumerate(gradients)]
        h, w = call.hidden.reshape(len(flow), -1), call.classifier
        expected = {
            "loss": [e * scale for e in losses] if reduction == "none" else [sum(losses) * scale],
            "hidden": [
                sum(g * number(e) for g, e in zip(row, w[:, d], strict=True)) for row in flow for d in range(len(w[0]))
            ],
            "classifier": [
                sum(flow[n][c] * number(h[n, d]) for n in range(len(flow)))
                for c in range(len(w))
                for d in range(len(w[0]))
            ],
            "bias": [sum(row[c] for row in flow) for c in range(len(w))],
        }
        largest = max(abs(e) for row in flow for e in row)
        for part, estimate in estimates.items():
            if part == "target":
                continue  # the oracle's own test covers it: logits enter it only through the rows
            for got, due in zip(np.ravel(estimate.value), expected[part], strict=True):
                room = abs(due) if part == "loss" else largest * 100
                assert abs(exactly(got) - due) <= room * mpmath.mpf(2) ** -52


@pytest.mark.parametrize("name", RECIPES)
def test_moved_logits_stay_within_the_model(name: str) -> None:
    """Logits off by all that is allowed, in the worst and in random directions, move loss and gradients by no more than
    the model says, and by enough for it to mean something."""
    call = RECIPES[name].call()
    exact, error = solved(call)
    raw = exact.linear.hidden @ exact.linear.classifier.T + (
        0 if call.bias is None else call.bias.astype(np.longdouble)
    )
    u = 2.0**-53 if call.acc_dtype == "float64" else 2.0**-24
    eps = gamma(call.hidden.shape[-1] + 1, u) * exact.linear.magnitude
    rng = np.random.default_rng(0)
    sign = np.where(
        np.arange(raw.shape[1]) == call.target.reshape(-1)[:, None] if call.target.ndim == 1 else raw > 0, -1, 1
    )
    active = exact.rows.position_weight != 0
    shares = []
    for direction in [sign, -sign, *rng.choice([-1, 1], (40, *raw.shape))]:
        rows = oracle.rows_of(call, (raw + direction * eps).reshape(*exact.rows.positions, -1))
        nll = abs(rows.nll - exact.rows.nll)[active] / error.nll[active]
        p = abs(rows.p - exact.rows.p)[active] / error.p[active]
        lse = abs(rows.lse - exact.rows.lse)[active] / error.lse[active, 0]
        shares += [float(share.max()) for share in (nll, p, lse)]
    assert max(shares) <= 1 + 8 * oracle.UNIT_ROUNDOFF / u  # the oracle's own roundings, seen in float64
    assert max(shares) > 0.5


def solved(call: Call) -> tuple[oracle.Solution, LogitError]:
    exact = oracle.solve(call)
    assert exact.linear is not None
    return exact, logit_error(exact, exact.linear)


def test_no_bound_is_vacuous() -> None:
    """E of the error model is small in every case that has an answer."""
    largest = {}
    for case in linear.cases():
        if case.raises is None:
            call = case.build()
            largest[case.id] = float(solved(call)[1].largest.max(initial=0))
    assert max(largest.values()) <= 1 / 64, max(largest, key=lambda id: largest[id])
    assert all(case.property is None for case in linear.cases() if case.id not in largest)


def test_bounds_are_of_the_promised_order() -> None:
    """A plain float32 call: a few hundred roundings, not thousands."""
    call = RECIPES["plain"].call()
    for part in expected(call, "linear gradients"):
        value, bound = abs(part.estimate.value).max(), part.estimate.bound.max()
        assert 2.0**-24 * value < bound < 2.0**-24 * value * 400


def test_a_right_implementation_matches_everywhere() -> None:
    report = run(plain_linear, "numpy", features=FEATURES)
    assert report.ok, [(r.id, r.detail) for r in report.cases if not r.verdict.ok][:5]
    assert {result.verdict.value for result in report.cases} == {"matches"}


def test_what_has_no_fused_form_refuses() -> None:
    lacking = replace(plain_linear, linear=None, linear_value_and_grad=None)
    report = run(lacking, "numpy", features=["fused linear chunks"], quick=True)
    assert {result.verdict.value for result in report.cases} == {"refuses"}
    assert "no fused linear form" in report.cases[0].detail


def test_a_backend_that_declares_no_fused_form_may_refuse_everything() -> None:
    """Bad input too: it says no before it looks at the arguments."""

    def no(*arguments: object, **options: object) -> None:
        raise unixent.BackendError("linear_cross_entropy: the backend does not provide the fused linear form")

    capabilities = frozenset({"dtype:float32", "dtype:float64", "target:index", "target:probability"})
    lacking = replace(plain_linear, linear=no, linear_value_and_grad=no, capabilities=capabilities, own_errors=True)
    report = run(lacking, "numpy", features=FEATURES, quick=True)
    assert {result.verdict.value for result in report.cases} == {"refuses"}


def test_a_fused_function_refuses_the_options_that_its_signature_lacks() -> None:
    def fused(hidden: Any, classifier: Any, target: Any, *, reduction: str = "mean", bias: Any = None) -> Any:
        return unixent.linear_cross_entropy(hidden, classifier, target, reduction=reduction, bias=bias)

    report = run(fused, "numpy", linear=True, features=["fused linear", "fused linear chunks"], quick=True)
    assert report.ok, [(r.id, r.detail) for r in report.cases if not r.verdict.ok][:5]
    assert report.counts["matches"] > 10
    lacking = {result.detail for result in report.cases if result.verdict.value == "refuses"}
    assert "has no option label_smoothing" in lacking
    assert not any("chunk" in detail for detail in lacking)


def test_catalogue_has_every_option_fused() -> None:
    """Each option of the unfused form occurs in a fused case."""
    features = {case.id.split("/")[1] for case in catalogue(features=("fused linear",))}
    assert {
        "class-indices",
        "class-probabilities",
        "class-weights",
        "ignore_index",
        "mask",
        "label-smoothing",
        "z-loss",
        "softcap",
        "normalizer",
    } <= features


@pytest.mark.parametrize(
    "id",
    [
        "large-inputs/32000-classes/float32/gradient",
        "minus-infinity/beside-the-target/float32-none/gradient",
        "minus-infinity/all-but-the-target/float32-none/value",
        "NaN/elsewhere/float32-none/gradient",
        "plus-infinity/probabilities/float32-none/target-gradient",
    ],
)
def test_many_classes_and_what_is_not_finite_pass_as_the_logits_of_a_linear_form(id: str) -> None:
    seen = Subject(load("numpy"), plain_linear.seen_as_logits())
    result = run_case(narrowed(find(id)), seen)
    assert result.verdict.value == "matches", result.detail
