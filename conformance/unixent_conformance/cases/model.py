"""What a case is: a call, what is asked of it, and what must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    from unixent_conformance.runner import Subject

Asks = Literal["loss", "terms", "logits gradient", "target gradient", "linear gradients", "second derivatives"]

ARRAYS = ("logits", "hidden", "classifier", "target", "bias", "weight", "mask")


@dataclass(frozen=True)
class Call:
    """The arguments of one call: NumPy arrays, options that differ from the defaults, and the upstream gradient where
    a gradient is asked. Without logits it is a call of `linear_cross_entropy`, with hidden, classifier and bias."""

    logits: Any
    target: Any
    weight: Any = None
    mask: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    upstream: Any = None
    hidden: Any = None
    classifier: Any = None
    bias: Any = None

    @property
    def linear(self) -> bool:
        return self.hidden is not None

    def differentiable(self) -> tuple[str, ...]:
        """The arguments that have a gradient, in the order of a fused linear call's `wrt`."""
        smooth = np.asarray(self.target).dtype.kind == "f" or np.asarray(self.target).dtype.name == "bfloat16"
        scores = ("hidden", "classifier", *(["bias"] if self.bias is not None else [])) if self.linear else ("logits",)
        return (*scores, *(["target"] if smooth else []))

    def directions(self) -> dict[str, Any]:
        """Where each of these moves when a gradient is differentiated once more; a shape's numbers are its own."""
        found = {}
        for name in self.differentiable():
            array = np.asarray(getattr(self, name))
            rng = np.random.default_rng(crc32(f"{name}{array.shape}".encode()))
            found[name] = rng.uniform(-1.0, 1.0, array.shape).astype(array.dtype)
        return found

    def arrays(self) -> dict[str, Any]:
        """The array arguments by name; a normalizer may be one too."""
        named = {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}
        if isinstance(self.options.get("normalizer"), np.ndarray):
            named["normalizer"] = self.options["normalizer"]
        return named

    def static(self) -> dict[str, Any]:
        """The options that are no arrays."""
        return {name: value for name, value in self.options.items() if not isinstance(value, np.ndarray)}

    @property
    def dtype(self) -> str:
        return str(np.asarray(self.hidden if self.linear else self.logits).dtype.name)

    @property
    def acc_dtype(self) -> str:
        scores = (self.logits, self.hidden, self.classifier, self.bias)
        widest = max(np.asarray(array).dtype.itemsize for array in scores if array is not None)
        return "float64" if widest == 8 else "float32"

    @property
    def result_dtype(self) -> str:
        return str(self.options.get("dtype") or self.dtype)


# Errors about values, which cannot be read under a transform: NaN is due there instead.
ABOUT_VALUES = ("TargetRangeError", "EmptyMeanError")


@dataclass(frozen=True)
class Raises:
    """The error that is due: its class by name, and the argument that its text must name."""

    error: str
    argument: str
    mentions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What a property found wrong, and by how much where that can be said."""

    detail: str
    units: float = float("inf")


@dataclass(frozen=True)
class Case:
    """One thing that must hold.

    `build` makes the call anew, from a seed, each time. Exactly one of these decides: `raises` (an error is due),
    `holds` (a property of several calls; returns a Finding where it is broken), `truth` (the parts of a stored answer)
    or, with none of them, the oracle.
    `needs` names the capabilities without which a refusal is legitimate. Cases marked `quick` make a run of seconds;
    `lean` ones, of each quick input one question, are for frameworks that compile what is called; `core` ones, some
    quick ones of every feature, are repeated under a transform that costs a compilation per case; `few`, one small
    gradient of each, under one that costs a call per element.
    """

    id: str
    feature: str
    build: Callable[[], Call]
    asks: Asks = "loss"
    needs: frozenset[str] = frozenset()
    raises: Raises | None = None
    holds: Callable[[Subject, Call], Finding | None] | None = None
    truth: Callable[[], Sequence[Any]] | None = None
    quick: bool = False
    lean: bool = False
    core: bool = False
    few: bool = False
    note: str = field(default="", compare=False)


def needs_of(call: Call) -> frozenset[str]:
    """The capabilities that a call leans on, from its arguments."""
    needs = {f"dtype:{call.dtype}", *(["linear"] if call.linear else [])}
    target = np.asarray(call.target)
    needs.add("target:index" if target.dtype.kind in "iub" else "target:probability")
    if call.options.get("dtype"):
        needs.add(f"dtype:{call.options['dtype']}")
    return frozenset(needs)
