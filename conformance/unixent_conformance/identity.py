"""A fused linear form, seen as a loss of logits: hidden states times the identity are logits.

    loss(logits, target) = linear(hidden=logits, classifier=I, target)          dloss/dlogits = dloss/dhidden
                         = linear(hidden=I, classifier=logits^T, target)        dloss/dlogits = (dloss/dclassifier)^T

x·1 plus zeros is x without rounding, in any order, so the whole catalogue and its bounds apply as they are. The second
form is for more classes than an identity is made for; for one position the identity is a 1, which takes logits that are
not finite too (0·∞ is NaN). There is no axis but the last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unixent_conformance.harness import Unsupported
from unixent_conformance.model import Array, Call, Case

# An identity is as wide as this at the most.
WIDEST = 4096


@dataclass(frozen=True)
class Through:
    """The call of a fused linear form with the logits of another call; `argument` is the one that stands for them, with
    features of 0 up to its `width`."""

    call: Call
    argument: str
    shape: tuple[int, ...]
    width: int

    def wrt(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.argument if name == "logits" else name for name in names)

    def to_argument(self, array: Array) -> Array:
        """What has the shape of the logits in that of the argument."""
        features = array if self.argument == "hidden" else array.reshape(-1, self.shape[-1]).T
        return np.ascontiguousarray(_padded(features, self.width))

    def from_argument(self, array: Array, name: str) -> Array:
        """A gradient as that of `name` in the other call."""
        if name != "logits":
            return array
        if self.argument == "hidden":
            return np.ascontiguousarray(array[..., : self.shape[-1]])
        positions = int(np.prod(self.shape[:-1], dtype=np.int64))
        return np.ascontiguousarray(array[:, :positions].T).reshape(self.shape)


def through_identity(call: Call, multiple: int = 1) -> Through:
    """A call of logits as one of a fused linear form, of so many features or a multiple."""
    logits, options = np.asarray(call.logits), {name: value for name, value in call.options.items() if name != "axis"}
    if not logits.ndim or not _classes_last(call):
        raise Unsupported("a fused linear form has its classes along the last axis")
    classes = logits.shape[-1]
    positions, finite = logits.size // max(classes, 1), _finite(logits)
    by_class = positions != 1 and classes <= WIDEST and finite
    if not by_class and (positions > WIDEST or not (finite or positions == 1)):
        raise Unsupported("logits that are not finite, or of too many positions, cannot pass an identity")
    features = classes if by_class else positions
    width = features + -features % multiple
    through = Through(
        replace(call, logits=None, options=options), "hidden" if by_class else "classifier", logits.shape, width
    )
    identity = _padded(np.eye(features, dtype=logits.dtype), width)
    identity = identity if by_class else identity.reshape(*logits.shape[:-1], width)
    given = through.to_argument(logits)
    hidden, classifier = (given, identity) if by_class else (identity, given)
    return replace(through, call=replace(through.call, hidden=hidden, classifier=classifier))


def _padded(features: Array, width: int) -> Array:
    more = width - features.shape[-1]
    return np.concatenate([features, np.zeros((*features.shape[:-1], more), features.dtype)], axis=-1)


def narrowed(case: Case) -> Case:
    """The case, of its first position alone where only that can pass, and where no error is due, which may be about
    another."""
    call = case.build()
    if call.linear or case.property is not None or case.raises is not None:
        return case
    if call.logits.ndim != 2 or _finite(call.logits) or not _classes_last(call):
        return case
    return replace(case, build=lambda: _first(call))


def _first(call: Call) -> Call:
    count = len(call.logits)

    def first(array: Any) -> Any:
        return array[:1] if array is not None and array.ndim and len(array) == count else array

    of_positions = ("logits", "target", "mask", "grad_output", "ids", "selected")
    return replace(call, **{name: first(getattr(call, name)) for name in of_positions})


def _classes_last(call: Call) -> bool:
    return call.options.get("axis", -1) in (-1, np.ndim(call.logits) - 1)


def _finite(logits: Array) -> bool:
    return bool(np.isfinite(np.asarray(logits).astype(np.complex128)).all())
