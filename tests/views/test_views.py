"""Views with any strides give what their copies give, and never leave their memory, on every backend."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import unixent

only_in_numpy = pytest.mark.skipif(
    os.environ.get("TOX_ENV_NAME", "numpy") != "numpy", reason="no framework's: runs once, in the environment `numpy`"
)
BACKENDS = [
    pytest.param("numpy", marks=only_in_numpy),
    *(name for name in ("torch", "jax", "mindspore") if find_spec(name)),
]
# JAX and MindSpore copy what they are given, and compile for every shape.
VIEWS = {"numpy": 2000, "torch": 600, "jax": 24, "mindspore": 24}
DTYPES = ("float32", "float64", "float16")


def _strided(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A view of ``shape`` whose strides are drawn: 0, negative, overlapping, or not a multiple of the item."""
    unit = int(rng.choice([1, dtype.itemsize, dtype.itemsize, dtype.itemsize]))
    strides = tuple(int(rng.integers(-6, 7)) * unit if rng.random() < 0.7 else 0 for _ in shape)
    reach = [(size - 1) * step for size, step in zip(shape, strides, strict=True)]
    first = -sum(min(0, step) for step in reach)
    length = first + sum(max(0, step) for step in reach) + dtype.itemsize
    items = rng.normal(size=-(-length // dtype.itemsize)).astype(dtype)
    if unit == 1:  # items that start anywhere hold any bits
        items.view(np.uint8)[:] = rng.integers(256, size=items.nbytes, dtype=np.uint8)
    return np.ndarray(shape, dtype, items.data, first, strides)


def _composed(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A view of ``shape`` by what people write: broadcast, transpose, slice, reverse."""
    base = [1 if rng.random() < 0.4 else size * int(rng.integers(1, 3)) for size in shape]
    order = rng.permutation(len(shape))
    array = rng.normal(size=[base[axis] for axis in order]).astype(dtype).transpose(np.argsort(order))
    for axis, size in enumerate(shape):
        if array.shape[axis] > 1:
            step = array.shape[axis] // size
            array = np.moveaxis(np.moveaxis(array, axis, 0)[::step][:size], 0, axis)
            if rng.random() < 0.3:
                array = np.flip(array, axis)
    return np.broadcast_to(array, shape)


def _view(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return (_strided if rng.random() < 0.5 else _composed)(rng, shape, dtype)


def _loss_and_grads(
    backend: str, logits: np.ndarray[Any, Any], target: np.ndarray[Any, Any], axis: int
) -> list[np.ndarray[Any, Any]]:
    wrt = ("logits", "target") if target.dtype.kind == "f" else ("logits",)
    loss, grads = unixent.value_and_grad(
        logits, target, axis=axis, reduction="none", validate="off", wrt=wrt, backend=backend
    )
    return [np.asarray(array.asnumpy() if backend == "mindspore" else array) for array in (loss, *grads)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:.*float64.*:UserWarning")  # JAX narrows float64 unless it is told not to
def test_views_give_the_bits_of_their_copies(backend: str) -> None:
    rng = np.random.default_rng(20261129)
    for number in range(VIEWS[backend]):
        shape = tuple(int(size) for size in rng.integers(1, 5, size=int(rng.integers(1, 5))))
        axis = int(rng.integers(len(shape)))
        logits = _view(rng, shape, np.dtype(rng.choice(DTYPES)))
        positions = shape[:axis] + shape[axis + 1 :]
        if rng.random() < 0.5:
            target = _view(rng, shape, logits.dtype)
        else:
            indices = _view(rng, positions, np.dtype(rng.choice(["int8", "int32", "int64", "uint16"])))
            target = indices % np.array(shape[axis], indices.dtype) if rng.random() < 0.5 else indices
        of_views = _loss_and_grads(backend, logits, target, axis)
        of_copies = _loss_and_grads(backend, logits.copy(), target.copy(), axis)
        for view, copy in zip(of_views, of_copies, strict=True):
            np.testing.assert_array_equal(
                view,
                copy,
                err_msg=f"view {number}: logits {shape} strides {logits.strides}, target strides {target.strides}",
            )


@only_in_numpy
def test_a_large_broadcast_view_stays_inside_its_memory() -> None:
    """In a process of its own: what this reads outside its memory ends the process."""
    program = """
        import numpy as np, unixent
        x = np.broadcast_to(np.zeros((1000, 1, 50), np.float32), (1000, 1000, 50))
        loss = unixent.cross_entropy(x, np.zeros((1000, 1000), int), reduction="none")
        bound = (8 + 2 * np.log2(50)) * 2.0**-24 * np.log(50)
        assert np.abs(loss - np.log(50)).max() <= bound, loss
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
