"""What a run looks like in a terminal: a bar while it runs, a table by feature, the failures with lines to paste."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from unixent_conformance.results import Report, Verdict

STYLES = {
    Verdict.MATCHES: "green",
    Verdict.DIALECT: "cyan",
    Verdict.REFUSES: "yellow",
    Verdict.WRONG: "bold red",
    Verdict.CRASHED: "magenta",
}


def table(report: Report) -> Table:
    """One row per feature: how many cases got each verdict, and the largest error in units of its bound.

    Verdicts that nothing got have no column, so that a clean run reads as one.
    """
    title = f"{report.implementation} ({report.version or report.framework})"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    seen = [verdict for verdict, n in report.counts.items() if n or verdict is Verdict.MATCHES]
    shown.add_column("feature", no_wrap=True)
    for verdict in seen:
        shown.add_column(verdict.value, justify="right", min_width=8)  # two words take two lines, never an ellipsis
    shown.add_column("error / bound", justify="right", min_width=7)
    for feature, results in report.by_feature().items():
        cells = [_cell(sum(r.verdict is verdict for r in results), verdict) for verdict in seen]
        bad = not all(r.verdict.ok for r in results)
        worst = max(r.units for r in results)
        shown.add_row(f"[red]{feature}[/red]" if bad else feature, *cells, f"{worst:.2g}")
    shown.add_section()
    shown.add_row(f"all {len(report.cases)}", *(_cell(report.counts[verdict], verdict) for verdict in seen), "")
    return shown


def line(report: Report) -> str:
    """One implementation in a line: the count of each verdict."""
    counts = ", ".join(f"[{STYLES[v]}]{n} {v.value}[/{STYLES[v]}]" for v, n in report.counts.items() if n)
    return f"{report.implementation} [dim]({report.version})[/dim]: {counts}"


def print_failures(console: Console, report: Report, most: int = 5) -> None:
    """The first failures of distinct features, each with its snippet, and how many more there are."""
    bad = [r for r in report.cases if not r.verdict.ok]
    first = list({r.feature: r for r in reversed(bad)}.values())[::-1][:most]
    for r in first:
        style = STYLES[r.verdict]
        title = f"[{style}]{r.verdict.value}[/{style}] {escape(r.id)} [dim]({r.mode})[/dim]"
        console.print(f"\n{title}\n{escape(r.detail)}\n", highlight=False, soft_wrap=True)
        console.print(r.repro, markup=False, highlight=False, soft_wrap=True, style="dim")  # not wrapped: to be pasted
    if len(bad) > len(first):
        console.print(f"... and {len(bad) - len(first)} more")


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _cell(n: int, verdict: Verdict) -> str:
    return f"[{STYLES[verdict]}]{n}[/{STYLES[verdict]}]" if n else "[dim]-[/dim]"
