"""A fused linear form, seen as a loss of logits: hidden states times the identity are logits.

    loss(logits, target) = linear(hidden=logits, classifier=I, target)        dloss/dlogits = dloss/dhidden

x·1 plus zeros is x without rounding, in any order, so the whole catalogue and its bounds apply as they are; only logits
that are not finite cannot pass (0·∞ is NaN), and there is no axis but the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from unixent_conformance.cases.inputs import dtype_of
from unixent_conformance.harness import Harness, Unsupported
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Call

# The identity is C x C.
WIDEST = 4096


def through_identity(implementation: Implementation, harness: Harness) -> Implementation:
    """The implementation whose loss is the fused linear form of another: its `linear`, or its only callable."""
    linear, both = implementation.linear or implementation.loss, implementation.linear_value_and_grad
    options = implementation.options
    return replace(
        implementation,
        loss=_on_logits(linear, harness),
        terms=None,
        linear=linear,
        value_and_grad=None if both is None else _on_logits(both, harness),
        options=None if options is None else (options - {"hidden", "classifier"}) | {"logits", "target"},
        as_logits=True,
    )


def obstacle(call: Call) -> str:
    """Why the logits of a call cannot pass an identity classifier; empty if they can."""
    if call.linear:
        return ""
    logits = np.asarray(call.logits)
    if max(logits.shape, default=0) > WIDEST:
        return f"an identity classifier of more than {WIDEST} classes is not made"
    if not np.isfinite(logits.astype(np.complex128)).all():
        return "logits that are not finite cannot pass an identity classifier"
    return ""


def _on_logits(linear: Callable[..., Any], harness: Harness) -> Callable[..., Any]:
    def loss(logits: Any, target: Any, *, axis: int = -1, **options: Any) -> Any:
        if axis not in (-1, len(logits.shape) - 1):
            raise Unsupported("a fused linear form has its classes along the last axis")
        if options.get("wrt") == "logits":
            options["wrt"] = "hidden"
        identity = _identity(logits.shape[-1], logits, harness)
        return linear(logits, identity, target, **options)

    return loss


def _identity(classes: int, like: Any, harness: Harness) -> Any:
    dtype = str(like.dtype).rsplit(".", 1)[-1].lower()
    return harness.from_numpy(np.eye(classes).astype(dtype_of(dtype)))
