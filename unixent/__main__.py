"""``unixent`` and ``python -m unixent``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say in one line what it needs."""
    try:
        from unixent.cli import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f'unixent: the command line needs {error.name}: pip install "unixent[conformance]"')
    app(prog_name="unixent")


if __name__ == "__main__":
    main()
