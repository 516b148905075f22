"""What the native kernel promises of statistics: NumPy's results, with the same bits however it is called."""

from __future__ import annotations

import numpy as np
import pytest
from position_calls import EXACT, GRADED, OUTPUTS, Call, check, composed, natively, random_position_call

from unixent.logit_transform import LogitTransform
from unixent_numpy.kernel import KernelSpec
from unixent_numpy.positions import native

PLAIN = LogitTransform()
# What losses of sparse targets ask for: the exponentials of a row are stored for its gradient.
LOSS = ("selected_log_prob", "rest_log_prob", "regularizer")
ABSENT = ["rest_log_prob", "entropy", "all but a loss"]


@pytest.mark.parametrize("seed", range(4))
def test_every_instruction_set_computes_the_statistics_that_numpy_does(each_isa, seed):
    for i in range(100):
        check(each_isa, random_position_call(np.random.default_rng(1000 * seed + i)))


def a_call(rng, shape, transform=PLAIN, absent="rest_log_prob"):
    """All outputs but one, since the library has not both entropy and rest_log_prob, or those of a loss."""
    count = int(np.prod(shape[:-1]))
    x = rng.normal(size=shape).astype(np.float32) * 5
    selected, k = rng.integers(shape[-1], size=(count, 3)), min(5, shape[-1])
    graded = tuple(name for name in GRADED if name != absent)
    upstream = {name: rng.normal(size=(count, 3) if "selected" in name else count).astype("f4") for name in graded}
    smoothing = rng.random(shape[-1]).astype("f4")
    target, spec = rng.integers(shape[-1], size=count), KernelSpec(np.dtype("f4"), 0.0, 1e-3, transform)
    outputs = LOSS if absent == "all but a loss" else tuple(name for name in OUTPUTS if name != absent)
    upstream = {name: each for name, each in upstream.items() if name in outputs}
    return Call(x, target, selected, None, smoothing, None, upstream, outputs, k, spec)


def bits(library, call, threads):
    grad = np.empty_like(call.x)
    done = natively(library, call, grad, threads)
    return {name: each.tobytes() for name, each in done.items()} | {"gradient": np.ascontiguousarray(grad).tobytes()}


@pytest.mark.parametrize("shape", [(300, 2049), (7, 40001), (3000, 100), (5000, 3)])
@pytest.mark.parametrize("classes_first", [False, True])
@pytest.mark.parametrize("absent", ABSENT)
def test_bits_of_a_position_do_not_depend_on_threads_layout_or_other_positions(
    native_library, shape, classes_first, absent
):
    call = a_call(np.random.default_rng(7), shape, absent=absent)
    alone = bits(native_library, call, 1)
    if classes_first:
        call = call._replace(x=np.ascontiguousarray(call.x.T).T)
    for threads in (1, 2, 5):
        assert bits(native_library, call, threads) == alone
    upstream = {name: each[1:4] for name, each in call.upstream.items()}
    few = call._replace(x=call.x[1:4], target=call.target[1:4], selected=call.selected[1:4], upstream=upstream)
    for name, each in bits(native_library, few, 1).items():
        size = len(alone[name]) // shape[0]
        assert each == alone[name][size : 4 * size], name


@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("transform", [PLAIN, LogitTransform(20.0, 0.7)])
def test_the_gradient_may_take_the_place_of_the_logits(native_library, absent, transform):
    call = a_call(np.random.default_rng(7), (50, 3000), transform, absent)
    grad, buffer = np.empty_like(call.x), call.x.copy()
    due, done = natively(native_library, call, grad), natively(native_library, call._replace(x=buffer), buffer)
    assert buffer.tobytes() == grad.tobytes()
    assert all(done[name].tobytes() == due[name].tobytes() for name in call.outputs)


def test_rows_of_every_order_have_their_largest_classes(native_library):
    spec = KernelSpec(np.dtype("f8"), 0.0, 0.0, PLAIN)
    for x in (np.arange(5000.0), -np.arange(5000.0), np.zeros(5000), np.arange(5000.0) % 7):
        call = Call(x[None], np.array([4321]), None, None, None, None, {}, (*EXACT, "log_sum_sq"), 64, spec)
        done, (due, _) = natively(native_library, call), composed(call, np.dtype("f8"))
        for name in EXACT:
            np.testing.assert_array_equal(done[name], due[name], err_msg=name)
        np.testing.assert_allclose(done["log_sum_sq"], due["log_sum_sq"], rtol=1e-13)


@pytest.mark.parametrize("outputs", [LOSS, ("selected_log_prob", "regularizer"), ("logsumexp", "selected_log_prob")])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_rows_whose_largest_class_changes_in_every_chunk(each_isa, outputs, dtype):
    rng, count = np.random.default_rng(3), 5000
    rising = np.linspace(-30, 30, count)
    low = np.where(np.arange(count) < 2048, -np.inf, rising)
    rows = [rising, -rising, np.round(rising), low, 200 * rising, np.where(rising < 29, -900, rising)]
    x = np.stack(rows).astype(dtype)
    acc = "f8" if dtype == "f8" else "f4"
    selected = rng.integers(count, size=(len(x), 6))
    selected[:, :3] = 2047, 4095, 2047  # the largest of its chunk, twice
    widths = {"selected_log_prob": selected.shape}
    upstream = {name: rng.normal(size=widths.get(name, len(x))).astype(acc) for name in outputs}
    spec, smoothing = KernelSpec(np.dtype(acc), 0.0, 1e-3, PLAIN), rng.random(count).astype(acc)
    call = Call(x, np.zeros(len(x), int), selected, None, smoothing, None, upstream, outputs, 0, spec)
    check(each_isa, call)
    check(each_isa, call._replace(smoothing=None, spec=KernelSpec(np.dtype(acc), 0.0, 0.0, LogitTransform(None, 3.0))))


def test_what_the_library_does_not_compute_is_numpys_work(native_library):
    x, target = np.zeros((2, 100), "f4"), np.zeros(2, int)
    for outputs, k in (({"top_index": np.empty((2, 65), int)}, 65), ({"an output of tomorrow": np.empty(2)}, 0)):
        assert not native.row_statistics(
            x, target, None, None, None, None, {}, outputs, k, KernelSpec(np.dtype("f4"), 0.0, 0.0, PLAIN), 1
        )
