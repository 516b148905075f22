"""Classes taken in blocks, of which a tail, an end or a block of nothing is handled wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, Stats, mutant


@mutant("class indices")
class SkipsTheLastClasses(Plain):
    """A vector loop over the classes without its tail."""

    def sum_classes(self, e: Array) -> Array:
        whole = e.shape[1] // 8 * 8
        return super().sum_classes(e[:, : whole or e.shape[1]])


@mutant("large inputs")
class First65536Classes(Plain):
    """A kernel whose largest block holds 65536 classes."""

    def sum_classes(self, e: Array) -> Array:
        return super().sum_classes(e[:, :65536])


@mutant("tile edges")
class TailOfTheLastBlock(Plain):
    """Beyond 1024 classes, whole blocks of 1024 alone are added up."""

    def sum_classes(self, e: Array) -> Array:
        return super().sum_classes(e[:, : e.shape[1] // 1024 * 1024] if e.shape[1] > 1024 else e)


@mutant("tile edges")
class TargetBeyondTheFirstBlock(Plain):
    """The target's logit is looked for in the first block of 65536 classes."""

    def one_hot(self, y: Array, classes: int, acc: np.dtype[Any]) -> Array:
        return super().one_hot(np.where(y < 65_536, y, 0) if classes > 65_536 else y, classes, acc)


@mutant("tile edges")
class SmoothingOfTheFirstBlock(Plain):
    """The smoothed share of classes beyond the first block of 4096 is left out."""

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        t = super().target_coefs(q, w, indices)
        return np.where((np.arange(t.shape[1]) < 4096) | (q > 0), t, 0).astype(t.dtype)


class Online(Plain):
    """Blocks of classes, one after the other, under a running maximum."""

    block = 128

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        lost = (x.shape[1] > self.block) & np.isneginf(self.part(x)).all(axis=1)
        return Stats(*(np.where(lost.reshape(-1, *[1] * (a.ndim - 1)), self.then(a), a) for a in vars(right).values()))

    def part(self, x: Array) -> Array:
        return x[:, : self.block]

    def then(self, right: Array) -> Array:
        return np.full_like(right, np.nan)


@mutant("tile edges")
class FirstBlockOfMinusInfinity(Online):
    """A running maximum that is still -inf: exp(-inf - -inf) is NaN."""


@mutant("tile edges")
class FirstWideBlockOfMinusInfinity(Online):
    """The same in blocks of 16384 classes."""

    block = 16_384


@mutant("tile edges")
class LastBlockOfMinusInfinity(Online):
    """A last block that is -inf leaves its own maximum: finite, and wrong."""

    def part(self, x: Array) -> Array:
        return x[:, x.shape[1] // self.block * self.block - (x.shape[1] % self.block == 0) * self.block :]

    def then(self, right: Array) -> Array:
        return right / 2
