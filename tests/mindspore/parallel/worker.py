"""Run under msrun by test_msrun.py: split losses against the whole one, and faults. Exits non-zero on any difference.

The whole loss and its gradients are the NumPy backend's, which the conformance suite holds to exact ones.
"""

from __future__ import annotations

import sys
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore.communication import init
from mindspore.mint import distributed

import unixent
from unixent_mindspore import CrossEntropyLoss, grid

ms.set_device("CPU")
# More processes than cores: threads without work, and operators that are queued, would spin. The example queues them.
ms.device_context.cpu.op_tuning.threads_num(1)
ms.runtime.launch_blocking()
init()
DATA, MODEL = int(sys.argv[1]), int(sys.argv[2])
RANK, SIZE = distributed.get_rank(), distributed.get_world_size()
D_RANK, M_RANK = divmod(RANK, MODEL)
CONFIG = grid(unixent.ParallelConfig(DATA, MODEL))

N, C, D = 13, 11, 5
# Unequal parts; with more than two of them the second is empty.
CUTS = {1: (0, 1), 2: (0, 0.7, 1), 3: (0, 0.4, 0.4, 1)}


def part(size: int, parts: int, rank: int) -> slice:
    cuts = [round(size * cut) for cut in CUTS[parts]]
    return slice(cuts[rank], cuts[rank + 1])


ROWS, COLUMNS = part(N, DATA, D_RANK), part(C, MODEL, M_RANK)
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(N, C)) * 3
INDEX = RNG.integers(C, size=N)
INDEX[[1, 8]] = -100
PROBABILITIES = RNG.random((N, C)) * (RNG.random((N, C)) > 0.3)
MASK = RNG.random(N) * (RNG.random(N) > 0.3)
WEIGHT = RNG.random(C) * (np.arange(C) != 2)
HIDDEN, CLASSIFIER, BIAS = RNG.normal(size=(N, D)), RNG.normal(size=(C, D)), RNG.normal(size=C)
UPSTREAM = RNG.normal(size=N)

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "weight": WEIGHT},
    {"reduction": "none", "mask": MASK},
    {"mask": MASK, "weight": WEIGHT, "normalizer": 7.5},
    {"label_smoothing": 0.2},
    {"label_smoothing": 0.2, "weight": WEIGHT, "mask": MASK},
    {"z_loss": 0.1, "softcap": 4.0},
    {"z_loss": 0.1, "softcap": 4.0, "label_smoothing": 1.0, "weight": WEIGHT},
    {"mask": np.zeros(N)},
    {"mask": np.zeros(N), "on_empty": "nan"},
]


def tensor(array: Any) -> ms.Tensor:
    """This process's own copy."""
    return ms.Tensor(np.ascontiguousarray(array))


def local(options: dict[str, Any]) -> dict[str, Any]:
    cut = {name: value[ROWS] if name == "mask" else value for name, value in options.items()}
    return {name: tensor(value) if isinstance(value, np.ndarray) else value for name, value in cut.items()}


def close(got: Any, expected: Any, what: str, rtol: float = 1e-12) -> None:
    got = got.astype(ms.float64).asnumpy() if isinstance(got, ms.Tensor) else got
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-13, err_msg=f"rank {RANK}: {what}")


def check_logits(logits: Any, target: Any, options: dict[str, Any], rtol: float = 1e-12) -> None:
    what = f"{options} {target.dtype} {logits.dtype}"
    probabilities = target.ndim == 2
    wrt = ("logits", "target") if probabilities else ("logits",)
    none = options.get("reduction") == "none"
    upstream = {"grad_output": UPSTREAM} if none else {}
    here = {"grad_output": tensor(UPSTREAM[ROWS])} if none else {}
    loss, grads = unixent.value_and_grad(logits, target, wrt=wrt, **options, **upstream)
    x, t, given = tensor(logits[ROWS, COLUMNS]), tensor(target[ROWS, COLUMNS] if probabilities else target[ROWS]), {}
    given = {"parallel": CONFIG, **local(options)}
    local_loss, local_grads = unixent.value_and_grad(x, t, wrt=wrt, **given, **here)
    close(local_loss, loss[ROWS] if none else loss, what, rtol)
    alone = unixent.cross_entropy(x, t, **given)
    np.testing.assert_array_equal(alone.asnumpy(), local_loss.asnumpy())
    weights = here.get("grad_output", ms.Tensor(1.0, alone.dtype))

    def scalar(x: ms.Tensor, t: ms.Tensor) -> ms.Tensor:
        return (unixent.cross_entropy(x, t, **given) * weights).sum()

    taped = ms.grad(scalar, (0, 1) if probabilities else 0)(x, t)
    for computed in (local_grads, taped if probabilities else (taped,)):
        for got, expected in zip(computed, grads, strict=True):
            assert got.dtype == (x if got.shape == x.shape else t).dtype
            close(got, expected[ROWS, COLUMNS].astype(float), what, rtol)


