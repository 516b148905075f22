"""NumPy, PyTorch, JAX and MindSpore in one process: whichever comes first, the same loss from each, and no mixing."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import unixent

FRAMEWORKS = ("torch", "jax", "mindspore")
for name in FRAMEWORKS:
    pytest.importorskip(name, reason="needs torch, jax and mindspore in one environment: tox -e trio")

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, 7)).astype(np.float32)
TARGET = np.array([0, 6, -100, 3, 3], np.int32)
OPTIONS: dict[str, Any] = {"label_smoothing": 0.1, "weight": np.linspace(0.5, 2, 7, dtype=np.float32)}

ONE_PROGRAM = """
import numpy as np
import unixent

logits = np.array([[2.0, 0.5, -1.0], [0.0, 3.0, 0.0]], np.float32)
target = np.array([0, 1], np.int32)
losses = []
for name in {order}:
    own = unixent.get_backend(name).asarray(logits, None)
    losses.append(float(unixent.cross_entropy(own, target)))
np.testing.assert_allclose(losses, float(unixent.cross_entropy(logits, target)), rtol=1e-6)
print("agree")
"""


def own_arrays(name: str) -> tuple[Any, Any]:
    asarray = unixent.get_backend(name).asarray
    return asarray(LOGITS, None), asarray(TARGET, None)


# In these three each comes first once, and each comes before each.
ORDERS = [FRAMEWORKS[i:] + FRAMEWORKS[:i] for i in range(len(FRAMEWORKS))]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_any_order_of_imports(order: tuple[str, ...]) -> None:
    program = "".join(f"import {name}\n" for name in order) + ONE_PROGRAM.format(order=order)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("agree\n"), done.stderr


def test_all_are_listed_as_installed() -> None:
    statuses = {status.name: status for status in unixent.backends(*FRAMEWORKS)}
    assert all(status.installed and status.devices for status in statuses.values())


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_arrays_choose_their_backend(name: str) -> None:
    logits, target = own_arrays(name)
    loss, grad = unixent.value_and_grad(logits, target, **OPTIONS)
    expected, expected_grad = unixent.value_and_grad(LOGITS, TARGET, **OPTIONS)
    assert type(loss).__module__.partition(".")[0].removesuffix("lib") == name
    unit = np.finfo(np.float32).eps / 2
    assert abs(float(loss) - float(expected)) <= 64 * unit * float(expected)
    scale = np.abs(expected_grad).max(axis=1, keepdims=True)
    assert (np.abs(np.asarray(grad) - expected_grad) <= 64 * unit * scale).all()


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(FRAMEWORKS, 2)))
def test_arrays_of_two_frameworks_are_refused(one: str, other: str) -> None:
    with pytest.raises(unixent.BackendError, match=rf"target: .*{one}.*; got {other}"):
        unixent.cross_entropy(own_arrays(one)[0], own_arrays(other)[1])
