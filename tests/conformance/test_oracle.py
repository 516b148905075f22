"""The oracle against mpmath at 50 digits, from the textbook formulas with no thought for cancellation."""

from __future__ import annotations

from dataclasses import replace

import mpmath
import numpy as np
import pytest

from unixent_conformance import oracle
from unixent_conformance.cases import find
from unixent_conformance.cases.inputs import DTYPES, Recipe
from unixent_conformance.model import Call
from unixent_conformance.oracle.solution import positions_of

# The textbook formulas lose as many digits as the logits are apart: e^-700 needs 304 more.
DIGITS = 50 + 310


def textbook(call: Call) -> tuple[list[mpmath.mpf], list[list[mpmath.mpf]], list[list[mpmath.mpf]], list[mpmath.mpf]]:
    """Losses, gradients of the logits, gradients of probabilities and denominators, row by row."""
    o = call.options
    axis = o.get("axis", -1)
    number = mpmath.mpf
    narrow = call.acc_dtype
    x = np.moveaxis(call.logits, axis, -1)
    classes = x.shape[-1]
    x = x.reshape(-1, classes).astype(np.float64)
    indices = call.target.dtype.kind in "iu"
    y = call.target.reshape(-1) if indices else np.moveaxis(call.target, axis, -1).reshape(-1, classes)
    w = [number(1)] * classes if call.weight is None else [number(float(e)) for e in call.weight.astype(narrow)]
    m = np.ones(len(x)) if call.mask is None else call.mask.reshape(-1).astype(narrow)
    s, z, a = (number(o.get(name) or 0) for name in ("label_smoothing", "z_loss", "softcap"))
    k, temperature = number(o.get("scale", 1.0)), number(o.get("temperature", 1.0))
    losses, gradients, probabilities, denominators = [], [], [], []
    for row, label, mask in zip(x, y, m, strict=True):
        raw = [k * number(float(e)) for e in row]
        capped = [(a * mpmath.tanh(e / a) if a else e) / temperature for e in raw]
        lse = mpmath.log(sum(mpmath.exp(e) for e in capped))
        v = number(float(mask)) * int(not indices or int(label) != o.get("ignore_index", -100))
        if indices:
            q = [number(int(c == label)) for c in range(classes)]
        else:
            q = [number(float(e)) for e in np.asarray(label).astype(narrow)]
        t = [w[c] * ((1 - s) * q[c] + s / classes) for c in range(classes)]
        losses.append(v * (sum(t[c] * (lse - capped[c]) for c in range(classes)) + z * lse**2))
        p = [mpmath.exp(e - lse) for e in capped]
        chain = [(1 - mpmath.tanh(e / a) ** 2 if a else 1) * k / temperature for e in raw]
        gradients.append([v * chain[c] * (p[c] * sum(t) - t[c] + 2 * z * lse * p[c]) for c in range(classes)])
        probabilities.append([v * w[c] * (1 - s) * (lse - capped[c]) for c in range(classes)])
        denominators.append(v * (sum(w[c] * q[c] for c in range(classes)) if indices else 1))
    return losses, gradients, probabilities, denominators


def exactly(wide: np.longdouble) -> mpmath.mpf:
    """A longdouble as an mpf, nothing lost: two float64 hold its 64 bits."""
    mantissa, exponent = np.frexp(wide)
    high = float(mantissa)
    return (mpmath.mpf(high) + mpmath.mpf(float(mantissa - np.longdouble(high)))) * mpmath.mpf(2) ** int(exponent)


def close(got: np.ndarray, expected: object, magnitude: np.ndarray, roundings: float) -> None:
    """Every entry within so many roundings of the oracle's arithmetic, relative to its terms' magnitudes."""
    flat = np.ravel(np.array(expected, dtype=object))
    for one, other, size in zip(np.ravel(got), flat, np.ravel(magnitude), strict=True):
        slack = roundings * oracle.UNIT_ROUNDOFF * exactly(size) + mpmath.mpf(10) ** -340
        assert abs(exactly(one) - other) <= slack


RECIPES = {
    "plain": Recipe(),
    "everything": Recipe(weight="zeros", mask="fraction", smoothing=0.3, z_loss=0.1, ignore="inside", positions=(12,)),
    "probabilities": Recipe(target="unnormalised", weight="plain", smoothing=0.2, axis=0, positions=(3, 2)),
    "capped": Recipe(softcap=3.0, scale=4.0),
    "scaled": Recipe(logit_scale=0.3, temperature=0.7, z_loss=0.1),
    "scaled, capped, tempered": Recipe(logit_scale=1.7, softcap=3.0, temperature=0.7, target="unnormalised"),
    "one class": Recipe(classes=1, z_loss=0.5),
}


EVERY_DTYPE = {f"{name}, {dtype}": r.but(dtype=dtype) for name, r in RECIPES.items() for dtype in DTYPES}
# Gaps that only float64 can hold.
APART = {
    "confident by 30": Recipe(dtype="float64", confident=30.0),
    "confident by 300": Recipe(dtype="float64", confident=300.0, weight="plain"),
    "confident one-hot": Recipe(dtype="float64", confident=300.0, target="one-hot"),
    "hopeless": Recipe(dtype="float64", confident=-300.0),
    "far from 0": Recipe(dtype="float64", offset=1e5),
}


@pytest.mark.parametrize("recipe", [pytest.param(r, id=name) for name, r in {**EVERY_DTYPE, **APART}.items()])
def test_value_and_gradients(recipe: Recipe) -> None:
    call = recipe.call()
    rows = oracle.solve(call).rows
    roundings = 32 + 4 * float(rows.gap.max())  # an exponential costs u |x_c - m|, as in the error model
    with mpmath.workdps(DIGITS):
        losses, gradients, probabilities, denominators = textbook(call)
        close(rows.losses(), losses, rows.loss_magnitudes(), roundings)
        close(rows.denominators, denominators, abs(rows.denominators), roundings)
        close(rows.logits_gradients(), gradients, rows.gradient_magnitudes() * rows.transform_grad, roundings)
        if recipe.target != "index":
            close(rows.target_gradients(), probabilities, abs(rows.target_gradients()), roundings)


def test_catalogue_ids_name_their_options() -> None:
    assert find("mask/bool/float32-mean/value").build().mask.dtype == bool


def test_positions_are_solved_once_for_equal_inputs_and_anew_for_others() -> None:
    call = Recipe(weight="plain", smoothing=0.1).call()
    rows, _ = positions_of(call)
    assert positions_of(replace(call, logits=call.logits.copy(), grad_output=np.float32(2)))[0] is rows
    call.logits[0, 0] += 1  # in place: what is known of an input are its values
    assert positions_of(call)[0] is not rows
    others = ({"label_smoothing": 0.2}, {"label_smoothing": 0.1, "softcap": 5.0})
    changed = [replace(call, options=options) for options in others] + [replace(call, weight=None)]
    assert len({id(positions_of(each)[0]) for each in (call, *changed)}) == 4
