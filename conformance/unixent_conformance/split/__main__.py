"""One process of several: run the cases on its part. Started by `unixent_conformance.split.command`, not by hand.

    ... -m unixent_conformance.split TASK OUT

TASK is a JSON object (see `command.Request`); the first process writes the report to the file OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path

from unixent_conformance.split.command import Request
from unixent_conformance.split.running import run_here


def main() -> None:
    request = Request.from_json(sys.argv[1])
    sys.path += [entry for entry in request.path if entry not in sys.path]
    report = run_here(request)
    if report is not None:
        Path(sys.argv[2]).write_text(report.to_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
