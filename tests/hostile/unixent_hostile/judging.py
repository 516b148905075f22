"""One hostile call: made, and its answer held against the oracle.

A call is right that gives the oracle's value and gradients, within the suite's error model, or an error of ours that
was due: of the class that the definition names, or about the argument that was given wrongly. Everything else is a
finding: a wrong number, shape or dtype, an exception that is not ours, a warning that escapes, a refusal without a
reason, a wrong argument that is taken, an input that is written to.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import unixent
from unixent import PositionStats, TopK
from unixent_conformance import oracle
from unixent_hostile.describing import describe, features
from unixent_hostile.drawing import Drawn
from unixent_hostile.due import (
    asked,
    beyond_the_dtype,
    due_errors,
    expected,
    is_honest,
    is_nothing,
    without_undefined,
)
from unixent_hostile.frameworks import Framework

ARGUMENTS = ("logits", "hidden", "classifier", "target", "bias", "weight", "mask", "selected", "ids", "grad_output")

# Inputs up to this many elements are compared with a copy after the call.
WATCHED = 256


@dataclass(frozen=True)
class Outcome:
    """How a call ended: so many values compared, or refused by this class, or a finding of this group."""

    compared: int = 0
    refused: str = ""
    group: str = ""
    detail: str = ""


class Judge:
    """Calls of one framework's backend, through the public functions or others of the same names."""

    def __init__(self, framework: Framework, functions: Any = unixent) -> None:
        self.framework, self.functions = framework, functions
        self._compiled: tuple[Any, Any] = (None, None)

    def judge(self, drawn: Drawn) -> Outcome:
        with np.errstate(all="ignore"):
            due = due_errors(drawn)
            arrays = self._given(drawn)
            watched = {name: a.tobytes() for name, a in drawn.arrays.items() if a.size <= WATCHED}
        try:
            with np.errstate(all="raise" if drawn.strict else "warn"):
                answer = self._call(drawn, arrays)
        except unixent.UnixentError as error:
            return _judge_error(drawn, due, error)
        except Exception as error:
            return _exception(error)
        with np.errstate(all="ignore"):
            if "" not in due:
                return Outcome(group=f"expected {due[0]}; nothing was raised", detail=describe(drawn))
            if drawn.mistake is not None:
                return Outcome(group=f"{drawn.mistake.argument}: {drawn.mistake.what} was taken")
            try:
                return self._compare(drawn, answer, watched)
            except Exception as error:
                return Outcome(group=f"the answer cannot be read: {error}"[:150], detail=traceback.format_exc())

    def _given(self, drawn: Drawn) -> dict[str, Any]:
        mistake, arrays = drawn.mistake, {}
        for name, array in drawn.arrays.items():
            how = drawn.given[name]
            arrays[name] = array.tolist() if how == "list" else array
            if how == "own":
                arrays[name] = self.framework.give(array)
        if mistake is not None and mistake.argument in ARGUMENTS:
            arrays[mistake.argument] = mistake.value
        return arrays

    def _call(self, drawn: Drawn, arrays: dict[str, Any]) -> Any:
        options, mistake = {**drawn.call.options, **drawn.extra}, drawn.mistake
        if mistake is not None and mistake.argument not in arrays:
            options[mistake.argument] = mistake.value
        form, names = drawn.form, list(arrays)
        grad_output = arrays.get("grad_output")
        function, leading = self._function(drawn, options)
        if form.endswith("and_grad") and (drawn.linear or not drawn.outputs):
            options.setdefault("wrt", drawn.wrt if len(drawn.wrt) > 1 else drawn.wrt[0])
        if self.framework.name != "numpy" and "module" not in form:
            options.setdefault("backend", self.framework.name)
        if form.endswith("autograd"):
            names = [name for name in names if name != "grad_output"]
        call = drawn.call
        teacher: dict[str, Any] = {"tail": call.tail}
        values_name = "log_probs" if call.log_probs else "probs"
        if form.endswith("module"):
            normalizer = {"normalizer": options["normalizer"]} if "normalizer" in options else {}
            target = arrays["target"]
            if call.tail:
                target = TopK(arrays["ids"], **{values_name: target}, **teacher)
            return function(arrays["logits"], target, arrays.get("mask"), **normalizer)
        place = PositionStats._fields.index(drawn.outputs[0]) if drawn.outputs else 0
        is_stats, is_autograd = bool(drawn.outputs), form.endswith("autograd")

        # In the Python that MindSpore compiles.
        def of_arrays(*given: Any) -> Any:
            named = {}
            target = given[leading - 1]
            for name, value in zip(names[leading:], given[leading:]):  # noqa: B905
                if name == "ids":
                    target = TopK(value, **{values_name: target}, **teacher)
                elif name == "grad_output" and is_stats:
                    named[name] = PositionStats(**{drawn.outputs[0]: value})
                else:
                    named[name] = value
            first = given[: leading - 1] + (target,)  # noqa: RUF005
            result = function(*first, **named, **options)
            return result[place] if is_stats and is_autograd else result

        names.sort(key=ARGUMENTS.index)
        values = [arrays[name] for name in names]
        if not form.endswith("autograd"):
            return self._compile(drawn, of_arrays)(*values)
        wrt = [names.index(name) for name in drawn.wrt]
        if not drawn.compiled:
            return self.framework.autograd(of_arrays, values, wrt, grad_output)

        def differentiated(*given: Any) -> Any:
            above = given[len(values)] if len(given) > len(values) else None
            return self.framework.autograd(of_arrays, given[: len(values)], wrt, above)

        return self._compile(drawn, differentiated)(*values, *([] if grad_output is None else [grad_output]))

    def _compile(self, drawn: Drawn, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function itself, or compiled: once for the calls of one structure."""
        if not drawn.compiled:
            return function
        described = [(name, array.dtype.name, array.shape) for name, array in drawn.arrays.items()]
        key = str((drawn.form, drawn.call.options, drawn.wrt, drawn.extra, described))
        if self._compiled[0] != key:
            self._compiled = key, self.framework.compiled(function)
        return self._compiled[1]  # type: ignore[no-any-return]

    def _function(self, drawn: Drawn, options: dict[str, Any]) -> tuple[Callable[..., Any], int]:
        """What is called, and how many of its arrays come first. A module takes its options on the way."""
        form = drawn.form
        if form.endswith("module"):
            weight = self._given(drawn).get("weight")
            constructed = {name: value for name, value in options.items() if name != "normalizer"}
            if form == "native_module":
                return self.framework.native_module(weight, constructed, drawn.call), 2
            constructed["calculate_per_token_loss"] = form == "terms_module"
            return self.functions.CrossEntropyLoss(weight=weight, backend=self.framework.name, **constructed), 2
        if form.endswith("autograd"):
            form = form.removesuffix("_autograd") if drawn.outputs else "cross_entropy"
            form = f"linear_{form.removeprefix('linear_')}" if drawn.linear else form
        return getattr(self.functions, form), 3 if drawn.linear else 2

    def _compare(self, drawn: Drawn, answer: Any, watched: dict[str, bytes]) -> Outcome:
        compared = 0
        got = [each for each in _flat(answer) if each is not None]
        solution = oracle.solve(asked(drawn.call))
        parts = expected(drawn, solution)
        if beyond_the_dtype(solution):
            return Outcome(compared)  # x' is infinite where it is computed
        if len(got) != len(parts):
            return Outcome(group=f"{drawn.form}: {len(got)} results, expected {len(parts)}")
        for part, value in zip(parts, got, strict=True):
            array = self.framework.read(value)
            worst = part.compare(array)
            if not worst.ok and part.name in ("gradient of logits", "gradient of bias") and drawn.outputs:
                undefined = np.isnan(part.estimate.value) & is_nothing(solution, array, part.name)
                worst = part.compare(np.where(undefined, np.nan, array).astype(array.dtype))
            if not worst.ok and part.name == "gradient of target":
                worst = part.compare(without_undefined(array, solution, part.estimate.value))
            if np.isnan(worst.bound) and np.isfinite([worst.got, worst.expected]).all():
                continue  # the error model has no bound for a fused form whose soft-cap is beyond the dtype
            if not worst.ok and not is_honest(part, worst, drawn.call, drawn.outputs):
                where = f" at {worst.index}" if worst.index else ""
                said = worst.reason or (
                    f"{part.name}{where}: got {worst.got!r}, expected {worst.expected!r} +- {worst.bound:.3g}"
                )
                return Outcome(group=f"wrong {part.name}: {features(drawn)}", detail=f"{said}\n{describe(drawn)}")
            compared += array.size
        for name, before in watched.items():
            if drawn.arrays[name].tobytes() != before:
                return Outcome(group=f"{name} was written to", detail=describe(drawn))
        return Outcome(compared)


def _flat(answer: Any) -> Iterator[Any]:
    if isinstance(answer, (tuple, list)):
        for each in answer:
            yield from _flat(each)
    else:
        yield answer


def _judge_error(drawn: Drawn, due: tuple[str, ...], error: unixent.UnixentError) -> Outcome:
    name, text = type(error).__name__, str(error)
    if name in due:
        return Outcome(refused=name)
    mistake = drawn.mistake
    if mistake is None:
        return Outcome(group=f"refused without need: {name} at {_line(error)}", detail=f"{text}\n{describe(drawn)}")
    argument = {"mask": "input_mask", "target": "label"}.get(mistake.argument, mistake.argument)
    if mistake.argument in text or argument in text:
        return Outcome(refused=name)
    return Outcome(group=f"{mistake.argument} is not named: {name} at {_line(error)}", detail=text)


def _exception(error: Exception) -> Outcome:
    name = "warning" if isinstance(error, Warning) else "exception"
    text = "".join(traceback.format_exception(error)[-6:])
    return Outcome(group=f"foreign {name}: {type(error).__name__} at {_line(error)}", detail=text)


def _line(error: BaseException) -> str:
    """The innermost line of unixent, or of anything where none is."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "unixent" in f.filename and "unixent_hostile" not in f.filename] or frames
    return f"{'/'.join(ours[-1].filename.split('/')[-2:])}:{ours[-1].lineno}"
