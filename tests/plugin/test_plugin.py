"""A backend from another distribution: found, dispatched to, described, conforming, with nothing of it in unixent."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Any

import numpy as np
import pytest

import unixent

TOY = pytest.importorskip(
    "unixent_toy", reason="the third-party backend is not installed: pip install --no-deps tests/plugin/unixent_toy"
)
LOGITS = np.array([[2.0, 0.5, -1.0], [0.0, 3.0, 0.0]])
TARGET = np.array([0, 1])


@pytest.fixture
def box() -> Any:
    return TOY.Box(LOGITS)


def test_it_is_another_distribution() -> None:
    (entry,) = metadata.entry_points(group="unixent.backends", name="toy")
    assert entry.dist is not None
    assert entry.dist.name == "unixent-toy"
    assert not any("toy" in str(file) for file in metadata.files("unixent") or [])


def test_it_is_listed_without_being_imported() -> None:
    program = (
        "import sys, unixent; print([s.installed for s in unixent.backends() if s.name == 'toy'], 'unixent_toy' in "
        "sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["[True]", "False"]


def test_it_is_described_when_asked_for() -> None:
    (status,) = unixent.backends("toy")
    assert status.version == "0.3.0"
    assert [device.name for device in status.devices or ()] == ["toybox"]
    assert status.capabilities is unixent.get_backend("toy").capabilities


def test_dispatch_by_array_type(box: Any) -> None:
    loss = unixent.cross_entropy(box, TARGET)
    assert type(loss) is TOY.Box
    assert loss.values == unixent.cross_entropy(LOGITS, TARGET)


def test_dispatch_by_name_hands_numpy_over() -> None:
    loss, gradient = unixent.value_and_grad(LOGITS, TARGET, backend="toy")
    expected = unixent.value_and_grad(LOGITS, TARGET)
    assert type(loss) is type(gradient) is TOY.Box
    assert loss.values == expected[0]
    np.testing.assert_array_equal(gradient.values, expected[1])


def test_terms_and_the_configured_form(box: Any) -> None:
    terms = unixent.CrossEntropyLoss(calculate_per_token_loss=True)(box, TARGET)
    assert type(terms) is unixent.LossTerms
    assert terms.denominator.values == 2


def test_errors_are_unixents_own(box: Any) -> None:
    with pytest.raises(
        unixent.TargetRangeError, match=r"target: expected class indices in \[0, 3\).*got 3 at position"
    ):
        unixent.cross_entropy(box, np.array([0, 3]))
    with pytest.raises(unixent.BackendError, match="toy"):
        unixent.cross_entropy(LOGITS, box, backend="numpy")


def test_it_passes_the_conformance_suite() -> None:
    unixent_conformance = pytest.importorskip("unixent_conformance", reason='needs the extra "conformance"')
    report = unixent_conformance.run("toy", quick=True)
    bad = [f"{result.id}: {result.detail}" for result in report.cases if not result.verdict.ok]
    assert report.cases
    assert not bad


def test_the_suite_catches_it_when_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite goes through this backend, not around it."""
    import unixent_conformance

    right = TOY.ToyBackend.cross_entropy
    monkeypatch.setattr(TOY.ToyBackend, "cross_entropy", lambda self, p: scaled(right(self, p)))
    assert not unixent_conformance.run("toy", quick=True, features=["class indices"]).ok


def scaled(result: Any) -> Any:
    if isinstance(result, unixent.LossTerms):
        return unixent.LossTerms(*map(scaled, result))
    with np.errstate(over="ignore"):
        return TOY.Box((result.values * 1.001).astype(result.values.dtype))


def test_the_command_line_knows_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unixent", "conformance", "--backend", "toy", "--quick", "--feature", "mask"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
