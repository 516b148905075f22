"""What the study keeps of a report, and the page that is made from it."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

import peers
from peers import page, record
from peers.reported import REPORTED
from unixent_conformance import isolation, run
from unixent_conformance.results import Report, Result, Verdict

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clamped() -> Report:
    return run("subjects:clamped", "numpy", features=["out-of-range targets", "class indices"], isolate=False)


def test_a_record_has_the_smallest_input_of_what_is_wrong(clamped: Report) -> None:
    wrong = run("subjects:off_by_a_thousandth", "numpy", features=["class indices"], isolate=False)
    (fault,) = record.record(wrong)["faults"]
    assert (fault["feature"], fault["verdict"], fault["cases"]) == (
        "class indices",
        "silently wrong",
        len(wrong.failures),
    )
    sizes = [record.find_case(result.id).build().logits.size for result in wrong.failures]
    smallest = record.find_case(fault["case"]).build()
    assert smallest.logits.size == min(sizes)
    assert str(smallest.logits.shape) in fault["input"] or smallest.logits.size <= record.SPELLED
    assert record.record(clamped)["dialects"]
    assert record.record(clamped)["features"]["out-of-range targets"]["dialect"] > 0


def test_a_record_shows_what_is_far_off_before_a_rounding() -> None:
    rounding, severe = "class-indices/two-classes/float32-sum/value", "class-indices/plain/float32-sum/gradient"
    results = (
        Result(rounding, "class indices", "eager", Verdict.WRONG, "a bit", 1.2),
        Result(severe, "class indices", "eager", Verdict.WRONG, "much", 500.0),
    )
    (fault,) = record.record(Report("mine", "numpy", "1", results))["faults"]
    assert (fault["case"], fault["cases"]) == (severe, 2)


def test_a_record_is_what_json_holds(clamped: Report) -> None:
    kept = record.record(clamped)
    assert json.loads(json.dumps(kept)) == kept
    counts = {verdict.value: n for verdict, n in clamped.counts.items() if n}
    assert {v: sum(row.get(v, 0) for row in kept["features"].values()) for v in counts} == counts


def test_a_record_names_no_folder_of_the_machine() -> None:
    detail = "OSError: '/home/me/lib/kernels.so' has no symbol\nand more"
    result = Result("class-indices/plain/float32-mean/value", "class indices", "eager", Verdict.CRASHED, detail)
    (fault,) = record.record(Report("mine", "numpy", "1", (result,)))["faults"]
    assert fault["detail"] == "OSError: 'kernels.so' has no symbol"


def test_what_an_interpreter_does_not_end_in_time_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "PATIENCE", 1)
    late = run(f"{__name__}:endless", "numpy", features=["class indices"], quick=True, timeout=0.5)
    assert len({result.detail for result in late.cases}) == 2  # what was not begun says why
    kept = record.record(replace(late, implementation="liger-kernel"))
    assert (kept["faults"], kept["features"]) == ([], {})
    assert kept["left_out"][-1] == f"{len(late.cases)} that took too long"
    assert record.record(replace(late, implementation="torch loss_parallel"))["faults"]


def endless(logits: object, target: object) -> None:
    time.sleep(60)


def test_arrays_of_a_few_elements_are_spelled_out() -> None:
    import numpy as np

    from unixent_conformance.model import Call

    call = Call(np.array([[0.1, -np.inf]], np.float32), np.array([0]), options={"reduction": "none"})
    assert record.spelled(call) == "logits=float32 [[0.1, -inf]], target=[0], reduction='none'"
    wide = Call(np.zeros((3, 70000), np.float16), np.zeros(3, np.int32))
    assert record.spelled(wide) == "logits=float16 of shape (3, 70000), target=int32 [0, 0, 0]"
    strided = Call(np.zeros((2, 4), np.float32)[:, ::2], np.zeros(2, np.int64))
    assert record.spelled(strided) == "logits=float32 of shape (2, 2), strides (4, 2), target=[0, 0]"


def test_the_page_has_every_recorded_implementation_and_is_made_when_the_site_is(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from build_site import stage
    finally:
        sys.path.remove(str(ROOT / "tools"))
    stage(tmp_path)
    text = (tmp_path / "docs" / "peers.md").read_text("utf-8")
    recorded = [json.loads(path.read_text("utf-8")) for path in page.FOLDER.glob("*.json")]
    assert len(recorded) >= 20
    assert page.MARKER not in text
    for each in recorded:
        peers.find(each["implementation"])
        assert re.search(rf"^#### \d+\. {re.escape(each['implementation'])}$", text, re.MULTILINE)
        assert each["environment"] in text
        for fault in each["faults"]:
            assert f"<code>{escape(fault['input'], quote=False)}</code>" in text


def test_reports_are_of_what_the_study_shows() -> None:
    shown = {
        (each["implementation"], what)
        for path in page.FOLDER.glob("*.json")
        for each in [json.loads(path.read_text("utf-8"))]
        for what in (*each["dialects"], *(fault["feature"] for fault in each["faults"]))
    }
    assert set(REPORTED) <= shown
