"""What a dialect is, and which calls can tell one from the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unixent_conformance.expected import Convention
from unixent_conformance.model import Array, Call, Case

# The statistics that a target has a share in.
OF_TARGET = ("log_prob", "correct", "rank")
LOSSES, STATISTICS, SPARSE = frozenset({"loss"}), frozenset({"statistic"}), frozenset({"sparse"})


@dataclass(frozen=True)
class Dialect(Convention):
    """A convention with a name, and what it changes.

    topic: what it is about; an answer follows one dialect of a topic at most. formula: what is computed instead.
    advice: what to do about it. hazard: a plausible number comes out of bad data, or digits are lost, so that it is a
    convention only in that it can be described. applies: whether a case can tell it from ours. probe: of a call, the
    smallest that can; who answers that as we do follows no such convention. about: the calls that it is of: losses of
    indices and probabilities, statistics, losses of sparse targets.
    """

    name: str
    topic: str
    formula: str
    advice: str
    applies: Callable[[Call, Case], bool]
    hazard: bool = False
    probe: Callable[[Call], Call] | None = None
    about: frozenset[str] = LOSSES

    def is_about(self, call: Call) -> bool:
        return ("statistic" if call.statistic else "sparse" if call.tail else "loss") in self.about


def classes_of(call: Call) -> int:
    """How many classes exist, of logits that are given."""
    return int(call.options.get("num_classes") or call.logits.shape[call.options.get("axis", -1)])


def averages(call: Call, case: Case) -> bool:
    return call.reduction == "mean" and call.options.get("normalizer") is None


def is_half(call: Call) -> bool:
    return call.dtype in ("float16", "bfloat16")


def in_float32(call: Call) -> Call:
    """A call of logits with its floating arrays in float32, and no upstream gradient."""

    def wide(array: Array) -> Array:
        return array.astype(np.float32) if np.asarray(array).dtype.itemsize == 2 and not _integer(array) else array

    arrays: dict[str, Any] = {name: wide(array) for name, array in call.arrays().items() if name != "normalizer"}
    return replace(call, **arrays, grad_output=None)


def _integer(array: Array) -> bool:
    return array.dtype.kind in "iub"


def smooths(call: Call, case: Case) -> bool:
    return bool(call.options.get("label_smoothing", 0.0)) and call.has_indices


def needs_target(call: Call) -> bool:
    """Whether the target has a share in what is asked for."""
    return not call.statistic or call.statistic in OF_TARGET


def out_of_range(call: Call, case: Case) -> bool:
    return needs_target(call) and has_bad_index(call)


def has_bad_index(call: Call) -> bool:
    if not call.has_indices:
        return False
    y = np.asarray(call.target)
    return bool(((y < 0) | (y >= classes_of(call))).any())


def ignores(call: Call, case: Case | None = None) -> bool:
    return call.has_indices and bool((np.asarray(call.target) == call.options.get("ignore_index", -100)).any())


def infinite(call: Call, case: Case) -> bool:
    if call.linear:  # infinities may come of the product
        return True
    return not bool(np.isfinite(np.asarray(call.logits).astype(np.float64)).all())


def beside_the_target(call: Call) -> Call:
    """One logit of -inf, not the target's, in the form and dtypes of a call."""
    given = np.asarray(call.hidden if call.linear else call.logits)
    scores = np.array([-np.inf, 0.0, 1.0]).astype(given.dtype)
    target = np.array([2]) if call.has_indices else np.array([[0.0, 0.0, 1.0]]).astype(np.asarray(call.target).dtype)
    if not call.linear:
        return Call(scores[None], target)
    one = np.ones((1, 1), given.dtype)
    return Call(None, target, hidden=one, classifier=0 * one.repeat(3, axis=0), bias=scores)


def zero_beside_infinity(call: Call) -> Call:
    """The same where 0 meets infinity as it does in a call: with class weights, the weight of that class is 0; it is
    smoothed, or the target, if nothing else sums over the classes."""
    probe = beside_the_target(call)
    if call.weight is None or not bool((np.asarray(call.weight) == 0).any()):
        return probe
    smoothing = {name: value for name, value in call.options.items() if name == "label_smoothing"}
    target = np.array([0]) if call.has_indices and not any(smoothing.values()) else probe.target
    return replace(probe, target=target, weight=np.array([0, 1, 1]).astype(call.weight.dtype), options=smoothing)
