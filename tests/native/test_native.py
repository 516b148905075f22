"""What the native kernel promises beyond the definition: exponentials to 1 ulp, the same bits however it is called."""

from __future__ import annotations

import logging
import math
import os
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from calls import Alone, check, check_share, random_call
from exponential import log1p_arguments, native_exp, native_log1p, worst_log1p_ulp, worst_ulp

from unixent.errors import OptionError
from unixent.logit_transform import LogitTransform
from unixent_native import library as library_module
from unixent_native.call import Strided, merged_axes, row_losses
from unixent_numpy.kernel import KernelSpec, native
from unixent_numpy.vocab_parallel.blocks import LocalLogits, Shard
from unixent_numpy.vocab_parallel.composed import row_losses as share_losses

FLOAT32, PLAIN = np.dtype("f4"), LogitTransform()


@pytest.mark.parametrize("seed", range(4))
def test_every_instruction_set_computes_what_numpy_does(each_isa, seed):
    for i in range(50):
        rng = np.random.default_rng(1000 * seed + i)
        call = random_call(rng)
        check(each_isa, call)
        check_share(each_isa, call, rng)


def test_float32_exponentials_are_within_one_ulp(each_isa):
    rng = np.random.default_rng(7)
    assert worst_ulp(rng.integers(1 << 31, 1 << 32, 1 << 18, dtype=np.uint64), each_isa.isa) < 1
    around = -(rng.random(1 << 18) * 105).astype(np.float32)
    assert worst_ulp(around.view(np.uint32), each_isa.isa) < 1
    ends = np.array([0.0, -0.0, -np.inf, np.nan] * 4, np.float32)
    np.testing.assert_array_equal(native_exp(ends, each_isa.isa), np.exp(ends))


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="long double is no wider than double here")
def test_float64_exponentials_are_within_one_ulp(each_isa):
    rng = np.random.default_rng(7)
    x = np.concatenate([-rng.random(1 << 17) * 746, -rng.random(1 << 14) * 1e-3])
    exact, got = np.exp(x.astype(np.longdouble)), native_exp(x, each_isa.isa)
    unit = np.ldexp(np.longdouble(1), np.maximum(np.frexp(exact)[1] - 53, -1074))
    assert (np.abs(got - exact) / unit).max() < 1


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="long double is no wider than double here")
def test_logarithms_are_within_one_ulp(each_isa):
    assert worst_log1p_ulp(log1p_arguments(np.random.default_rng(7), 1 << 18), each_isa.isa) < 1
    ends = np.array([0.0, 5e-324, 2.0**-1022, np.nan] * 4)
    np.testing.assert_array_equal(native_log1p(ends, each_isa.isa), ends)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("num_classes", [1, 2, 21, 33, 100, 256])
def test_bits_of_a_short_row_depend_neither_on_its_place_nor_on_the_layout(each_isa, dtype, num_classes):
    rng = np.random.default_rng(7)
    acc = np.dtype("f8" if dtype == "f8" else "f4")
    x = (rng.normal(size=(300, num_classes)) * 5).astype(dtype)
    x[5], x[6, :1], x[7, -1:] = np.nan, np.inf, -np.inf
    target, scale = rng.integers(num_classes, size=300), rng.random(300).astype(acc)
    v, weight = (rng.random(300) > 0.2).astype(acc), rng.random(num_classes).astype(acc)
    spec = KernelSpec(acc, 0.0, 1e-3, PLAIN)

    def solve(x, rows):
        losses, (grad,) = native.row_losses(
            each_isa, x[rows], target[rows], weight, v[rows], (v * scale)[rows], spec, ("logits",)
        )
        return losses.tobytes(), np.ascontiguousarray(grad).tobytes()

    losses, (grad,) = native.row_losses(each_isa, x, target, weight, v, v * scale, spec, ("logits",))
    holes = np.zeros((300, 2 * num_classes), dtype)[:, ::2]
    holes[...] = x
    for same in (x, np.ascontiguousarray(x.T).T, holes, np.ascontiguousarray(x[::-1])[::-1]):
        for start in (0, 3, 250):
            for stop in (start + 1, start + 7, start + 18, 300):
                rows = slice(start, stop)
                assert solve(same, rows) == (losses[rows].tobytes(), grad[rows].tobytes())


