"""The options that several commands have, each once."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer

import unixent
from unixent_conformance.names import parted


def _module_and_function(value: str | None) -> str | None:
    if value is not None and not all(value.partition(":")):
        raise typer.BadParameter(f"expected module:function; got {value!r}")
    return value


def _writable(value: Path | None) -> Path | None:
    """Before the run, not after it: whether a folder can be made and written to. It is tried, and nothing is left."""
    if value is not None:
        made: list[Path] = []
        try:
            for folder in reversed([value.absolute(), *value.absolute().parents]):
                if not folder.is_dir():
                    folder.mkdir()
                    made.append(folder)
            TemporaryFile(dir=value).close()
        except OSError as error:
            raise typer.BadParameter(f"cannot write to {value}: {error.strerror}") from error
        finally:
            for folder in reversed(made):
                folder.rmdir()
    return value


def _several(values: list[str] | None) -> list[str] | None:
    """Names, each an option or several in one, with commas between them."""
    if not values:
        return None
    names = parted(values)
    if not names:
        raise typer.BadParameter(f"expected a name; got {', '.join(map(repr, values))}")
    return list(names)


Backends = Annotated[
    list[str] | None, typer.Argument(metavar="BACKEND", help="Backends to test. Default: all installed.")
]
Backend = Annotated[
    list[str] | None, typer.Option("--backend", "-b", metavar="NAME", help="The same as an option; repeatable.")
]
Implementation = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        callback=_module_and_function,
        help="Test a callable of yours that takes what cross_entropy takes.",
    ),
]
Framework = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Whose arrays it takes. Default: those of the framework that its module has names of."
    ),
]
Feature = Annotated[
    list[str] | None,
    typer.Option(metavar="NAMES", callback=_several, help="Only these features, as mask,z-loss; repeatable."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Only the cases that make a run of seconds.")]
Modes = Annotated[
    list[str] | None,
    typer.Option(metavar="NAMES", callback=_several, help="Only these modes, as eager,autograd; repeatable."),
]
Dtypes = Annotated[
    list[str] | None,
    typer.Option("--dtype", metavar="NAMES", callback=_several, help="Only cases of these dtypes; repeatable."),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Leave out a feature, or the ids that a pattern matches; repeatable."),
]
Xfails = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        readable=True,
        help="Known failures: an id, '#', the reason. One that passes fails.",
    ),
]
Budget = Annotated[
    float | None, typer.Option(min=0, metavar="SECONDS", help="What tells most first, for so many seconds.")
]
Huge = Annotated[bool, typer.Option("--huge", help="Also more than 2^31 logits: 4 or 8 GiB, twice; give them time.")]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="Where the arrays are put: cuda:0.")]
Strict = Annotated[bool, typer.Option("--strict", help="Another convention is wrong, not a dialect.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="DIR", callback=_writable, help="Write the report as HTML, JSON, JUnit and Markdown."
    ),
]
Agreement = Annotated[
    Path | None,
    typer.Option("--report", metavar="DIR", callback=_writable, help="Write agreement.md and agreement.json."),
]
Timeout = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="With isolation: the longest a case may run.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, metavar="N", help="Worker processes, at the most. Default: one per core."),
]


def chosen(names: list[str] | None, options: list[str] | None, implementation: str | None) -> list[str]:
    """What was asked for by name, each once; all installed backends if nothing was."""
    asked = [*(names or []), *(options or []), *([implementation] if implementation else [])]
    return list(dict.fromkeys(asked)) or installed()


def installed() -> list[str]:
    return [status.name for status in unixent.backends() if status.installed]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
