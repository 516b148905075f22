"""What the backend says of devices, an accelerator that is not here included."""

from __future__ import annotations

import pytest
import torch

import unixent
from unixent_conformance.implementation import of_backend


@pytest.fixture
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(request.param))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


def test_the_host_is_batch_invariant() -> None:
    (device,) = unixent.get_backend("torch").devices()
    assert device.name == "cpu"
    assert device.batch_invariant
    assert "batch_invariant" in (of_backend("torch").capabilities or ())


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("accelerator", ["cuda", "xpu"], indirect=True)
def test_accelerators_are_not() -> None:
    host, *others = unixent.get_backend("torch").devices()
    assert host.name == "cpu"
    assert len(others) == 2
    for device in others:
        assert not device.batch_invariant
        assert "batch_invariant" not in (of_backend("torch", device.name).capabilities or ())
    assert all(device.kernel == "torch" for device in others if device.name.startswith("xpu"))
