"""Second derivatives: how the gradient changes where the logits, and probabilities, move in some direction.

They are asked in the modes in which a framework differentiates, each by its own route (twice backward, or forward over
backward), and tell a gradient that is differentiated from one that was saved and is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import make
from unixent_conformance.cases.inputs import Recipe
from unixent_conformance.cases.linear import Linear
from unixent_conformance.cases.statistics import DIFFERENTIABLE
from unixent_conformance.model import Array, Call, Case, Tier

FEATURE = "second derivatives"

SMALL = Recipe(dtype="float64", positions=(4,), classes=3, scale=1.5)
PROBABILITY = SMALL.but(target="unnormalised")

RECIPES: dict[str, Recipe | Linear] = {
    "class indices": SMALL,
    "class indices, each position": SMALL.but(reduction="none"),
    "class probabilities": PROBABILITY,
    "class probabilities, each position": PROBABILITY.but(reduction="none", weight="plain"),
    "weights and a mask": SMALL.but(weight="plain", mask="fraction"),
    "ignored positions": SMALL.but(ignore="default", positions=(8,), reduction="sum"),
    "label smoothing": SMALL.but(smoothing=0.2, weight="plain"),
    "z-loss": SMALL.but(z_loss=0.3, reduction="none"),
    "softcap": SMALL.but(softcap=2.0),
    "temperature": SMALL.but(logit_scale=1.5, softcap=2.0, temperature=0.7),
    "everything": SMALL.but(smoothing=0.1, z_loss=0.1, softcap=3.0, weight="plain", mask="fraction"),
    "everything, probabilities": PROBABILITY.but(
        smoothing=0.1, z_loss=0.1, logit_scale=1.5, softcap=3.0, temperature=0.7, weight="plain"
    ),
    "normalizer": SMALL.but(normalizer="float"),
    "second axis": SMALL.but(positions=(2, 2), axis=1, reduction="none"),
    "one class": SMALL.but(classes=1, softcap=2.0, z_loss=0.1),
    "confident": SMALL.but(confident=20.0),
    "float32": SMALL.but(dtype="float32", z_loss=0.1),
    "fused": Linear(SMALL, width=3),
    "fused, without bias": Linear(SMALL.but(reduction="none"), width=3, bias=False),
    "fused, z-loss, softcap, temperature": Linear(
        SMALL.but(z_loss=0.2, softcap=3.0, temperature=0.7, mask="fraction"), width=3
    ),
    "fused, probabilities": Linear(PROBABILITY.but(reduction="sum", smoothing=0.1), width=3),
    "fused, float32": Linear(SMALL.but(dtype="float32"), width=3, bias=False),
}

QUICK_NAMES = ("class indices", "class probabilities", "z-loss", "softcap", "temperature", "everything", "fused")

# Where a distance from the largest logit is 0 and its derivative is not.
TIED = np.array([[1.0, 1.0, 1.0, 0.0], [2.0, 2.0, 0.0, 0.0]])
TIED_TARGETS: tuple[tuple[str, Array, dict[str, Any]], ...] = (
    ("index", np.array([0, 1]), {}),
    ("smoothed", np.array([3, 1]), {"label_smoothing": 0.2}),
    ("probabilities", np.array([[0.25, 0.5, 0.0, 0.25], [0.125, 0.5, 0.25, 0.125]]), {}),
)
SELECTED = np.array([[0, 1, 3], [2, -100, 0]])

# Where each case costs a compilation, those that between them have every option.
FEW = (*QUICK_NAMES[:4], "everything, probabilities", "fused, z-loss, softcap, temperature")


def cases() -> Iterator[Case]:
    for name, recipe in RECIPES.items():
        yield _case(name, recipe.call, name in QUICK_NAMES, name in FEW)
        if name in ("class indices, each position", "softcap", "fused"):
            first = name == "class indices, each position"
            yield _case(f"{name}, under an upstream gradient", _weighed(recipe).call, first, first)
    ignored = partial(Call, np.array([[0.5, -1.0, np.nan], [1.0, 0.5, -2.0]]), np.array([-100, 1]))
    yield _case("an uncounted row that holds NaN", ignored, True, True)
    masked = partial(Call, np.array([[0.5, -np.inf, 1.5], [1.0, 0.5, -2.0]]), np.array([0, 1]))
    yield _case("a masked class", masked, True, True)
    for name, target, options in TIED_TARGETS:
        yield _case(
            f"equal largest logits, {name}", partial(Call, TIED, target, options=options), True, name == "index"
        )
    yield _case("fused, an inactive state that holds NaN", _inactive_state, False, False)
    for name in DIFFERENTIABLE:
        tied = partial(
            Call, TIED, TIED_TARGETS[0][1], selected=SELECTED if "selected" in name else None, statistic=name
        )
        yield _case(f"{name}, equal largest logits", tied, name == "entropy", name == "entropy")
        yield _case(f"{name}, capped", partial(_capped, tied), False, False)
    yield _case("fused entropy, an inactive state that holds NaN", partial(_inactive_state, "entropy"), True, False)


def _inactive_state(statistic: str = "") -> Call:
    call = Linear(SMALL, width=3).call()
    hidden, target = call.hidden.copy(), call.target.copy()
    hidden[1], target[1] = np.nan, -100
    return replace(call, hidden=hidden, target=target, statistic=statistic)


def _capped(build: Callable[[], Call]) -> Call:
    """The same under an upstream gradient, and with every option of the logits."""
    call = build()
    shape = np.shape(call.target if call.selected is None else call.selected)
    upstream = np.cos(np.arange(float(np.prod(shape)))).reshape(shape)
    return replace(call, options={"scale": 1.5, "softcap": 2.0, "temperature": 0.7}, grad_output=upstream)


def _weighed(recipe: Recipe | Linear) -> Recipe | Linear:
    if isinstance(recipe, Linear):
        return Linear(recipe.recipe.but(grad_output="uneven"), recipe.width)
    return recipe.but(grad_output="uneven")


def _case(name: str, build: Callable[[], Call], quick: bool, few: bool) -> Case:
    case = make(f"{FEATURE}/{name}", FEATURE, build, "second derivatives", quick=quick)
    tiers = case.tiers | {Tier.FEW} if few else case.tiers
    return replace(case, needs=case.needs | {"transform:hessian"}, tiers=tiers)
