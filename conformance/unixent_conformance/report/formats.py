"""Reports for test runners and for pull requests: JUnit, Markdown."""

from __future__ import annotations

from xml.etree import ElementTree

from unixent_conformance.dialects import BY_NAME
from unixent_conformance.results import Report, Verdict


def to_junit(report: Report) -> str:
    """A test suite by JUnit's schema: silently wrong is a failure, crashed an error, refusals and dialects skipped."""
    counts = report.counts
    suite = ElementTree.Element(
        "testsuite",
        name=f"unixent conformance: {report.implementation}",
        tests=str(len(report.cases)),
        failures=str(counts[Verdict.WRONG]),
        errors=str(counts[Verdict.CRASHED]),
        skipped=str(counts[Verdict.REFUSES] + counts[Verdict.DIALECT]),
    )
    for result in report.cases:
        name = result.id if result.mode == "eager" else f"{result.id} [{result.mode}]"
        case = ElementTree.SubElement(suite, "testcase", classname=result.feature, name=_printable(name))
        if result.verdict is Verdict.MATCHES:
            continue
        tag = {Verdict.WRONG: "failure", Verdict.CRASHED: "error"}.get(result.verdict, "skipped")
        message = _printable(f"{result.verdict.value}: {result.detail}")
        ElementTree.SubElement(case, tag, message=message).text = _printable(result.repro)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def to_markdown(report: Report, most: int = 10) -> str:
    """A table by feature, the dialects with their formulas, the first failures of each feature with lines to paste."""
    headings = ["feature", *(verdict.value for verdict in Verdict), "share of the bound"]
    lines = [f"## {report.implementation}", "", report.version or report.framework, ""]
    lines += ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    for feature, results in report.by_feature().items():
        counts = [sum(r.verdict is verdict for r in results) for verdict in Verdict]
        worst = max((r.units for r in results if r.verdict is Verdict.MATCHES), default=0.0)
        lines.append(f"| {feature} | " + " | ".join(str(n or "") for n in counts) + f" | {worst:.2g} |")
    if report.dialects:
        lines += ["", "### Dialects", "", "| dialect | cases | formula | when porting |", "|---|---:|---|---|"]
        for name, n in report.dialects.items():
            lines.append(f"| {name} | {n} | {_cell(BY_NAME[name].formula)} | {_cell(BY_NAME[name].advice)} |")
    bad = [r for r in report.cases if not r.verdict.ok]
    first = {r.feature: r for r in reversed(bad)}
    for r in list(first.values())[::-1][:most]:
        lines += ["", f"### {r.verdict.value}: `{r.id}` ({r.mode})", "", r.detail, "", "```python", r.repro, "```"]
    if len(bad) > most:
        lines += ["", f"{len(bad)} cases failed; the JSON report has all of them."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _printable(text: str) -> str:
    """XML 1.0 has no control characters."""
    return "".join(c if c in "\n\t" or c >= " " else "\ufffd" for c in text)