@pytest.mark.parametrize("shape", [(300, 2049), (7, 3, 40001), (70000, 3), (3000, 100)])
@pytest.mark.parametrize("classes_first", [False, True])
def test_bits_of_a_row_do_not_depend_on_threads_or_other_rows(native_library, shape, classes_first, monkeypatch):
    rng = np.random.default_rng(7)
    x = rng.normal(size=shape).astype(np.float32)
    if classes_first:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1)
    target, scale = rng.integers(shape[-1], size=shape[:-1]), rng.random(shape[:-1]).astype(np.float32)
    spec = KernelSpec(FLOAT32, 0.0, 0.0, PLAIN)

    def solve(rows):
        return native.row_losses(native_library, x[rows], target[rows], None, None, scale[rows], spec, ("logits",))

    monkeypatch.setenv("UNIXENT_NUM_THREADS", "1")
    losses, (grad,) = solve(slice(None))
    for threads in (2, 5):
        monkeypatch.setenv("UNIXENT_NUM_THREADS", str(threads))
        more_losses, (more_grad,) = solve(slice(None))
        assert more_losses.tobytes() == losses.tobytes()
        assert more_grad.tobytes() == grad.tobytes()
    few_losses, (few_grad,) = solve(slice(1, 4))
    assert few_losses.tobytes() == losses[1:4].tobytes()
    assert few_grad.tobytes() == grad[1:4].tobytes()


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
def test_split_losses_take_it_for_both_halves_with_the_same_bits_on_any_threads(
    native_library, probabilities, monkeypatch
):
    def refuse(*_):
        raise AssertionError("NumPy's operators were called")

    monkeypatch.setattr(LocalLogits, "for_each", refuse)
    monkeypatch.setattr(LocalLogits, "for_each_with_grad", refuse)
    rng = np.random.default_rng(7)
    x = rng.normal(size=(300, 2049)).astype(np.float32)
    target = rng.random(x.shape) if probabilities else rng.integers(4000, size=300)
    wrt = ("logits", "target") if probabilities else ("logits",)
    call = (
        Shard(Alone(), 10, 2049, 4000),
        x,
        target,
        None,
        None,
        np.ones((), "f4"),
        KernelSpec(FLOAT32, 0.1, 0, PLAIN),
    )
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setenv("UNIXENT_NUM_THREADS", str(threads))
        losses, grads = share_losses(*call, wrt)
        results.append([each.tobytes() for each in (losses, *grads)])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_may_take_the_place_of_the_logits(native_library, dtype, smoothing):
    rng = np.random.default_rng(7)
    acc = np.dtype("f8" if dtype == "f8" else "f4")
    for x in (rng.normal(size=(37, 2050)).astype(dtype), rng.normal(size=(50, 37)).astype(dtype).T):
        operands = (
            rng.integers(x.shape[1], size=37),
            None,
            None,
            np.ones((), acc),
            KernelSpec(acc, smoothing, 0.1, PLAIN),
        )
        before = x.copy()
        losses, (grad,) = native.row_losses(native_library, x, *operands, ("logits",))
        np.testing.assert_array_equal(x, before)
        losses_in_place, (grad_in_place,) = native.row_losses(native_library, x, *operands, ("logits",), (x,))
        assert grad_in_place is x
        np.testing.assert_array_equal(losses_in_place, losses)
        np.testing.assert_array_equal(x, grad)


