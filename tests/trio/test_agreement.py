"""The same catalogue through all four backends: no two are further apart than the error model allows, errors and exact
values not at all.

JAX compiles every new shape, so it is given the cases that are marked quick, one in six; the others get them all.
`unixent conformance --compare --thorough` leaves nothing out.
"""

from __future__ import annotations

import pytest
from rich.console import Console

from unixent_conformance import Agreement, compare
from unixent_conformance.cases import catalogue
from unixent_conformance.report import agreements

BACKENDS = ("numpy", "torch", "jax", "mindspore")
for name in BACKENDS[1:]:
    pytest.importorskip(name, reason="needs torch, jax and mindspore in one environment: tox -e trio")


@pytest.fixture(scope="module")
def found() -> Agreement:
    return compare(BACKENDS)


def test_no_two_backends_disagree(found: Agreement, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():  # a pass says what was compared, and how far apart they were
        console = Console()
        console.print("\n", agreements.table(found))
        agreements.print_summary(console, found)
    assert found.ok, "\n".join(f"{d.id}: {d.detail}" for d in found.disagreements[:10])


def test_all_of_it_was_compared(found: Agreement) -> None:
    """Nothing is refused, but batch invariance, which JAX declares not to have; calls have no second derivatives."""
    everything, quick = catalogue(), catalogue(quick=True)
    for pair in found.pairs:
        given = [case for case in (quick if "jax" in pair else everything) if case.asks != "second derivatives"]
        due = {case.id for case in given if "jax" not in pair or case.feature != "batch invariance"}
        assert {difference.id for difference in found.of(pair)} >= due, pair
