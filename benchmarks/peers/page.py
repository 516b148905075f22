"""The results of the study as Markdown, from the files that `record.py` wrote: `tools/build_site.py` puts them into the
page on other libraries.

    python benchmarks/peers/page.py
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import INTERPRETED, OWN, PEERS, Peer
from peers.reported import REPORTED

FOLDER = Path(__file__).parent / "results"
# Where the page has its results, as a comment.
MARKER = "<!-- python benchmarks/peers/page.py -->"

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
        f"{len(results)} implementations, run from {dates[0]} to {dates[-1]} on {'; '.join(machines)}.",
        "Quick is what `--quick` asks of the catalogue.",
        *([f"Not run, with what installs them: {'; '.join(absent)}."] if absent else []),
        "",
        *_overview(results, everyone),
        "",
        "### By feature",
        "",
        "What weighs most of a feature's verdicts: " + ", ".join(f"{mark} {v}" for v, mark in MARKS.items()) + ". A",
        "feature is refused where nothing of it could be asked. Columns are numbered as above; an empty one was not",
        "asked.",
        "",
        *_matrix(results),
        "",
        "### What is wrong, and with what",
        "",
        "Of each feature in which a result is silently wrong, or an error internal: the case with the smallest input,",
        "what came and what is due. Arrays of more than a few elements are given by their shape;",
        "`unixent_conformance.case(id).build()` has them.",
        "",
    ]
    for i, each in enumerate(results, 1):
        lines += _of_one(i, each, everyone[each["implementation"]])
    return "\n".join(lines)


def _overview(results: list[dict[str, Any]], everyone: dict[str, Peer]) -> list[str]:
    lines = ["| | implementation | run | " + " | ".join(MARKS) + " | cases | time |", "|--:|---|---|" + "--:|" * 7]
    for i, each in enumerate(results, 1):
        counts: Counter[str] = Counter()
        for row in each["features"].values():
            counts.update(row)
        cells = [str(i), each["implementation"], _run(each, everyone[each["implementation"]])]
        cells += [str(counts[verdict] or "") for verdict in MARKS]
        lines.append(f"| {' | '.join([*cells, str(counts.total()), _time(each['seconds'])])} |")
    return lines


def _run(each: dict[str, Any], peer: Peer) -> str:
    """How it was called, and which tier of the catalogue."""
    text = " ".join(each["left_out"])
    tier = "quick" if "quick cases" in text else "full"
    early = ", as far as its time went" if "s were over" in text or each["stopped"] else ""
    return f"{peer.how}, {tier}{early}"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _matrix(results: list[dict[str, Any]]) -> list[str]:
    """In HTML: the columns are as narrow as their marks, which have colours and, on a hover, names and counts."""
    features = dict.fromkeys(name for each in results for name in each["features"])
    names = [f'<th title="{each["implementation"]}">{i}</th>' for i, each in enumerate(results, 1)]
    lines = ['<div class="matrix">', "<table>", f"<thead><tr><th>feature</th>{''.join(names)}</tr></thead>", "<tbody>"]
    for name in features:
        cells = [_cell(each["implementation"], each["features"].get(name, {})) for each in results]
        lines.append(f"<tr><td>{name}</td>{''.join(cells)}</tr>")
    return [*lines, "</tbody>", "</table>", "</div>"]


def _cell(implementation: str, row: dict[str, int]) -> str:
    if not row:
        return "<td></td>"
    verdict = max(row, key=list(MARKS).index)
    counts = ", ".join(f"{n} {each}" for each, n in row.items())
    return f'<td class="{verdict.split()[-1]}" title="{implementation}: {counts}">{MARKS[verdict]}</td>'


def _of_one(number: int, each: dict[str, Any], peer: Peer) -> list[str]:
    lines = [f"#### {number}. {peer.name}", "", f"{each['environment']}; {each['date']}.", ""]
    if peer.how == INTERPRETED:
        lines[-2] += " What [the interpreter hides](triton.md#what-the-interpreter-cannot-show) may be wrong besides."
    if each["left_out"]:
        lines += [f"Left out: {'; '.join(each['left_out'])}.", ""]
    if each["dialects"]:
        dialects = ", ".join(f"{name} ({n})" for name, n in each["dialects"].items())
        lines += [f"Dialects, and in how many cases: {dialects}.", ""]
    for fault in each["faults"]:
        asked = sum(each["features"][fault["feature"]].values())
        head = f"**{fault['feature']}**, {fault['verdict']} in {fault['cases']} of {asked}: `{fault['input']}`"
        url = REPORTED.get((peer.name, fault["feature"]))
        seen = f" Reported: <{url}>." if url else ""
        lines.append(f"- {head}. {_plain(fault['detail'])}. Case `{fault['case']}`.{seen}")
    return [*lines, *([] if each["faults"] else ["Nothing is silently wrong, nothing crashed."]), ""]


def _plain(text: str) -> str:
    """A message as text: nothing in it is markup, and infinitely many bounds need no number."""
    text = text.replace(" (inf times the bound)", "")
    for mark in "\\`*_<>[]|":
        text = text.replace(mark, f"&#{ord(mark)};")
    return text.rstrip(".")


if __name__ == "__main__":
    print(markdown())
