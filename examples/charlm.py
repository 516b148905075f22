"""A character-level language model on text that ships with Python, trained with torch's own loss and with unixent.

    python examples/charlm.py [--steps 300] [--vocabulary 4096] [--fused] [--output charlm.png]

Both runs start from the same seed and see the same batches. The script prints and plots both loss curves and both
step times. The loss of single characters would take too little time to matter, so frequent groups of up to four
characters are one symbol each, which brings the vocabulary closer to that of a real language model; ``--vocabulary 0``
uses characters only. ``--fused`` adds a third run, which computes the last layer and its loss together without
materializing all logits, and prints the memory that each form keeps between its forward and its backward pass.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import unixent
from corpus import chunk_indices, text

CONTEXT, WIDTH, BATCH = 64, 128, 32

Loss = Callable[[nn.Linear, Tensor, Tensor], Tensor]  # last layer, its input, targets


class Step(NamedTuple):
    """One step of training: its loss (nats), its duration (seconds), and the [batch, length] chunks it saw."""

    loss: float
    seconds: float
    window: Tensor


class Run(NamedTuple):
    """Loss (nats) and duration (seconds) of each step, and the bytes that the loss saved for its backward pass."""

    losses: list[float]
    steps: list[float]
    saved_bytes: int


def encode(source: str, size: int) -> tuple[Tensor, int]:
    """The text as chunk indices, and the size of the vocabulary."""
    indices, vocabulary = chunk_indices(source, size)
    return torch.tensor(indices), vocabulary


class Model(nn.Module):  # type: ignore[misc]
    """Embedding, recurrent layer, and a score for each possible next chunk."""

    def __init__(self, vocabulary: int, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.scores = nn.Linear(width, vocabulary)

    def forward(self, chunks: Tensor) -> Tensor:
        """Map [batch, length] indices to the [batch, length, width] input of the last layer."""
        hidden: Tensor = self.memory(self.embedding(chunks))[0]
        return hidden


def stock(scores: nn.Linear, hidden: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores(hidden).flatten(0, 1), target.flatten())


def ours(scores: nn.Linear, hidden: Tensor, target: Tensor) -> Tensor:
    return unixent.cross_entropy(scores(hidden), target)


def fused(scores: nn.Linear, hidden: Tensor, target: Tensor) -> Tensor:
    return unixent.linear_cross_entropy(hidden, scores.weight, target, bias=scores.bias)


def saved_bytes(loss_of: Loss, scores: nn.Linear, hidden: Tensor, target: Tensor) -> int:
    """Bytes that the last layer and its loss save for their backward pass, beyond their inputs and parameters."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = loss_of(scores, hidden, target)
    before = {x.untyped_storage().data_ptr() for x in (*scores.parameters(), hidden, target)}
    total = sum(size for pointer, size in kept.items() if pointer not in before)
    del loss
    return total


def windows(chunks: Tensor, count: int, length: int) -> Tensor:
    """Random stretches of the text: [count, length] chunks."""
    starts = torch.randint(len(chunks) - length, (count, 1))
    return chunks[starts + torch.arange(length)]


def fit(model: Model, loss_of: Loss, chunks: Tensor, steps: int) -> Iterator[Step]:
    """Train with Adam on random windows of the text."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        window = windows(chunks, BATCH, CONTEXT + 1)
        begun = time.perf_counter()
        loss = loss_of(model.scores, model(window[:, :-1]), window[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield Step(loss.item(), time.perf_counter() - begun, window)


def train(loss_of: Loss, chunks: Tensor, vocabulary: int, steps: int, seed: int, name: str) -> Run:
    """Train a new model, and print some of the steps."""
    torch.manual_seed(seed)
    model = Model(vocabulary)
    done: list[Step] = []
    for step in fit(model, loss_of, chunks, steps):
        done.append(step)
        if len(done) == 1 or len(done) % 50 == 0 or len(done) == steps:
            median = statistics.median(each.seconds for each in done)
            print(f"{name:8}  {len(done):5}  {step.loss:.4f}  {1e3 * median:7.1f} ms")
    window = done[-1].window
    saved = saved_bytes(loss_of, model.scores, model(window[:, :-1]), window[:, 1:])
    return Run([step.loss for step in done], [step.seconds for step in done], saved)


def draw(runs: dict[str, Run], vocabulary: int, path: Path) -> None:
    """Plot the loss curves and the distributions of step times."""
    from plotting import draw_boxes, draw_overlaid, panels

    with panels(path, 2) as (left, right):
        draw_overlaid(left, {name: run.losses for name, run in runs.items()})
        left.set(xlabel="step", ylabel="cross-entropy (nats)", title="training loss, same seed")
        draw_boxes(right, {name: [1e3 * second for second in run.steps] for name, run in runs.items()})
        right.set(ylabel="ms", title=f"step: [{BATCH}, {CONTEXT}, {vocabulary}] logits", ylim=(0, None))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A small language model with torch's own loss and with unixent.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--vocabulary", type=int, default=4096, help="largest number of different chunks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fused", action="store_true", help="add a run with the fused linear form")
    parser.add_argument("--output", type=Path, default=Path("charlm.png"), help="picture to write")
    chosen = parser.parse_args(arguments)
    chunks, vocabulary = encode(text(), chosen.vocabulary)
    print(f"{len(chunks)} chunks, vocabulary of {vocabulary}\n\nloss       step    nats   median step")
    losses: dict[str, Loss] = {"torch": stock, "unixent": ours} | ({"fused": fused} if chosen.fused else {})
    runs = {name: train(loss, chunks, vocabulary, chosen.steps, chosen.seed, name) for name, loss in losses.items()}
    apart = max(max(values) - min(values) for values in zip(*(run.losses for run in runs.values()), strict=True))
    if chosen.fused:
        sizes = ", ".join(f"{name} {run.saved_bytes / 2**20:.1f} MiB" for name, run in runs.items())
        print(f"\nsaved for the backward pass: {sizes}")
    print(f"\nlargest difference between the curves: {apart:.2g} nats; plotted in {chosen.output}")
    draw(runs, vocabulary, chosen.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
