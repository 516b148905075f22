"""The catalogue over several processes: every case with its positions and classes cut, and put together again.

A split loss means what the whole one means, so the cases, the oracle and the error model are those of the whole. Each
process holds the whole arrays of a case, gives its own part to the implementation and shows the others what it got; all
then judge the same assembled answer.

`unixent conformance split 2x2 --backend NAME` starts the processes with the engine's own launcher (`engines`).
"""

from unixent_conformance.split.command import Request, parse, run_split

__all__ = ["Request", "parse", "run_split"]
