"""Results as plain data: what JSON reports hold, and what crosses from one process to another."""

from __future__ import annotations

import math
from typing import Any

from unixent_conformance.runner import Result, Verdict


def record_of(result: Result) -> dict[str, Any]:
    """A result as strings, numbers and lists; what is at its default is left out.

    `units` that are no finite number are the strings "inf" and "nan", which JSON can hold.
    """
    units: float | str = result.units if math.isfinite(result.units) else str(result.units)
    record: dict[str, Any] = {
        "id": result.id,
        "feature": result.feature,
        "mode": result.mode,
        "verdict": result.verdict.value,
    }
    rest: dict[str, Any] = {"detail": result.detail, "units": units, "repro": result.repro}
    rest["dialects"] = list(result.dialects)
    rest["candidates"] = [list(names) for names in result.candidates]
    return {**record, **{name: value for name, value in rest.items() if value}}


def result_from(record: dict[str, Any]) -> Result:
    """The result of a record.

    >>> worst = Result("a/b/value", "a", "eager", Verdict.WRONG, "7, not 2", float("inf"))
    >>> result_from(record_of(worst)) == worst
    True
    """
    return Result(
        record["id"],
        record["feature"],
        record["mode"],
        Verdict(record["verdict"]),
        record.get("detail", ""),
        float(record.get("units", 0.0)),
        record.get("repro", ""),
        tuple(record.get("dialects", ())),
        tuple(tuple(names) for names in record.get("candidates", ())),
    )
