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

from unixent_conformance.cases.model import Call
from unixent_conformance.harness import Harness, Unsupported
from unixent_conformance.implementation import Implementation

# The identity is C x C.
WIDEST = 4096


def through_identity(found: Implementation, harness: Harness) -> Implementation:
    """The implementation whose loss is the fused linear form of `found`: its `linear`, or its only callable."""
    both = found.linear_value_and_grad
    options = None if found.options is None else (found.options - {"hidden", "classifier"}) | {"logits", "target"}
    return replace(
        found,
        loss=_on_logits(found.linear or found.loss, harness),
        terms=None,
        linear=found.linear or found.loss,
        value_and_grad=None if both is None else _on_logits(both, harness),
        options=options,
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
    from unixent_conformance.cases.inputs import dtype_of

    dtype = str(like.dtype).rsplit(".", 1)[-1].lower()
    return harness.from_numpy(np.eye(classes).astype(dtype_of(dtype)))
