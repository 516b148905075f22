"""What the commands share: a default command, errors in one line, and the extra that they need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from unixent import UnixentError
from unixent.registry import install_command

# What a name, a file or an option that cannot be used raises.
CANNOT_RUN = (UnixentError, ImportError, LookupError, ValueError, TypeError, AttributeError, OSError)


def with_default(command: str) -> type[TyperGroup]:
    """A group in which `command` may be left out: its arguments and options follow the group's name.

    What resembles the name of a command is left to the group, which says what it may have meant.
    """

    class Group(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            names = [*self.commands, *ctx.help_option_names]
            if not args or not get_close_matches(args[0], names, cutoff=0.75):
                args = [command, *args]
            rest: list[str] = super().parse_args(ctx, args)
            return rest

    return Group


def print_error(console: Console, error: BaseException | str) -> None:
    """One line, whatever it is."""
    console.print(f"[bold red]error[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)


def fail(error: BaseException | str) -> NoReturn:
    """A mistake at the prompt: one line, exit code 2, no traceback."""
    print_error(Console(stderr=True, emoji=False), error)
    raise typer.Exit(2)


@contextmanager
def suite_required() -> Iterator[None]:
    """Around a command's imports: `unixent backends` and `--help` need typer and rich, not the rest of the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(f"the suite needs {error.name}: {install_command('conformance')}")


def print_in_any_encoding() -> None:
    """What a terminal cannot show becomes a question mark, no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def import_from_here() -> None:
    """Let "module:function" name a module in the working directory, as `python -m` does."""
    sys.path.insert(0, str(Path.cwd()))
