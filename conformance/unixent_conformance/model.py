"""What a case is: a call, what is asked of it, and what must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal
from zlib import crc32

import numpy as np

Array = np.ndarray[Any, Any]

# What is asked of a call: which arrays an answer has.
Quantity = Literal[
    "loss",
    "terms",
    "logits gradient",
    "target gradient",
    "linear gradients",
    "gradients of two passes",
    "second derivatives",
]

# The capability of taking floating arrays of several dtypes in one call.
MIXED = "dtype:mixed"

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

# What nobody promises who does not declare it: frameworks differ in it.
UNPROMISED = frozenset({MIXED, *(f"target:{dtype}" for dtype in INTEGERS if dtype != "int64")})

ARRAYS = ("logits", "hidden", "classifier", "target", "bias", "weight", "mask", "selected", "ids")


class Tier(IntEnum):
    """How many cases are run, from the fewest to all. A run selects a tier; so does a mode whose cases are expensive.

    FEW: one small first gradient of each feature, and second derivatives that between them have every option: for modes
        that cost a call per element.
    CORE: a few cases of every feature: for modes that compile each case.
    SAMPLED: of each quick input one question: for frameworks that compile what is called.
    QUICK: a run of seconds.
    FULL: the catalogue.

    A tier is larger than those before it but need not contain them: CORE alternates between the questions of a
    feature, SAMPLED draws one of each input by its name, and the second derivatives of FEW are not all quick. So a case
    has a set of tiers, and FULL has every case.
    """

    FEW = 1
    CORE = 2
    SAMPLED = 3
    QUICK = 4
    FULL = 5


QUICK = frozenset({Tier.QUICK})


@dataclass(frozen=True)
class Call:
    """The arguments of one call: NumPy arrays, options that differ from the defaults, and the upstream gradient where
    a gradient is asked. Without logits it is a call of `linear_cross_entropy`, with hidden, classifier and bias. With a
    statistic it asks for that output of `position_stats`, in the place of a loss; selected and the option k are its
    arguments. With ids and a tail the target is a `unixent.TopK` of them, and `target` its probs or log_probs. No
    gradient is asked of arguments that are frozen."""

    logits: Any
    target: Any
    weight: Any = None
    mask: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    grad_output: Any = None
    hidden: Any = None
    classifier: Any = None
    bias: Any = None
    selected: Any = None
    statistic: str = ""
    ids: Any = None
    tail: str = ""
    log_probs: bool = False
    frozen: tuple[str, ...] = ()

    @property
    def linear(self) -> bool:
        return self.hidden is not None

    @property
    def has_indices(self) -> bool:
        return bool(np.asarray(self.target).dtype.kind in "iub")

    def differentiable(self) -> tuple[str, ...]:
        """The arguments that have a gradient, in the order of a fused linear call's `wrt`."""
        dtype = np.asarray(self.target).dtype
        scores = ("hidden", "classifier", *(["bias"] if self.bias is not None else [])) if self.linear else ("logits",)
        names = (*scores, *(["target"] if dtype.kind == "f" or dtype.name == "bfloat16" else []))
        return tuple(name for name in names if name not in self.frozen)

    def wrt(self, quantity: Quantity) -> tuple[str, ...]:
        """The arguments whose gradients are asked for."""
        if quantity in ("linear gradients", "gradients of two passes"):
            return self.differentiable()
        return {"logits gradient": ("logits",), "target gradient": ("target",)}.get(quantity, ())

    def of_first_pass(self) -> Call:
        """The call with another upstream gradient: the first of two that go back through one forward pass."""
        upstream = np.asarray(1.0 if self.grad_output is None else self.grad_output)
        dtype = self.result_dtype if self.grad_output is None else upstream.dtype
        return replace(self, grad_output=np.asarray(-2 * upstream.astype(np.float64)).astype(dtype))

    def directions(self) -> dict[str, Array]:
        """Where each of these moves when a gradient is differentiated once more; a shape's numbers are its own."""
        directions = {}
        for name in self.differentiable():
            array = np.asarray(getattr(self, name))
            rng = np.random.default_rng(crc32(f"{name}{array.shape}".encode()))
            directions[name] = rng.uniform(-1.0, 1.0, array.shape).astype(array.dtype)
        return directions

    def arrays(self) -> dict[str, Any]:
        """The array arguments by name; a normalizer may be one too."""
        named = {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}
        if isinstance(self.options.get("normalizer"), np.ndarray):
            named["normalizer"] = self.options["normalizer"]
        return named

    def all_arrays(self) -> dict[str, Any]:
        """The same, and the upstream gradient if there is one."""
        return self.arrays() if self.grad_output is None else {**self.arrays(), "grad_output": self.grad_output}

    def static(self) -> dict[str, Any]:
        """The options that are no arrays."""
        return {name: value for name, value in self.options.items() if not isinstance(value, np.ndarray)}

    @property
    def reduction(self) -> str:
        return "none" if self.statistic else str(self.options.get("reduction", "mean"))

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

    def needs(self) -> frozenset[str]:
        """The capabilities without which an implementation may refuse the call."""
        target_kind = "sparse" if self.tail else "index" if self.has_indices else "probability"
        needs = {f"dtype:{self.dtype}", f"target:{target_kind}"}
        if self.linear:
            needs.add("linear")
        if self.statistic:
            needs.add("position_stats")
        if self.options.get("dtype"):
            needs.add(f"dtype:{self.options['dtype']}")
        if self.mixes_dtypes:
            needs.add(MIXED)
        target = np.asarray(self.target).dtype
        if target.kind in "iu" and target != np.int64:
            needs.add(f"target:{target.name}")
        return frozenset(needs)

    @property
    def mixes_dtypes(self) -> bool:
        """Whether the floating arrays are of more than one dtype."""
        dtypes = {np.asarray(array).dtype for array in self.all_arrays().values()}
        return len([dtype for dtype in dtypes if dtype.kind == "f" or dtype.name == "bfloat16"]) > 1


