"""The cross product of argument, array type, framework and transform, and the rule for what each may come to.

A call is made with one argument given in another way, under a transform. It is right if its value is that of the eager
NumPy call with plain arguments, and the derivative, where one is taken, that of NumPy's `value_and_grad`; or if it
raises an error of ours that names the argument. What `must_work` says is not to be refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

import unixent
from unixent_hostile.mistakes import ForeignArray
from unixent_hostile.views import Array


class Inapplicable(Exception):
    """There is no such thing: a list of a scalar, a derivative of an integer."""


LOGITS = ("logits", "target", "probabilities", "weight", "mask", "normalizer", "grad_output")
OPTIONS = ("softcap", "temperature", "label_smoothing", "z_loss", "ignore_index", "dtype")
ARGUMENTS = (*LOGITS, "hidden", "classifier", "bias", *OPTIONS)
DIFFERENTIABLE = ("logits", "probabilities", "hidden", "classifier", "bias")

# Ways to give an argument. "own" is the framework's array, traced where the transform traces; a "parameter" asks for a
# derivative, so it is what a differentiating transform differentiates for. A "layout" is NumPy's array as no framework
# has it.
WAYS = ("own", "numpy", "layout", "scalar", "python", "list", "list of own", "foreign", "masked", "sparse", "parameter")
PLAIN = ("own", "numpy", "layout", "scalar", "python", "list")


@dataclass(frozen=True)
class Setting:
    """One argument, how it is given, and the transform."""

    argument: str
    way: str
    transform: str

    @property
    def must_work(self) -> bool:
        if self.argument in OPTIONS:
            # torch's compiler traces a number of NumPy's, whose value is not known then.
            known = self.way == "python" or (self.way == "scalar" and self.transform != "compile")
            return known or (self.argument == "dtype" and self.way in ("own", "numpy", "scalar"))
        return self.way in PLAIN

    @property
    def keyword(self) -> str:
        """The name of the argument in the call."""
        return "target" if self.argument == "probabilities" else self.argument

    @property
    def names(self) -> tuple[str, ...]:
        """Words that an error may use for it."""
        return (self.keyword,)


def plain_values() -> dict[str, Any]:
    """What each argument is, in NumPy and Python."""
    rng = np.random.default_rng(5)
    q = rng.random((3, 4))
    return {
        "logits": rng.standard_normal((3, 4)),
        "target": np.array([0, 3, 1]),
        "probabilities": q / q.sum(1, keepdims=True),
        "weight": np.array([0.5, 1.0, 2.0, 0.0]),
        "mask": np.array([1.0, 0.0, 0.5]),
        "normalizer": np.array(2.5),
        "grad_output": np.array(0.75),
        "hidden": rng.standard_normal((3, 2)),
        "classifier": rng.standard_normal((4, 2)),
        "bias": rng.standard_normal(4),
        "softcap": np.array(2.0),
        "temperature": np.array(0.75),
        "label_smoothing": np.array(0.25),
        "z_loss": np.array(0.5),
        "ignore_index": np.array(1),
        "dtype": "float32",
    }


VALUES = plain_values()


def keywords_of(setting: Setting) -> dict[str, Any]:
    """The arguments of the plain call, by keyword: those that the form needs, and the one in question."""
    linear = setting.argument in ("hidden", "classifier", "bias")
    needed = ["hidden", "classifier"] if linear else ["logits"]
    chosen = {name: VALUES[name] for name in needed}
    chosen["target"] = VALUES["probabilities" if setting.argument == "probabilities" else "target"]
    value = VALUES[setting.argument]
    chosen[setting.keyword] = value.item() if setting.argument in OPTIONS and setting.argument != "dtype" else value
    return chosen


def function_of(setting: Setting) -> Callable[..., Any]:
    """The public function that takes the argument, as a loss; for grad_output, the gradient that it scales."""
    if setting.argument in ("hidden", "classifier", "bias"):
        return unixent.linear_cross_entropy
    return scaled_gradient if setting.argument == "grad_output" else unixent.cross_entropy


def scaled_gradient(logits: Any, target: Any, *, grad_output: Any) -> Any:
    return unixent.value_and_grad(logits, target, grad_output=grad_output)[1]


def derivative_of(setting: Setting, moving: str) -> Array:
    """The derivative of the plain call with respect to one argument."""
    plain = keywords_of(setting)
    both = unixent.linear_value_and_grad if "hidden" in plain else unixent.value_and_grad
    return np.asarray(both(**plain, wrt=moving)[1])


def in_another_layout(array: Array) -> Array:
    """The same numbers in the other byte order, with negative strides, read-only."""
    swapped = np.array(np.flip(array), array.dtype.newbyteorder())
    swapped.flags.writeable = False
    return np.flip(swapped)


def direction(shape: tuple[int, ...]) -> Array:
    """Where an array moves in forward mode."""
    return np.arange(1.0, 1 + np.prod(shape)).reshape(shape)


class Product:
    """One framework: its ways of giving an argument, and its transforms."""

    name = "numpy"
    transforms: tuple[str, ...] = ("eager",)
    # Of transforms that compile, so many ways of each argument are tried.
    sampled: dict[str, int] = {}  # noqa: RUF012
    constants_have_gradient_zero = False

    def own(self, value: Any) -> Any:
        """A plain value as the framework's array; a dtype's name as the framework's dtype."""
        return np.dtype(value) if isinstance(value, str) else np.asarray(value)

    def special(self, way: str, value: Array) -> Any:
        """A sparse array, a parameter."""
        raise Inapplicable

    def apply(self, transform: str, function: Callable[..., Any], arrays: list[Any], moving: int | None) -> Any:
        """`function(*arrays)` under the transform; with its derivative for arrays[moving] where the transform takes
        one, as a pair."""
        return function(*arrays)

    def read(self, value: Any) -> Array:
        return np.asarray(value)

    def errors(self) -> tuple[type[BaseException], ...]:
        """What stands for an error of ours whose text it holds: a compiler's own exception around it."""
        return ()

    def settings(self, transform: str, argument: str, seed: int = 0) -> list[Setting]:
        every = [Setting(argument, way, transform) for way in WAYS]
        if transform not in self.sampled:
            return every
        few = Random(f"{seed} {transform} {argument}").sample(every, self.sampled[transform])
        return [every[0], *few]

    def given(self, setting: Setting) -> Any:
        """The argument in question, as it is given."""
        way, value = setting.way, VALUES[setting.argument]
        if way == "own":
            return self.own(value)
        if way == "foreign":
            return ForeignArray()
        if isinstance(value, str):
            return {"numpy": np.dtype(value), "scalar": np.float32, "python": value}.get(way) or _none()
        if way in ("numpy", "layout"):
            return value if way == "numpy" else in_another_layout(value)
        if way == "scalar":
            return value[()] if value.ndim == 0 else _none()
        if way == "python":
            return value.item() if value.ndim == 0 else _none()
        if way == "list":
            return value.tolist() if value.ndim else _none()
        if way == "list of own":
            return [self.own(each) for each in value] if value.ndim else [self.own(value)]
        if way == "masked":
            return np.ma.MaskedArray(value, mask=np.zeros(value.shape, bool))
        return self.special(way, value)

    def complaints(self, transform: str, argument: str) -> Iterator[str]:
        """What is wrong with the calls of one argument under one transform."""
        for setting in self.settings(transform, argument):
            try:
                given = self.given(setting)
            except Inapplicable:
                continue
            try:
                wrong = self.judge(setting, given)
            except Inapplicable:
                continue
            if wrong:
                yield f"{argument} given as {setting.way} under {transform}: {wrong}"

    def judge(self, setting: Setting, given: Any) -> str:
        """What is wrong with one call, if anything."""
        plain = keywords_of(setting)
        traced = {name: self.own(value) for name, value in plain.items() if isinstance(value, np.ndarray)}
        traced.pop(setting.keyword, None)
        constants = {name: value for name, value in plain.items() if name not in traced and name != setting.keyword}
        if setting.way in ("own", "parameter") and setting.argument != "dtype":
            traced[setting.keyword] = given
        else:
            constants[setting.keyword] = given
        names, function = list(traced), function_of(setting)

        def call(*arrays: Any) -> Any:
            named = {}  # filled by a loop: MindSpore compiles this source
            for name, array in zip(names, arrays):  # noqa: B905
                named[name] = array  # noqa: PERF403
            return function(**named, **constants)

        moving = self.moving(setting, names)
        try:
            answer = self.apply(setting.transform, call, list(traced.values()), moving)
        except Inapplicable:
            raise
        except Exception as error:
            return self.judge_error(setting, error)
        value, gradient = answer if isinstance(answer, tuple) else (answer, None)
        due = np.asarray(function_of(setting)(**plain))
        rtol = 1e-5 if setting.argument == "dtype" else 1e-12
        got = self.read(value)
        if got.shape != due.shape or got.dtype != due.dtype or not np.allclose(got, due, rtol=rtol, atol=0):
            return f"got {got!r}, expected {due!r}"
        if gradient is None or moving is None:
            return ""
        if names[moving] not in ("logits", "hidden", "classifier", "bias", "target"):
            if self.constants_have_gradient_zero and not self.read(gradient).any():
                return ""
            return f"it was differentiated for {names[moving]}, which has no gradient"
        return self.compare_gradient(setting, names[moving], self.read(gradient), rtol)

    def compare_gradient(self, setting: Setting, name: str, got: Array, rtol: float) -> str:
        due = derivative_of(setting, name)
        atol = rtol * abs(due).max()
        if setting.transform == "jvp":
            due = np.asarray((due * direction(due.shape)).sum())
        if not np.allclose(got, due, rtol=rtol, atol=atol):
            return f"the derivative for {name} is {got!r}, expected {due!r}"
        return ""

    def moving(self, setting: Setting, names: list[str]) -> int | None:
        """What is differentiated: the argument in question, where it is an array that may be, or another."""
        if setting.argument == "grad_output":
            return None  # its function is a derivative already
        moves = setting.argument in DIFFERENTIABLE or setting.way == "parameter"
        if setting.keyword in names and moves and setting.argument != "target":
            return names.index(setting.keyword)
        for name in ("logits", "hidden", "classifier", "target"):
            if name in names and (name != "target" or setting.argument == "probabilities"):
                return names.index(name)
        return None

    def judge_error(self, setting: Setting, error: BaseException) -> str:
        """An error must be ours, also inside a compiler's, and name the argument."""
        ours = [each for each in _chain(error) if isinstance(each, unixent.UnixentError)]
        text = str(ours[0] if ours else error)
        quoted = any(f"{name}: " in text for name in setting.names)
        if not ours and not (isinstance(error, self.errors()) and quoted):
            return f"{type(error).__module__}.{type(error).__name__}: {text[:300]}"
        if not quoted:
            return f"the error does not name it: {text[:200]}"
        return f"it was refused: {text[:200]}" if setting.must_work else ""


def _none() -> Any:
    raise Inapplicable


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
