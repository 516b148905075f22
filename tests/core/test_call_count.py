"""A warm call stays a call that a person can follow: few Python calls of ours between the user and the arithmetic."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unixent

LOGITS = np.random.default_rng(0).normal(size=(64, 500)).astype(np.float32)
TARGET = np.random.default_rng(1).integers(500, size=64)


def calls_of_ours(call: Callable[[], Any]) -> int:
    """How many Python functions of unixent and its backends a warm call enters, the generated ones of classes apart."""
    count = 0

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(folders)

    for _ in range(3):
        call()
    ours = [module for name, module in sys.modules.items() if re.fullmatch(r"unixent(_\w+)?", name)]
    folders = tuple([str(Path(str(module.__file__)).parent) + os.sep for module in ours])
    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(previous)
    return count


def test_numpy() -> None:
    assert calls_of_ours(lambda: unixent.cross_entropy(LOGITS, TARGET)) <= 61
    assert calls_of_ours(lambda: unixent.value_and_grad(LOGITS, TARGET)) <= 61


def test_torch_with_a_mask() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    logits, target = torch.tensor(LOGITS, requires_grad=True), torch.tensor(TARGET)
    mask = torch.arange(64) % 3 > 0
    assert calls_of_ours(lambda: unixent.cross_entropy(logits, target, mask=mask)) <= 54


def test_torch_linear() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    hidden, classifier = torch.ones(64, 8, requires_grad=True), torch.ones(500, 8, requires_grad=True)
    target = torch.tensor(TARGET)
    assert calls_of_ours(lambda: unixent.linear_cross_entropy(hidden, classifier, target)) <= 77


def test_jax() -> None:
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    logits, target = jnp.asarray(LOGITS), jnp.asarray(TARGET)
    assert calls_of_ours(lambda: unixent.cross_entropy(logits, target)) <= 32
