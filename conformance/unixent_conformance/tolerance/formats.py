"""What floating dtypes can hold, and the comparison of an answer with its estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_conformance.oracle import UNIT_ROUNDOFF


@dataclass(frozen=True)
class Format:
    """What a floating dtype can hold."""

    roundoff: float
    smallest_normal: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, dtype: str) -> Format:
        return FORMATS[dtype]


def _format(bits: int, least: int, greatest: int) -> Format:
    return Format(2.0**-bits, 2.0**least, math.ldexp(1.0, least - bits + 1), (2.0 - 2.0 ** (1 - bits)) * 2.0**greatest)


FORMATS = {
    "float16": _format(11, -14, 15),
    "bfloat16": _format(8, -126, 127),
    "float32": _format(24, -126, 127),
    "float64": _format(53, -1022, 1023),
}


def roundoff(acc_dtype: str) -> float:
    """u, and the oracle's own where it is no wider than the accumulation (a longdouble that is a float64)."""
    u = Format.of(acc_dtype).roundoff
    return u if u / 64 > UNIT_ROUNDOFF else u + UNIT_ROUNDOFF


def rounding(value: Array, dtype: str) -> Array:
    """How far rounding to a dtype may move a value: half an ulp, half the least subnormal number at the least."""
    form = Format.of(dtype)
    return np.asarray(np.maximum(form.roundoff * abs(value), form.smallest / 2))


def times(magnitude: Array, factor: Any) -> Array:
    """magnitude * factor with nothing from a magnitude of 0."""
    return np.where(magnitude == 0, 0, magnitude * factor)


def log2(count: int) -> float:
    return math.log2(max(count, 1))


@dataclass(frozen=True)
class Estimate:
    """The exact value, and how far from it a result may be before its last rounding."""

    value: Array
    bound: Array


@dataclass(frozen=True)
class Comparison:
    """The worst entry of a comparison; `units` is its error over its bound, at most 1 where all is well."""

    units: float
    index: tuple[int, ...] = ()
    got: float = 0.0
    expected: float = 0.0
    bound: float = 0.0
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.units <= 1

    @classmethod
    def worst(cls, units: Array, got: Array, expected: Array, bound: Array) -> Comparison:
        """The entry of the largest `units`; NaN is larger than any number."""
        if not units.size:
            return cls(0.0)
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(units)), units.shape))
        return cls(float(units[index]), index, float(got[index]), float(expected[index]), float(bound[index]))

    @classmethod
    def of_form(cls, name: str, got: Array, shape: tuple[int, ...], dtype: str) -> Comparison | None:
        """What is wrong with the shape or the dtype of an answer, before any entry is compared."""
        if got.shape != shape:
            return cls(float("inf"), reason=f"{name}: shape {got.shape}, expected {shape}")
        if got.dtype.name != dtype:
            return cls(float("inf"), reason=f"{name}: dtype {got.dtype.name}, expected {dtype}")
        return None


def compare(got: Array, estimate: Estimate, dtype: str) -> Comparison:
    """Every entry against its own bound plus one rounding to `dtype`. NaN must be NaN, infinity the same infinity;
    a finite exact value may be an infinity only where rounding to the dtype makes it one."""
    if dtype in ("int64", "bool"):
        return Comparison.worst(np.where(got == estimate.value, 0, np.inf), got, estimate.value, estimate.bound)
    form = Format.of(dtype)
    wide = got.astype(np.longdouble)
    value = np.broadcast_to(estimate.value, wide.shape).astype(np.longdouble)
    with np.errstate(all="ignore"):
        own = np.broadcast_to(estimate.bound, wide.shape).astype(np.longdouble)
        reach = abs(value) + own
        bound = own + rounding(reach, dtype)
        error = abs(wide - value)
        units = np.where(error == 0, 0, error / bound)
        beyond = reach >= form.largest * (1 + form.roundoff / 2)  # half a step past the largest number
        overflow = np.isinf(wide) & (np.sign(wide) == np.sign(value)) & beyond
        finite = np.isfinite(value)
        units = np.where(finite & overflow, 0, units)
        units = np.where(finite & ~overflow & ~np.isfinite(wide), np.inf, units)
        units = np.where(np.isnan(value), np.where(np.isnan(wide), 0, np.inf), units)
        units = np.where(np.isinf(value), np.where(wide == value, 0, np.inf), units)
        # Inactive positions contribute exactly zero: a 0 without a bound of its own has no room for a rounding.
        units = np.where((value == 0) & (own == 0) & (wide != 0), np.inf, units)
    return Comparison.worst(units, wide, value, bound)
