"""Half precision beside the best that the unfused form can do with it.

The unfused form rounds the logits to half precision, and their gradient again on the way back; even with everything
else exact that costs u |z| in each logit. The fused form has neither rounding, so its error must not be larger: root
mean square over the entries, against the exact values, for the loss and for each gradient.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unixent_conformance import oracle
from unixent_conformance.cases.inputs import dtype_of
from unixent_conformance.expected import expected
from unixent_conformance.model import Array, Call, Finding
from unixent_conformance.under_test import Subject


def unfused(call: Call) -> list[Array]:
    """Loss and gradients through logits and a logits gradient of the dtype of hidden, all else exact to the end."""
    half, fused = dtype_of(call.dtype), oracle.solve(call)
    assert fused.linear is not None
    bias = 0 if call.bias is None else call.bias.astype(np.longdouble)
    logits = (call.hidden.astype(np.longdouble) @ fused.linear.classifier.T + bias).astype(half)
    rows = oracle.rows_of(call, logits)
    rounded = replace(fused, rows=rows, reduced=oracle.reduce(rows, call))
    gradient = rounded.gradient_rows(rows.logits_gradients()).astype(half).astype(np.longdouble)
    answers = [rounded.reduced.value.astype(half)]
    for name in call.differentiable():
        if name == "target":
            answers.append(rounded.gradient(rows.target_gradients()).astype(half))
        else:
            answers.append(rounded.through(fused.linear, gradient, name).astype(half))
    return answers


def no_worse_than_unfused(subject: Subject, call: Call) -> Finding | None:
    """A Finding where the fused error is the larger; its units are the ratio of the two, at most 1 where it is not."""
    worst, parts, answer = 0.0, expected(call, "linear gradients"), subject.answer(call, "linear gradients")
    for part, fused, other in zip(parts, answer, unfused(call), strict=True):
        error, unfused_error = _rms(fused, part.estimate.value), _rms(other, part.estimate.value)
        worst = max(worst, error / unfused_error)
        if not error <= unfused_error:
            name = part.name.removeprefix("gradient of ")
            return Finding(f"{name}: rms error {error:.3g}, of the unfused form in {call.dtype} {unfused_error:.3g}")
    return Finding("", worst)


def _rms(got: Array, exact: Array) -> float:
    error = got.astype(np.longdouble) - exact
    return float(np.sqrt((error**2).mean()))
