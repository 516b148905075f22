"""A failing case as a few lines to paste: the inputs spelled out where they are small, the call, and what was due."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Call, Case
from unixent_conformance.under_test import Subject

# Arrays up to this many elements are spelled out; larger ones come from the case by its id.
SPELLED = 64


def snippet(case: Case, call: Call, subject: Subject, detail: str) -> str:
    """Python that reproduces a failure: it ends in the same verdict, raised as an AssertionError."""
    lines = [f"# {case.id}: {line}" if not i else f"#   {line}" for i, line in enumerate(detail.splitlines()[:4])]
    lines += ["import numpy as np", "import unixent_conformance as uc", ""]
    lines += [_subject(subject)]
    if case.property is not None or not _spelled(call):
        lines += [f"case = uc.case({case.id!r})", "call = case.build()  # the inputs, as NumPy arrays"]
    else:
        arrays = call.all_arrays()
        if any(np.asarray(array).dtype.name == "bfloat16" for array in arrays.values()):
            lines.insert(-1, "from ml_dtypes import bfloat16")
        options = {name: value for name, value in call.options.items() if name not in arrays}
        if "normalizer" in arrays:
            options["normalizer"] = arrays.pop("normalizer")
        spelled = ", ".join(f"{name!r}: {_literal(value)}" for name, value in options.items())
        lines += ["call = uc.Call(", *(["    logits=None,"] if call.linear else [])]
        lines += [f"    {name}={_literal(value)}," for name, value in arrays.items()]
        others = ("statistic", "tail", "log_probs", "frozen")
        more = {name: getattr(call, name) for name in others if getattr(call, name)}
        lines += [f"    {name}={value!r}," for name, value in more.items()]
        lines += [f"    options={{{spelled}}},", ")", f"case = uc.case({case.id!r}, call)"]
    if case.property is None:
        lines += [
            "try:",
            f"    print(subject.answer(call, {case.quantity!r}))",
            "except Exception as error:",
            "    print(repr(error))",
        ]
    return "\n".join([*lines, "uc.check(case, subject)", ""])


def _subject(subject: Subject) -> str:
    tested, harness = subject.implementation, subject.harness
    arguments = [tested.path or tested.name, harness.path or harness.name, subject.mode.name]
    linear = ", linear=True" if tested.as_logits else ""
    return f"subject = uc.subject({', '.join(map(repr, arguments))}{linear})"


def _spelled(call: Call) -> bool:
    arrays = call.all_arrays().values()
    whole = all(array.flags.c_contiguous and array.flags.writeable for array in arrays)
    return whole and sum(array.size for array in arrays) <= SPELLED


def _literal(value: Any) -> str:
    """An exact literal: Python's repr of a float round-trips, and every element is exact as a float or an int."""
    if not isinstance(value, np.ndarray):
        return "np.nan" if isinstance(value, float) and np.isnan(value) else repr(value)
    dtype = "bfloat16" if value.dtype.name == "bfloat16" else f'"{value.dtype.name}"'
    wide = value if value.dtype.kind in "iubc" else value.astype(np.float64)
    entries = repr(wide.tolist()).replace("nan", "np.nan").replace("inf", "np.inf")
    return f"np.array({entries}, dtype={dtype})" + (f".reshape({value.shape})" if not value.size else "")
