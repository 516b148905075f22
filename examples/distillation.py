"""Distillation of the language model into a smaller one, from 20 log-probabilities a token stored on disk.

    python examples/distillation.py [--store teacher.npz] [--plot distillation.svg]

The teacher is the model of charlm.py. It reads the training text once, and `unixent.linear_position_stats` gives its 20
most probable chunks at each position, which are stored as int16 ids and float16 log-probabilities: 80 bytes a token.
Four students of a quarter of its width then start from one seed and see the same batches. One learns from the text, the
others from the file, as `unixent.TopK` targets that differ in what becomes of the rest of the teacher's probability:
dropped, divided out, or one more class. All are judged by what a student should be close to: the teacher's whole
distribution, on text that neither was trained on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

import charlm
import corpus
import unixent

WIDTH, BATCH, K, EVERY = 32, 16, 20, 15
Tail = Literal["drop", "renormalize", "bucket"]
TAILS: tuple[Tail, ...] = ("drop", "renormalize", "bucket")
HARD = "hard labels"

Target = Callable[[Tensor], Tensor | unixent.TopK]  # of the windows chosen, [batch, CONTEXT]


class Point(NamedTuple):
    """A student on held-out text, in nats a token: KL divergence from the teacher, and cross-entropy of the text."""

    step: int
    kl: float
    nats: float


def cut(chunks: Tensor) -> Tensor:
    """Windows one after another, [count, CONTEXT + 1]."""
    length = charlm.CONTEXT + 1
    return chunks[: len(chunks) // length * length].view(-1, length)


def store(teacher: charlm.Model, windows: Tensor, k: int, path: Path) -> float:
    """Write the teacher's k best chunks at each position of the windows; return the mean of their probability."""
    ids, log_probs = [], []
    for part in windows.split(64):
        with torch.no_grad():
            stats = unixent.linear_position_stats(
                teacher(part[:, :-1]),
                teacher.scores.weight,
                bias=teacher.scores.bias,
                outputs=("top_index", "top_log_prob"),
                k=k,
            )
        ids.append(stats.top_index.numpy().astype(np.int16))
        log_probs.append(stats.top_log_prob.numpy().astype(np.float16))
    columns = np.concatenate(ids), np.concatenate(log_probs)
    with path.open("wb") as file:
        np.savez(file, ids=columns[0], log_probs=columns[1])
    return float(np.exp(columns[1], dtype=np.float32).sum(-1).mean())


def targets(path: Path, windows: Tensor) -> dict[str, Target]:
    """What each student is trained on."""
    with np.load(path) as file:
        ids, log_probs = torch.from_numpy(file["ids"]), torch.from_numpy(file["log_probs"])

    def sparse(tail: Tail) -> Target:
        return lambda chosen: unixent.TopK(ids[chosen], log_probs=log_probs[chosen], tail=tail)

    return {HARD: lambda chosen: windows[chosen, 1:]} | {tail: sparse(tail) for tail in TAILS}


class Exam:
    """Held-out windows with the teacher's whole distribution at each position."""

    def __init__(self, teacher: charlm.Model, windows: Tensor) -> None:
        self.windows = windows
        with torch.no_grad():
            logits = teacher.scores(teacher(windows[:, :-1]))
            self.entropy = unixent.position_stats(logits, outputs="entropy").entropy.mean()
            self.probs = torch.softmax(logits, -1)

    def __call__(self, student: charlm.Model, step: int) -> Point:
        with torch.no_grad():
            hidden, last = student(self.windows[:, :-1]), student.scores
            soft, hard = (
                unixent.linear_cross_entropy(hidden, last.weight, target, bias=last.bias)
                for target in (self.probs, self.windows[:, 1:])
            )
        return Point(step, (soft - self.entropy).item(), hard.item())


def distil(target_of: Target, windows: Tensor, exam: Exam, vocabulary: int, steps: int, seed: int) -> list[Point]:
    """Train a student with Adam, and examine it every few steps."""
    torch.manual_seed(seed)
    student = charlm.Model(vocabulary, WIDTH)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    curve = [exam(student, 0)]
    for step in range(1, steps + 1):
        chosen = torch.randint(len(windows), (BATCH,))
        last = student.scores
        loss = unixent.linear_cross_entropy(
            student(windows[chosen, :-1]), last.weight, target_of(chosen), bias=last.bias
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0 or step == steps:
            curve.append(exam(student, step))
    return curve


def draw(curves: dict[str, list[Point]], path: Path) -> None:
    """KL divergence from the teacher against steps."""
    from plotting import MARKERS, colour, panels

    with panels(path, 1) as (axes,):
        for (name, curve), marker in zip(curves.items(), MARKERS, strict=False):
            style = {"marker": marker, "color": colour(name if name == HARD else "unixent"), "label": name}
            axes.plot([point.step for point in curve[1:]], [point.kl for point in curve[1:]], **style)
        axes.set(xlabel="step", ylabel="KL from the teacher (nats)", title="held-out text", ylim=(0, None))
        axes.legend()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Distillation from top-k log-probabilities stored on disk.")
    parser.add_argument("--vocabulary", type=int, default=512, help="largest number of different chunks")
    parser.add_argument("--pretrain", type=int, default=200, help="steps of training the teacher")
    parser.add_argument("--windows", type=int, default=1000, help="how many windows of text the file is about")
    parser.add_argument("--k", type=int, default=K, help="log-probabilities stored a token")
    parser.add_argument("--steps", type=int, default=150, help="of training each student")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="where to keep the teacher's log-probabilities")
    parser.add_argument("--plot", type=Path, help="plot to write")
    chosen = parser.parse_args(arguments)
    chunks, vocabulary = charlm.encode(corpus.text(), chosen.vocabulary)
    end = len(chunks) * 9 // 10
    torch.manual_seed(chosen.seed)
    teacher = charlm.Model(vocabulary)
    for _ in charlm.fit(teacher, charlm.fused, chunks[:end], chosen.pretrain):
        pass
    windows, held_out = cut(chunks[:end]), cut(chunks[end:])
    windows = windows[torch.randperm(len(windows))[: chosen.windows]]
    exam = Exam(teacher, held_out[torch.randperm(len(held_out))[:32]])
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.store or Path(folder, "teacher.npz")
        stored = store(teacher, windows, chosen.k, path)
        target_of = targets(path, windows)
        size = path.stat().st_size
    tokens = windows[:, 1:].numel()
    print(f"{tokens} tokens, vocabulary of {vocabulary}; the file has {size / tokens:.1f} bytes a token")
    print(f"the {chosen.k} most probable chunks hold {stored:.1%} of the teacher's probability")
    print(f"teacher: {exam(teacher, 0).nats:.4f} nats on held-out text\n\nstudent of       KL      nats")
    curves = {}
    for name, target in target_of.items():
        curves[name] = distil(target, windows, exam, vocabulary, chosen.steps, chosen.seed)
        print(f"{name:11}  {curves[name][-1].kl:6.4f}    {curves[name][-1].nats:6.4f}")
    if chosen.plot:
        draw(curves, chosen.plot)
        print(f"plotted in {chosen.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
