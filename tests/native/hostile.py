"""Generated calls of the native kernel, whole and in halves, each compared with NumPy's operators.

python tests/native/hostile.py 1000000 [seed]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from calls import check, check_share, random_call

from unixent_native.library import load


def main(count: int, seed: int = 0) -> int:
    loaded = load()
    assert loaded is not None, "the native kernel is not there"
    for i in range(seed, seed + count):
        rng = np.random.default_rng(i)
        call = random_call(rng)
        try:
            check(loaded, call)
            check_share(loaded, call, rng)
        except AssertionError as error:
            print(f"seed {i}: {call.x.dtype} {call.x.shape} {call.target.dtype} {call.spec}: {error}")
            return 1
    print(f"{count} calls as they should be, on {loaded.isas[loaded.isa]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
