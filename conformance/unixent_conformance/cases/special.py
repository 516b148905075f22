"""Special values: what infinities, NaN and the ends of the number line do to value and gradient, separately."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import gradients, make
from unixent_conformance.cases.inputs import DTYPES, dtype_of
from unixent_conformance.model import Call, Case, Tier
from unixent_conformance.tolerance import Format

INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Spot:
    """A few rows of logits with their targets and options."""

    logits: Callable[[Format], list[list[float]]]
    target: list[Any]
    options: dict[str, Any] = field(default_factory=dict)
    weight: list[float] | None = None
    mask: list[float] | None = None

    def call(self, dtype: str, **more: Any) -> Call:
        floating = dtype_of(dtype)
        target = np.asarray(self.target)
        return Call(
            np.asarray(self.logits(Format.of(dtype))).astype(floating),
            target.astype(floating) if target.ndim == 2 else target,
            None if self.weight is None else np.asarray(self.weight).astype(floating),
            None if self.mask is None else np.asarray(self.mask).astype(floating),
            {"reduction": "none", **self.options, **more},
        )


def rows(*given: list[float]) -> Callable[[Format], list[list[float]]]:
    return lambda form: list(given)


ORDINARY = [0.5, -1.0, 2.0]

SPOTS: dict[str, dict[str, Spot]] = {
    "minus infinity": {
        "beside the target": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [2, 0]),
        "all but the target": Spot(rows([-INF, 0.5, -INF], ORDINARY), [1, 0]),
        "at the target": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [0, 0]),
        "at a target of weight 0": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [0, 1], weight=[0.0, 1.0, 2.0]),
        "everywhere": Spot(rows([-INF, -INF, -INF], ORDINARY), [1, 0]),
        "everywhere in one class": Spot(rows([-INF], [3.0]), [0, 0]),
        "smoothed": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [2, 0], {"label_smoothing": 0.1}),
        "smoothed at weight 0": Spot(
            rows([-INF, 0.0, 1.0], ORDINARY), [2, 1], {"label_smoothing": 0.1}, weight=[0.0, 1.0, 2.0]
        ),
        "wholly smoothed at weight 0": Spot(
            rows([-INF, 0.0, 1.0], ORDINARY), [0, 1], {"label_smoothing": 1.0}, weight=[0.0, 1.0, 2.0]
        ),
        "z-loss": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [2, 0], {"z_loss": 0.1}),
        "z-loss, everywhere": Spot(rows([-INF, -INF, -INF], ORDINARY), [2, 0], {"z_loss": 0.1}),
        "capped": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [0, 0], {"softcap": 5.0}),
        "scaled": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [1, 0], {"scale": 0.5, "temperature": 0.7}),
        "scaled by a tiny number": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [1, 0], {"scale": 1e-30}),
        "at probability 0": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [[0.0, 0.25, 0.75], [0.5, 0.25, 0.25]]),
        "at a probability": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]),
        "at a probability of weight 0": Spot(
            rows([-INF, 0.0, 1.0], ORDINARY), [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]], weight=[0.0, 1.0, 2.0]
        ),
        "everywhere, probabilities": Spot(rows([-INF, -INF, -INF], ORDINARY), [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]),
    },
    "plus infinity": {
        "at the target": Spot(rows([INF, 0.0, 1.0], ORDINARY), [0, 0]),
        "elsewhere": Spot(rows([INF, 0.0, 1.0], ORDINARY), [1, 0]),
        "twice": Spot(rows([INF, INF, 1.0], ORDINARY), [1, 0]),
        "in one class": Spot(rows([INF], [3.0]), [0, 0]),
        "capped": Spot(rows([INF, 0.0, 1.0], ORDINARY), [1, 0], {"softcap": 5.0}),
        "scaled": Spot(rows([INF, 0.0, 1.0], ORDINARY), [1, 0], {"scale": 0.5, "temperature": 0.7}),
        "probabilities": Spot(rows([INF, 0.0, 1.0], ORDINARY), [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]),
        "smoothed": Spot(rows([INF, 0.0, 1.0], ORDINARY), [0, 0], {"label_smoothing": 0.1}),
    },
    "NaN": {
        "at the target": Spot(rows([NAN, 0.0, 1.0], ORDINARY), [0, 0]),
        "elsewhere": Spot(rows([0.0, NAN, 1.0], ORDINARY), [2, 0]),
        "at a target of weight 0": Spot(rows([NAN, 0.0, 1.0], ORDINARY), [0, 1], weight=[0.0, 1.0, 2.0]),
        "in one class": Spot(rows([NAN], [3.0]), [0, 0]),
        "capped": Spot(rows([NAN, 0.0, 1.0], ORDINARY), [1, 0], {"softcap": 5.0}),
        "with infinities": Spot(rows([NAN, INF, -INF], ORDINARY), [1, 0]),
        "probabilities": Spot(rows([0.0, NAN, 1.0], ORDINARY), [[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]),
        "smoothed": Spot(rows([0.0, NAN, 1.0], ORDINARY), [0, 0], {"label_smoothing": 0.1}),
    },
    "uncounted rows": {
        "NaN, ignored": Spot(rows([NAN, 0.0, 1.0], ORDINARY), [-100, 0]),
        "all NaN, ignored, weighted": Spot(rows([NAN] * 3, ORDINARY), [-100, 0], weight=[0.5, 1.0, 2.0]),
        "infinities, ignored": Spot(rows([INF, -INF, 1.0], ORDINARY), [-100, 0]),
        "minus infinity, ignored": Spot(rows([-INF] * 3, ORDINARY), [-100, 0], {"z_loss": 0.1}),
        "NaN, ignored inside the classes": Spot(rows([NAN, 0.0, 1.0], ORDINARY), [1, 0], {"ignore_index": 1}),
        "NaN, masked": Spot(rows([NAN, 0.0, 1.0], ORDINARY), [1, 0], mask=[0.0, 0.5]),
        "infinities, masked": Spot(rows([INF, -INF, 1.0], ORDINARY), [1, 0], mask=[0.0, 0.5]),
        "infinite loss, masked": Spot(rows([-INF, 0.0, 1.0], ORDINARY), [0, 0], mask=[0.0, 1.0]),
        "NaN, masked, smoothed": Spot(rows([NAN] * 3, ORDINARY), [1, 0], {"label_smoothing": 0.1}, mask=[0.0, 1.0]),
        "NaN, masked, capped": Spot(rows([NAN] * 3, ORDINARY), [1, 0], {"softcap": 5.0}, mask=[0.0, 1.0]),
        "NaN, masked, scaled": Spot(rows([NAN] * 3, ORDINARY), [1, 0], {"temperature": 0.7}, mask=[0.0, 1.0]),
        "NaN, masked, probabilities": Spot(
            rows([NAN, 0.0, 1.0], ORDINARY), [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]], mask=[0.0, 2.0]
        ),
        "probabilities all 0": Spot(rows(ORDINARY, ORDINARY), [[0.0, 0.0, 0.0], [0.0, 0.5, 0.5]]),
    },
    "ends of the number line": {
        "largest against its opposite": Spot(lambda f: [[f.largest, -f.largest], [1.0, 0.0]], [0, 0]),
        "opposite of the largest": Spot(lambda f: [[f.largest, -f.largest], [1.0, 0.0]], [1, 0]),
        "largest against 0": Spot(lambda f: [[f.largest, 0.0], [1.0, 0.0]], [1, 0]),
        "two largest": Spot(lambda f: [[f.largest, f.largest], [1.0, 0.0]], [1, 0]),
        "all at the lowest": Spot(lambda f: [[-f.largest] * 2, [1.0, 0.0]], [1, 0]),
        "3e38": Spot(lambda f: [[min(3e38, f.largest), -1.0, 0.0], ORDINARY], [0, 0]),
        "3e38 elsewhere": Spot(lambda f: [[min(3e38, f.largest), -1.0, 0.0], ORDINARY], [1, 0]),
        "subnormal": Spot(lambda f: [[f.smallest, -f.smallest, 0.0], [f.smallest_normal, 0.0, 1.0]], [0, 0]),
        "negative zero": Spot(rows([-0.0, 0.0, -0.0], ORDINARY), [0, 0]),
        "largest, capped": Spot(lambda f: [[f.largest, -f.largest], [1.0, 0.0]], [1, 0], {"softcap": 5.0}),
        "largest, scaled down": Spot(lambda f: [[f.largest, -f.largest], [1.0, 0.0]], [1, 0], {"scale": 1e-4}),
        "largest, smoothed": Spot(lambda f: [[f.largest / 4, 0.0], [1.0, 0.0]], [1, 0], {"label_smoothing": 0.5}),
    },
}

# Where forward mode multiplies a tangent of 0 with an infinity; a rule for indices alone has no such product.
FEW = ("at probability 0",)


def cases() -> Iterator[Case]:
    """Value, gradient and, for probabilities, their own gradient; uncounted rows under every reduction."""
    for feature, spots in SPOTS.items():
        for name, spot in spots.items():
            for dtype in DTYPES:
                reductions = ("none", "sum", "mean") if feature == "uncounted rows" else ("none",)
                for reduction in reductions:
                    build, stem = (
                        partial(spot.call, dtype, reduction=reduction),
                        f"{feature}/{name}/{dtype}-{reduction}",
                    )
                    quick, needs = dtype == "float32" and reduction == reductions[-1], build().needs()
                    yield make(f"{stem}/value", feature, build, needs=needs, quick=quick)
                    for case in gradients(stem, feature, build, needs, quick=quick):
                        yield replace(case, tiers=case.tiers | {Tier.FEW}) if quick and name in FEW else case
