"""What is static of a call: the key under which cells are cached, and the bridge to the NumPy backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mindspore as ms
import numpy as np

from unixent.options import LossOptions
from unixent.protocol import LinearProblem, Problem, Sharding
from unixent.registry import get_backend
from unixent_mindspore._groups import CpuGroup

Array = np.ndarray[Any, Any]

FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = {name: getattr(ms, name) for name in FLOATS} | {
    name: getattr(ms, name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
DTYPES["bool"] = ms.bool_

# What a cell takes, in this order. The logits form has no classifier and no bias, and calls its scores logits.
INPUTS = ("scores", "classifier", "bias", "target", "weight", "mask", "normalizer")
# Stands for an input that there is not.
ABSENT = ms.Tensor(np.zeros(1), ms.float32)


def host_dtype(name: str) -> str:
    """The dtype in which NumPy sees it: bfloat16 is no NumPy dtype, so MindSpore widens and rounds it."""
    return "float32" if name == "bfloat16" else name


def _on_host(split: Sharding) -> Sharding:
    """The split with its groups as the NumPy backend wants them."""
    model, token = (None if name is None else CpuGroup(name) for name in (split.model_group, split.token_group))
    return replace(split, model_group=model, token_group=token)


@dataclass(frozen=True, slots=True)
class Plan:
    """A problem without its arrays: hashable, and independent of batch shapes, so that one cell serves them all.

    ``dtypes`` names the dtype of each of `INPUTS`, None for what there is not. Of a compiled call, ``vacant`` says that
    there is no position, and ``facts`` what the processes of a split loss have to agree on.
    """

    options: LossOptions
    axis: int
    classes: int
    kind: str
    acc_dtype: str
    result: str
    terms: bool
    check_empty: bool
    linear: bool
    chunk: int | None
    dtypes: tuple[str | None, ...]
    split: Sharding | None
    vacant: bool
    facts: tuple[int, int, int] | None

    @classmethod
    def of(
        cls,
        problem: Problem | LinearProblem,
        dtypes: tuple[str | None, ...],
        vacant: bool = False,
        facts: tuple[int, int, int] | None = None,
    ) -> Plan:
        linear = isinstance(problem, LinearProblem)
        return cls(
            problem.options,
            problem.axis if isinstance(problem, Problem) else len(problem.hidden.shape) - 1,
            problem.num_classes,
            problem.target_kind,
            problem.acc_dtype,
            problem.result_dtype,
            problem.return_terms,
            problem.check_empty,
            linear,
            problem.chunk if isinstance(problem, LinearProblem) else None,
            dtypes,
            problem.sharding,
            vacant,
            facts,
        )

    @property
    def each(self) -> bool:
        """Whether the result has one loss per position."""
        return self.options.reduction == "none" and not self.terms

    @property
    def formed(self) -> bool:
        """Whether the gradient is formed with the loss: of a split loss, unless it is a sum over many upstream ones."""
        return self.split is not None and not (self.linear and self.each)

    @property
    def wrt(self) -> tuple[int, ...]:
        """Which of `INPUTS` have a gradient."""
        scores = tuple(i for i in range(3) if self.dtypes[i] is not None)
        return scores if self.kind == "index" else (*scores, 3)

    def name(self, position: int) -> str:
        """The public name of one of `INPUTS`."""
        return INPUTS[position] if position else "hidden" if self.linear else "logits"

    def _problem(self, arrays: list[Array | None]) -> Problem | LinearProblem:
        scores, classifier, bias, target, weight, mask, normalizer = arrays
        shared: dict[str, Any] = {
            "target": target,
            "weight": weight,
            "mask": mask,
            "normalizer": None if normalizer is None else np.reshape(normalizer, ()),
            "options": self.options,
            "num_classes": self.classes,
            "target_kind": self.kind,
            "acc_dtype": self.acc_dtype,
            "result_dtype": host_dtype(self.result),
            "return_terms": self.terms,
            "check_empty": self.check_empty,
            "sharding": None if self.split is None else _on_host(self.split),
        }
        if self.linear:
            return LinearProblem(hidden=scores, classifier=classifier, bias=bias, chunk=self.chunk, **shared)
        return Problem(logits=scores, axis=self.axis, **shared)

    def solve(self, arrays: list[Array | None]) -> tuple[Array, ...]:
        """The loss, or the two terms, of NumPy arrays in the order of `INPUTS`."""
        numpy, problem = get_backend("numpy"), self._problem(arrays)
        if isinstance(problem, LinearProblem):
            found: Any = numpy.linear_cross_entropy(problem)
        else:
            found = numpy.cross_entropy(problem)
        return tuple(found) if self.terms else (found,)

    def differentiate(self, arrays: list[Array | None], upstream: Array | None, wrt: tuple[str, ...]) -> Any:
        """``(loss, gradients)`` of NumPy arrays."""
        numpy, problem = get_backend("numpy"), self._problem(arrays)
        if isinstance(problem, LinearProblem):
            return numpy.linear_value_and_grad(problem, upstream, wrt)
        return numpy.value_and_grad(problem, upstream, wrt)

    def gradients(self, arrays: list[Array | None], upstream: Array | None) -> tuple[Array, ...]:
        """The gradient of everything that has one, of NumPy arrays."""
        found: tuple[Array, ...] = self.differentiate(arrays, upstream, tuple(map(self.name, self.wrt)))[1]
        return found
