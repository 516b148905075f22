"""An agreement as a table in the terminal and as Markdown."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unixent_conformance.results import Agreement, Difference


def table(agreement: Agreement) -> Table:
    """One row per feature, one column per pair: the largest difference in units of what the two may differ by."""
    title = f"difference / allowed ({', '.join(agreement.versions.values())})"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("feature", no_wrap=True)
    for pair in agreement.pairs:
        shown.add_column("\n".join(pair), justify="right")
    for feature in agreement.features:
        worst = [agreement.largest(pair, feature) for pair in agreement.pairs]
        name = feature if all(d is None or d.ok for d in worst) else f"[red]{feature}[/red]"
        shown.add_row(name, *("[dim]-[/dim]" if d is None else _styled(d) for d in worst))
    shown.add_section()
    shown.add_row("cases compared", *(str(len(agreement.of(pair))) for pair in agreement.pairs))
    return shown


def print_summary(console: Console, agreement: Agreement, most: int = 5) -> None:
    """What was run, the largest difference of each pair with its case, and the first disagreements."""
    console.print(selection(agreement), highlight=False, soft_wrap=True)
    for pair in agreement.pairs:
        worst = agreement.largest(pair)
        if worst is not None:
            text = f"{' and '.join(pair)}: {_styled(worst)} in [bold]{escape(worst.id)}[/bold]"
            console.print(text, highlight=False, soft_wrap=True)
    bad = agreement.disagreements
    for difference in bad[:most]:
        title = f"\n[bold red]disagree[/bold red] {escape(difference.id)}"
        console.print(f"{title}\n{escape(difference.detail)}", highlight=False, soft_wrap=True)
    if len(bad) > most:
        console.print(f"... and {len(bad) - most} more")


def selection(agreement: Agreement) -> str:
    """How many cases each implementation was given, in a sentence.

    >>> selection(Agreement(("a", "b", "c"), {}, {"a": 9, "b": 9, "c": 2}, ()))
    'Cases given: a 9, b 9, c 2.'
    """
    return f"Cases given: {', '.join(f'{name} {count}' for name, count in agreement.cases.items())}."


def to_markdown(agreement: Agreement) -> str:
    """The table by feature, the largest difference of each pair, and the disagreements."""
    lines = [
        _row("feature", *(", ".join(pair) for pair in agreement.pairs)),
        "|---" + "|---:" * len(agreement.pairs) + "|",
    ]
    for feature in agreement.features:
        largest = [agreement.largest(pair, feature) for pair in agreement.pairs]
        lines.append(_row(feature, *("-" if d is None else f"{d.units:.2g}" for d in largest)))
    lines += ["", _row("pair", "cases compared", "largest difference / allowed", "where"), "|---|---:|---:|---|"]
    for pair in agreement.pairs:
        lines.append(_row(", ".join(pair), str(len(agreement.of(pair))), *_where(agreement.largest(pair))))
    lines += ["", f"{selection(agreement)} {'; '.join(agreement.versions.values())}"]
    for difference in agreement.disagreements:
        lines += ["", f"- disagree: `{difference.id}`: {difference.detail}"]
    return "\n".join(lines) + "\n"


def _where(largest: Difference | None) -> tuple[str, str]:
    if largest is None:
        return "-", "-"
    return f"{largest.units:.2g}", f"`{largest.id}`" if largest.units else "equal everywhere"


def _styled(difference: Difference) -> str:
    text = f"{difference.units:.2g}"
    return text if difference.ok else f"[bold red]{text}[/bold red]"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
