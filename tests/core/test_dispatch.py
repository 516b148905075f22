"""Which backend serves a call: the one named, or the one framework other than NumPy among its arrays."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import unixent

FRAMEWORKS = [name for name in ("torch", "jax", "mindspore") if find_spec(name)]
LOGITS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
INDEX, WEIGHT, MASK = np.array([0, 2, 1, 1]), np.ones(3, np.float32), np.ones(4, np.float32)


def array_of(framework: str, array: np.ndarray[Any, Any]) -> Any:
    return unixent.get_backend(framework).asarray(array, None)


@pytest.mark.parametrize("argument", ["logits", "target", "weight", "mask", "normalizer"])
@pytest.mark.parametrize("framework", FRAMEWORKS or [pytest.param("", marks=pytest.mark.skip("no framework here"))])
def test_the_one_framework_among_the_arrays_serves_the_call(framework: str, argument: str) -> None:
    arguments: dict[str, Any] = {
        "logits": LOGITS,
        "target": INDEX,
        "weight": WEIGHT,
        "mask": MASK,
        "normalizer": np.array(4.0, np.float32),
    }
    arguments[argument] = array_of(framework, arguments[argument])
    loss = unixent.cross_entropy(**arguments)
    assert unixent.get_backend(framework).owns(loss)
    hidden, classifier = np.ones((4, 2), np.float32), array_of(framework, np.ones((3, 2), np.float32))
    assert unixent.get_backend(framework).owns(unixent.linear_cross_entropy(hidden, classifier, INDEX))


def test_numpy_arrays_lists_and_numbers_alone_are_numpys() -> None:
    assert isinstance(unixent.cross_entropy(LOGITS.tolist(), INDEX.tolist(), mask=MASK, normalizer=4), np.ndarray)


@pytest.mark.skipif(len(FRAMEWORKS) < 2, reason="needs two frameworks in one process; the environment trio has them")
def test_two_frameworks_in_one_call_are_refused() -> None:
    first, second = FRAMEWORKS[:2]
    with pytest.raises(unixent.BackendError, match=f"target: expected an array of {first}, as logits is"):
        unixent.cross_entropy(array_of(first, LOGITS), array_of(second, INDEX))