def check_linear(target: Any, options: dict[str, Any]) -> None:
    probabilities = target.ndim == 2
    wrt = ("hidden", "classifier", "bias") + (("target",) if probabilities else ())
    none = options.get("reduction") == "none"
    upstream = {"grad_output": UPSTREAM} if none else {}
    loss, grads = unixent.linear_value_and_grad(HIDDEN, CLASSIFIER, target, bias=BIAS, wrt=wrt, **options, **upstream)
    arrays = tensor(HIDDEN[ROWS]), tensor(CLASSIFIER[COLUMNS]), tensor(BIAS[COLUMNS])
    own = tensor(target[ROWS, COLUMNS] if probabilities else target[ROWS])
    given = {"parallel": CONFIG, "chunk": None if none else 3, **local(options)}
    here = {"grad_output": tensor(UPSTREAM[ROWS])} if none else {}
    local_loss, local_grads = unixent.linear_value_and_grad(*arrays[:2], own, bias=arrays[2], wrt=wrt, **given, **here)
    close(local_loss, loss[ROWS] if none else loss, f"linear {options}")
    weights = here.get("grad_output", ms.Tensor(1.0, local_loss.dtype))

    def scalar(h: ms.Tensor, c: ms.Tensor, b: ms.Tensor, t: ms.Tensor) -> ms.Tensor:
        return (unixent.linear_cross_entropy(h, c, t, bias=b, **given) * weights).sum()

    taped = ms.grad(scalar, (0, 1, 2, 3) if probabilities else (0, 1, 2))(*arrays, own)
    for computed in (local_grads, taped):
        close(computed[0], grads[0][ROWS], f"linear {options} hidden")
        # The classifier's gradient of this process's positions; summed over the token group it is the whole one.
        for got, expected in zip(computed[1:3], (grads[1][COLUMNS], grads[2][COLUMNS]), strict=True):
            close(summed(got), expected, f"linear {options} classifier")
        if probabilities:
            close(computed[3], grads[3][ROWS, COLUMNS], f"linear {options} target")


def summed(gradient: ms.Tensor) -> Any:
    """The sum over the processes that share the positions, in float64."""
    if DATA == 1:
        return gradient
    parts = [ms.Tensor(np.zeros(gradient.shape)) for _ in range(DATA)]
    distributed.all_gather(parts, gradient, CONFIG.token_group)
    return np.sum([part.asnumpy() for part in parts], axis=0)


def check_special() -> None:
    logits = LOGITS.copy()
    logits[0, 3] = np.nan
    logits[2, 9] = np.inf
    logits[3, :] = -np.inf
    logits[4, :] = -np.inf
    logits[4, INDEX[4]] = 1.5
    logits[5, [0, 10]] = 50.0  # the largest twice, on the first process and on the last
    logits[6, INDEX[6]] = -np.inf
    for target in (INDEX, PROBABILITIES):
        for options in ({"reduction": "none"}, {"reduction": "none", "label_smoothing": 0.1, "weight": WEIGHT}):
            check_logits(logits, target, options)
        check_logits(logits, target, {"reduction": "none", "softcap": 4.0})
        check_logits(logits, target, {"normalizer": 0.0})
    # A NaN that one process holds is everybody's.
    mean = unixent.cross_entropy(tensor(logits[ROWS, COLUMNS]), tensor(INDEX[ROWS]), parallel=CONFIG)
    assert np.isnan(mean.asnumpy())
    confident = LOGITS.astype(np.float32)
    confident[np.arange(N), INDEX % C] += 40
    check_logits(confident, INDEX, {"reduction": "none"}, rtol=3e-6)
    one_hot = np.eye(C, dtype=np.float32)[INDEX % C]
    check_logits(confident, one_hot, {"reduction": "none"}, rtol=3e-6)
    for dtype in (np.float16, np.float32):
        check_logits(LOGITS.astype(dtype), INDEX, {"reduction": "none"}, rtol=2e-3 if dtype == np.float16 else 3e-6)


def check_padding() -> None:
    """Of classes of which the last do not exist a process may hold none."""
    for existing in (3, 9):
        logits, probabilities = LOGITS.copy(), PROBABILITIES.copy()
        logits[:, existing:] = probabilities[:, existing:] = np.nan
        options = {"num_classes": existing, "label_smoothing": 0.2, "weight": WEIGHT[:existing]}
        for target in (INDEX % existing, probabilities):
            check_logits(logits, target, options)
            check_linear(target, {**options, "reduction": "none"})


def check_halves() -> None:
    """Statistics and sums in float32: 512 + 1 is 512 in bfloat16, and 65,504 the largest of float16."""
    count = 3000
    for dtype in (ms.bfloat16, ms.float16):
        x = ms.Tensor(np.zeros((count, 32)), ms.float32).astype(dtype)
        t = ms.Tensor(np.arange(count) % (32 * MODEL), ms.int32)
        loss, grad = unixent.value_and_grad(x, t, parallel=CONFIG, dtype="float32")
        close(loss, np.log(32 * MODEL), f"{dtype}", 1e-6)
        assert grad.dtype == dtype
        total = unixent.cross_entropy(x, t, parallel=CONFIG, dtype="float32", reduction="sum")
        close(total, DATA * count * np.log(32 * MODEL), f"{dtype} sum", 1e-5)
        # An upstream gradient (a loss scale) is applied before the gradient is rounded: 1 / 3000 / 64 is a subnormal.
        scaled = ms.grad(lambda x, t=t: 8192.0 * unixent.cross_entropy(x, t, parallel=CONFIG, dtype="float32"))(x)
        expected = 8192 / (DATA * count) / (32 * MODEL)
        close(scaled[count - 1, 31 if M_RANK else 30], expected, f"{dtype} scaled", 4e-3)


