"""Plots of the examples, as the format that the file's name says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def panels(path: Path, count: int) -> Iterator[list[Any]]:
    """Axes side by side, written to the path at the end of the ``with`` block."""
    import matplotlib

    matplotlib.use("Agg")
    # The same bytes from the same numbers, and letters as text rather than as outlines.
    matplotlib.rcParams.update({"svg.hashsalt": "unixent", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    figure, (row,) = plt.subplots(1, count, figsize=(4.6 * count, 3.8), layout="constrained", squeeze=False)
    yield list(row)
    for axes in row:
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
