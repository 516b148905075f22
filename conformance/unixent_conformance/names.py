"""Names that people type: one that is unknown brings those that it resembles."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# So many known names are spelled out.
SPELLED = 8


def require_known(what: str, asked: Iterable[str], known: Iterable[str], where: str = "") -> None:
    """Raise ValueError where names are not among the known. what: an argument, as "features"; where: what lists them.

    >>> require_known("dtypes", ["float8"], ["float16", "float32"])
    Traceback (most recent call last):
    ValueError: dtypes: no such dtype: float8; expected float16, float32
    """
    known = list(dict.fromkeys(known))
    unknown = [name for name in asked if name not in known]
    if unknown:
        text = f"{what}: no such {what.removesuffix('s')}: {', '.join(unknown)}"
        near = list(dict.fromkeys(each for name in unknown for each in resembling(name, known)))
        if len(known) <= SPELLED:
            text += f"; expected {', '.join(known)}"
        else:
            text += did_you_mean(near) or f"; they are listed by {where}"
        raise ValueError(text)


def parted(values: Iterable[str]) -> tuple[str, ...]:
    """Names that stand alone or several together, with commas between them.

    >>> parted(["eager, autograd", "compile,"])
    ('eager', 'autograd', 'compile')
    """
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def did_you_mean(near: Iterable[str]) -> str:
    """The end of an error about a name: what it resembles, if anything."""
    names = ", ".join(near)
    return f"; did you mean {names}?" if names else ""


def resembling(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Of the known names the few that are most like another, whatever its case.

    >>> resembling("nan", ["mask", "NaN", "empty mean of NaN"])
    ['NaN', 'empty mean of NaN']
    """
    lowered = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), lowered, n=most)
    near += [each for each in lowered if len(name) > 2 and name.lower() in each and each not in near]
    return [lowered[each] for each in near[:most]]
