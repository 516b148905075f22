"""One hostile call: made, and its answer held against the oracle.

A call is right that gives the oracle's value and gradients, within the suite's error model, or an error of ours that
was due: of the class that the definition names, or about the argument that was given wrongly. Everything else is a
finding: a wrong number, shape or dtype, an exception that is not ours, a warning that escapes, a refusal without a
reason, a wrong argument that is taken, an input that is written to.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import unixent
from unixent_conformance import oracle, tolerance
from unixent_conformance.expected import Part
from unixent_conformance.model import Call
from unixent_conformance.tolerance import FORMATS
from unixent_hostile.describing import describe, features
from unixent_hostile.drawing import Drawn
from unixent_hostile.frameworks import Framework
from unixent_hostile.views import Array

ARGUMENTS = ("logits", "hidden", "classifier", "target", "bias", "weight", "mask", "grad_output")

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
        if form.endswith("value_and_grad"):
            options.setdefault("wrt", drawn.wrt if len(drawn.wrt) > 1 else drawn.wrt[0])
        if self.framework.name != "numpy" and "module" not in form:
            options.setdefault("backend", self.framework.name)
        if form.endswith("autograd"):
            names = [name for name in names if name != "grad_output"]
        if form.endswith("module"):
            normalizer = {"normalizer": options["normalizer"]} if "normalizer" in options else {}
            return function(arrays["logits"], arrays["target"], arrays.get("mask"), **normalizer)

        def of_arrays(*given: Any) -> Any:
            named = {}
            for name, value in zip(names[leading:], given[leading:]):  # noqa: B905
                named[name] = value  # noqa: PERF403
            return function(*given[:leading], **named, **options)

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
            form = "linear_cross_entropy" if drawn.linear else "cross_entropy"
        return getattr(self.functions, form), 3 if drawn.linear else 2

    def _compare(self, drawn: Drawn, answer: Any, watched: dict[str, bytes]) -> Outcome:
        compared = 0
        got = list(_flat(answer))
        solution = oracle.solve(asked(drawn.call))
        parts = expected(drawn, solution)
        if beyond_the_dtype(solution):
            return Outcome(compared)  # x' is infinite where it is computed
        if len(got) != len(parts):
            return Outcome(group=f"{drawn.form}: {len(got)} results, expected {len(parts)}")
        for part, value in zip(parts, got, strict=True):
            array = self.framework.read(value)
            worst = part.compare(array)
            if not worst.ok and part.name == "gradient of target":
                worst = part.compare(without_undefined(array, solution))
            if np.isnan(worst.bound) and np.isfinite([worst.got, worst.expected]).all():
                continue  # the error model has no bound for a fused form whose soft-cap is beyond the dtype
            if not worst.ok and not _honest(part, worst, drawn.call):
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


def asked(call: Call) -> Call:
    """The call as the oracle is asked it: a soft-cap above the accumulation dtype's largest number is the identity, one
    below its smallest normal number is that."""
    softcap, form = call.options.get("softcap"), FORMATS[call.acc_dtype]
    scale = call.options.get("scale", 1.0)
    if softcap is None or form.smallest_normal <= softcap / scale <= form.largest:
        return call
    return replace(call, options={**call.options, "softcap": None if softcap > 1 else form.smallest_normal * scale})


def beyond_the_dtype(solution: oracle.Solution) -> bool:
    """Whether scale and temperature make a finite logit larger than the accumulation dtype's largest number."""
    size = abs(solution.rows.logits)
    return bool((np.isfinite(size) & (size > FORMATS[solution.acc_dtype].largest)).any())


def expected(drawn: Drawn, solution: oracle.Solution) -> list[Part]:
    """The oracle's answer, each array with its bound."""
    call = drawn.call
    if "terms" in drawn.form:
        dtype = str(call.options.get("dtype") or call.acc_dtype)
        return [Part(name, estimate, dtype) for name, estimate in tolerance.terms(solution).items()]
    estimates = tolerance.estimates(solution, drawn.wrt)
    gradients = [Part(f"gradient of {name}", estimates[name], drawn.arrays[name].dtype.name) for name in drawn.wrt]
    return [Part("loss", estimates["loss"], call.result_dtype), *gradients]


def without_undefined(array: Array, solution: oracle.Solution) -> Array:
    """A gradient of the target with NaN where 0 is right as well: for a class of weight 0 in a row that is NaN, and for
    an infinite loss that is multiplied by 0 upstream."""
    rows, call = solution.rows, solution.call
    above = np.broadcast_to(1 if call.grad_output is None else call.grad_output, rows.positions).reshape(-1, 1)
    no_weight = rows.target_coef == 0
    undefined = np.where(no_weight, rows.nan_rows[:, None], np.isinf(rows.nll) & (above == 0))
    undefined = rows.to_shape(undefined & ~rows.inactive[:, None])
    array = array.copy()
    array[undefined.astype(bool) & (array == 0)] = np.nan
    return array


def overflows(call: Call) -> bool:
    """Whether a position's own loss is beyond the accumulation dtype, whatever it is divided by later."""
    rows = oracle.solve(call).rows
    largest = FORMATS[call.acc_dtype].largest / 2
    magnitudes = [rows.loss_magnitudes(), rows.nll, rows.lse**2 if rows.z_loss else rows.lse]
    return any(((abs(each) > largest) & np.isfinite(each)).any() for each in magnitudes)


def _honest(part: Part, worst: tolerance.Comparison, call: Call) -> bool:
    """Whether a number may follow from one beyond its dtype: infinity, or NaN in what it multiplies."""
    follows = np.isinf(worst.got) or (np.isnan(worst.got) and part.name.startswith("gradient"))
    largest = min(FORMATS[part.dtype].largest, FORMATS[call.acc_dtype].largest)
    beyond = abs(worst.expected) + np.nan_to_num(worst.bound) > largest
    return bool(follows) and (bool(beyond) or overflows(call))


def has_bad_index(call: Call) -> bool:
    """Whether a target is neither a class nor ignored."""
    if not call.has_indices:
        return False
    scores = call.classifier if call.linear else call.logits
    classes = call.options.get("num_classes", scores.shape[0 if call.linear else call.options.get("axis", -1)])
    ignored = np.asarray(call.target == call.options.get("ignore_index", -100))
    return bool((~ignored & ((call.target < 0) | (call.target >= classes))).any())


def due_errors(drawn: Drawn) -> tuple[str, ...]:
    """The classes of the error that the values of a call are due; "" where a value is right as well."""
    call = drawn.call
    if drawn.compiled or call.options.get("validate") == "off":
        return ("",)
    if has_bad_index(call):
        return ("TargetRangeError",)
    if call.options.get("on_empty") != "raise" or call.reduction != "mean":
        return ("",)
    reduced = oracle.solve(call).reduced
    if reduced.denominator != 0:
        return ("",)
    # Where the numerator is NaN that is right as well; under a derivative some frameworks cannot read the values.
    unsure = np.isnan(reduced.numerator) or drawn.form.endswith("autograd")
    return ("EmptyMeanError", "") if unsure else ("EmptyMeanError",)


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
