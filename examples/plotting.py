"""Plots of the examples and benchmarks, as the format that the file's name says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# One colour a library on every plot, distinct for the colour-blind too (after Okabe and Ito).
COLOURS = {
    "unixent": "#0072b2",
    "torch": "#d55e00",
    "jax": "#009e73",
    "numpy": "#cc79a7",
    "mindspore": "#e69f00",
    "transformers": "#000000",
}
# The libraries of names that are no library's.
LIBRARIES = {"optax": "jax", "fused": "unixent"}
MARKERS = "osD^v"  # of the forms of one library


def colour(name: str) -> str:
    """The colour of the library that a name begins with."""
    library = re.split(r"\W", name)[0]
    return COLOURS.get(LIBRARIES.get(library, library), "#555555")


def markers(names: Sequence[str]) -> list[str]:
    """A marker for each name, different for each of those that have one colour."""
    drawn: Counter[str] = Counter()
    chosen = []
    for name in names:
        chosen.append(MARKERS[drawn[colour(name)] % len(MARKERS)])
        drawn[colour(name)] += 1
    return chosen


def shades(count: int) -> list[Any]:
    """Colours from light to dark, for what has an order."""
    import matplotlib

    return [matplotlib.colormaps["cividis_r"](0.15 + 0.85 * i / max(1, count - 1)) for i in range(count)]


@contextmanager
def panels(path: Path, count: int, size: tuple[float, float] = (4.6, 3.8)) -> Iterator[list[Any]]:
    """Axes side by side, written to the path at the end of the ``with`` block."""
    import matplotlib

    matplotlib.use("Agg")
    # The same bytes from the same numbers, and letters as text rather than as outlines.
    matplotlib.rcParams.update({"svg.hashsalt": "unixent", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    figure, (row,) = plt.subplots(1, count, figsize=(size[0] * count, size[1]), layout="constrained", squeeze=False)
    yield list(row)
    for axes in row:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def draw_overlaid(axes: Any, curves: Mapping[str, Sequence[float]]) -> None:
    """Curves that may coincide against the step from 1 on: each is thinner than the one below it, so that all show."""
    for below, ((name, curve), marker) in enumerate(zip(curves.items(), markers(list(curves)), strict=True)):
        style = {"lw": 1.5 + 2.5 * (len(curves) - 1 - below), "color": colour(name), "label": name}
        if marker != MARKERS[0]:  # on a curve of the same colour
            style |= {"marker": marker, "mfc": "white", "mew": 1.5, "markevery": max(1, len(curve) // 10)}
        axes.plot(range(1, len(curve) + 1), curve, **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()


def draw_boxes(axes: Any, samples: Mapping[str, Sequence[float]]) -> None:
    """The median, the quartiles and the range of each, without outliers."""
    names = list(samples)
    boxes = axes.boxplot(
        list(samples.values()), tick_labels=names, showfliers=False, widths=0.5, patch_artist=True,
        medianprops={"color": "white", "linewidth": 2},
    )  # fmt: skip
    for name, box in zip(names, boxes["boxes"], strict=True):
        box.set_facecolor(colour(name))
