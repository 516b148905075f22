"""The comparison: what is let through and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from unixent_conformance.cases.inputs import dtype_of
from unixent_conformance.tolerance import FORMATS, Estimate, compare

INF, NAN = float("inf"), float("nan")


def units(got: float, value: float, bound: float = 0.0, dtype: str = "float32") -> float:
    estimate = Estimate(np.array([value], np.longdouble), np.array([bound], np.longdouble))
    with np.errstate(over="ignore"):
        return compare(np.array([got]).astype(dtype_of(dtype)), estimate, dtype).units


@pytest.mark.parametrize("dtype", FORMATS)
def test_formats_are_the_dtypes_own(dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    info, form = ml_dtypes.finfo(dtype_of(dtype)), FORMATS[dtype]
    assert form.roundoff == float(info.eps) / 2
    assert form.smallest_normal == float(info.smallest_normal)
    assert form.smallest == float(info.smallest_subnormal)
    assert form.largest == float(info.max)


def test_units_are_errors_over_bounds() -> None:
    assert units(1.0, 1.0) == 0
    assert units(1.0 + 2**-10, 1.0, 2**-10) == pytest.approx(1, abs=1e-3)
    assert units(1.0 + 2**-8, 1.0, 2**-10) == pytest.approx(4, abs=1e-3)


def test_rounding_to_the_result_is_allowed_once() -> None:
    third = 1 / 3
    assert units(third, third, dtype="float16") <= 1
    up = float(np.nextafter(np.float16(third), np.float16(1)))
    assert units(up, third, dtype="float16") > 1


def test_subnormal_results_may_be_off_by_half_the_smallest() -> None:
    assert units(0.0, 2.0**-25, dtype="float16") <= 1
    assert units(0.0, 2.0**-24, dtype="float16") > 1


def test_infinities_and_nan_must_be_exactly_that() -> None:
    assert units(NAN, NAN) == 0
    assert units(INF, INF) == 0
    assert units(INF, -INF) == units(INF, NAN) == units(NAN, INF) == units(NAN, 1.0) == units(1.0, NAN) == INF
    assert units(1e30, INF) == INF


def test_finite_truth_may_overflow_only_where_rounding_does() -> None:
    assert units(INF, 65520.0, dtype="float16") == 0
    assert units(INF, 65500.0, dtype="float16") == INF
    assert units(-INF, 65520.0, dtype="float16") == INF


def test_what_does_not_count_is_exactly_zero() -> None:
    assert units(0.0, 0.0) == 0
    assert units(1e-45, 0.0) == INF


def test_a_bound_that_is_no_number_lets_nothing_through() -> None:
    assert not units(1.0, 2.0, NAN) <= 1