@dataclass(frozen=True)
class Raises:
    """The error that is due: its class by name, and the argument that its text must name."""

    error: str
    argument: str
    mentions: tuple[str, ...] = ()

    @property
    def about_values(self) -> bool:
        """Whether it depends on values, which cannot be read under a transform: NaN is due there instead."""
        return self.error in ("TargetRangeError", "EmptyMeanError")


@dataclass(frozen=True)
class Finding:
    """What a property found wrong, and by how much where that can be said."""

    detail: str
    units: float = float("inf")


@dataclass(frozen=True)
class Case:
    """One thing that must hold.

    `build` makes the call anew, from a seed, each time. Exactly one of these decides: `raises` (an error is due),
    `property` (of several calls of a `Subject`; returns a Finding where it is broken), `stored` (the parts of an answer
    kept in a file) or, with none of them, the oracle. `compared` are the calls whose gradients a property compares
    within a bound, so that a dialect of each explains it. `needs` names the capabilities without which a refusal is
    legitimate, `tiers` the runs and modes, smaller than `Tier.FULL`, that have the case. A divisible case is asked
    without the options that an implementation lacks.
    """

    id: str
    feature: str
    build: Callable[[], Call]
    quantity: Quantity = "loss"
    needs: frozenset[str] = frozenset()
    raises: Raises | None = None
    property: Callable[[Any, Call], Finding | None] | None = None
    compared: Callable[[Call], Sequence[Call]] | None = None
    stored: Callable[[], Sequence[Any]] | None = None
    tiers: frozenset[Tier] = frozenset()
    divisible: bool = False
    note: str = field(default="", compare=False)

    def within(self, tier: Tier) -> bool:
        return tier is Tier.FULL or tier in self.tiers
