"""What must hold between calls: invariances, agreement of the forms, inputs left alone, the same bits in any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from unixent_conformance.cases.building import make
from unixent_conformance.cases.inputs import DTYPES, Recipe
from unixent_conformance.expected import Part, expected
from unixent_conformance.harness import Unsupported
from unixent_conformance.model import Array, Call, Case, Finding
from unixent_conformance.under_test import Subject

INVARIANCE, UNTOUCHED, BATCH = "invariances", "inputs unmutated", "batch invariance"

BATCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"weight": "plain", "mask": "fraction", "smoothing": 0.1, "z_loss": 0.01, "softcap": 8.0},
    "probabilities": {"target": "probability"},
}


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        plain = Recipe(dtype=dtype, positions=(24,), reduction="none")
        recipes = {
            "plain": plain,
            "weighted": plain.but(weight="plain", mask="fraction"),
            "smoothed": plain.but(smoothing=0.1, z_loss=0.01),
        }
        for name, recipe in recipes.items():
            held = (("permutation", permutation), ("determinism", determinism), ("results last", results_last))
            for word, holds in held:
                yield _case(f"{INVARIANCE}/{word}/{name}/{dtype}", INVARIANCE, recipe, holds, name == "plain")
            if name != "smoothed":
                yield _case(f"{INVARIANCE}/shift/{name}/{dtype}", INVARIANCE, recipe, shift)
            yield _case(f"{INVARIANCE}/one-hot/{name}/{dtype}", INVARIANCE, recipe, one_hot, dtype == "float32")
            agree = f"{INVARIANCE}/reductions agree/{name}/{dtype}"
            yield _case(agree, INVARIANCE, recipe, reductions, name == "plain")
            at_once = f"{INVARIANCE}/several at once/{name}/{dtype}"
            yield _case(at_once, INVARIANCE, recipe.but(target="probability"), tuples)
            weighted = recipe.but(weight="plain", mask="fraction", normalizer="array", reduction="mean")
            yield _case(f"{UNTOUCHED}/{name}/{dtype}", UNTOUCHED, weighted, untouched, dtype == "float32")
            hot = weighted.but(target="probability")
            yield _case(f"{UNTOUCHED}/{name}, probabilities/{dtype}", UNTOUCHED, hot, untouched)
        ignored = Recipe(dtype=dtype, positions=(24,), ignore="default", grad_output="uneven")
        for name, recipe in {
            "few options": plain.but(grad_output="uneven"),
            "ignored": ignored,
            "ignored and capped": ignored.but(softcap=5.0),
        }.items():
            yield _case(f"{UNTOUCHED}/{name}/{dtype}", UNTOUCHED, recipe, untouched, dtype in ("float32", "bfloat16"))
        for classes, rows in ((7, 300), (1000, 70), (33_000, 5)):
            for name, more in BATCHES.items():
                if rows == 5 and name != "plain":
                    continue
                recipe = Recipe(dtype=dtype, positions=(rows,), classes=classes, reduction="none", **more)
                quick = dtype == "float32" and classes == 7
                yield _case(f"{BATCH}/{name}/{classes} classes/{dtype}", BATCH, recipe, batches, quick)


def _case(id: str, feature: str, recipe: Recipe, holds: Any, quick: bool = False) -> Case:
    needs = recipe.needs()
    if feature == BATCH:
        needs |= {"batch_invariant"}
    if holds is one_hot:
        needs |= {"target:probability"}
    return make(id, feature, recipe.call, needs=needs, property=holds, compared=COMPARED.get(holds), quick=quick)


def permutation(subject: Subject, call: Call) -> Finding | None:
    """The losses of permuted positions are the permuted losses."""
    given, other = permuted(call)
    answer = tuple(part[_order(call)] for part in subject.gradients(given))
    words = ("in the order of the permuted positions", "of the permuted positions")
    return _agree(given, answer, subject.gradients(other), words, _order(call))


def permuted(call: Call) -> tuple[Call, Call]:
    return call, _rows(call, _order(call))


def _order(call: Call) -> Array:
    return np.random.default_rng(0).permutation(len(call.logits))


def shift(subject: Subject, call: Call) -> Finding | None:
    """A constant added to all logits of a row changes nothing."""
    near, far = shifted(call)
    return _agree(near, subject.gradients(near), subject.gradients(far), ("of the logits", "of the logits + 16"))


def shifted(call: Call) -> tuple[Call, Call]:
    """Made exact by keeping to multiples of 1/4."""
    grid = (np.round(call.logits.astype(np.float64) * 4) / 4).clip(-8, 8)
    near, far = grid.astype(call.logits.dtype), (grid + 16).astype(call.logits.dtype)
    return replace(call, logits=near), replace(call, logits=far)


def one_hot(subject: Subject, call: Call) -> Finding | None:
    """A class index is the distribution that is 1 there; only the denominator of a mean may differ."""
    indices, hot = as_one_hot(call)
    words = ("of class indices", "of their one-hot rows")
    return _agree(indices, subject.gradients(indices), subject.gradients(hot), words)


def as_one_hot(call: Call) -> tuple[Call, Call]:
    hot = (np.arange(call.logits.shape[-1]) == call.target[..., None]).astype(call.logits.dtype)
    return call, replace(call, target=hot)


def determinism(subject: Subject, call: Call) -> Finding | None:
    """The same call gives the same bits."""
    for name, one, other in zip(NAMES, subject.gradients(call), subject.gradients(call), strict=True):
        if one.tobytes() != other.tobytes():
            return Finding(f"{name}: two equal calls differ in {_differing(one, other)} elements")
    return None


def results_last(subject: Subject, call: Call) -> Finding | None:
    """A result is the caller's own: the next call of the same shape leaves it as it is."""
    first = subject.gradients(call)
    before = [part.tobytes() for part in first]
    subject.gradients(replace(call, logits=np.flip(call.logits).copy()))
    for name, part, bits in zip(NAMES, first, before, strict=True):
        if part.tobytes() != bits:
            return Finding(f"{name}: the next call writes to the result of this one")
    return None