@pytest.mark.parametrize("softcap", [None, 5.0, 1e-3])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_minus_infinity_has_probability_zero_and_plus_infinity_is_nan(each_isa, softcap, dtype):
    acc = np.dtype("f8" if dtype == "f8" else "f4")
    x = np.array([[1, -np.inf, 2], [1, np.inf, 2], [-np.inf] * 3, [0.5, np.nan, 0]], dtype)
    rest = native.row_losses(
        each_isa,
        x[:1, ::2],
        np.array([0]),
        None,
        None,
        np.ones((), acc),
        KernelSpec(acc, 0.0, 0.0, LogitTransform(softcap)),
        ("logits",),
    )
    spec = KernelSpec(acc, 0.0, 0.0, LogitTransform(softcap))
    losses, (grad,) = native.row_losses(each_isa, x, np.zeros(4, int), None, None, np.ones((), acc), spec, ("logits",))
    np.testing.assert_array_equal(losses, [rest[0][0], np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(grad[0], [rest[1][0][0, 0], 0, rest[1][0][0, 1]])
    assert np.isnan(grad[1:]).all()


def test_an_index_out_of_range_reads_nothing_and_is_nan(native_library):
    x, target = np.zeros((3, 4), np.float32), np.array([4, -1, 2**62])
    spec = KernelSpec(FLOAT32, 0.0, 0.0, PLAIN)
    losses, (grad,) = native.row_losses(native_library, x, target, None, None, np.ones((), "f4"), spec, ("logits",))
    assert np.isnan(losses).all()
    assert np.isnan(grad).all()


def test_sums_and_ranges_are_those_of_python(native_library):
    rng = np.random.default_rng(7)
    for dtype, code in (("f4", 2), ("f8", 3)):
        for n in (0, 1, 5, 1000):
            x = (rng.normal(size=n) * 10.0 ** rng.integers(-20, 20, n)).astype(dtype)
            assert native_library.sum(x.ctypes.data, n, code) == pytest.approx(math.fsum(x), rel=1e-15, abs=1e-15)
    for index in ([0, 4, 2], [0, 5, 2], [-1, 4, 2], [0, 1, -(2**63)], [2**63 - 1, 0, 0], []):
        at = np.array(index, np.int64)
        assert native_library.in_range(at.ctypes.data, len(index), 5) == all(0 <= i < 5 for i in index)


def test_calls_from_many_threads_do_not_meet(native_library):
    rng = np.random.default_rng(7)
    x, target = rng.normal(size=(200, 1000)).astype(np.float32), rng.integers(1000, size=200)
    spec = KernelSpec(FLOAT32, 0.0, 0.0, PLAIN)
    expected = native.row_losses(native_library, x, target, None, None, None, spec)[0]
    results = []

    def call():
        results.extend(native.row_losses(native_library, x, target, None, None, None, spec)[0] for _ in range(20))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 160
    assert all(each.tobytes() == expected.tobytes() for each in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_computes_the_same(native_library):
    code = (
        "import os, numpy as np, unixent\n"
        "x = np.random.default_rng(7).normal(size=(500, 1000)); y = np.zeros(500, int)\n"
        "a = unixent.cross_entropy(x, y, backend='numpy')\n"
        "pid = os.fork()\n"
        "b = unixent.cross_entropy(x, y, backend='numpy')\n"
        "if not pid: os._exit(int(a != b))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and a == b\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_axes_that_are_one_in_memory_are_merged():
    # The last stride is that of the classes.
    assert merged_axes((4, 5, 6), [(240, 120), (48, 24), (8, 4), (1, 1)]) == ([120], [(8, 4)])
    assert merged_axes((4, 5, 6), [(240, 4), (48, 16), (8, 80), (1, 1)]) == ([4, 5, 6], [(240, 4), (48, 16), (8, 80)])
    assert merged_axes((1, 5, 1), [(0,), (8,), (3,), (1,)]) == ([5], [(8,)])


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("layout", ["holes", "permuted"])
def test_positions_along_many_strides_keep_their_bits(native_library, probabilities, layout):
    rng = np.random.default_rng(7)
    if layout == "holes":
        x = rng.normal(size=(3,) * 11).astype(np.float32)[tuple([slice(None, None, 2)] * 10)]
    else:
        x = rng.normal(size=(3, *(2,) * 10)).astype(np.float32).transpose(*rng.permutation(10) + 1, 0)
    target = rng.random(x.shape).astype(np.float32) if probabilities else rng.integers(3, size=x.shape[:-1])
    wrt = ("logits", "target") if probabilities else ("logits",)
    rest = (None, None, np.ones((), "f4"), KernelSpec(FLOAT32, 0.0, 0.0, PLAIN), wrt)
    losses, grads = native.row_losses(native_library, x, target, *rest)
    flat_target = target.reshape(-1, 3) if probabilities else target.reshape(-1)
    expected, expected_grads = native.row_losses(native_library, x.reshape(-1, 3), flat_target, *rest)
    assert losses.tobytes() == expected.tobytes()
    assert [grad.tobytes() for grad in grads] == [grad.tobytes() for grad in expected_grads]


def test_an_array_at_no_address_is_not_taken(native_library):
    nothing = Strided(0, 2, (12, 4))
    assert not row_losses(native_library, (2, 3), nothing, 0, None, 0, 0, 0, 0, 0, None, None, 2, 0.0, 0.0, PLAIN, 1)


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout + done.stderr


def test_the_environment_switches_it_off_and_chooses_the_instruction_set(native_library):
    code = "import unixent_native; print(unixent_native.instruction_set())"
    assert run_python(code, UNIXENT_NATIVE="0").strip() == "None"
    for isa in native_library.isas:
        assert run_python(code, UNIXENT_NATIVE_ISA=isa, UNIXENT_NATIVE="").strip() == isa
    assert "UNIXENT_NATIVE_ISA: expected one of" in run_python(code, UNIXENT_NATIVE_ISA="mmx", UNIXENT_NATIVE="")
    assert OptionError.__name__ in run_python(code, UNIXENT_NATIVE_ISA="mmx", UNIXENT_NATIVE="")


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(library_module, "NAME", "nowhere.so"),
        lambda patch: patch.setattr(library_module, "ADDRESSES", struct.Struct("9q")),
        lambda patch: patch.setitem(library_module.FUNCTIONS, "of a later version", (None, [])),
    ],
    ids=["missing", "stale", "without a function"],
)
def test_a_missing_or_stale_library_is_reported_once_and_is_no_error(monkeypatch, caplog, change):
    change(monkeypatch)
    monkeypatch.delenv("UNIXENT_NATIVE", raising=False)
    library_module.load.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="unixent"):
            assert library_module.load() is None
            assert library_module.load() is None
        assert len(caplog.records) == 1
    finally:
        library_module.load.cache_clear()