def check_terms() -> None:
    terms = unixent.loss_terms(tensor(LOGITS[ROWS, COLUMNS]), tensor(INDEX[ROWS]), parallel=CONFIG)
    for got, expected in zip(terms, unixent.loss_terms(LOGITS, INDEX), strict=True):
        close(got, expected, "terms")


def check_traffic() -> None:
    """Three numbers per position and the two of the mean, forward; nothing backward."""
    sent: list[int] = []
    all_reduce = distributed.all_reduce

    def counted(values: ms.Tensor, *arguments: Any) -> None:
        sent.append(values.size)
        all_reduce(values, *arguments)

    x, t = tensor(LOGITS[ROWS, COLUMNS].astype(np.float32)), tensor(INDEX[ROWS])
    distributed.all_reduce = counted
    unixent.cross_entropy(x, t, parallel=CONFIG)
    forward = list(sent)
    ms.grad(lambda x: unixent.cross_entropy(x, t, parallel=CONFIG))(x)
    distributed.all_reduce = all_reduce
    count = len(INDEX[ROWS])
    expected = ([count, 2 * count] if MODEL > 1 else []) + ([1, 1] if DATA > 1 else [])
    assert sorted(forward) == sorted(expected), forward
    # The loss under the derivative sends the same once more, and its gradient nothing.
    assert sent == forward + forward, sent


def raised_by(*arguments: Any, **options: Any) -> Exception:
    """What a split call raises on this process."""
    try:
        unixent.cross_entropy(*map(tensor, arguments), parallel=CONFIG, **options)
    except unixent.UnixentError as error:
        return error
    raise AssertionError("nothing was raised")


def refused(due: type[Exception], text: str, *arguments: Any, **options: Any) -> None:
    """All processes raise: those at fault ``due`` with this text, and the others that somebody else was refused."""
    error = raised_by(*arguments, **options)
    own = isinstance(error, due) and text in str(error)
    assert own or "refused its arguments" in str(error), f"{type(error).__name__}: {error}"
    guilty = ms.Tensor([int(own)], ms.int32)
    distributed.all_reduce(guilty)
    assert int(guilty.asnumpy()[0]) >= 1


def check_faults() -> None:
    last = RANK == SIZE - 1
    logits, target = LOGITS[ROWS, COLUMNS], INDEX[ROWS]
    refused(unixent.OptionError, "options", logits, target, label_smoothing=0.1 if last else 0.0)
    refused(unixent.OptionError, "options", logits, target, weight=tensor(WEIGHT) if last else None)
    refused(unixent.DTypeError, "logits", logits.astype(int) if last else logits, target)
    if MODEL > 1:
        refused(unixent.ShapeError, "positions", logits[1:] if last else logits, target[1:] if last else target)
    elif DATA > 1:
        refused(unixent.ShapeError, "number of classes", logits[:, 1:] if last else logits, target)
    if D_RANK == DATA - 1:
        target = target.copy()
        target[0] = C
    refused(unixent.TargetRangeError, f"[0, {C})", logits, target)
    # The groups still work after all that.
    check_terms()


def check_second_order() -> None:
    x, t = tensor(LOGITS[ROWS, COLUMNS]), tensor(INDEX[ROWS])

    def grad(x: ms.Tensor) -> ms.Tensor:
        return ms.grad(lambda x: unixent.cross_entropy(x, t, parallel=CONFIG))(x).sum()

    with pytest.raises(NotImplementedError, match="one derivative of a loss that is split"):
        ms.grad(grad)(x).asnumpy()


class MindFormersConfig:
    """What MindFormers passes: degrees and no groups."""

    data_parallel, model_parallel = DATA, MODEL


def check_cell() -> None:
    cell = CrossEntropyLoss(MindFormersConfig())
    x, t, mask = tensor(LOGITS[ROWS, COLUMNS].astype(np.float32)), tensor(INDEX[ROWS]), tensor(MASK[ROWS])
    expected, grad = unixent.value_and_grad(LOGITS.astype(np.float32), INDEX, mask=MASK)
    loss, got = ms.value_and_grad(cell)(x, t, mask)
    close(loss, expected, "cell", 3e-6)
    close(got, grad[ROWS, COLUMNS], "cell gradient", 3e-5)


def main() -> None:
    for options in OPTIONS:
        for target in (INDEX, PROBABILITIES):
            check_logits(LOGITS, target, options)
            check_linear(target, options)
    check_special()
    check_padding()
    check_halves()
    check_terms()
    check_cell()
    check_traffic()
    check_second_order()
    check_faults()
    print(f"every check passed on rank {RANK}", flush=True)


main()
