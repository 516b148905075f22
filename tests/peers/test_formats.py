"""What the reports say, in each form."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from unixent_conformance import report, run
from unixent_conformance.results import Report, Result, Verdict


@pytest.fixture(scope="module")
def mixed() -> Report:
    """A report with every verdict."""
    results = [
        Result("a/right/value", "a", "eager", Verdict.MATCHES, units=0.25),
        Result("a/other/value", "a", "eager", Verdict.DIALECT, "why", 7.0, "1 + 1", ("mean over all positions",)),
        Result("a/lacks/value", "a", "jit", Verdict.REFUSES, "has no option mask"),
        Result("b/<wrong> & \x00/value", "b", "eager", Verdict.WRONG, "got nan | 7", float("inf"), "</script>"),
        Result("b/dead/value", "b", "eager", Verdict.CRASHED, "died with SIGSEGV", float("nan"), "2 + 2"),
    ]
    return Report("mine:loss", "numpy", "numpy 2", tuple(results))


def test_a_report_is_ok_unless_something_is_wrong_or_crashed(mixed: Report) -> None:
    assert not mixed.ok
    assert set(mixed.counts.values()) == {1}
    assert Report("x", "numpy", "", mixed.cases[:3]).ok
    assert mixed.dialects == {"mean over all positions": 1}


def test_json_comes_back_as_it_was(mixed: Report) -> None:
    text = mixed.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = Report.from_json(text)
    assert repr(back) == repr(mixed)  # NaN is not equal to itself


@pytest.mark.parametrize("text", ["[]", "{}", '{"version": 99}', "no JSON"])
def test_anything_but_a_report_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"report|JSON|Expecting"):
        Report.from_json(text)


def test_junit_has_failures_errors_and_skipped_cases(mixed: Report) -> None:
    suite = ElementTree.fromstring(report.to_junit(mixed))[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "2",
    }
    assert [[child.tag for child in case] for case in suite] == [[], ["skipped"], ["skipped"], ["failure"], ["error"]]
    assert suite[2].get("name") == "a/lacks/value [jit]"


def test_markdown_has_each_failure_and_dialect(mixed: Report) -> None:
    text = report.to_markdown(mixed)
    assert "| a | 1 | 1 | 1 |  |  | 0.25 |" in text
    assert "mean = Σ ℓₙ / N" in text
    assert "died with SIGSEGV" in text or "got nan" in text


def test_html_holds_its_data_and_names_no_other_file(mixed: Report) -> None:
    page = report.to_html([mixed])
    start = page.index('<script type="application/json" id="data">') + len('<script type="application/json" id="data">')
    data = json.loads(page[start : page.index("</script>", start)])
    assert "</script>" in data["strings"]
    for reference in ("http://", "https://", "src=", "href=", "url(", "@import"):
        assert reference not in page.replace(page[start : page.index("</script>", start)], ""), reference


def test_files_are_written_and_read_back(mixed: Report, tmp_path: Path) -> None:
    written = {path.name for path in report.write(tmp_path / "out", [mixed])}
    assert written == {"index.html", "mine-loss.json", "mine-loss.xml", "mine-loss.md"}
    assert [repr(each) for each in report.read(tmp_path / "out")] == [repr(mixed)]
    with pytest.raises(ValueError, match="expected JSON reports"):
        report.read(tmp_path)


def test_settled_explanations_leave_no_candidates() -> None:
    settled = run("subjects:over_positions", "numpy", features=["class weights"], isolate=False)
    assert {r.candidates for r in settled.cases} == {()}
