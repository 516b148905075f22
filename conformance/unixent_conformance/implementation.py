"""What is under test: a loss, what goes with it, and what it declares itself able to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from unixent_conformance.loading import loaded
from unixent_conformance.model import UNPROMISED, Case

# What is given by position, whatever it is called there.
LEADING = frozenset({"logits", "hidden", "classifier", "target"})


@dataclass(frozen=True)
class Implementation:
    """A loss that takes what `unixent.cross_entropy` takes, in one framework's arrays.

    The other functions take what those of unixent with the same names take; without value_and_grad, gradients come from
    the framework's differentiation. `capabilities` are names such as "dtype:float16",
    "target:probability", "linear" or "batch_invariant"; what a case needs beyond them may be refused, loudly. None
    declares everything but `model.UNPROMISED`: floating arrays of several dtypes in one call ("dtype:mixed"), and class
    indices of another dtype than int64 ("target:int32"). `options` are the keywords accepted, None for all.
    `own_errors` says that errors must be of the classes of `unixent` and name the argument; otherwise any exception
    does where one is due. `refusals` are classes of exception by which it says that it lacks something; any other,
    where none is due, is a crash. `multiples` are the sizes that its kernel takes whole, of "positions", "hidden" or
    "classes": cases are widened to them, so that it is the kernel that runs.
    """

    name: str
    loss: Callable[..., Any]
    terms: Callable[..., Any] | None = None
    value_and_grad: Callable[..., Any] | None = None
    linear: Callable[..., Any] | None = None
    linear_value_and_grad: Callable[..., Any] | None = None
    position_stats: Callable[..., Any] | None = None
    position_stats_and_grad: Callable[..., Any] | None = None
    linear_position_stats: Callable[..., Any] | None = None
    linear_position_stats_and_grad: Callable[..., Any] | None = None
    capabilities: frozenset[str] | None = None
    options: frozenset[str] | None = None
    own_errors: bool = False
    refusals: tuple[type[Exception], ...] = ()
    multiples: Mapping[str, int] = field(default_factory=dict)
    version: str = ""
    path: str = ""  # where a new process finds it; the name, if empty
    as_logits: bool = False  # a fused linear form, seen as a loss of logits

    def __post_init__(self) -> None:
        unknown = set(self.multiples) - {"positions", "hidden", "classes"}
        if unknown or any(type(size) is not int or size < 1 for size in self.multiples.values()):
            expected = "sizes of 1 or more of positions, hidden and classes"
            raise ValueError(f"multiples: expected {expected}; got {dict(self.multiples)}")

    def declares_away(self, needs: frozenset[str]) -> frozenset[str]:
        """The dtypes and targets among `needs` that are left out of `capabilities`; unixent's own backends refuse them
        by an error, which is judged."""
        if self.capabilities is None or self.own_errors:
            return frozenset()
        return frozenset(need for need in needs - self.capabilities if need.startswith(("dtype:", "target:")))

    def seen_as_logits(self) -> Implementation:
        """The fused linear form, its `linear` or its only callable, as a loss of logits (see `identity`)."""
        options = self.options
        return replace(
            self,
            terms=None,
            linear=self.linear or self.loss,
            value_and_grad=None,
            options=None if options is None else (options - {"hidden", "classifier"}) | {"logits", "target"},
            as_logits=True,
        )

    def lacking(self, needs: frozenset[str]) -> frozenset[str]:
        """What of `needs` is not declared."""
        return needs & UNPROMISED if self.capabilities is None else needs - self.capabilities

    def answers(self, case: Case) -> bool:
        """Whether it has what a case asks: a loss is none the less a loss without terms, statistics or sparse targets,
        which only those are asked that declare them."""
        if "target:sparse" in case.needs and not self.takes_sparse:
            return False
        if "position_stats" in case.needs:
            return (self.linear_position_stats if "linear" in case.needs else self.position_stats) is not None
        return case.quantity != "terms" or self.terms is not None

    @property
    def takes_sparse(self) -> bool:
        return "target:sparse" in (self.capabilities or ())

    def unknown(self, options: frozenset[str]) -> frozenset[str]:
        """Which keywords its signature does not have; the arrays that are given by position need not be among them."""
        return frozenset() if self.options is None else options - self.options - LEADING


def of_backend(name: str, device: str | None = None) -> Implementation:
    """A backend of unixent by name, through the public functions, as it is on a device, or on its first."""
    import unixent

    backend = unixent.get_backend(name)
    declared = backend.capabilities
    names = {f"dtype:{dtype}" for dtype in declared.dtypes}
    names |= {f"target:{target}" for target in declared.targets}
    names |= {f"parallel target:{target}" for target in declared.parallel_targets & declared.targets}
    names |= {f"transform:{transform}" for transform in declared.transforms}
    flags = ("linear", "parallel", "position_stats", "parallel_position_stats")
    names |= {flag for flag in flags if getattr(declared, flag)}
    devices = backend.devices()
    if next((each for each in devices if each.name == device), devices[0]).batch_invariant:
        names.add("batch_invariant")
    names |= UNPROMISED
    return Implementation(
        name=name,
        loss=unixent.cross_entropy,
        terms=unixent.loss_terms,
        value_and_grad=unixent.value_and_grad,
        linear=unixent.linear_cross_entropy,
        linear_value_and_grad=getattr(unixent, "linear_value_and_grad", None),
        position_stats=unixent.position_stats if declared.position_stats else None,
        position_stats_and_grad=unixent.position_stats_and_grad if declared.position_stats else None,
        linear_position_stats=unixent.linear_position_stats if declared.position_stats else None,
        linear_position_stats_and_grad=unixent.linear_position_stats_and_grad if declared.position_stats else None,
        capabilities=frozenset(names),
        own_errors=True,
        version=f"unixent {unixent.__version__}",
    )


def load(path: str) -> Implementation:
    """An implementation by "module:function"; the object may also be an Implementation with more to declare."""
    given = loaded(path, "implementation")
    implementation = wrap(given)
    return replace(implementation, name=given.name if implementation is given else path, path=path)


def wrap(given: Any) -> Implementation:
    """An Implementation as it is, or any callable as one: its options are read from its signature, and by
    NotImplementedError it says that it lacks something."""
    if isinstance(given, Implementation):
        return given
    if not callable(given):
        raise TypeError(f"implementation: expected a callable; got {type(given).__name__}")
    if isinstance(given, type):
        raise TypeError(f"implementation: expected a function or an instance; got the class {given.__name__}")
    name = f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', repr(given))}"
    return Implementation(name, given, options=_keywords(given), refusals=(NotImplementedError,))


# The methods in which modules of torch and cells of MindSpore have their signature.
METHODS = ("forward", "construct")


def _keywords(function: Callable[..., Any]) -> frozenset[str] | None:
    """The keywords that a function takes, None for any; what it is given by position may have any name."""
    method = next((getattr(function, name) for name in METHODS if callable(getattr(function, name, None))), function)
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # a builtin or a C extension without a signature
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
