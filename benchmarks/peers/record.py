"""Keep what a study found: of each report a small file, from which the page of the site is made (`page.py`).

python benchmarks/peers --report out/
python benchmarks/peers/record.py out/          # into benchmarks/peers/results/

In the environment of a library its failing inputs are made as small as they can be; elsewhere they stay the
catalogue's.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.extend(
    str(Path(__file__).resolve().parents[2] / each) for each in ("benchmarks", "conformance", "backends", "")
)

from peers import INTERPRETED, PEERS, find, smallest
from peers.page import FOLDER
from unixent_conformance import report
from unixent_conformance.api import subject
from unixent_conformance.cases import find as find_case
from unixent_conformance.model import Array, Call
from unixent_conformance.results import Report, Result, Verdict
from unixent_conformance.under_test import Subject

ROOT = Path(__file__).resolve().parents[2]
# Arrays up to this many elements are spelled out.
SPELLED = 12
# So many bounds are more than a rounding.
FAR = 10
# How those peers run whose every call takes seconds on a CPU.
SLOW = (INTERPRETED, "torch.compile", "mindspore.jit")
# What is said of a case that was not ended in time, and of those that were not begun after several such.
SLOWLY = re.compile(r"the process gave no answer|not run: .* ended the process; the last gave no answer")


def record(report: Report, subjects: Callable[[str], Subject] | None = None) -> dict[str, Any]:
    """What a page says of a report: versions and counts, a row for each feature, and for each feature in which
    something is silently wrong or crashed the failing case of the smallest input, with lines that reproduce it.

    subjects: the implementation in a mode, by which inputs are made smaller.
    """
    report = without_slow(report)
    features: dict[str, dict[str, int]] = {}
    reasons: dict[str, str] = {}
    for name, results in report.by_feature().items():
        features[name] = {v.value: n for v in Verdict if (n := sum(r.verdict is v for r in results))}
        refused = Counter(_line(r.detail) for r in results if r.verdict is Verdict.REFUSES)
        if refused:
            ((reasons[name], _),) = refused.most_common(1)
    return {
        "implementation": report.implementation,
        "environment": report.version,
        "date": report.date,
        "machine": report.machine,
        "seconds": report.seconds,
        "stopped": report.stopped,
        "left_out": list(report.left_out),
        "dialects": report.dialects,
        "features": features,
        "refused": reasons,
        "faults": [fault for results in report.by_feature().values() for fault in _faults(results, subjects)],
    }


def without_slow(report: Report) -> Report:
    """Without the cases that an interpreter or a compiler did not end in time: that is no fault of the library."""
    name = report.implementation
    if name not in {peer.name for peer in PEERS if peer.how in SLOW}:
        return report
    cases = tuple(r for r in report.cases if not SLOWLY.match(r.detail))
    slow = len(report.cases) - len(cases)
    return replace(report, cases=cases, left_out=(*report.left_out, f"{slow} that took too long")) if slow else report


def _faults(results: tuple[Result, ...], subjects: Callable[[str], Subject] | None) -> list[dict[str, Any]]:
    faults = []
    for verdict in (Verdict.WRONG, Verdict.CRASHED):
        alike = [r for r in results if r.verdict is verdict]
        if alike:
            # One rounding too many shows less than what is far off.
            result = min(alike, key=lambda r: (r.units < FAR, smallest.size(find_case(r.id).build())))
            case = find_case(result.id)
            call = case.build()
            if subjects is not None:
                call, result = smallest.shrunk(case, result, subjects(result.mode))
            what = {"feature": result.feature, "verdict": verdict.value, "cases": len(alike), "case": result.id}
            faults.append({**what, "input": spelled(call), "detail": _line(result.detail), "lines": _lines(result)})
    return faults


def _line(detail: str) -> str:
    """An error may be pages long, and have paths of the machine."""
    return re.sub(r"(/[\w.+-]+){2,}/", "", next(iter(detail.splitlines()), ""))[:300]


def _lines(result: Result) -> str:
    """The lines to paste, without the comment that says what the page says."""
    return "\n".join(line for line in result.repro.splitlines() if not line.startswith("#")).strip()


def installed(report: Report) -> Callable[[str], Subject] | None:
    """The implementation of a report, if it is installed here in the same version and no case has ended its process:
    one that reads where it should not would end this one, too."""
    peer = find(report.implementation)
    if peer.absent() or ":" not in peer.path or any(r.detail.startswith("the process") for r in report.cases):
        return None
    try:
        version = subject(peer.path, peer.harness, report.cases[0].mode, linear=peer.linear).version
    except (ImportError, LookupError):
        return None
    if version != report.version:
        return None
    return lambda mode: subject(peer.path, peer.harness, mode, linear=peer.linear)


def spelled(call: Call) -> str:
    """The arguments of a call, arrays of more than a few elements by dtype and shape.

    >>> spelled(Call(np.array([[0.1, -np.inf]], np.float32), np.array([0]), options={"reduction": "none"}))
    "logits=float32 [[0.1, -inf]], target=[0], reduction='none'"
    """
    arrays = {name: np.asarray(array) for name, array in call.all_arrays().items()}
    texts = [f"{name}={_array(array)}" for name, array in arrays.items()]
    texts += [f"{name}={value!r}" for name, value in call.static().items()]
    return ", ".join(texts)


def _array(array: Array) -> str:
    dtype = "" if array.dtype == np.int64 else f"{array.dtype.name} "
    layout = "" if array.flags.c_contiguous else f", strides {tuple(n // array.itemsize for n in array.strides)}"
    if array.size > SPELLED or layout:
        return f"{array.dtype.name} of shape {array.shape}{layout}"
    numbers = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    text = np.array2string(numbers, separator=", ", formatter={"float_kind": _number}, max_line_width=10**6)
    return dtype + re.sub(r"\s+", " ", text).replace("[ ", "[")


def _number(value: Any) -> str:
    """Few digits, or all of them."""
    short = f"{value:.4g}"
    with np.errstate(over="ignore"):
        return short if value.dtype.type(short) == value or not np.isfinite(value) else str(value)


def main(paths: list[str]) -> None:
    for path in paths:
        for each in report.read(Path(path)):
            file = FOLDER / (re.sub(r"[^A-Za-z0-9_.-]+", "-", each.implementation) + ".json")
            file.write_text(json.dumps(record(each, installed(each)), ensure_ascii=False, indent=1) + "\n", "utf-8")
            print(file)


if __name__ == "__main__":
    main(sys.argv[1:])
