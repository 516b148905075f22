"""The command line `unixent`. Needs the extra `conformance`; `unixent.__main__` says so where it is missing."""

from __future__ import annotations

import platform
from typing import Annotated

import numpy as np
import typer

import unixent
from unixent_conformance.cli.backends import backends
from unixent_conformance.cli.conformance import app as conformance
from unixent_conformance.cli.prompt import print_in_any_encoding
from unixent_conformance.cli.vectors import app as vectors

app = typer.Typer(
    help="One cross-entropy for NumPy, PyTorch, JAX and MindSpore.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(backends)
app.add_typer(conformance, name="conformance")
app.add_typer(vectors, name="vectors")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"unixent {unixent.__version__} (NumPy {np.__version__}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Options that belong to no command."""


def run() -> None:
    """The command line, in a process of its own."""
    print_in_any_encoding()
    app(prog_name="unixent")
