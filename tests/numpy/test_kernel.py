"""What only the NumPy backend promises: bits that no blocks change, little memory, silence, and its own threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import unixent
from unixent.logit_transform import LogitTransform
from unixent_numpy.kernel import KernelSpec, blocks, row_losses

OPTIONS = [
    {},
    {"z_loss": 1e-3},
    {"softcap": 5.0},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "weighted": True, "softcap": 3.0, "z_loss": 1e-2},
]


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("num_classes", [1, 3, 17, 64, 1001])
@pytest.mark.parametrize("probabilities", [False, True])
def test_splitting_rows_into_blocks_changes_no_bit(dtype, options, num_classes, probabilities, monkeypatch):
    rng, options = np.random.default_rng(7), dict(options)
    shape = (37, num_classes)
    logits = (4 * rng.normal(size=shape)).astype(dtype)
    target = rng.random(shape) if probabilities else rng.integers(num_classes, size=37)
    if options.pop("weighted", False):
        options["weight"] = rng.random(num_classes)
    loss, grad = unixent.value_and_grad(logits, target, reduction="none", **options)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * num_classes * 5)
    monkeypatch.setattr(blocks, "THREADED_ELEMENTS", 0)
    blocked_loss, blocked_grad = unixent.value_and_grad(logits, target, reduction="none", **options)
    assert blocked_loss.tobytes() == loss.tobytes()
    assert blocked_grad.tobytes() == grad.tobytes()
    for rows in (slice(0, 1), slice(36, None, -3)):
        few_loss, few_grad = unixent.value_and_grad(logits[rows], target[rows], reduction="none", **options)
        assert few_loss.tobytes() == loss[rows].tobytes()
        assert few_grad.tobytes() == grad[rows].tobytes()


@pytest.mark.parametrize("probabilities", [False, True])
def test_foreign_byte_order_gives_the_bits_of_the_native_one(probabilities):
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(5, 9))
    target = rng.random((5, 9)) if probabilities else rng.integers(9, size=5)
    loss, grad = unixent.value_and_grad(logits, target, reduction="none")
    foreign = target.astype(target.dtype.newbyteorder())
    foreign_loss, foreign_grad = unixent.value_and_grad(logits.astype(">f8"), foreign, reduction="none")
    np.testing.assert_array_equal(foreign_loss, loss)
    np.testing.assert_array_equal(foreign_grad, grad)
    assert foreign_grad.dtype == np.dtype(">f8")


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_row_losses_may_write_the_gradient_over_the_logits(label_smoothing):
    rng = np.random.default_rng(7)
    x, target = rng.normal(size=(2, 3, 5)), rng.integers(5, size=(2, 3))
    position_weight, grad_scale = rng.random((2, 3)), rng.random((2, 3))
    spec = KernelSpec(x.dtype, label_smoothing, 0.1, LogitTransform(2.0))
    operands = (target, None, position_weight, grad_scale, spec, ("logits",))
    before = x.copy()
    losses, (grad,) = row_losses(x, *operands)
    np.testing.assert_array_equal(x, before)
    losses_in_place, (grad_in_place,) = row_losses(x, *operands, out=(x,))
    assert grad_in_place is x
    np.testing.assert_array_equal(losses_in_place, losses)
    np.testing.assert_array_equal(grad_in_place, grad)


def test_row_losses_of_weight_zero_are_zero_and_of_weight_nan_nan():
    x = np.array([[np.nan, 1.0], [1.0, 2.0], [np.inf, 0.0], [0.0, 3.0]])
    position_weight = np.array([0.0, np.nan, 0.0, 2.0])
    spec = KernelSpec(x.dtype, 0.0, 0.0, LogitTransform())
    losses, (grad,) = row_losses(x, np.array([0, 1, 1, 1]), None, position_weight, position_weight, spec, ("logits",))
    np.testing.assert_array_equal(losses[:3], [0, np.nan, 0])
    np.testing.assert_array_equal(grad[:3], [[0, 0], [np.nan, np.nan], [0, 0]])
    np.testing.assert_allclose(losses[3], 2 * np.log1p(np.exp(-3)), rtol=1e-15)


@pytest.mark.parametrize("num_classes", [2, 10, 1000, 32000])
@pytest.mark.parametrize("scale", [0.1, 1, 5, 20, 60])
@pytest.mark.parametrize("rank", [0, 1, None], ids=["confident", "second", "random"])
def test_the_promised_accuracy_holds_in_every_regime(num_classes, scale, rank):
    rng = np.random.default_rng(7)
    count = max(4, 40_000 // num_classes)
    logits = (scale * rng.normal(size=(count, num_classes))).astype(np.float32)
    order = np.argsort(logits, axis=1)
    target = rng.integers(num_classes, size=count) if rank is None else order[:, -1 - rank]
    rows = np.arange(count)
    # Truth in long double: one class left out, nothing cancels.
    wide = logits.astype(np.longdouble)
    target_logit = wide[rows, target]
    others = wide.copy()
    others[rows, target] = -np.inf
    top = others.max(axis=1)
    rest = np.exp(others - top[:, None]).sum(axis=1)
    gap = top - target_logit
    truth = np.where(gap > 0, gap + np.log(rest + np.exp(-np.abs(gap))), np.log1p(rest * np.exp(np.minimum(gap, 0))))
    loss = unixent.cross_entropy(logits, target, reduction="none")
    bound = (8 + 2 * np.log2(num_classes)) * 2.0**-24 * truth + 2.0**-149
    assert (np.abs(loss - truth) / bound).max() <= 1


@pytest.mark.parametrize(("with_grad", "limit"), [(True, 1.2), (False, 0.2)])
def test_memory_beyond_the_gradient_is_a_fraction_of_the_logits(peak_memory, with_grad, limit):
    rng = np.random.default_rng(7)
    logits, target = rng.normal(size=(512, 32000)).astype(np.float32), np.zeros(512, int)
    call = unixent.value_and_grad if with_grad else unixent.cross_entropy
    call(logits[:4], target[:4])
    assert peak_memory(lambda: call(logits, target)) <= limit * logits.nbytes


def test_strided_logits_are_not_copied_as_a_whole(peak_memory):
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(8, 21, 256, 256)).astype(np.float32)
    target = rng.integers(21, size=(8, 256, 256)).astype(np.uint8)
    # The positions' own arrays are 1/21 of it each, and they are wider.
    assert peak_memory(lambda: unixent.cross_entropy(logits, target, axis=1)) <= 0.75 * logits.nbytes


def test_no_warning_escapes_from_any_thread():
    run_python(
        "import warnings; warnings.simplefilter('error')\n"
        "import numpy as np, unixent\n"
        "x = np.zeros((600, 300), 'f'); x[::7, 3] = np.inf; x[::5, 2] = -np.inf; x[::3, 1] = np.nan; x[1] = 3e38\n"
        "unixent.value_and_grad(x, np.zeros(600, int), z_loss=1.0)\n"
        "unixent.value_and_grad(x, np.zeros(600, int), label_smoothing=0.1, softcap=2.0)\n"
        "unixent.cross_entropy(np.zeros((0, 3), 'f'), np.zeros(0, int), on_empty='nan')\n"
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_starts_threads_of_its_own():
    run_python(
        "import os, numpy as np, unixent\n"
        "x, y = np.zeros((600, 300), 'f'), np.zeros(600, int)\n"
        "unixent.value_and_grad(x, y)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    unixent.value_and_grad(x, y); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )


THREADED = (
    "import atexit, threading, time, numpy as np, unixent\n"
    "x, y = np.random.default_rng(0).normal(size=(600, 300)), np.zeros(600, int)\n"
    "def call():\n"
    "    loss, grad = unixent.value_and_grad(x, y)\n"
    "    assert abs(grad.sum()) < 1e-12 and loss == unixent.cross_entropy(x, y)\n"
    "    print('computed')\n"
    "def late():\n"
    "    threading.main_thread().join(); time.sleep(0.1); call()\n"
)


@pytest.mark.parametrize("called_before", [True, False])
@pytest.mark.parametrize("late_call", ["atexit.register(call)", "threading.Thread(target=late).start()"])
def test_a_call_after_main_has_returned_works_without_new_threads(late_call, called_before):
    code = f"{THREADED}{'call()' if called_before else ''}\n{late_call}\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert done.stdout.count("computed") == 1 + called_before


def test_an_error_in_a_block_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(blocks, "THREADED_ELEMENTS", 0)
    monkeypatch.setenv("UNIXENT_NUM_THREADS", "4")

    def work(rows):
        if rows.start == 2:
            raise IndexError("of the work")

    for _ in range(20):
        with pytest.raises(IndexError, match="of the work"):
            blocks.RowBlocks(4, 3, np.dtype("f4")).for_each(work)


@pytest.mark.parametrize("value", ["four", "", "0", "-2", "2.0"])
def test_a_number_of_threads_that_is_none_raises_an_error_that_names_the_variable(monkeypatch, value):
    monkeypatch.setenv("UNIXENT_NUM_THREADS", value)
    with pytest.raises(unixent.OptionError, match=f"UNIXENT_NUM_THREADS: expected an int >= 1; got '{value}'"):
        unixent.cross_entropy(np.zeros((2, 3)), np.zeros(2, int))


def test_the_number_of_threads_is_the_one_asked_for(monkeypatch):
    monkeypatch.setenv("UNIXENT_NUM_THREADS", "3")
    assert blocks.num_threads() == 3
    monkeypatch.delenv("UNIXENT_NUM_THREADS")
    assert blocks.num_threads() >= 1


PROBABILITIES = np.array([[0.0, 0.25, 0.75], [0.5, 0.25, 0.25]])


@pytest.mark.parametrize("target", [np.array([1, 0]), PROBABILITIES], ids=["indices", "probabilities"])
@pytest.mark.parametrize(
    "options", [{}, {"z_loss": 0.1}, {"label_smoothing": 0.2, "weight": np.array([0.0, 1, 2])}], ids=str
)
def test_an_infinite_logit_stays_one_under_a_softcap(target, options):
    options, capped = {"reduction": "none", **options}, np.array([[-np.inf, 0.0, 1.0], [0.5, 1.0, 2.0]])
    finite = np.isfinite(capped)
    capped[finite] = 3 * np.tanh(capped[finite] / 3)
    logits = np.array([[-np.inf, 0.0, 1.0], [0.5, 1.0, 2.0]])
    loss, grad = unixent.value_and_grad(logits, target, softcap=3.0, **options)
    expected, expected_grad = unixent.value_and_grad(capped, target, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    cap_grad = 1 - (np.where(finite, capped, 0) / 3) ** 2
    np.testing.assert_allclose(grad, expected_grad * cap_grad, rtol=1e-13, atol=0)
    assert grad[0, 0] == 0
    logits[0] = [0.0, np.inf, 1.0]
    loss, grad = unixent.value_and_grad(logits, target, softcap=3.0, **options)
    assert np.isnan(loss).tolist() == [True, False]
    assert np.isnan(grad).all(axis=1).tolist() == [True, False]


def test_a_target_at_minus_infinity_has_an_infinite_loss_under_a_softcap():
    logits = np.array([[-np.inf, 0.0], [-1e300, 0.0]])
    losses = unixent.cross_entropy(logits, np.zeros(2, int), softcap=2.0, reduction="none")
    np.testing.assert_allclose(losses, [np.inf, np.log1p(np.exp(2.0))])


@pytest.mark.parametrize("normalizer", [1e-50, 1e50, np.array(1e-50)], ids=repr)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_normalizer_beyond_the_accumulation_dtype_is_the_number_given(dtype, normalizer):
    logits, target = np.array([[0.0, 1.0]], dtype), np.array([0])
    options = {"on_empty": "raise", "dtype": "float64"}
    total = unixent.cross_entropy(logits, target, reduction="sum", dtype="float64")
    loss, grad = unixent.value_and_grad(logits, target, normalizer=normalizer, **options)
    assert loss == pytest.approx(float(total / normalizer), rel=1e-6)
    exact = np.array([[-1.0, 1.0]]) / (1 + np.exp(-1.0)) / normalizer
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_allclose(grad, exact.astype(dtype), rtol=1e-2)
    # 0 times what the quotient overflows to is 0: a class of probability 0, a position of weight 0.
    logits, target = np.array([[0.0, 1.0, -np.inf], [0.0, 1.0, 2.0]], dtype), np.array([0, 1])
    grad = unixent.value_and_grad(logits, target, mask=np.array([1, 0]), normalizer=normalizer, **options)[1]
    assert grad[0, 2] == 0
    assert not grad[1].any()


@pytest.mark.parametrize("call", [unixent.cross_entropy, lambda *a, **k: unixent.value_and_grad(*a, **k)[0]])
@pytest.mark.parametrize(("dtype", "large"), [("float32", 3e38), ("float64", 1.7e308)])
def test_finite_losses_whose_sum_overflows_have_their_finite_mean(call, dtype, large):
    logits, target = np.array([[0, large], [0, large / 2], [large, 0]], dtype), np.zeros(3, int)
    assert call(logits, target) == pytest.approx(large / 2, rel=1e-6)
    assert call(logits, target, normalizer=6) == pytest.approx(large / 4, rel=1e-6)
    assert call(logits, target, reduction="sum") == np.inf
    assert call(np.array([[-np.inf, 0]] * 2, dtype), target[:2]) == np.inf
    assert np.isnan(call(np.array([[0, large], [0, large], [np.nan, 0]], dtype), target))


@pytest.mark.parametrize("bias", [None, np.array([0.5, -1.0, 2.0])], ids=["no bias", "bias"])
@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("chunk", [None, 2])
def test_hidden_states_of_width_0_have_the_loss_of_the_bias_alone(bias, count, chunk):
    hidden, classifier, target = np.zeros((count, 0)), np.zeros((3, 0)), np.arange(count)
    loss, grads = unixent.linear_value_and_grad(hidden, classifier, target, bias=bias, chunk=chunk)
    expected = unixent.cross_entropy(np.zeros((count, 3)) + (0 if bias is None else bias), target)
    assert loss == pytest.approx(float(expected), rel=1e-15)
    assert [grad.shape for grad in grads] == [(count, 0), (3, 0)] + ([] if bias is None else [(3,)])


def test_an_infinite_gradient_of_a_probability_times_an_upstream_0_is_0():
    logits, target = np.array([[-np.inf, 0, 1], [-np.inf, 0, 1]]), np.full((2, 3), 0.5)
    target[:, 0] = 0
    upstream = np.array([0.0, 1.0])
    grad = unixent.value_and_grad(logits, target, wrt="target", reduction="none", grad_output=upstream)[1]
    np.testing.assert_array_equal(grad[0], 0)
    assert np.isinf(grad[1, 0])
