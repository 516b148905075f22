"""Triton's interpreter on CPU tensors, in place of the native kernel, for every test here."""

from __future__ import annotations

import pytest

from unixent_conformance import triton_interpreter

triton_interpreter.enable()

import torch  # noqa: E402 - nothing may import triton before

from unixent_torch.kernel import triton  # noqa: E402
from unixent_torch.kernel.triton import configuration  # noqa: E402


class Passes(list[str]):
    """Which passes over the logits have been launched, in order."""


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    torch.manual_seed(0)
    launched = Passes()
    for name in ("row_statistics", "row_gradients"):

        def counted(*operands: object, _name: str = name, _run: object = getattr(triton, name)) -> object:
            launched.append(_name)
            return _run(*operands)  # type: ignore[operator]

        monkeypatch.setattr(triton, name, counted)
    monkeypatch.setattr(triton, "DEVICES", ["cpu"])
    return launched


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of more than 16 classes has many tiles."""
    for name in ("INDEX_TILE", "MIXED_TILE", "GRADIENT_TILE"):
        monkeypatch.setattr(configuration, name, 16)
    monkeypatch.setattr(configuration, "SHORT_ELEMENTS", 128)


@pytest.fixture(params=["default tiles", "tiny tiles"])
def tiles(request: pytest.FixtureRequest) -> str:
    if request.param == "tiny tiles":
        request.getfixturevalue("tiny_tiles")
    return str(request.param)
