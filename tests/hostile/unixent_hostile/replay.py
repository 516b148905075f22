"""One call again, in this process: what it is, and what it comes to."""

from __future__ import annotations

import warnings

from unixent_hostile.describing import describe, literal
from unixent_hostile.drawing import draw
from unixent_hostile.frameworks import FRAMEWORKS
from unixent_hostile.judging import Judge, Outcome


def replay(backend: str, *, seed: int, index: int) -> Outcome:
    """Print a call with its arrays, make it, print what it comes to."""
    framework = FRAMEWORKS[backend]()
    drawn = draw(seed, index, framework.traits)
    print(describe(drawn))
    if drawn.mistake is not None:
        print(f"{drawn.mistake.argument} = {drawn.mistake.value!r}  # {drawn.mistake.what}")
    for name, array in drawn.arrays.items():
        print(f"{name} = {literal(array)}")
    framework.harness.version()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = Judge(framework).judge(drawn)
    print(outcome.group or "right", outcome.detail, sep="\n")
    return outcome
