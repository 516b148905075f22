"""Run under msrun by test_msrun.py: split losses in compiled code. Exits non-zero on any difference."""

from __future__ import annotations

import sys
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore.communication import init
from mindspore.mint import distributed

import unixent
import unixent_mindspore
from unixent_mindspore import kernel
from unixent_mindspore.collectives import DeviceReduce

ms.set_device("CPU")
# More processes than cores: threads without work, and operators that are queued, would spin. The example queues them.
ms.device_context.cpu.op_tuning.threads_num(1)
ms.runtime.launch_blocking()
init()
DATA, MODEL = int(sys.argv[1]), int(sys.argv[2])
RANK = distributed.get_rank()
D_RANK, M_RANK = divmod(RANK, MODEL)
CONFIG = unixent_mindspore.grid(unixent.ParallelConfig(DATA, MODEL))

# Compiled code takes every process to hold as many classes. Positions are unequal, and the second of three has none.
N, C = 13, 12
CUTS = {1: (0, 13), 2: (0, 9, 13), 3: (0, 5, 5, 13)}[DATA]
ROWS = slice(CUTS[D_RANK], CUTS[D_RANK + 1])
COLUMNS = slice(M_RANK * C // MODEL, (M_RANK + 1) * C // MODEL)
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(N, C)) * 3
INDEX = RNG.integers(C, size=N)
INDEX[[1, 8]] = -100
PROBABILITIES = RNG.random((N, C)) * (RNG.random((N, C)) > 0.3)
MASK = RNG.random(N) * (RNG.random(N) > 0.3)
WEIGHT = RNG.random(C) * (np.arange(C) != 2)

# Compiling takes a second or two each: as few as reach every branch.
OPTIONS: list[dict[str, Any]] = [
    {"mask": MASK, "weight": WEIGHT, "normalizer": 7.5},
    {"label_smoothing": 0.3, "z_loss": 0.1, "softcap": 4.0, "weight": WEIGHT, "mask": MASK},
    {"mask": np.zeros(N), "on_empty": "nan"},
]


def tensor(array: Any) -> ms.Tensor:
    return ms.Tensor(np.ascontiguousarray(array))


def close(got: ms.Tensor, expected: Any, what: str, rtol: float) -> None:
    # Below its smallest normal number float16 is spaced by 2^-24.
    atol = 2.0**-25 if got.dtype == ms.float16 else 1e-13
    got = got.astype(ms.float64).asnumpy()
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol, err_msg=f"rank {RANK}: {what}")


def check(logits: Any, target: Any, options: dict[str, Any], rtol: float = 1e-12) -> None:
    what = f"{options} {target.dtype} {logits.dtype}"
    probabilities = target.ndim == 2
    wrt = ("logits", "target") if probabilities else ("logits",)
    loss, grads = unixent.value_and_grad(logits.astype(np.float64), target, wrt=wrt, **options)
    x, t = tensor(logits[ROWS, COLUMNS]), tensor(target[ROWS, COLUMNS] if probabilities else target[ROWS])
    given = options | {"parallel": CONFIG} | ({"mask": options["mask"][ROWS]} if "mask" in options else {})

    def tripled(x, t):
        return 3.0 * unixent.cross_entropy(x, t, **given).sum()

    @ms.jit
    def both(x, t):
        return unixent.value_and_grad(x, t, wrt=wrt, **given), ms.grad(tripled, (0, 1))(x, t)

    (local_loss, local_grads), taped = both(x, t)
    close(local_loss, loss[ROWS] if options.get("reduction") == "none" else loss, what, rtol)
    for got, tape, expected in zip(local_grads, taped, grads, strict=False):
        assert got.dtype == tape.dtype == (x if got.shape == x.shape else t).dtype
        close(got, expected[ROWS, COLUMNS], what, rtol)
        close(tape, 3 * expected[ROWS, COLUMNS], what, rtol)


def check_special() -> None:
    logits = LOGITS.copy()
    logits[0, 3] = np.nan
    logits[2, 9] = np.inf
    logits[3, :] = -np.inf
    logits[4, :] = -np.inf
    logits[4, INDEX[4]] = 1.5
    logits[5, [0, 10]] = 50.0  # the largest twice, on the first process and on the last
    logits[6, INDEX[6]] = -np.inf
    outside = INDEX.copy()
    outside[7] = C
    for target in (outside, PROBABILITIES):
        check(logits, target, {"reduction": "none", "label_smoothing": 0.1, "weight": WEIGHT, "validate": "off"})
        check(logits, target, {"softcap": 4.0, "reduction": "none", "validate": "off"})
    check(logits, INDEX, {"normalizer": 0.0})
    # Confident beyond float32, in the sum over all processes too.
    confident = LOGITS.copy()
    confident[np.arange(N), INDEX % C] += 200
    check(confident, INDEX, {"reduction": "sum"})
    for dtype in (np.float16, np.float32):
        check(LOGITS.astype(dtype), INDEX, {}, rtol=6e-4 if dtype == np.float16 else 3e-6)


def check_padding() -> None:
    existing = 9
    logits, probabilities = LOGITS.copy(), PROBABILITIES.copy()
    logits[:, existing:] = probabilities[:, existing:] = np.nan
    options = {"num_classes": existing, "label_smoothing": 0.2, "weight": WEIGHT[:existing]}
    for target in (INDEX % existing, probabilities):
        check(logits, target, options)


