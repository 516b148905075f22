"""Run the suite and show what comes of it; every function returns an exit code.

0: everything matches, is a dialect or is refused as declared. 1: something is silently wrong or crashed. 2: what was
asked for cannot be run (an unknown or uninstalled backend, no such function or feature), with one line that says why,
or nothing matches.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from unixent_conformance import agreement, api, report
from unixent_conformance.cases import catalogue
from unixent_conformance.cli.prompt import CANNOT_RUN, print_error
from unixent_conformance.model import Tier
from unixent_conformance.report import agreements, terminal
from unixent_conformance.results import Report, plural
from unixent_conformance.split import Request, run_split

T = TypeVar("T")

# Exit codes of what ends a run early: 128 and the number of the signal, as shells count.
STOPPED = {"Ctrl-C": 130, "SIGTERM": 143, "SIGHUP": 129}


def run(
    names: Sequence[str],
    *,
    framework: str | None = None,
    out: Path | None = None,
    console: Console | None = None,
    **options: Any,
) -> int:
    """Run the catalogue on backends and "module:function"s. out: the folder to write reports to; the other options are
    those of `unixent_conformance.run`."""
    console = console or Console(emoji=False)
    with terminated_as_interrupted():
        return _each(console, out, names, lambda name: run_one(console, name, name, framework, **options))


def split(
    names: Sequence[str],
    *,
    data: int,
    model: int,
    framework: str | None = None,
    features: Sequence[str] | None = None,
    quick: bool = False,
    out: Path | None = None,
    console: Console | None = None,
) -> int:
    """Run the catalogue over data x model processes, which answer only at their end."""
    console = console or Console(emoji=False)

    def over_processes(name: str) -> Report | None:
        chosen = None if features is None else tuple(features)
        try:
            catalogue(features=chosen or ())  # which says what is unknown, before anything starts
            engine = framework or (api.find_tested(name)[1].name if ":" in name else name)
            request = Request(name, engine, data, model, framework, chosen, Tier.QUICK if quick else Tier.FULL)
            with console.status(f"{name} on {data * model} processes"):
                return run_split(request)
        except (*CANNOT_RUN, RuntimeError) as error:
            print_error(console, f"{name}: {error}")
            return None

    return _each(console, out, names, over_processes)


def compare(
    implementations: Sequence[str], *, out: Path | None = None, console: Console | None = None, **options: Any
) -> int:
    """Run the catalogue through all of them and show how far apart each pair is; 1 where two differ by more than the
    error model allows. out: the folder to write agreement.md and agreement.json to; the other options are those of
    `unixent_conformance.compare`."""
    console = console or Console(emoji=False)
    try:
        result = with_progress(console, "compare", partial(agreement.compare, implementations, **options))
    except CANNOT_RUN as error:
        print_error(console, error)
        return 2
    console.print(agreements.table(result))
    agreements.print_summary(console, result)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "agreement.md").write_text(agreements.to_markdown(result), encoding="utf-8")
            (out / "agreement.json").write_text(result.to_json(), encoding="utf-8")
        except OSError as error:
            print_error(console, f"cannot write the report: {error}")
            return 2
        console.print(f"{out / 'agreement.md'} and agreement.json", highlight=False, soft_wrap=True)
    return 0 if result.ok else 1


def run_one(console: Console, title: str, tested: str, framework: str | None, **options: Any) -> Report | None:
    """One run with a progress bar; None, and a line that says why, where it cannot be run."""
    try:
        return with_progress(console, title, partial(api.run, tested, framework, **options))
    except CANNOT_RUN as error:
        print_error(console, f"{title}: {error}")
        return None


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, by which CI ends a job, and SIGHUP, of a terminal that is closed, as Ctrl-C; a second one, while the
    report is written, changes nothing."""

    if threading.current_thread() is not threading.main_thread():  # which alone may set a handler
        yield
        return

    def stop(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    ending = [getattr(signal, name) for name in STOPPED if hasattr(signal, name)]
    # One that is ignored, as under nohup, stays so.
    before = {each: signal.signal(each, stop) for each in ending if signal.getsignal(each) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def with_progress(console: Console, title: str, function: Callable[..., T]) -> T:
    """The result of a function that takes `progress`, which a bar shows."""
    with terminal.progress_bar(console) as bar:
        task = bar.add_task(title, total=None)
        return function(progress=lambda done, total: bar.update(task, completed=done, total=total))


def write_reports(console: Console, out: Path, reports: Sequence[Report], title: str) -> bool:
    """Whether they could be written: a disk may be full, or a folder have a report's name."""
    try:
        written = report.write(out, reports, title)
    except OSError as error:
        print_error(console, f"cannot write the report: {error}")
        return False
    console.print(f"{written[0]} and {len(written) - 1} more files", highlight=False, soft_wrap=True)
    return True


def exit_code(report: Report) -> int:
    if report.failures:
        return 1
    return 0 if report.ok else 2


def _each(console: Console, out: Path | None, names: Sequence[str], run_name: Callable[[str], Report | None]) -> int:
    """Run and show each in turn; where one cannot be run, the others still are. A run that is stopped is the last, and
    is shown and written as far as it came."""
    code, reports = 0, []
    for name in names:
        try:
            current = run_name(name)
        except KeyboardInterrupt as stop:
            current, code = getattr(stop, "report", None), STOPPED.get(str(stop), 130)
        if current is None and code in STOPPED.values():
            break
        if current is None:
            code = 2
            continue
        reports.append(current)
        console.print(terminal.table(current))
        terminal.print_summary(console, current)
        code = max(code, exit_code(current))
        if current.stopped:
            done = f"{plural(len(current.cases), 'case')} run"
            console.print(f"[bold yellow]stopped[/bold yellow] by {current.stopped}: {done}", highlight=False)
            code = STOPPED.get(current.stopped, 130)
            break
    if out is not None and reports:
        tested = ", ".join(each.implementation for each in reports)
        written = write_reports(console, out, reports, f"Conformance of {tested}")
        code = code if written else max(code, 2)
    return code
