"""Check the import contracts of pyproject.toml, and that no modules import each other in a circle."""

from __future__ import annotations

import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
from importlinter import api, cli

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    # The three source roots, which an installation would flatten into one.
    sys.path[:0] = [str(ROOT / folder) for folder in ("", "backends", "conformance")]
    config = str(ROOT / "pyproject.toml")
    packages = api.read_configuration(config)["session_options"]["root_packages"]
    graph = grimp.build_graph(*packages, cache_dir=None)
    try:
        TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()
    except CycleError as error:
        print("import circle: " + " <- ".join(error.args[1]), file=sys.stderr)
        return 1
    status: int = cli.lint_imports(config_filename=config, no_cache=True, no_logo=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
