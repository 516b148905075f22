"""Sparse targets: a teacher's best classes under the three tails, with every option that concerns them, confident and
hopeless students, confident teachers, padding, repeated ids and the classes that nobody selected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np

from unixent_conformance.cases.building import make
from unixent_conformance.cases.inputs import DTYPES, Recipe, dtype_of
from unixent_conformance.cases.linear import Linear
from unixent_conformance.model import Array, Call, Case, Quantity, Raises

FEATURE, LINEAR = "sparse targets", "fused linear sparse targets"
TAILS = ("drop", "renormalize", "bucket")


@dataclass(frozen=True)
class Teacher:
    """The sparse target to make for a recipe's positions.

    count: K. kept: Q, of the first position; the others differ. padding: the share of ids that are padding; of several
    positions one has nothing else then. repeats: the last id is the first again. log_probs: logarithms are given.
    confident: Q is 1 - 1e-6 and nearly all of it one class.
    """

    count: int = 3
    kept: float = 0.75
    padding: float = 0.0
    repeats: bool = False
    log_probs: bool = False
    confident: bool = False

    def of(self, call: Call, recipe: Recipe, tail: str) -> Call:
        n = int(np.prod(recipe.positions, dtype=np.int64))
        rng = np.random.default_rng(crc32(f"{recipe.positions}{recipe.classes}{self.count}".encode()))
        keys = rng.random((n, recipe.classes))
        keys[np.arange(n), np.asarray(call.target).reshape(-1)] = -1  # the target's class is the teacher's best
        ids = np.argsort(keys, axis=1)[:, : self.count]
        q = np.sort(rng.exponential(1.0, ids.shape), axis=1)[:, ::-1]
        q = q / q.sum(axis=1, keepdims=True) * (self.kept * 0.8 ** np.arange(n)[:, None])
        if self.confident:
            rest = q[:, 1:] / q[:, 1:].sum(axis=1, keepdims=True)
            q = np.concatenate([np.full((n, 1), 1 - 3e-6), 2e-6 * rest], axis=1)
        if self.repeats:
            ids[:, -1] = ids[:, 0]
        if self.padding:
            drawn = rng.random(ids.shape) < self.padding
            drawn[:1] = n > 1
            ids = np.where(drawn, call.options.get("ignore_index", -100), ids)
        shape = (*recipe.positions, ids.shape[1])
        values = (np.log(q) if self.log_probs else q).astype(dtype_of(recipe.dtype)).reshape(shape)
        return replace(call, target=values, ids=ids.reshape(shape), tail=tail, log_probs=self.log_probs)


PLAIN = Recipe(grad_output="uneven", reduction="none")
LOGS = Teacher(log_probs=True)
SEVERAL = Teacher(count=4, padding=0.4)


@dataclass(frozen=True)
class Input:
    """A recipe, its teacher, the tails that it tells apart, and which questions are quick."""

    recipe: Recipe
    teacher: Teacher = field(default_factory=Teacher)
    tails: tuple[str, ...] = TAILS
    quick: tuple[str, ...] = ()


INPUTS: dict[str, Input] = {
    "plain": Input(PLAIN, quick=TAILS),
    "log-probabilities": Input(PLAIN, LOGS),
    "mean": Input(PLAIN.but(reduction="mean"), tails=("renormalize", "bucket")),
    "normalizer": Input(PLAIN.but(reduction="mean", normalizer="float"), tails=("drop",)),
    "weights and mask": Input(PLAIN.but(weight="plain", mask="fraction", reduction="mean"), quick=("renormalize",)),
    "weights of zero": Input(PLAIN.but(weight="zeros", smoothing=0.1), tails=("drop", "bucket")),
    "smoothing and z-loss": Input(PLAIN.but(smoothing=0.2, z_loss=0.1, weight="plain"), quick=("bucket",)),
    "softcap and temperature": Input(
        PLAIN.but(logit_scale=2.0, softcap=5.0, temperature=0.7), tails=("drop", "bucket")
    ),
    "padding": Input(PLAIN.but(reduction="mean", positions=(6,)), SEVERAL, quick=("bucket",)),
    "padding by a class": Input(PLAIN.but(ignore="inside", positions=(6,)), SEVERAL, tails=("bucket",)),
    "repeated ids": Input(PLAIN, Teacher(repeats=True)),
    "one id": Input(PLAIN, Teacher(count=1), tails=("renormalize", "bucket")),
    "every class": Input(PLAIN, Teacher(count=7), tails=("drop", "bucket")),
    "more than 1": Input(PLAIN, Teacher(kept=2.0), ("renormalize", "bucket")),
    "confident student 20": Input(PLAIN.but(confident=20.0, scale=0.5), tails=("drop", "bucket"), quick=("bucket",)),
    "confident student 25": Input(PLAIN.but(confident=25.0, scale=0.5), Teacher(count=1), ("bucket",)),
    "hopeless student": Input(PLAIN.but(confident=-40.0), tails=("drop", "bucket")),
    "confident teacher": Input(PLAIN, replace(LOGS, confident=True), ("renormalize", "bucket"), ("bucket",)),
    "second axis": Input(PLAIN.but(positions=(3, 4), axis=1), tails=("bucket",)),
    "no position axis": Input(PLAIN.but(positions=()), tails=("renormalize", "bucket")),
    "wide": Input(PLAIN.but(positions=(3,), classes=5000), Teacher(count=20), ("drop", "bucket")),
    # log(1 - p) near 0, where nothing but the selected class stands out: from log-sums of both it cancels.
    "barely ahead": Input(
        PLAIN.but(positions=(3,), classes=5000, confident=0.01, scale=0.001),
        Teacher(count=1, kept=1e-6),
        ("bucket",),
        ("bucket",),
    ),
    "no positions": Input(PLAIN.but(positions=(0,), reduction="mean"), tails=("bucket",)),
}

INF, NAN = float("inf"), float("nan")
# Logits, ids and probabilities of each position, and options.
ROWS: dict[str, tuple[list[list[float]], list[list[int]], list[list[float]], dict[str, Any]]] = {
    "gap of 20": ([[20.0, 0.0, 0.0, 0.0]], [[0, 1]], [[0.2, 0.1]], {}),
    "minus infinity": ([[-INF, 0.0, 1.0, -INF], [0.0, 1.0, 2.0, 3.0]], [[1, 2], [3, 0]], [[0.5, 0.2], [0.5, 0.2]], {}),
    "minus infinity of probability 0": ([[-INF, 0.0, 1.0, 2.0]], [[0, 2]], [[0.0, 0.5]], {}),
    "minus infinity selected": ([[-INF, 0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], [[0, 2], [0, 2]], [[0.2, 0.5]] * 2, {}),
    "nothing but minus infinity left": ([[1.0, -INF, 2.0, -INF]], [[0, 2]], [[0.5, 0.3]], {}),
    "NaN": ([[0.0, NAN, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], [[0, 2], [0, 2]], [[0.2, 0.5]] * 2, {}),
    "no probability at all": ([[0.0, 1.0, 2.0, 3.0]], [[0, 2]], [[0.0, 0.0]], {}),
    "out of range, unread": ([[0.0, 1.0, 2.0, 3.0]] * 2, [[0, 4], [1, 2]], [[0.2, 0.0]] * 2, {"validate": "off"}),
    "classes that do not exist": ([[0.0, 1.0, 3.0, NAN]] * 2, [[0, 2], [1, 2]], [[0.2, 0.5]] * 2, {"num_classes": 3}),
}


def cases() -> Iterator[Case]:
    """The value and both gradients, under an uneven upstream gradient."""
    for name, given in INPUTS.items():
        for tail in given.tails:
            for dtype in DTYPES if name == "plain" else ("float32",):
                build = partial(_drawn, given.recipe.but(dtype=dtype), given.teacher, tail)
                quick = tail in given.quick and dtype == "float32"
                yield from _questions(f"{FEATURE}/{tail}, {name}/{dtype}", build, quick)
    for name, row in ROWS.items():
        for tail in ("drop", "bucket"):
            if name != "nothing but minus infinity left" or tail == "bucket":
                build = partial(_spelled, *row, tail)
                yield make(f"{FEATURE}/{tail}, {name}/float32/value", FEATURE, build, quick=name == "gap of 20")
                if tail == "bucket":
                    yield make(f"{FEATURE}/{tail}, {name}/float32/gradient", FEATURE, build, "logits gradient")
    yield make(f"{FEATURE}/bucket, terms/float32/terms", FEATURE, _terms, "terms")
    logits, ids, q, _ = ROWS["out of range, unread"]
    build, raises = partial(_spelled, logits, ids, q, {}, "drop"), Raises("TargetRangeError", "target.ids")
    yield make(f"{FEATURE}/drop, out of range/float32/value", FEATURE, build, raises=raises)
    for tail in TAILS:
        for dtype in ("float16", "float32"):
            linear = partial(_linear, tail, dtype)
            quick, stem = dtype == "float32" and tail == "bucket", f"{LINEAR}/{tail}/{dtype}"
            yield make(f"{stem}/value", LINEAR, linear, quick=quick)
            yield make(f"{stem}/gradients", LINEAR, linear, "linear gradients", quick=quick)


def _questions(stem: str, build: Any, quick: bool) -> Iterator[Case]:
    needs = build().needs()
    questions: tuple[tuple[Quantity, str], ...] = (
        ("loss", "value"),
        ("logits gradient", "gradient"),
        ("target gradient", "target-gradient"),
    )
    for quantity, word in questions:
        yield make(f"{stem}/{word}", FEATURE, build, quantity, needs=needs, quick=quick)


def _drawn(recipe: Recipe, teacher: Teacher, tail: str) -> Call:
    call = recipe.but(ignore="none").call()
    if recipe.ignore == "inside":  # the teacher's padding, not the target's
        call = replace(call, options={**call.options, "ignore_index": recipe.classes // 2})
    return teacher.of(call, recipe, tail)


def _spelled(
    logits: list[list[float]], ids: list[list[int]], q: list[list[float]], options: dict[str, Any], tail: str
) -> Call:
    upstream: Array = np.linspace(0.5, 1.5, len(ids)).astype(np.float32)
    arrays = np.array(logits, np.float32), np.array(q, np.float32)
    options = {**options, "reduction": "none"}
    return Call(*arrays, options=options, grad_output=upstream, ids=np.array(ids), tail=tail)


def _terms() -> Call:
    call = _drawn(PLAIN.but(mask="fraction"), Teacher(), "bucket")
    options = {name: value for name, value in call.options.items() if name != "reduction"}
    return replace(call, options=options, grad_output=None)


def _linear(tail: str, dtype: str) -> Call:
    recipe = PLAIN.but(positions=(13,), classes=9, dtype=dtype, mask="bool", smoothing=0.1, z_loss=0.05)
    call = Linear(recipe, chunk=5).call()
    return Teacher(count=4, padding=0.2).of(call, recipe, tail)
