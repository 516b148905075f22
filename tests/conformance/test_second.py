"""Second derivatives against central differences of the textbook gradient in mpmath, at 60 digits.

With a step of 1e-20 the difference is off by about 1e-40, and loses 20 digits of 60 to cancellation.
"""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

from unixent_conformance.cases import catalogue, find
from unixent_conformance.expected import expected
from unixent_conformance.model import Call

STEP = mpmath.mpf(10) ** -20

# The exact values are compared; float32 only changes their bounds.
IDS = [case.id for case in catalogue(features=("second derivatives",)) if "masked-class" not in case.id]


def exact(array: Any) -> np.ndarray[Any, Any]:
    wide = np.empty(np.shape(array), object)
    wide.reshape(-1)[:] = [mpmath.mpf(float(value)) for value in np.ravel(np.asarray(array, np.float64))]
    return wide


def gradients(call: Call, moved: dict[str, Any]) -> dict[str, Any]:
    """Every gradient of sum(grad_output * loss), rows of logits or of what they are made of, at `moved`."""
    o, axis = call.options, call.options.get("axis", -1)
    if call.linear:
        hidden = moved["hidden"].reshape(-1, call.hidden.shape[-1])
        x = hidden @ moved["classifier"].T + (moved["bias"] if call.bias is not None else mpmath.mpf(0))
    else:
        x = np.moveaxis(moved["logits"], axis, -1).reshape(-1, call.logits.shape[axis])
    n, classes = x.shape
    indices = call.target.dtype.kind in "iu"
    y = call.target.reshape(-1) if indices else None
    q = (
        exact(np.arange(classes) == y[:, None])
        if indices
        else np.moveaxis(moved["target"], axis, -1).reshape(-1, classes)
    )
    w = exact(np.ones(classes) if call.weight is None else call.weight)
    v = exact(np.ones(n) if call.mask is None else call.mask.reshape(-1))
    v = np.where(y == o.get("ignore_index", -100), mpmath.mpf(0), v) if indices else v
    d = v * (w * q).sum(axis=1) if indices else v
    s, z, a = (mpmath.mpf(o.get(name) or 0) for name in ("label_smoothing", "z_loss", "softcap"))
    x = np.where((v == 0)[:, None], mpmath.mpf(0), x)
    if call.linear:
        hidden = np.where((v == 0)[:, None], mpmath.mpf(0), hidden)
    tanh, exp, log = (np.frompyfunc(f, 1, 1) for f in (mpmath.tanh, mpmath.exp, mpmath.log))
    k, temperature = mpmath.mpf(o.get("scale", 1.0)), mpmath.mpf(o.get("temperature", 1.0))
    x = k * x
    chain = (1 - tanh(x / a) ** 2 if a else x * 0 + 1) * k / temperature
    x = (a * tanh(x / a) if a else x) / temperature
    lse = log(exp(x).sum(axis=1))[:, None]
    if call.statistic:
        flow = np.where((v == 0)[:, None], mpmath.mpf(0), chain * statistic(call, x - lse))
        if call.linear:
            return {"hidden": flow @ moved["classifier"], "classifier": flow.T @ hidden, "bias": flow.sum(axis=0)}
        return {"logits": flow}
    p, t = exp(x - lse), w * ((1 - s) * q + s / classes)
    up = exact(np.broadcast_to(1.0 if call.grad_output is None else call.grad_output, (n,) if n else ()))
    if call.grad_output is not None and np.ndim(call.grad_output):
        up = exact(np.ravel(call.grad_output))
    scale = {"mean": 1 / mpmath.mpf(o.get("normalizer") or d.sum())}.get(o.get("reduction", "mean"), mpmath.mpf(1))
    above = (up * v * scale)[:, None]
    flow = above * chain * (p * t.sum(axis=1)[:, None] - t + 2 * z * lse * p)
    grads = {"target": above * w * (1 - s) * (lse - x)}
    if call.linear:
        return {**grads, "hidden": flow @ moved["classifier"], "classifier": flow.T @ hidden, "bias": flow.sum(axis=0)}
    return {**grads, "logits": flow}


def statistic(call: Call, log_p: Any) -> Any:
    """The gradient of sum(grad_output * statistic) for x'."""
    n, classes = log_p.shape
    p = np.frompyfunc(mpmath.exp, 1, 1)(log_p)
    index = (call.target if call.selected is None else call.selected).reshape(n, -1)
    up = exact(np.ones(index.shape) if call.grad_output is None else call.grad_output).reshape(index.shape)
    up = np.where(index == -100, mpmath.mpf(0), up)
    if call.statistic == "logsumexp":
        return up * p
    if call.statistic == "entropy":
        return -up * p * (log_p - (p * log_p).sum(axis=1)[:, None])
    return sum(up[:, j, None] * (exact(np.arange(classes) == index[:, j, None]) - p) for j in range(index.shape[1]))


@pytest.mark.parametrize("id", IDS)
def test_the_truth_is_that_of_exact_arithmetic(id: str) -> None:
    call = find(id).build()
    start = {name: exact(getattr(call, name)) for name in call.differentiable()}
    along = {name: exact(direction) for name, direction in call.directions().items()}
    with mpmath.workdps(60):
        ahead, behind = (
            gradients(call, {name: start[name] + sign * STEP * along[name] for name in start}) for sign in (1, -1)
        )
        axis = call.options.get("axis", -1)
        parts = expected(call, "second derivatives")
        assert [part.name.rsplit(" ", 1)[1] for part in parts] == list(start)
        for name, part in zip(start, parts, strict=True):
            value, bound = part.estimate.value, part.estimate.bound
            if name in ("logits", "target"):
                value, bound = (np.moveaxis(e, axis, -1) for e in (value, bound))
            difference = (ahead[name] - behind[name]) / (2 * STEP)
            for got, due, room in zip(np.ravel(value), np.ravel(difference), np.ravel(bound), strict=True):
                # A hundredth of what an implementation may be off by.
                assert abs(mpmath.mpf(float(got)) - due) <= mpmath.mpf(float(room)) / 100 + abs(due) * 2**-52 + 1e-35
            assert (np.asarray(bound, float) <= 1e-3 * np.abs(np.asarray(value, float)).max(initial=0) + 1e-300).all()