def check_terms() -> None:
    @ms.jit
    def terms(x, t):
        return unixent.loss_terms(x, t, parallel=CONFIG)

    computed = terms(tensor(LOGITS[ROWS, COLUMNS]), tensor(INDEX[ROWS]))
    for got, expected in zip(computed, unixent.loss_terms(LOGITS, INDEX), strict=True):
        close(got, expected, "terms", 1e-12)


def check_refusals() -> None:
    x, t = tensor(LOGITS[ROWS, COLUMNS]), tensor(INDEX[ROWS])

    @ms.jit
    def linear(hidden, classifier):
        return unixent.linear_cross_entropy(hidden, classifier, t, parallel=CONFIG)

    with pytest.raises(unixent.BackendError, match="splits its classes eagerly"):
        linear(x, ms.Tensor(np.zeros((C // MODEL, x.shape[1]))))

    @ms.jit
    def weighted(x):
        return unixent.cross_entropy(x, t, weight=WEIGHT[1:], parallel=CONFIG)

    with pytest.raises(unixent.ShapeError, match="weight: expected a floating array of shape"):
        weighted(x)

    @ms.jit
    def second(x):
        return ms.grad(lambda x: ms.grad(lambda x: unixent.cross_entropy(x, t, parallel=CONFIG))(x).sum())(x)

    with pytest.raises(NotImplementedError, match="one derivative of a loss that is split"):
        second(x)


def check_disagreement() -> None:
    """All raise the same error, or hear that somebody was refused. MindSpore can't run that graph any more then."""
    x, t, last = tensor(LOGITS[ROWS, COLUMNS]), tensor(INDEX[ROWS]), RANK == DATA * MODEL - 1

    @ms.jit
    def smoothed(x):
        return unixent.cross_entropy(x, t, label_smoothing=0.1 if last else 0.2, parallel=CONFIG)

    with pytest.raises((unixent.OptionError, unixent.BackendError), match=r"expected the same options|refused"):
        smoothed(x).asnumpy()

    @ms.jit
    def narrower(x):
        return unixent.cross_entropy(x, t, parallel=CONFIG)

    text = r"as many classes|number of classes|refused"
    with pytest.raises((unixent.ShapeError, unixent.BackendError), match=text):
        narrower(x[:, 1:] if last else x).asnumpy()
    # The groups still work after all that.
    check_terms()


def check_cell() -> None:
    """In graph mode, a training step as it is written in MindSpore."""
    ms.set_context(mode=ms.GRAPH_MODE)
    cell = unixent_mindspore.CrossEntropyLoss(CONFIG, label_smoothing=0.1)
    x, t, mask = tensor(LOGITS[ROWS, COLUMNS].astype(np.float32)), tensor(INDEX[ROWS]), tensor(MASK[ROWS])
    loss, got = ms.value_and_grad(cell)(x, t, mask)
    # Compiled code computes in float64 on CPU, so the result is the exact one, rounded.
    exact = LOGITS.astype(np.float32).astype(np.float64)
    expected, grad = unixent.value_and_grad(exact, INDEX, mask=MASK, label_smoothing=0.1)
    close(loss, expected, "cell", 1e-6)
    close(got, grad[ROWS, COLUMNS], "cell gradient", 1e-6)
    ms.set_context(mode=ms.PYNATIVE_MODE)


def check_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator's way: primitives in float32, and MindSpore's collectives, whose maximum CPU lacks."""

    def reduce(self: DeviceReduce, values: ms.Tensor) -> ms.Tensor:
        if self.call.op == "sum":
            return self.call(values)
        values = values.copy()
        distributed.all_reduce(values, "max", self.call.group)
        return values

    monkeypatch.setattr(DeviceReduce, "construct", reduce)
    monkeypatch.setattr(kernel, "on_host", lambda: False)
    logits = LOGITS.astype(np.float32)
    x = tensor(logits[ROWS, COLUMNS])
    for target in (INDEX, PROBABILITIES.astype(np.float32)):
        t = tensor(target[ROWS, COLUMNS] if target.ndim == 2 else target[ROWS])
        for options in (*OPTIONS, {"num_classes": 9, "softcap": 4.0}):
            if "num_classes" in options and target.ndim == 1:
                target, t = target % 9, t % 9
            given = options | {"parallel": CONFIG} | ({"mask": options["mask"][ROWS]} if "mask" in options else {})
            loss, grad = unixent.value_and_grad(logits, target, **options)
            local_loss, got = unixent.value_and_grad(x, t, **given)
            np.testing.assert_allclose(local_loss.asnumpy(), loss, rtol=1e-5)
            np.testing.assert_allclose(got.asnumpy(), grad[ROWS, COLUMNS], rtol=1e-4, atol=1e-6)
            taped = ms.grad(lambda x, t=t, given=given: 2.0 * unixent.cross_entropy(x, t, **given))(x)
            np.testing.assert_allclose(taped.asnumpy(), 2 * grad[ROWS, COLUMNS], rtol=1e-4, atol=2e-6)


def main() -> None:
    for options in OPTIONS:
        for target in (INDEX, PROBABILITIES):
            check(LOGITS, target, options)
    check_terms()
    check_padding()
    if MODEL > 1:
        check_special()
        check_cell()
        check_refusals()
        with pytest.MonkeyPatch.context() as monkeypatch:
            check_accelerator(monkeypatch)
    check_disagreement()
    print(f"every check passed on rank {RANK}", flush=True)


main()
