"""The results of the study as Markdown, from the files that `record.py` wrote: `tools/build_site.py` puts them into the
page on other libraries.

    python benchmarks/peers/page.py
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import INTERPRETED, OWN, PEERS, Peer
from peers.reported import REPORTED

FOLDER = Path(__file__).parent / "results"
# Where the page has its results, as a comment.
MARKER = "<!-- python benchmarks/peers/page.py -->"

# What a record says of cases that were to be run.
NOT_RUN = re.compile(r"(\d+) (?:cases, since (?:[\d.]+ s were over|the run was stopped)|that took too long)")

# From what says least to what weighs most in a feature, and how a cell of the matrix says it.
MARKS = {"refuses": "–", "matches": "✓", "dialect": "≈", "crashed": "!", "silently wrong": "✗"}


def markdown() -> str:
    """Who was studied and how, the matrix of features, and what is wrong in each."""
    everyone = {peer.name: peer for peer in (*OWN, *PEERS)}
    results = [json.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.json")]
    results.sort(key=lambda each: list(everyone).index(each["implementation"]))
    recorded = {each["implementation"] for each in results}
    absent = [
        f"{peer.name} (`{peer.install or 'pip install ' + peer.needs[-1]}`)"
        for peer in PEERS
        if peer.name not in recorded
    ]
    dates = sorted(each["date"] for each in results)
    machines = sorted({each["machine"] for each in results})
    lines = [
        f"{len(results)} implementations against [the definition](semantics.md), run from {dates[0]} to {dates[-1]} on",
        f"{'; '.join(machines)}; versions stand with each below. Full is the whole catalogue, which has fewer cases",
        "for a peer that is called in one mode than for unixent's backends. All ran beside other work on the machine,",
        "which the times show. Where an interpreter or a compiler would take hours, what tells most was run for some",
        "minutes, and a case that takes more than one was left out: the table says how many of how many cases ran.",
        *([f"Not run, with what installs them: {'; '.join(absent)}."] if absent else []),
        "",
        *_overview(results, everyone),
        "",
        "### By feature",
        "",
        "What weighs most of a feature's verdicts, with the counts of all on a hover: "
        + ", ".join(f"{mark} {v}" for v, mark in MARKS.items())
        + ".",
        "A feature is refused where nothing of it could be asked; an empty cell was not asked.",
        "",
        *_matrix(results),
        "",
        "### What is wrong, and with what",
        "",
        "Of each feature in which a result is silently wrong, or an error internal: the smallest input that shows it,",
        "found by leaving out positions, classes and options of a failing case and rounding its numbers; what came,",
        "and what is due. The lines to paste run in a checkout, in an environment of the library, with",
        "`PYTHONPATH=benchmarks`.",
        "",
    ]
    for i, each in enumerate(results, 1):
        lines += _of_one(i, each, everyone[each["implementation"]])
    return "\n".join(lines)


def _overview(results: list[dict[str, Any]], everyone: dict[str, Peer]) -> list[str]:
    """In HTML, as the matrix: a table of Markdown has columns too wide for all of its counts to be seen."""
    names = ["implementation", "run", *MARKS, "cases", "time"]
    lines = ['<div class="matrix">', "<table>", "<thead>", _row("th", names), "</thead>", "<tbody>"]
    for i, each in enumerate(results, 1):
        counts: Counter[str] = Counter()
        for row in each["features"].values():
            counts.update(row)
        cells = [f"{i}. {each['implementation']}", _run(each, everyone[each["implementation"]])]
        cells += [str(counts[verdict] or "") for verdict in MARKS]
        lines.append(_row("td", [*cells, str(counts.total()), _time(each["seconds"])]))
    return [*lines, "</tbody>", "</table>", "</div>"]


def _row(tag: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"


def _run(each: dict[str, Any], peer: Peer) -> str:
    """How it was called, and how much of the catalogue."""
    text = " ".join(each["left_out"])
    asked = sum(sum(row.values()) for row in each["features"].values())
    not_run = sum(int(n) for n in NOT_RUN.findall(text))
    tier = "quick" if "quick cases" in text else "full"
    return f"{peer.how}, {asked:,} of {asked + not_run:,} cases" if not_run else f"{peer.how}, {tier}"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _matrix(results: list[dict[str, Any]]) -> list[str]:
    """In HTML: the columns are as narrow as their marks, which have colours and, on a hover, counts."""
    features = dict.fromkeys(name for each in results for name in each["features"])
    names = [f"<th><span>{i}. {each['implementation']}</span></th>" for i, each in enumerate(results, 1)]
    lines = [
        '<div class="matrix">',
        '<div class="of-features">',
        "<table>",
        f"<thead><tr><th>feature</th>{''.join(names)}</tr></thead>",
        "<tbody>",
    ]
    for name in features:
        cells = [_cell(each, name) for each in results]
        lines.append(f"<tr><td>{name}</td>{''.join(cells)}</tr>")
    return [*lines, "</tbody>", "</table>", "</div>", "</div>"]


def _cell(each: dict[str, Any], feature: str) -> str:
    row = each["features"].get(feature)
    if not row:
        return "<td></td>"
    verdict = max(row, key=list(MARKS).index)
    counts = ", ".join(f"{n} {said}" for said, n in row.items())
    reason = each.get("refused", {}).get(feature, "")
    title = f"{each['implementation']}: {counts}" + (f" ({reason})" if reason else "")
    return f'<td class="{verdict.split()[-1]}" title="{escape(title)}">{MARKS[verdict]}</td>'


def _of_one(number: int, each: dict[str, Any], peer: Peer) -> list[str]:
    lines = [f"#### {number}. {peer.name}", "", f"{each['environment']}; {each['date']}.", ""]
    if peer.how == INTERPRETED:
        lines[-2] += " What [the interpreter hides](triton.md#what-the-interpreter-cannot-show) may be wrong besides."
    if each["left_out"]:
        lines += [f"Left out: {'; '.join(each['left_out'])}.", ""]
    if each["dialects"]:
        dialects = [f"{name} ({n}{_report_of(peer, name)})" for name, n in each["dialects"].items()]
        lines += [f"Dialects, and in how many cases: {', '.join(dialects)}.", ""]
    if not each["faults"]:
        return [*lines, "Nothing is silently wrong, nothing crashed.", ""]
    return [*lines, '<ul class="faults">', *(_fault(each, fault, peer) for fault in each["faults"]), "</ul>", ""]


def _report_of(peer: Peer, dialect: str) -> str:
    url = REPORTED.get((peer.name, dialect))
    return f", [reported]({url})" if url else ""


def _fault(each: dict[str, Any], fault: dict[str, Any], peer: Peer) -> str:
    """In HTML, with the lines to paste folded away."""
    asked = sum(each["features"][fault["feature"]].values())
    head = f"<strong>{fault['feature']}</strong>, {fault['verdict']} in {fault['cases']} of {asked}:"
    url = REPORTED.get((peer.name, fault["feature"]))
    seen = f' Reported: <a href="{url}">{url.removeprefix("https://github.com/")}</a>.' if url else ""
    text = f"<li>{head} <code>{escape(fault['input'], quote=False)}</code>. {_plain(fault['detail'])}.{seen}"
    if not fault.get("lines"):
        return f"{text} Case <code>{fault['case']}</code>.</li>"
    # A blank line would end the block.
    lines = escape(fault["lines"], quote=False).replace("\n\n", "\n")
    return f"{text}\n<details><summary>Lines to paste</summary><pre><code>{lines}</code></pre></details></li>"


def _plain(text: str) -> str:
    """A message: infinitely many bounds need no number."""
    return escape(text.replace(" (inf times the bound)", "").rstrip("."), quote=False)


if __name__ == "__main__":
    print(markdown())
