"""What a call is due: the oracle's answer, an error, and what else is right where the definition leaves a choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from unixent_conformance import oracle, tolerance
from unixent_conformance.expected import Part
from unixent_conformance.expected import expected as parts_of
from unixent_conformance.model import Call
from unixent_conformance.oracle.sparse import SparseRows
from unixent_conformance.tolerance import FORMATS
from unixent_hostile.drawing import Drawn
from unixent_hostile.views import Array


def asked(call: Call) -> Call:
    """The call as the oracle is asked it: a soft-cap above the accumulation dtype's largest number is the identity, one
    below its smallest normal number is that."""
    softcap, form = call.options.get("softcap"), FORMATS[call.acc_dtype]
    scale = call.options.get("scale", 1.0)
    if softcap is None or form.smallest_normal <= softcap / scale <= form.largest:
        return call
    return replace(call, options={**call.options, "softcap": None if softcap > 1 else form.smallest_normal * scale})


def asked_for(call: Call, output: str) -> Call:
    """A call of several statistics as one of a single one."""
    selected = call.selected if output == "selected_log_prob" else None
    return replace(asked(call), statistic=output, selected=selected)


def beyond_the_dtype(solution: oracle.Solution) -> bool:
    """Whether scale and temperature make a finite logit larger than the accumulation dtype's largest number."""
    size = abs(solution.rows.logits)
    return bool((np.isfinite(size) & (size > FORMATS[solution.acc_dtype].largest)).any())


def expected(drawn: Drawn, solution: oracle.Solution) -> list[Part]:
    """The oracle's answer, each array with its bound."""
    call = drawn.call
    if drawn.outputs:
        quantity: Any = "loss" if not drawn.wrt else "linear gradients" if drawn.linear else "logits gradient"
        return [part for name in drawn.outputs for part in parts_of(asked_for(call, name), quantity)]
    if "terms" in drawn.form:
        dtype = str(call.options.get("dtype") or call.acc_dtype)
        return [Part(name, estimate, dtype) for name, estimate in tolerance.terms(solution).items()]
    estimates = tolerance.estimates(solution, drawn.wrt)
    gradients = [Part(f"gradient of {name}", estimates[name], drawn.arrays[name].dtype.name) for name in drawn.wrt]
    return [Part("loss", estimates["loss"], call.result_dtype), *gradients]


def is_nothing(solution: oracle.Solution, gradient: Array, name: str) -> Array:
    """Where a gradient is 0 for a class of logit -inf, which is right in a row that is NaN as well."""
    rows = solution.rows
    impossible: Any = np.isneginf(rows.logits)
    impossible = impossible.all(axis=0) if name == "gradient of bias" else rows.to_shape(impossible).astype(bool)
    return np.asarray(impossible & (gradient == 0))


def without_undefined(array: Array, solution: oracle.Solution, due: Array) -> Array:
    """A gradient of the target with NaN, where that is due, for a 0 that is right as well: for a class of weight 0, or
    without a share, in a row that is NaN, and for an infinite loss that is multiplied by 0 upstream."""
    rows, call = solution.rows, solution.call
    above = np.broadcast_to(1 if call.grad_output is None else call.grad_output, rows.positions).reshape(-1, 1)
    undefined: Any
    if isinstance(rows, SparseRows):
        no_share = (rows.q if rows.logarithmic else rows.share.sum(axis=1, keepdims=True)) == 0
        no_weight = (rows.factor == 0) | (no_share if rows.logarithmic or rows.tail == "renormalize" else False)
        undefined = (no_weight | (above == 0)).reshape(array.shape) & np.isnan(due)
        if rows.tail == "renormalize" and not rows.logarithmic:
            # Automatic differentiation of q / Q meets 0 times infinity where such a class has no probability either.
            infinite = ((rows.q == 0) & np.isinf(np.take_along_axis(rows.nll, rows.index, axis=1))).any(axis=1)
            array = np.where(np.isnan(array) & infinite.reshape(*rows.positions, 1), due, array).astype(array.dtype)
    else:
        no_weight = np.asarray(rows.target_coef == 0)
        of_rows: Any = np.where(no_weight, rows.nan_rows[:, None], np.isinf(rows.nll) & (above == 0))
        undefined = rows.to_shape(of_rows & ~rows.inactive[:, None])
    array = array.copy()
    array[undefined.astype(bool) & (array == 0)] = np.nan
    return array


def overflows(call: Call) -> bool:
    """Whether a position's own loss is beyond the accumulation dtype, whatever it is divided by later."""
    rows = oracle.solve(call).rows
    largest = FORMATS[call.acc_dtype].largest / 2
    magnitudes = [rows.loss_magnitudes(), rows.nll, rows.lse**2 if rows.z_loss else rows.lse]
    return any(((abs(each) > largest) & np.isfinite(each)).any() for each in magnitudes)


def is_honest(part: Part, worst: tolerance.Comparison, call: Call, outputs: tuple[str, ...]) -> bool:
    """Whether a number may follow from one beyond its dtype: infinity, or NaN in what it multiplies; 0 for one below
    its normal numbers before it was multiplied by 1 / temperature or a gap, since compilers flush those."""
    if part.dtype not in FORMATS:
        return False
    factor = call.options.get("scale", 1.0) / call.options.get("temperature", 1.0)
    factor = max(1.0, factor) * (256 if "entropy" in outputs else 1)  # of p_c times a gap
    if worst.got == 0 and abs(worst.expected) <= FORMATS[call.acc_dtype].smallest_normal * factor:
        return True
    follows = np.isinf(worst.got) or (np.isnan(worst.got) and part.name.startswith("gradient"))
    largest = min(FORMATS[part.dtype].largest, FORMATS[call.acc_dtype].largest)
    beyond = abs(worst.expected) + np.nan_to_num(worst.bound) > largest
    return bool(follows) and (bool(beyond) or overflows(call))


def has_bad_index(call: Call) -> bool:
    """Whether an index is neither a class nor ignored."""
    scores = call.classifier if call.linear else call.logits
    classes = call.options.get("num_classes", scores.shape[0 if call.linear else call.options.get("axis", -1)])
    for indices in (call.target if call.has_indices else call.ids, call.selected):
        if indices is not None:
            ignored = np.asarray(indices == call.options.get("ignore_index", -100))
            if (~ignored & ((indices < 0) | (indices >= classes))).any():
                return True
    return False


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
