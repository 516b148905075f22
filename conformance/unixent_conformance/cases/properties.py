"""What must hold between calls: invariances, agreement of the forms, inputs left alone, the same bits in any batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unixent_conformance import expect
from unixent_conformance.cases.inputs import DTYPES, Recipe
from unixent_conformance.cases.model import Call, Case, Finding, needs_of
from unixent_conformance.oracle import Array

if TYPE_CHECKING:
    from unixent_conformance.runner import Subject

INVARIANCE, UNTOUCHED, BATCH = "invariances", "inputs unmutated", "batch invariance"


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        recipes = {
            "plain": Recipe(dtype=dtype, positions=(24,), reduction="none"),
            "weighted": Recipe(dtype=dtype, positions=(24,), reduction="none", weight="plain", mask="fraction"),
            "smoothed": Recipe(dtype=dtype, positions=(24,), reduction="none", smoothing=0.1, z_loss=0.01),
        }
        for name, recipe in recipes.items():
            for word, holds in (("permutation", permutation), ("determinism", determinism)):
                yield _case(f"{INVARIANCE}/{word}/{name}/{dtype}", INVARIANCE, recipe, holds, name == "plain")
            if name != "smoothed":
                yield _case(f"{INVARIANCE}/shift/{name}/{dtype}", INVARIANCE, recipe.but(softcap=None), shift)
            yield _case(f"{INVARIANCE}/one-hot/{name}/{dtype}", INVARIANCE, recipe, one_hot, dtype == "float32")
            yield _case(
                f"{INVARIANCE}/reductions agree/{name}/{dtype}", INVARIANCE, recipe, reductions, name == "plain"
            )
            yield _case(
                f"{INVARIANCE}/several at once/{name}/{dtype}", INVARIANCE, recipe.but(target="probability"), tuples
            )
            weighted = recipe.but(weight="plain", mask="fraction", normalizer="array", reduction="mean")
            yield _case(f"{UNTOUCHED}/{name}/{dtype}", UNTOUCHED, weighted, untouched, dtype == "float32")
            hot = weighted.but(target="probability", ignore="none")
            yield _case(f"{UNTOUCHED}/{name}, probabilities/{dtype}", UNTOUCHED, hot, untouched)
        ignored = Recipe(dtype=dtype, positions=(24,), ignore="default", softcap=5.0, reduction="mean")
        yield _case(f"{UNTOUCHED}/ignored and capped/{dtype}", UNTOUCHED, ignored, untouched, dtype == "float32")
        for classes, rows in ((7, 300), (1000, 70), (33_000, 5)):
            for name, more in BATCHES.items():
                if rows == 5 and name != "plain":
                    continue
                recipe = Recipe(dtype=dtype, positions=(rows,), classes=classes, reduction="none", **more)
                quick = dtype == "float32" and classes == 7
                yield _case(f"{BATCH}/{name}/{classes} classes/{dtype}", BATCH, recipe, batches, quick)


BATCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"weight": "plain", "mask": "fraction", "smoothing": 0.1, "z_loss": 0.01, "softcap": 8.0},
    "probabilities": {"target": "probability"},
}


def _case(id: str, feature: str, recipe: Recipe, holds: Any, quick: bool = False) -> Case:
    needs = needs_of(replace(recipe.call(), options={}))
    if feature == BATCH:
        needs |= {"batch_invariant"}
    if holds is one_hot:
        needs |= {"target:probability"}
    return Case(id.replace(" ", "-").replace(",", ""), feature, recipe.call, needs=needs, holds=holds, quick=quick)


def permutation(subject: Subject, call: Call) -> Finding | None:
    """The losses of permuted positions are the permuted losses."""
    order = np.random.default_rng(0).permutation(len(call.logits))
    mask = None if call.mask is None else call.mask[order]
    permuted = replace(call, logits=call.logits[order], target=call.target[order], mask=mask)
    loss, gradient = subject.gradient(call)
    other_loss, other_gradient = subject.gradient(permuted)
    return _agree(call, "loss", loss[order], other_loss, order) or _agree(
        call, "gradient", gradient[order], other_gradient, order
    )


def shift(subject: Subject, call: Call) -> Finding | None:
    """A constant added to all logits of a row changes nothing; made exact by keeping to multiples of 1/4."""
    grid = (np.round(call.logits.astype(np.float64) * 4) / 4).clip(-8, 8)
    near = replace(call, logits=grid.astype(call.logits.dtype))
    far = replace(call, logits=(grid + 16).astype(call.logits.dtype))
    loss, gradient = subject.gradient(near)
    other_loss, other_gradient = subject.gradient(far)
    return _agree(near, "loss", loss, other_loss) or _agree(near, "gradient", gradient, other_gradient)


def one_hot(subject: Subject, call: Call) -> Finding | None:
    """A class index is the distribution that is 1 there; only the denominator of a mean may differ."""
    hot = (np.arange(call.logits.shape[-1]) == call.target[..., None]).astype(call.logits.dtype)
    loss, gradient = subject.gradient(call)
    other_loss, other_gradient = subject.gradient(replace(call, target=hot))
    return _agree(call, "loss", loss, other_loss) or _agree(call, "gradient", gradient, other_gradient)


def determinism(subject: Subject, call: Call) -> Finding | None:
    """The same call gives the same bits."""
    first, second = subject.gradient(call), subject.gradient(call)
    for name, one, other in zip(("loss", "gradient"), first, second, strict=True):
        if one.tobytes() != other.tobytes():
            return Finding(f"{name}: two equal calls differ in {_differing(one, other)} elements")
    return None


def reductions(subject: Subject, call: Call) -> Finding | None:
    """The sum is the numerator of the terms, and the mean their quotient: compared with terms of the same dtype."""
    wide = call.acc_dtype
    numerator, denominator = subject.terms(replace(call, options=_less(call, "reduction")))
    total = subject.loss(replace(call, options={**call.options, "reduction": "sum", "dtype": wide}))
    mean = subject.loss(replace(call, options={**call.options, "reduction": "mean", "dtype": wide}))
    summed = expect.expected(replace(call, options={**call.options, "reduction": "sum", "dtype": wide}), "loss")[0]
    part = expect.expected(replace(call, options={**call.options, "reduction": "mean", "dtype": wide}), "loss")[0]
    for name, one, other, due in (
        ("sum and numerator", total, numerator, summed),
        ("mean and quotient", mean, numerator / denominator, part),
    ):
        allowed = 2 * (due.estimate.bound + due.rounding())
        if not abs(np.longdouble(one) - np.longdouble(other)) <= allowed:
            return Finding(f"{name} differ: {one!r} and {other!r}, more than {float(allowed):.3g}")
    return None


def tuples(subject: Subject, call: Call) -> Finding | None:
    """wrt=(a, b) gives what wrt=a and wrt=b give, in that order."""
    both = subject.gradients(call, ("target", "logits"))
    for name, got in zip(("target", "logits"), both, strict=True):
        alone = subject.gradient(call, name)[1]
        if alone.tobytes() != got.tobytes():
            return Finding(f"gradient of {name}: asked together, {_differing(alone, got)} elements differ")
    return None


def untouched(subject: Subject, call: Call) -> Finding | None:
    """No input is written to, neither by the value nor by the gradient."""
    changed = subject.touched(call)
    return Finding(f"{', '.join(changed)} written to") if changed else None


def batches(subject: Subject, call: Call) -> Finding | None:
    """A position's value and gradient have the same bits in any company."""
    whole = subject.gradient(call)
    n = len(call.logits)
    for rows in (slice(0, 1), slice(n - 1, n), slice(1, 3), slice(0, n // 2 + 1), slice(3, n), slice(None, None, 2)):
        part = subject.gradient(_rows(call, rows))
        for name, one, other in zip(("loss", "gradient"), whole, part, strict=True):
            if one[rows].tobytes() != other.tobytes():
                start, stop, step = rows.indices(n)
                named = f"rows {start}:{stop}:{step} of {n}"
                return Finding(f"{name}: {named} alone differ in {_differing(one[rows], other)} elements")
    return None


def _rows(call: Call, rows: slice) -> Call:
    mask = None if call.mask is None else call.mask[rows]
    return replace(call, logits=call.logits[rows].copy(), target=call.target[rows].copy(), mask=mask)


def _agree(call: Call, name: str, one: Array, other: Array, order: Array | None = None) -> Finding | None:
    """Two answers to what is mathematically one question: no further apart than twice the bound."""
    part = expect.expected(call, "logits gradient")[0 if name == "loss" else 1]
    allowed = 2 * (part.estimate.bound + part.rounding())
    allowed = allowed if order is None else allowed[order]
    apart = abs(one.astype(np.longdouble) - other.astype(np.longdouble))
    if bool((apart <= allowed).all()):
        return None
    units = apart / allowed
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(units)), units.shape))
    return Finding(f"{name} at {index}: {float(one[index])!r} and {float(other[index])!r}", float(units[index]))


def _differing(one: Array, other: Array) -> int:
    return int((one.view(np.uint8) != other.view(np.uint8)).sum()) if one.shape == other.shape and one.ndim else 1


def _less(call: Call, *names: str) -> dict[str, Any]:
    return {name: value for name, value in call.options.items() if name not in names}
