"""What the oracle expects of a case: each part of the answer with its bound, dtype and shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unixent_conformance import oracle, tolerance, tolerance_linear, tolerance_second
from unixent_conformance.cases.model import Asks, Call
from unixent_conformance.oracle import Array, Rows
from unixent_conformance.tolerance import Comparison, Estimate

ROW_OPTIONS = ("axis", "ignore_index", "label_smoothing", "z_loss", "softcap")


@dataclass(frozen=True)
class Part:
    """One array of the answer."""

    name: str
    estimate: Estimate
    dtype: str

    def rounding(self) -> Array:
        """One rounding of the value to its dtype."""
        return tolerance.rounding(self.estimate.value, self.dtype)

    def compare(self, got: Array) -> Comparison:
        """Shape and dtype first, then every entry."""
        wrong = ""
        if got.shape != self.estimate.value.shape:
            wrong = f"{self.name}: shape {got.shape}, expected {self.estimate.value.shape}"
        elif got.dtype.name != self.dtype:
            wrong = f"{self.name}: dtype {got.dtype.name}, expected {self.dtype}"
        if wrong:
            return Comparison(float("inf"), (), float("nan"), float("nan"), 0.0, wrong)
        return tolerance.compare(got, self.estimate, self.dtype)


def rows_of(call: Call) -> Rows:
    """The call's positions, solved."""
    options = {name: call.options[name] for name in ROW_OPTIONS if name in call.options}
    return oracle.solve(call.logits, call.target, weight=call.weight, mask=call.mask, **options)


def expected(call: Call, asks: Asks) -> list[Part]:
    """The parts of the answer in the order in which an implementation gives them."""
    if asks == "second derivatives":
        return second(call)
    if call.linear:
        return linear(call, asks != "loss")
    rows, narrow = rows_of(call), call.acc_dtype
    reduction = "sum" if asks == "terms" else str(call.options.get("reduction", "mean"))
    reduced = oracle.reduce(rows, reduction, call.options.get("normalizer"), str(call.options.get("on_empty", "zero")))
    if asks == "terms":
        # Partial sums come in the accumulation dtype: a float16 count of tokens ends at 65504.
        dtype = str(call.options.get("dtype") or narrow)
        return [
            Part("numerator", tolerance.numerator(rows, reduced, narrow), dtype),
            Part("denominator", tolerance.denominator(rows, reduced, narrow), dtype),
        ]
    value = Part("loss", tolerance.loss(rows, reduced, reduction, narrow), call.result_dtype)
    if asks == "loss":
        return [value]
    upstream = None if call.upstream is None else np.asarray(call.upstream)
    if asks == "logits gradient":
        gradient = tolerance.logits_gradient(rows, reduced, upstream, narrow)
        return [value, Part("gradient of logits", gradient, call.dtype)]
    gradient = tolerance.target_gradient(rows, reduced, upstream, narrow)
    return [value, Part("gradient of target", gradient, call.target.dtype.name)]


def second(call: Call, seen: Callable[[Rows], Rows] = lambda rows: rows) -> list[Part]:
    """The change of each gradient along `call.directions()`; `seen` as in `linear`."""
    if call.linear:
        estimates = tolerance_second.of_linear(call, seen)
    else:
        rows, o = seen(rows_of(call)), call.options
        reduced = oracle.reduce(rows, o.get("reduction", "mean"), o.get("normalizer"), o.get("on_empty", "zero"))
        estimates = tolerance_second.of_logits(rows, reduced, call)
    return [Part(f"second derivative, {name}", own, str(getattr(call, name).dtype)) for name, own in estimates.items()]


def linear(call: Call, gradients: bool, seen: Callable[[Rows], Rows] = lambda rows: rows) -> list[Part]:
    """The parts of the answer of a fused linear call; `seen` may change the rows' error model."""
    found = tolerance_linear.estimates(call, gradients, seen)
    parts = [Part("loss", found.pop("loss"), call.result_dtype)]
    return parts + [Part(f"gradient of {name}", own, str(getattr(call, name).dtype)) for name, own in found.items()]
