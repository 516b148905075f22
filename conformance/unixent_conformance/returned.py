"""The form of what an implementation returns: one array, or several in a tuple."""

from __future__ import annotations

from typing import Any


class WrongAnswer(Exception):
    """An answer that is no array of the framework, or not as many arrays as were asked for."""


def type_of(value: Any) -> str:
    """The name of its type, with its module's unless every Python has it."""
    cls = type(value)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def several(value: Any, what: str, n: int) -> Any:
    """A tuple or list of n results, as it is."""
    if not isinstance(value, tuple | list):
        raise WrongAnswer(f"{what} is of type {type_of(value)}, not a tuple of {n}")
    if len(value) != n:
        raise WrongAnswer(f"{what} is a {type_of(value)} of {len(value)}, not of {n}")
    return value


def statistic_of(stats: Any, name: str) -> Any:
    """One output of `position_stats`, in the place of its field."""
    from unixent import PositionStats

    fields = PositionStats._fields
    return several(stats, "the result of position_stats", len(fields))[fields.index(name)]
