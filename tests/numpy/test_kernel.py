"""What only the NumPy backend promises: bits that don't depend on the batch, any layout, and little memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import unixent
from unixent_numpy.kernel import blocks

RNG = np.random.default_rng(7)
OPTIONS = [
    {},
    {"z_loss": 1e-3},
    {"softcap": 5.0},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "weighted": True, "softcap": 3.0, "z_loss": 1e-2},
]


def problem(shape, dtype, options, probabilities=False):
    options = dict(options)
    logits = (4 * RNG.normal(size=shape)).astype(dtype)
    classes = shape[-1]
    target = RNG.random(shape) if probabilities else RNG.integers(classes, size=shape[:-1])
    if options.pop("weighted", False):
        options["weight"] = RNG.random(classes)
    return logits, target, options


def solve(logits, target, **options):
    return unixent.value_and_grad(logits, target, reduction="none", **options)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("classes", [1, 3, 17, 64, 1001])
@pytest.mark.parametrize("probabilities", [False, True])
def test_bits_of_a_position_do_not_depend_on_the_others(dtype, options, classes, probabilities, monkeypatch):
    logits, target, options = problem((37, classes), dtype, options, probabilities)
    loss, grad = solve(logits, target, **options)
    for rows in (slice(0, 1), slice(5, 6), slice(30, 37), slice(36, None, -3)):
        part, part_grad = solve(logits[rows], target[rows], **options)
        assert part.tobytes() == loss[rows].tobytes()
        assert part_grad.tobytes() == grad[rows].tobytes()
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * classes * 5)
    monkeypatch.setattr(blocks, "THREADED_ELEMENTS", 0)
    blocked, blocked_grad = solve(logits, target, **options)
    assert blocked.tobytes() == loss.tobytes()
    assert blocked_grad.tobytes() == grad.tobytes()


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("order", ["C", "F", "strided", "reversed", "big-endian", "read-only"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_layout_changes_no_bit_and_no_input(axis, order, probabilities):
    shape = (5, 6, 9)
    logits = np.moveaxis(RNG.normal(size=shape), -1, axis)
    target = np.moveaxis(RNG.random(shape), -1, axis) if probabilities else RNG.integers(9, size=(5, 6))
    plain = np.ascontiguousarray(logits)
    if order == "F":
        logits = np.asfortranarray(logits)
    elif order == "strided":
        logits = np.repeat(plain, 2, axis=1)[:, ::2]
    elif order == "reversed":
        logits = np.ascontiguousarray(plain[::-1, :, ::-1])[::-1, :, ::-1]
    elif order == "big-endian":
        logits = plain.astype(">f8")
    elif order == "read-only":
        logits = plain.copy()
        logits.flags.writeable = False
    before = logits.copy(), target.copy()
    wrt = ("logits", "target") if probabilities else ("logits",)
    options = {"axis": axis, "reduction": "none", "wrt": wrt}
    loss, grads = unixent.value_and_grad(logits, target, **options)
    expected, expected_grads = unixent.value_and_grad(plain, target, **options)
    np.testing.assert_array_equal(loss, expected)
    for grad, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_array_equal(grad, other)
    assert grads[0].dtype == logits.dtype
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(target, before[1])


@pytest.mark.parametrize("classes", [2, 10, 1000, 32000])
@pytest.mark.parametrize("scale", [0.1, 1, 5, 20, 60])
@pytest.mark.parametrize("rank", [0, 1, None], ids=["confident", "second", "random"])
def test_the_promised_accuracy_holds_in_every_regime(classes, scale, rank):
    count = max(4, 40_000 // classes)
    logits = (scale * RNG.normal(size=(count, classes))).astype(np.float32)
    order = np.argsort(logits, axis=1)
    target = RNG.integers(classes, size=count) if rank is None else order[:, -1 - rank]
    rows = np.arange(count)
    # Truth in long double: one class left out, nothing cancels.
    wide = logits.astype(np.longdouble)
    own = wide[rows, target]
    others = wide.copy()
    others[rows, target] = -np.inf
    top = others.max(axis=1)
    rest = np.exp(others - top[:, None]).sum(axis=1)
    gap = top - own
    truth = np.where(gap > 0, gap + np.log(rest + np.exp(-np.abs(gap))), np.log1p(rest * np.exp(np.minimum(gap, 0))))
    loss = unixent.cross_entropy(logits, target, reduction="none")
    bound = (8 + 2 * np.log2(classes)) * 2.0**-24 * truth + 2.0**-149
    assert (np.abs(loss - truth) / bound).max() <= 1


@pytest.mark.parametrize(("with_grad", "limit"), [(True, 1.2), (False, 0.2)])
def test_peak_memory(with_grad, limit):
    logits, target = RNG.normal(size=(512, 32000)).astype(np.float32), np.zeros(512, int)
    call = unixent.value_and_grad if with_grad else unixent.cross_entropy
    call(logits[:4], target[:4])
    tracemalloc.start()
    try:
        result = call(logits, target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result is not None
    assert peak <= limit * logits.nbytes


def test_strided_logits_are_not_copied_whole():
    logits = RNG.normal(size=(8, 21, 256, 256)).astype(np.float32)
    target = RNG.integers(21, size=(8, 256, 256)).astype(np.uint8)
    tracemalloc.start()
    try:
        unixent.cross_entropy(logits, target, axis=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 0.75 * logits.nbytes  # the positions' own arrays are 1/21 of it each, and they are wider


def test_no_warning_escapes_from_any_thread():
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import numpy as np, unixent\n"
        "x = np.zeros((600, 300), 'f'); x[::7, 3] = np.inf; x[::5, 2] = -np.inf; x[::3, 1] = np.nan; x[1] = 3e38\n"
        "unixent.value_and_grad(x, np.zeros(600, int), z_loss=1.0)\n"
        "unixent.value_and_grad(x, np.zeros(600, int), label_smoothing=0.1, softcap=2.0)\n"
        "unixent.cross_entropy(np.zeros((0, 3), 'f'), np.zeros(0, int), on_empty='nan')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_fork_after_use():
    code = (
        "import os, numpy as np, unixent\n"
        "x, y = np.zeros((600, 300), 'f'), np.zeros(600, int)\n"
        "unixent.value_and_grad(x, y)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    unixent.value_and_grad(x, y); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    if not hasattr(__import__("os"), "fork"):
        pytest.skip("this system has no fork")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
