"""Second derivatives: how the gradient changes where the logits, and probabilities, move in some direction.

They are asked in the modes in which a framework differentiates, each by its own route (twice backward, or forward over
backward), and tell a gradient that is differentiated from one that was saved and is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from unixent_conformance.cases.inputs import Recipe
from unixent_conformance.cases.linear import Linear
from unixent_conformance.cases.model import Call, Case, needs_of

FEATURE = "second derivatives"

SMALL = Recipe(dtype="float64", positions=(4,), classes=3, spread=1.5)
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
    "everything": SMALL.but(smoothing=0.1, z_loss=0.1, softcap=3.0, weight="plain", mask="fraction"),
    "everything, probabilities": PROBABILITY.but(smoothing=0.1, z_loss=0.1, softcap=3.0, weight="plain"),
    "normalizer": SMALL.but(normalizer="float"),
    "second axis": SMALL.but(positions=(2, 2), axis=1, reduction="none"),
    "one class": SMALL.but(classes=1, softcap=2.0, z_loss=0.1),
    "confident": SMALL.but(confident=20.0),
    "float32": SMALL.but(dtype="float32", z_loss=0.1),
    "fused": Linear(SMALL, width=3),
    "fused, without bias": Linear(SMALL.but(reduction="none"), width=3, bias=False),
    "fused, z-loss and softcap": Linear(SMALL.but(z_loss=0.2, softcap=3.0, mask="fraction"), width=3),
    "fused, probabilities": Linear(PROBABILITY.but(reduction="sum", smoothing=0.1), width=3),
    "fused, float32": Linear(SMALL.but(dtype="float32"), width=3, bias=False),
}

QUICK = ("class indices", "class probabilities", "z-loss", "softcap", "everything", "fused")

# Where each case costs a compilation, those that between them have every option.
FEW = (*QUICK[:4], "everything, probabilities", "fused, z-loss and softcap")


def cases() -> Iterator[Case]:
    for name, recipe in RECIPES.items():
        yield _case(name, recipe.call, name in QUICK, name in FEW)
        if name in ("class indices, each position", "softcap", "fused"):
            each = name == "class indices, each position"
            yield _case(f"{name}, under an upstream gradient", _under(recipe).call, each, each)
    yield _case(
        "an uncounted row that holds NaN", _special([[0.5, -1.0, np.nan], [1.0, 0.5, -2.0]], [-100, 1]), True, True
    )
    yield _case("a masked class", _special([[0.5, -np.inf, 1.5], [1.0, 0.5, -2.0]], [0, 1]), True, True)


def _under(recipe: Recipe | Linear) -> Recipe | Linear:
    if isinstance(recipe, Linear):
        return Linear(recipe.recipe.but(upstream="uneven"), recipe.width)
    return recipe.but(upstream="uneven")


def _special(logits: list[list[float]], target: list[int]) -> Callable[[], Call]:
    return lambda: Call(np.array(logits), np.array(target))


def _case(name: str, build: Callable[[], Call], quick: bool, few: bool) -> Case:
    id = f"{FEATURE}/{name}".replace(" ", "-").replace(",", "")
    needs = needs_of(build()) | {"transform:hessian"}
    return Case(id, FEATURE, build, "second derivatives", needs, quick=quick, few=few)