def reductions(subject: Subject, call: Call) -> Finding | None:
    """The sum is the numerator of the terms, and the mean their quotient: compared with terms of the same dtype."""
    without = {name: value for name, value in call.options.items() if name != "reduction"}
    numerator, denominator = subject.terms(replace(call, options=without))
    for name, reduction, of_terms in (
        ("sum and numerator", "sum", numerator),
        ("mean and quotient", "mean", numerator / denominator),
    ):
        reduced = replace(call, options={**call.options, "reduction": reduction, "dtype": call.acc_dtype})
        loss, allowed = subject.loss(reduced), _allowed(expected(reduced, "loss")[0])
        if not abs(np.longdouble(loss) - np.longdouble(of_terms)) <= allowed:
            return Finding(f"{name} differ: {loss!r} and {of_terms!r}, more than {float(allowed):.3g}")
    return None


def tuples(subject: Subject, call: Call) -> Finding | None:
    """wrt=(a, b) gives what wrt=a and wrt=b give, in that order."""
    if subject.implementation.value_and_grad is None:
        raise Unsupported(f"{subject.implementation.name} has no value_and_grad")
    wrt = ("target", "logits")
    for name, together in zip(wrt, subject.gradients(call, wrt)[1:], strict=True):
        alone = subject.gradients(call, (name,))[1]
        if alone.tobytes() != together.tobytes():
            return Finding(f"gradient of {name}: asked together, {_differing(alone, together)} elements differ")
    return None


def untouched(subject: Subject, call: Call) -> Finding | None:
    """No input is written to, neither by the value nor by the gradient."""
    changed = subject.written_to(call)
    return Finding(f"{', '.join(changed)} written to") if changed else None


def batches(subject: Subject, call: Call) -> Finding | None:
    """A position's value and gradient have the same bits in any company."""
    whole = subject.gradients(call)
    n = len(call.logits)
    for rows in (slice(0, 1), slice(n - 1, n), slice(1, 3), slice(0, n // 2 + 1), slice(3, n), slice(None, None, 2)):
        part = subject.gradients(_rows(call, rows))
        for name, one, other in zip(NAMES, whole, part, strict=True):
            if one[rows].tobytes() != other.tobytes():
                start, stop, step = rows.indices(n)
                differing = _differing(one[rows], other)
                return Finding(f"{name}: rows {start}:{stop}:{step} of {n} alone differ in {differing} elements")
    return None


NAMES = ("loss", "gradient")

# Of those that compare two answers within a bound, the calls: fewer digits may explain each answer alone.
COMPARED: dict[Any, Callable[[Call], tuple[Call, Call]]] = {
    permutation: permuted,
    shift: shifted,
    one_hot: as_one_hot,
}


def _rows(call: Call, rows: slice | Array) -> Call:
    mask = None if call.mask is None else call.mask[rows]
    return replace(call, logits=call.logits[rows].copy(), target=call.target[rows].copy(), mask=mask)


def _agree(
    call: Call,
    answer: tuple[Array, ...],
    other_answer: tuple[Array, ...],
    words: tuple[str, str],
    order: Any = slice(None),
) -> Finding | None:
    """Two answers to what is mathematically one question, in these words: no further apart than twice the bound."""
    parts = expected(call, "logits gradient")
    for name, part, one, other in zip(NAMES, parts, answer, other_answer, strict=True):
        apart = abs(one.astype(np.longdouble) - other.astype(np.longdouble))
        allowed = _allowed(part)[order]
        if not bool((apart <= allowed).all()):
            units = apart / allowed
            index = tuple(int(i) for i in np.unravel_index(int(np.argmax(units)), units.shape))
            both = " and ".join(f"{float(a[index])!r} {text}" for a, text in zip((one, other), words, strict=True))
            most = f"more than {float(allowed[index]):.3g} apart ({units[index]:.3g} times the bound)"
            return Finding(f"{name} at {index}: got {both}, {most}", float(units[index]))
    return None


def _allowed(part: Part) -> Array:
    return np.asarray(2 * (part.estimate.bound + part.rounding()))


def _differing(one: Array, other: Array) -> int:
    return int((one.view(np.uint8) != other.view(np.uint8)).sum()) if one.shape == other.shape and one.ndim else 1
