"""What is static of a call: the key under which cells are cached, and the bridge to the NumPy backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np

from unixent.options import LossOptions
from unixent.protocol import Problem
from unixent.registry import get_backend

Array = np.ndarray[Any, Any]

DTYPES = {"float16": ms.float16, "bfloat16": ms.bfloat16, "float32": ms.float32, "float64": ms.float64}


def host_dtype(name: str) -> str:
    """The dtype in which NumPy sees it: bfloat16 is no NumPy dtype, so MindSpore widens and rounds it."""
    return "float32" if name == "bfloat16" else name


@dataclass(frozen=True, slots=True)
class Plan:
    """A `Problem` without its arrays: hashable, and independent of shapes, so that one cell serves every batch size.

    ``logits`` and ``target`` are dtype names; ``present`` says whether there is a weight, a mask, a normalizer.
    """

    options: LossOptions
    axis: int
    classes: int
    kind: str
    accumulation: str
    result: str
    terms: bool
    check_empty: bool
    logits: str
    target: str
    present: tuple[bool, bool, bool]

    @classmethod
    def of(cls, problem: Problem, logits: str, target: str) -> Plan:
        return cls(
            problem.options,
            problem.axis,
            problem.classes,
            problem.target_kind,
            problem.accumulation,
            problem.result_dtype,
            problem.terms,
            problem.check_empty,
            logits,
            target,
            (problem.weight is not None, problem.mask is not None, problem.normalizer is not None),
        )

    @property
    def each(self) -> bool:
        """Whether the result has one loss per position."""
        return self.options.reduction == "none" and not self.terms

    @property
    def wrt(self) -> tuple[str, ...]:
        """What a backward pass has to differentiate."""
        return ("logits",) if self.kind == "index" else ("logits", "target")

    @property
    def wrt_dtypes(self) -> tuple[str, ...]:
        return (self.logits,) if self.kind == "index" else (self.logits, self.target)

    def _problem(self, arrays: list[Array | None]) -> Problem:
        logits, target, weight, mask, normalizer = arrays
        return Problem(
            logits=logits,
            axis=self.axis,
            target=target,
            weight=weight,
            mask=mask,
            normalizer=None if normalizer is None else np.reshape(normalizer, ()),
            options=self.options,
            classes=self.classes,
            target_kind=self.kind,
            accumulation=self.accumulation,
            result_dtype=host_dtype(self.result),
            terms=self.terms,
            check_empty=self.check_empty,
        )

    def solve(self, arrays: list[Array | None]) -> tuple[Array, ...]:
        """The loss, or the two terms, of NumPy arrays (logits, target, weight, mask, normalizer)."""
        found: Any = get_backend("numpy").cross_entropy(self._problem(arrays))
        return tuple(found) if self.terms else (found,)

    def differentiate(self, arrays: list[Array | None], upstream: Array | None, wrt: tuple[str, ...]) -> Any:
        """``(loss, gradients)`` of NumPy arrays."""
        return get_backend("numpy").value_and_grad(self._problem(arrays), upstream, wrt)
