"""How the families of the catalogue make their cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from unixent_conformance.cases.inputs import Recipe
from unixent_conformance.model import QUICK, Call, Case, Quantity, Raises

Questions = tuple[tuple[Quantity, str], ...]

# What is asked, and what it is called at the end of an id.
VALUE_AND_GRADIENT: Questions = (("loss", "value"), ("logits gradient", "gradient"))
VALUE_AND_GRADIENTS: Questions = (("loss", "value"), ("linear gradients", "gradients"))


def make(
    id: str,
    feature: str,
    build: Callable[[], Call],
    quantity: Quantity = "loss",
    *,
    needs: frozenset[str] | None = None,
    quick: bool = False,
    **more: Any,
) -> Case:
    """A case; what it needs is read off its call where it is not given."""
    needs = build().needs() if needs is None else needs
    tiers = QUICK if quick else frozenset()
    return Case(id.replace(" ", "-").replace(",", ""), feature, build, quantity, needs, tiers=tiers, **more)


def each(
    stem: str, feature: str, build: Callable[[], Call], questions: Questions = VALUE_AND_GRADIENT, **more: Any
) -> Iterator[Case]:
    """A case for each question about one call."""
    for quantity, word in questions:
        yield make(f"{stem}/{word}", feature, build, quantity, **more)


def refused(
    name: str,
    feature: str,
    build: Callable[[], Call],
    error: str,
    argument: str,
    questions: Questions = VALUE_AND_GRADIENT,
    **more: Any,
) -> Iterator[Case]:
    """A case for each question that is due an error about an argument; the value, or another path, is quick."""
    for quantity, word in questions:
        quick, raises = not word.startswith("gradient"), Raises(error, argument)
        yield make(f"{feature}/{name}/{word}", feature, build, quantity, raises=raises, quick=quick, **more)


def from_recipe(stem: str, feature: str, recipe: Recipe, **more: Any) -> Iterator[Case]:
    """The value, and each gradient that is defined, under an uneven upstream gradient."""
    upstream = recipe.but(grad_output="uneven")
    yield make(f"{stem}/value", feature, recipe.call, "loss", needs=recipe.needs(), **more)
    yield from gradients(stem, feature, upstream.call, upstream.needs(), **more)


def gradients(stem: str, feature: str, build: Callable[[], Call], needs: frozenset[str], **more: Any) -> Iterator[Case]:
    """The gradient of the logits, and of probabilities where they are the target."""
    yield make(f"{stem}/gradient", feature, build, "logits gradient", needs=needs, **more)
    if "target:probability" in needs:
        yield make(f"{stem}/target-gradient", feature, build, "target gradient", needs=needs, **more)
