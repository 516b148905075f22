"""Two ways of training, side by side: a table, and a picture of the curves and the step times."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

from plotting import colour, draw_boxes, draw_overlaid, panels


class Run(NamedTuple):
    """Loss (nats) and duration (seconds) of each step, and the bytes that a step needs beside the model."""

    losses: list[float]
    seconds: list[float]
    peak_bytes: int

    @property
    def median_ms(self) -> float:
        return 1e3 * statistics.median(self.seconds)


def report(runs: dict[str, Run]) -> None:
    """Print a line for each run, and how far the curves are apart."""
    width = max(map(len, runs))
    print(f"{'':{width}}  first loss  last loss  median step  memory of a step")
    for name, run in runs.items():
        memory = f"{run.peak_bytes / 2**20:12.1f} MiB" if run.peak_bytes else f"{'-':>16}"
        print(f"{name:{width}}  {run.losses[0]:10.4f}  {run.losses[-1]:9.4f}  {run.median_ms:8.1f} ms  {memory}")
    steps = zip(*(run.losses for run in runs.values()), strict=True)
    print(f"\nlargest difference between the curves: {max(max(step) - min(step) for step in steps):.2g} nats")


def draw(runs: dict[str, Run], path: Path) -> None:
    """Plot the loss curves, the step times, and the memory."""
    with panels(path, 3) as (left, middle, right):
        draw_overlaid(left, {name: run.losses for name, run in runs.items()})
        left.set(xlabel="step", ylabel="cross-entropy (nats)", title="training loss, same start")
        draw_boxes(middle, {name: [1e3 * second for second in run.seconds] for name, run in runs.items()})
        middle.set(ylabel="ms", title="step", ylim=(0, None))
        sizes = [run.peak_bytes / 2**20 for run in runs.values()]
        right.bar(list(runs), sizes, width=0.5, color=[colour(name) for name in runs])
        right.set(ylabel="MiB", title="memory of a step")
    print(f"plotted in {path}")
