"""What a run looks like in a terminal: a bar while it runs, a table by feature, the failures with lines to paste."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from unixent_conformance.results import Report, Result, Verdict, plural

STYLES = {
    Verdict.MATCHES: "green",
    Verdict.DIALECT: "cyan",
    Verdict.REFUSES: "yellow",
    Verdict.WRONG: "bold red",
    Verdict.CRASHED: "magenta",
}


# Of verdicts, where a line has no room for their names.
MARKS = dict(zip(Verdict, "✓≈–✗!", strict=True))
ASCII_MARKS = dict(zip(Verdict, "+~ox!", strict=True))

# The columns of characters that the whole table takes, if every verdict is seen: headings on several lines, in one.
WIDE, WIDEST = 68, 108

SHARE = (
    "share of the bound: the largest error of what matches, relative to the largest that rounding alone can cause; "
    "1 is normal in half precision"
)


@dataclass(frozen=True)
class table:
    """One row per feature: how many cases got each verdict, and which share of its bound the largest error of those
    that match takes.

    Verdicts that nothing got have no column, so that a clean run reads as one. Where a line is too short for all of it,
    the verdicts come first, and the share is left out.
    """

    report: Report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        report, narrow, snug = self.report, options.max_width < WIDE, options.max_width < WIDEST
        marks = ASCII_MARKS if options.ascii_only else MARKS
        seen = [verdict for verdict, n in report.counts.items() if n or verdict is Verdict.MATCHES]
        # Two words take two lines, never an ellipsis, and no column is left out.
        counts = [Column(justify="right", min_width=3 if narrow else 7, max_width=8 if snug else None) for _ in seen]
        for column, verdict in zip(counts, seen, strict=True):
            column.header = marks[verdict] if narrow else verdict.value
        feature, share = (
            Column("feature", overflow="fold"),
            Column("share of the bound", justify="right", min_width=6, max_width=6 if snug else None),
        )
        columns = [*counts, feature] if narrow else [feature, *counts, share]
        shown = Table(*columns, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0 if snug else 1, 0, 0))
        # Around the table, not in it: a few columns of figures are no measure for a sentence.
        title = f"{report.implementation} ({report.version or report.framework})"
        caption = ", ".join(f"{marks[verdict]} {verdict.value}" for verdict in seen) if narrow else SHARE

        def add(name: str, results: Sequence[Result], largest: str) -> None:
            cells = [_cell(sum(r.verdict is verdict for r in results), verdict) for verdict in seen]
            shown.add_row(*((*cells, name) if narrow else (name, *cells, largest)))

        for name, results in report.by_feature().items():
            bad = not all(r.verdict.ok for r in results)
            units = [r.units for r in results if r.verdict is Verdict.MATCHES]
            add(f"[red]{name}[/red]" if bad else name, results, f"{max(units):.2f}" if units else "")
        shown.add_section()
        add(f"all {len(report.cases)}", report.cases, "")
        yield Text(title, style="table.title")
        if report.cases:
            yield shown
            yield Text(caption, style="table.caption")


def line(report: Report) -> str:
    """One implementation in a line: the count of each verdict."""
    counts = ", ".join(f"[{STYLES[v]}]{n} {v.value}[/{STYLES[v]}]" for v, n in report.counts.items() if n)
    return f"{escape(report.implementation)} [dim]({escape(report.version)})[/dim]: {counts}"


def print_summary(console: Console, report: Report) -> None:
    """The failures, how much was judged and in which modes, what was left out, and the verdict on the run."""
    print_failures(console, report)
    for text in summary(report):
        console.print(text, highlight=False, soft_wrap=True)
    if report.failures:
        failed = [f"{n} {v.value}" for v, n in report.counts.items() if n and not v.ok]
        console.print(f"[bold red]not ok[/bold red]: {' and '.join(failed)}", highlight=False)
    elif report.ok:
        console.print("[green]ok[/green]: nothing silently wrong, nothing crashed", highlight=False)
    elif not report.stopped:
        said = f"[bold yellow]nothing matches[/bold yellow]: {escape(_why_nothing(report))}"
        console.print(said, highlight=False, soft_wrap=True)


def summary(report: Report) -> list[str]:
    """What was asked, a line each.

    >>> summary(Report("mine", "numpy", "", (Result("a/b", "a", "eager", Verdict.REFUSES),), ("the mode vmap",)))
    ['0 of 1 case judged, 1 refused (judged by mode: eager 0)', 'left out: the mode vmap']
    """
    judged, modes = sum(report.judged.values()), ", ".join(f"{mode} {n}" for mode, n in report.judged.items())
    refused = f", {len(report.cases) - judged} refused" if judged < len(report.cases) else ""
    by_mode = f" (judged by mode: {modes})" if modes else ""
    lines = [f"{judged} of {plural(len(report.cases), 'case')} judged{refused}{by_mode}"]
    return [*lines, f"left out: {'; '.join(report.left_out)}"] if report.left_out else lines


def _why_nothing(report: Report) -> str:
    """The refusal that came most often, as long as there is one."""
    if not report.cases:
        return "no case is all that was asked for"
    reasons = Counter(r.detail for r in report.cases if r.verdict is Verdict.REFUSES and r.detail)
    said = [f"; most often: {' '.join(reason.split())[:200]}" for reason, _ in reasons.most_common(1)]
    return "".join(["no case shows that it is right", *said])


def print_failures(console: Console, report: Report, most: int = 5) -> None:
    """The first of each group of failures with its snippet, how many are like it, and how many more there are."""
    groups = report.failure_groups
    for r, *alike in groups[:most]:
        style = STYLES[r.verdict]
        title = f"[{style}]{r.verdict.value}[/{style}] {escape(r.id)} [dim]({r.mode})[/dim]"
        features = len({other.feature for other in (r, *alike)})
        count = (
            f" [dim]and {len(alike)} more like it, in {features} feature{'s'[: features > 1]}[/dim]" if alike else ""
        )
        console.print(f"\n{title}{count}\n{escape(r.detail)}\n", highlight=False, soft_wrap=True)
        console.print(r.repro, markup=False, highlight=False, soft_wrap=True, style="dim")  # not wrapped: to be pasted
    if len(groups) > most:
        more, kinds = sum(map(len, groups[most:])), plural(len(groups) - most, "group")
        console.print(f"... and {plural(more, 'more failure')} in {kinds}", highlight=False)


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _cell(n: int, verdict: Verdict) -> str:
    return f"[{STYLES[verdict]}]{n}[/{STYLES[verdict]}]" if n else "[dim]-[/dim]"
