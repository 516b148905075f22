"""Known failures, a line each: an id, a '#', the reason. The list is strict: what does not fail must leave it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unixent_conformance.cases import find, is_known
from unixent_conformance.results import Result, Verdict


def read(path: Path) -> dict[str, str]:
    """Ids and their reasons; a reason is not optional."""
    reasons: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8; {error.reason} at byte {error.start}") from error
    for number, line in enumerate(text.splitlines(), 1):
        id, _, reason = (part.strip() for part in line.partition("#"))
        if not id:
            continue  # an empty line or a comment
        if not reason:
            raise ValueError(f"{path}:{number}: {id}: expected a reason after '#'")
        if id in reasons:
            raise ValueError(f"{path}:{number}: {id}: listed twice")
        reasons[id] = reason
    return reasons


def expected(path: Path, name: str) -> dict[tuple[str, str], str]:
    """The reasons of an implementation's expected failures, by id and mode: lines that start with its name, as pytest
    prints them, "numpy-eager-mask/bool/float32-mean/value". Others are of other implementations. LookupError where no
    case has the id, ValueError where a line has no implementation or no mode."""
    reasons = {}
    for line, reason in read(path).items():
        if line.startswith(f"{name}-"):
            mode, _, id = line.removeprefix(f"{name}-").partition("-")
            reasons[find(id).id, mode] = reason
        elif any(is_known(id) for id in (line, line.partition("-")[2])):
            raise ValueError(f"{path}: {line}: expected an implementation and a mode before the id, as {name}-eager-")
    return reasons


def judged(result: Result, reason: str | None) -> Result:
    """A result whose failure is expected for a reason, if there is one: the failure is none, its absence is."""
    if reason is None or result.verdict is Verdict.REFUSES:
        return result
    if not result.verdict.ok:
        return replace(result, verdict=Verdict.REFUSES, detail=f"expected to fail: {reason}", repro="")
    text = f"expected to fail ({reason}), and does not: take it off the list"
    return replace(result, verdict=Verdict.WRONG, detail=text, units=float("inf"))
