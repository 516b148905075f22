"""Keep what a study found: of each report a small file, from which the page of the site is made (`page.py`).

python benchmarks/peers --quick --report out/
python benchmarks/peers/record.py out/          # into benchmarks/peers/results/
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.extend(
    str(Path(__file__).resolve().parents[2] / each) for each in ("benchmarks", "conformance", "backends", "")
)

from peers import find
from peers.page import FOLDER
from unixent_conformance import report
from unixent_conformance.cases import find as find_case
from unixent_conformance.model import Array, Call
from unixent_conformance.results import Report, Result, Verdict

ROOT = Path(__file__).resolve().parents[2]
# Arrays up to this many elements are spelled out.
SPELLED = 12


def record(report: Report) -> dict[str, Any]:
    """What a page says of a report: versions and counts, a row for each feature, and for each feature in which
    something is silently wrong or crashed the failing case of the smallest input."""
    features = {}
    for name, results in report.by_feature().items():
        features[name] = {v.value: n for v in Verdict if (n := sum(r.verdict is v for r in results))}
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
        "faults": [fault for results in report.by_feature().values() for fault in _faults(results)],
    }


def _faults(results: tuple[Result, ...]) -> list[dict[str, Any]]:
    faults = []
    for verdict in (Verdict.WRONG, Verdict.CRASHED):
        alike = [r for r in results if r.verdict is verdict]
        if alike:
            calls = [(r, find_case(r.id).build()) for r in alike]
            smallest, call = min(calls, key=lambda pair: _size(pair[1]))
            what = {"feature": smallest.feature, "verdict": verdict.value, "cases": len(alike), "case": smallest.id}
            # An error may be pages long, and have paths of the machine.
            detail = re.sub(r"(/[\w.+-]+){2,}/", "", smallest.detail.splitlines()[0])[:300]
            faults.append({**what, "input": spelled(call), "detail": detail})
    return faults


def _size(call: Call) -> tuple[int, int]:
    return sum(int(np.asarray(array).size) for array in call.all_arrays().values()), len(call.options)


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
    if array.size > SPELLED:
        return f"{array.dtype.name} of shape {array.shape}"
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
            find(each.implementation)  # a name that the page knows
            file = FOLDER / (re.sub(r"[^A-Za-z0-9_.-]+", "-", each.implementation) + ".json")
            file.write_text(json.dumps(record(each), ensure_ascii=False, indent=1) + "\n", "utf-8")
            print(file)


if __name__ == "__main__":
    main(sys.argv[1:])
