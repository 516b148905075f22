"""The largest errors of the native exponential and logarithm, in units in the last place.

python tests/native/exponential.py        # float32 exp of all 2^31 numbers <= 0, minutes; log1p of 2^26 numbers
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


def native_log1p(x: np.ndarray, isa: int = 0) -> np.ndarray:
    """log(1 + x) of float64 numbers >= 0, likewise."""
    loaded = load()
    assert loaded is not None
    assert len(x) % 16 == 0, "whole vectors"
    out = np.empty_like(x)
    loaded.log1p(isa, ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), len(x))
    return out


def worst_ulp(bits: np.ndarray, isa: int = 0) -> float:
    """The largest error of exp over float32 numbers given by their bits."""
    x = bits.astype(np.uint32).view(np.float32)
    got = native_exp(x, isa)
    numbers = ~np.isnan(x)
    assert np.isnan(got[~numbers]).all()
    exact, got = np.exp(x[numbers].astype(np.float64)), got[numbers]
    # A unit in the last place of the float32 number at or below the exact value; that of subnormals at least.
    exponent = np.maximum(np.frexp(np.where(exact > 0, exact, 1e-45))[1] - 24, -149)
    return float(np.max(np.abs(got - exact) / np.ldexp(1.0, exponent), initial=0))


def worst_log1p_ulp(x: np.ndarray, isa: int = 0) -> float:
    """The largest error of log1p, where long double is wider than double."""
    exact = np.log1p(x.astype(np.longdouble))
    exponent = np.maximum(np.frexp(exact)[1] - 53, -1074)
    return float((np.abs(native_log1p(x, isa) - exact) / np.ldexp(np.longdouble(1), exponent)).max())


def log1p_arguments(rng: np.random.Generator, n: int) -> np.ndarray:
    """Numbers >= 0 of all sizes that occur, and around 1, where most sums lie."""
    return np.concatenate([2.0 ** rng.uniform(-1074, 40, n // 2), 2.0 ** rng.uniform(-4, 3, n // 2)])


def main() -> int:
    loaded = load()
    assert loaded is not None
    worst, step = 0.0, 1 << 22
    for start in range(0x80000000, 0x100000000, step):
        worst = max(worst, worst_ulp(np.arange(start, start + step, dtype=np.uint64), loaded.isa))
    print(f"float32 exp over all numbers <= 0 and NaN: {worst:.4f} ulp at most")
    rng, worst_log = np.random.default_rng(7), 0.0
    for _ in range(0, 1 << 26, step):
        worst_log = max(worst_log, worst_log1p_ulp(log1p_arguments(rng, step), loaded.isa))
    print(f"float64 log1p over 2^26 numbers >= 0: {worst_log:.4f} ulp at most")
    return int(max(worst, worst_log) > 1)


if __name__ == "__main__":
    sys.exit(main())
