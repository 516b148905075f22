"""What tests of the torch backend share: seeds, a fresh compiler, leaves of the fused linear form, processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

LinearOperands = Callable[..., tuple[Tensor, Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same values, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> None:
    """Nothing is compiled yet."""
    torch.compiler.reset()


@pytest.fixture
def linear_operands() -> LinearOperands:
    """``linear_operands(positions, width, classes, dtype)``: hidden states, classifier and bias, leaves of autograd."""

    def draw(
        positions: int, width: int, classes: int, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor, Tensor]:
        shapes = (positions, width), (classes, width), (classes,)
        hidden, classifier, bias = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
        return hidden, classifier, bias

    return draw


@pytest.fixture
def run_python() -> Callable[[str], str]:
    """``run_python(script)``: what a fresh process prints that runs the script."""

    def run(script: str) -> str:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert not done.returncode, done.stderr[-3000:]
        return done.stdout

    return run
