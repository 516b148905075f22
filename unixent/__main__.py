"""``unixent`` and ``python -m unixent``: the command line lives with the conformance suite, which needs an extra."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say in one line what it needs."""
    try:
        from unixent_conformance.cli import run  # on use: it needs typer and rich
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        from unixent.registry import install_command

        print(f"unixent: the command line needs {missing}: {install_command('conformance')}", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
