"""The command."""

from __future__ import annotations

import argparse
import sys

from unixent_hostile.frameworks import FRAMEWORKS
from unixent_hostile.sweep import sweep


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m unixent_hostile", description="Replay hostile calls on a backend.")
    parser.add_argument("--backend", required=True, choices=FRAMEWORKS)
    parser.add_argument("--calls", type=int, default=10_000, help="how many calls (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="index of the first call")
    parser.add_argument("--count", type=int, help="the same as --calls, to replay a few")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds that one call may take")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many seconds")
    parser.add_argument("--functions", default="unixent", help="module, or module:object, whose functions are called")
    given = parser.parse_args()
    count = given.calls if given.count is None else given.count
    result = sweep(
        given.backend,
        given.seed,
        given.first,
        count,
        functions=given.functions,
        timeout=given.timeout,
        seconds=given.seconds,
    )
    print(result.text())
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
