"""Half precision beside the best that the unfused form can do with it.

The unfused form rounds the logits to half precision, and their gradient again on the way back; even with everything
else exact that costs u |z| in each logit. The fused form has neither rounding, so its error must not be larger: root
mean square over the entries, against the exact values, for the loss and for each gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from unixent_conformance import oracle, oracle_linear, tolerance_linear
from unixent_conformance.cases.inputs import dtype_of
from unixent_conformance.cases.model import Call, Finding
from unixent_conformance.oracle import Array

if TYPE_CHECKING:
    from unixent_conformance.runner import Subject


def unfused(call: Call) -> list[Array]:
    """Loss and gradients through logits and a logits gradient of the dtype of hidden, all else exact to the end."""
    half, found = dtype_of(call.dtype), oracle_linear.solve(call)
    options = {name: call.options[name] for name in oracle_linear.ROW_OPTIONS if name in call.options}
    bias = 0 if call.bias is None else call.bias.astype(np.longdouble)
    logits = (call.hidden.astype(np.longdouble) @ found.classifier.T + bias).astype(half)
    rows = oracle.solve(logits, call.target, weight=call.weight, mask=call.mask, **options)
    rounded = replace(found, rows=rows)
    reduced = oracle_linear.reduce(rounded, call)
    upstream = None if call.upstream is None else np.asarray(call.upstream)
    gradient = oracle_linear.logits_gradient(rounded, reduced, upstream).astype(half).astype(np.longdouble)
    answers = [reduced.value.astype(half)]
    for name in call.differentiable():
        if name == "target":
            answers.append(oracle.gradient(rows, reduced, rows.target_gradients(), upstream).astype(half))
        else:
            answers.append(oracle_linear.through(rounded, gradient, name).astype(half))
    return answers


def no_worse_than_unfused(subject: Subject, call: Call) -> Finding | None:
    """A Finding where the fused error is the larger; its units are the ratio of the two, at most 1 where it is not."""
    truth = tolerance_linear.estimates(call, gradients=True)
    worst = 0.0
    for (name, exact), ours, theirs in zip(truth.items(), subject.linear_gradients(call), unfused(call), strict=True):
        mine, other = _rms(ours, exact.value), _rms(theirs, exact.value)
        worst = max(worst, mine / other)
        if not mine <= other:
            return Finding(f"{name}: rms error {mine:.3g}, of the unfused form in {call.dtype} {other:.3g}")
    return Finding("", worst)


def _rms(got: Array, exact: Array) -> float:
    error = got.astype(np.longdouble) - exact
    return float(np.sqrt((error**2).mean()))
