"""The largest error of the native float32 exponential, in units in the last place, over every argument that it takes.

python tests/native/exponential.py        # all 2^31 numbers <= 0, minutes
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np

from unixent_native.library import load


def native_exp(x: np.ndarray, isa: int = 0) -> np.ndarray:
    """exp of numbers <= 0 by the library, for the instruction set of that index."""
    loaded = load()
    assert loaded is not None
    assert len(x) % 16 == 0, "whole vectors"
    out = np.empty_like(x)
    address = ctypes.c_void_p
    loaded.exp(isa, address(x.ctypes.data), address(out.ctypes.data), len(x), 2 if x.dtype == np.float32 else 3)
    return out


def worst_ulp(bits: np.ndarray, isa: int = 0) -> float:
    """The largest error over float32 numbers given by their bits."""
    x = bits.astype(np.uint32).view(np.float32)
    exact, got = np.exp(x.astype(np.float64)), native_exp(x, isa)
    assert (np.isnan(got) == np.isnan(exact)).all()
    # A unit in the last place of the float32 number at or below the exact value; that of subnormals at least.
    exponent = np.maximum(np.frexp(np.where(exact > 0, exact, 1e-45))[1] - 24, -149)
    return float(np.nanmax(np.abs(got - exact) / np.ldexp(1.0, exponent)))


def main() -> int:
    worst, step = 0.0, 1 << 22
    for start in range(0x80000000, 0x100000000, step):
        worst = max(worst, worst_ulp(np.arange(start, start + step, dtype=np.uint64)))
    print(f"float32 exp over all numbers <= 0 and NaN: {worst:.4f} ulp at most")
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
