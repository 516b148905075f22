"""A failing case as a few lines to paste: the inputs spelled out where they are small, the call, and what was due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unixent_conformance.cases.model import Call, Case

if TYPE_CHECKING:
    from unixent_conformance.runner import Subject

# Arrays up to this many elements are spelled out; larger ones come from the case by its id.
SPELLED = 64

CALLS = {
    "loss": "loss",
    "terms": "terms",
    "logits gradient": "gradient",
    "target gradient": "gradient",
    "linear gradients": "linear_gradients",
    "second derivatives": "curvature",
}


def snippet(case: Case, call: Call, subject: Subject, detail: str) -> str:
    """Python that reproduces a failure: it ends in the same verdict, raised as an AssertionError."""
    lines = [f"# {case.id}: {line}" if not i else f"#   {line}" for i, line in enumerate(detail.splitlines()[:4])]
    lines += ["import numpy as np", "import unixent_conformance as uc", ""]
    lines += [_subject(subject)]
    if case.holds is not None or not _spelled(call):
        lines += [f"case = uc.case({case.id!r})", "call = case.build()  # the inputs, as NumPy arrays"]
    else:
        if any(np.asarray(array).dtype.name == "bfloat16" for array in _everything(call).values()):
            lines.insert(-1, "from ml_dtypes import bfloat16")
        arguments = [f"    {name}={_literal(value)}," for name, value in _everything(call).items()]
        options = {name: value for name, value in call.options.items() if name not in call.arrays()}
        if "normalizer" in call.arrays():
            arguments = [line for line in arguments if not line.startswith("    normalizer=")]
            options["normalizer"] = call.options["normalizer"]
        spelled = ", ".join(f"{name!r}: {_literal(value)}" for name, value in options.items())
        if call.linear:
            arguments.insert(0, "    logits=None,")
        lines += ["call = uc.Call(", *arguments, f"    options={{{spelled}}},", ")"]
        lines += [f"case = uc.case({case.id!r}, call)"]
    if case.holds is None:
        wrt = ', "target"' if case.asks == "target gradient" else ""
        lines += [
            "try:",
            f"    print(subject.{CALLS[case.asks]}(call{wrt}))",
            "except Exception as error:",
            "    print(repr(error))",
        ]
    return "\n".join([*lines, "uc.check(case, subject)", ""])


def _subject(subject: Subject) -> str:
    tested, harness = subject.implementation, subject.harness
    arguments = [tested.path or tested.name, harness.path or harness.name, subject.mode.name]
    linear = ", linear=True" if tested.as_logits else ""
    return f"subject = uc.subject({', '.join(map(repr, arguments))}{linear})"


def _everything(call: Call) -> dict[str, Any]:
    return call.arrays() if call.upstream is None else {**call.arrays(), "upstream": call.upstream}


def _spelled(call: Call) -> bool:
    plain = all(array.flags.c_contiguous and array.flags.writeable for array in _everything(call).values())
    return plain and sum(array.size for array in _everything(call).values()) <= SPELLED


def _literal(value: Any) -> str:
    """An exact literal: Python's repr of a float round-trips, and every element is exact as a float or an int."""
    if not isinstance(value, np.ndarray):
        return "np.nan" if isinstance(value, float) and np.isnan(value) else repr(value)
    dtype = "bfloat16" if value.dtype.name == "bfloat16" else f'"{value.dtype.name}"'
    wide = value if value.dtype.kind in "iubc" else value.astype(np.float64)
    entries = repr(wide.tolist()).replace("nan", "np.nan").replace("inf", "np.inf")
    return f"np.array({entries}, dtype={dtype})" + (f".reshape({value.shape})" if not value.size else "")
