"""A call in words, and its arrays as Python."""

from __future__ import annotations

import numpy as np

from unixent_hostile.drawing import Drawn
from unixent_hostile.views import Array


def features(drawn: Drawn) -> str:
    """What sets a call apart: what findings of wrong values are grouped by."""
    call = drawn.call
    names = [drawn.form if drawn.compiled else "linear" if drawn.linear else "logits"]
    names += ["compiled"] if drawn.compiled else []
    names += [call.tail] if call.tail else list(drawn.outputs)
    names += [drawn.family, *sorted(set(call.options) - {"axis", "validate", "dtype", "on_empty"})]
    return " ".join(names)


def describe(drawn: Drawn) -> str:
    lines = [f"{drawn.form} wrt={drawn.wrt} options={drawn.call.options} {drawn.extra or ''} values: {drawn.family}"]
    for name, array in drawn.arrays.items():
        lines.append(f"  {name}: {array.dtype} {array.shape} strides {array.strides}, {drawn.given[name]}")
    return "\n".join([*lines, f"  compiled={drawn.compiled} strict={drawn.strict}"])


def literal(array: Array) -> str:
    """Python that makes the values of an array again; of many, only their beginning."""
    name = array.dtype.name
    dtype = "ml_dtypes.bfloat16" if name == "bfloat16" else f"np.{'bool_' if name == 'bool' else name}"
    wide = array.astype(np.float64) if array.dtype.kind not in "iub" else array
    if array.size > 64:
        return f"np.zeros({array.shape}, {dtype})  # {array.size} values: draw the call instead"
    entries = repr(wide.tolist()).replace("nan", "np.nan").replace("inf", "np.inf")
    return f"np.array({entries}, {dtype}).reshape({array.shape})"
