"""The logits of this process's classes, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from unixent_numpy.collectives import Group
from unixent_numpy.compat import Array
from unixent_numpy.kernel import KernelSpec
from unixent_numpy.kernel.blocks import RowBlocks, Rows
from unixent_numpy.kernel.rows import ClassCoefs, apply_transform


class Shard(NamedTuple):
    """Which classes this process holds: ``num_local_classes`` of all ``num_classes``, from ``vocab_start`` on."""

    group: Group
    vocab_start: int
    num_local_classes: int
    num_classes: int

    @property
    def local_classes(self) -> slice:
        """Where the local classes lie in an array over all of them."""
        return slice(self.vocab_start, self.vocab_start + self.num_local_classes)


class LocalLogits:
    """Local logits [N, local classes], and what of the target has their shape. No class at all is legal.

    Attributes:
        x, probabilities: as they were given, P + (local classes,); None where the targets are class indices.
        weight: class weights of all classes, or None.
        shard, spec: which classes are here, and the static options.
        count: the number of positions N.
        coefs: the target's coefficients that no position changes, over all classes.
        smoothing_coefs: b_c of the local classes; None without smoothing.
        coefs_of_probability: (1 - s) w_c of the local classes.
    """

    def __init__(
        self, x: Array, probabilities: Array | None, weight: Array | None, spec: KernelSpec, shard: Shard
    ) -> None:
        self.x, self.probabilities, self.weight, self.shard, self.spec = x, probabilities, weight, shard, spec
        self._logits = Rows(x)
        self._probabilities = None if probabilities is None else Rows(probabilities)
        self.count = self._logits.count
        self.coefs = ClassCoefs.of(weight, shard.num_classes, spec)
        smoothing = self.coefs.smoothing
        self.smoothing_coefs = None if smoothing is None else smoothing.base[shard.local_classes]
        self.coefs_of_probability = self.coefs.of_probability[shard.local_classes]
        self._blocks = RowBlocks(self.count, shard.num_local_classes, spec.acc_dtype)
        self.scratch = self._blocks.scratch

    def zeros(self, *size: int) -> Array:
        """Zeros [..., N] in the accumulation dtype."""
        return np.zeros((*size, self.count), self.spec.acc_dtype)

    def for_each(self, work: Callable[[slice, Array], None]) -> None:
        """Call ``work(rows, block)`` for every block of logits x', which may be overwritten."""
        self._blocks.for_each(lambda rows: self._read(rows, work))

    def for_each_with_grad(self, work: Callable[[slice, Array, Array | None], None]) -> None:
        """The same with the derivative of the soft-cap, None where there is none."""

        def with_grad(rows: slice) -> None:
            softcap_grad = None if self.spec.transform.softcap is None else self.scratch("softcap_grad", rows)
            self._read(rows, lambda rows, block: work(rows, block, softcap_grad), softcap_grad)

        self._blocks.for_each(with_grad)

    def _read(self, rows: slice, work: Callable[[slice, Array], None], softcap_grad: Array | None = None) -> None:
        block = self.scratch("logits", rows)
        # Infinities and NaN are part of the semantics; the state is a thread's own.
        with np.errstate(all="ignore"):
            self._logits.read(rows, block)
            apply_transform(block, self.spec.transform, softcap_grad)
            work(rows, block)

    def target_coefs(self, rows: slice) -> Array | None:
        """The coefficients t_c of a block, in scratch; None where only a target's own class has one."""
        if self._probabilities is None and self.smoothing_coefs is None:
            return None
        coefs = self.scratch("target_coefs", rows)
        if self._probabilities is None:
            coefs[...] = self.smoothing_coefs
            return coefs
        self._probabilities.read(rows, coefs)
        coefs *= self.coefs_of_probability
        if self.smoothing_coefs is not None:
            coefs += self.smoothing_coefs
        return coefs
