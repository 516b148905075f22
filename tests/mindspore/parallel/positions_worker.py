"""Run under msrun by test_msrun.py: split statistics and sparse targets. Exits non-zero on any difference.

What is due is the NumPy backend's, of the whole arrays.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore.communication import init
from mindspore.mint import distributed

import unixent
from unixent import PositionStats, TopK
from unixent_mindspore import grid

ms.set_device("CPU")
# More processes than cores: threads without work, and operators that are queued, would spin. The example queues them.
ms.device_context.cpu.op_tuning.threads_num(1)
ms.runtime.launch_blocking()
init()
DATA, MODEL = int(sys.argv[1]), int(sys.argv[2])
RANK = distributed.get_rank()
D_RANK, M_RANK = divmod(RANK, MODEL)
CONFIG = grid(unixent.ParallelConfig(DATA, MODEL))

N, C, D, K = 9, 11, 5, 3
# Unequal parts; of three the second is empty.
CUTS = {1: (0, 1), 2: (0, 0.7, 1), 3: (0, 0.4, 0.4, 1)}
ROWS, COLUMNS = (
    slice(round(size * CUTS[parts][rank]), round(size * CUTS[parts][rank + 1]))
    for size, parts, rank in ((N, DATA, D_RANK), (C, MODEL, M_RANK))
)
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(N, C)) * 3
LOGITS[5, [0, 10]] = 50.0  # the largest twice, on the first process and on the last
INDEX = RNG.integers(C, size=N)
INDEX[1] = -100
IDS = np.argsort(RNG.random((N, C)))[:, :K]
IDS[2], IDS[4, 1:] = IDS[2, 0], -100
Q, MASK, WEIGHT = RNG.random((N, K)) / K, RNG.random(N) * (np.arange(N) != 6), RNG.random(C)
HIDDEN, CLASSIFIER, BIAS = RNG.normal(size=(N, D)), RNG.normal(size=(C, D)), RNG.normal(size=C)
UPSTREAM = RNG.normal(size=N)
OPTIONS: dict[str, Any] = {"softcap": 4.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.05}
FIELDS = PositionStats._fields
GRADED = FIELDS[:5]
UP = {name: RNG.normal(size=(N, K) if name == "selected_log_prob" else N) for name in GRADED}


def tensor(array: Any) -> ms.Tensor:
    """This process's own copy."""
    return ms.Tensor(np.ascontiguousarray(array))


def close(got: ms.Tensor, expected: Any, what: str) -> None:
    np.testing.assert_allclose(got.asnumpy(), expected, rtol=1e-11, atol=1e-13, err_msg=f"rank {RANK}: {what}")


def summed(gradient: ms.Tensor) -> ms.Tensor:
    """The sum over the processes that share the positions."""
    if DATA == 1:
        return gradient
    parts = [ms.Tensor(np.zeros(gradient.shape)) for _ in range(DATA)]
    distributed.all_gather(parts, gradient, CONFIG.token_group)
    return ms.Tensor(np.sum([part.asnumpy() for part in parts], axis=0))


def check_stats() -> None:
    whole = {"target": INDEX, "selected": IDS, "mask": MASK, "k": 4, **OPTIONS}
    own = {name: tensor(value[ROWS]) if isinstance(value, np.ndarray) else value for name, value in whole.items()}
    x, given = tensor(LOGITS[ROWS, COLUMNS]), {**own, "parallel": CONFIG}
    expected = unixent.position_stats(LOGITS, outputs=FIELDS, **whole)
    up, own_up = PositionStats(**UP), PositionStats(**{name: tensor(each[ROWS]) for name, each in UP.items()})
    gradient = unixent.position_stats_and_grad(LOGITS, outputs=GRADED, grad_output=up, **whole)[1]

    def weighed(x: ms.Tensor) -> ms.Tensor:
        stats = unixent.position_stats(x, outputs=FIELDS, **given)
        return sum((getattr(stats, name) * getattr(own_up, name)).sum() for name in GRADED)

    for name, got, due in zip(FIELDS, unixent.position_stats(x, outputs=FIELDS, **given), expected, strict=True):
        close(got, due[ROWS], name)
    close(ms.grad(weighed)(x), gradient[ROWS, COLUMNS], "gradient by MindSpore")
    _, own_gradient = unixent.position_stats_and_grad(x, outputs=GRADED, grad_output=own_up, **given)
    close(own_gradient, gradient[ROWS, COLUMNS], "gradient")

    # Without a position nothing is differentiated; but the others wait for this process.
    refused = pytest.raises(NotImplementedError, match="one derivative of a loss that is split")
    with refused if len(INDEX[ROWS]) else contextlib.nullcontext():
        ms.grad(lambda x: ms.grad(weighed)(x).sum())(x).asnumpy()


def check_linear_stats() -> None:
    outputs, names = ("entropy", "log_prob", "prediction"), ("hidden", "classifier", "bias")
    up = {"entropy": UP["entropy"], "log_prob": UP["log_prob"]}
    due, due_grads = unixent.linear_position_stats_and_grad(
        HIDDEN, CLASSIFIER, INDEX, bias=BIAS, outputs=outputs, grad_output=PositionStats(**up), wrt=names
    )
    arrays = tensor(HIDDEN[ROWS]), tensor(CLASSIFIER[COLUMNS]), tensor(BIAS[COLUMNS])
    own_up = {name: tensor(each[ROWS]) for name, each in up.items()}
    given = {"outputs": outputs, "parallel": CONFIG, "chunk": 2}

    def weighed(hidden: ms.Tensor, classifier: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        stats = unixent.linear_position_stats(hidden, classifier, tensor(INDEX[ROWS]), bias=bias, **given)
        return (stats.entropy * own_up["entropy"]).sum() + (stats.log_prob * own_up["log_prob"]).sum()

    stats, grads = unixent.linear_position_stats_and_grad(
        *arrays[:2], tensor(INDEX[ROWS]), bias=arrays[2], grad_output=PositionStats(**own_up), wrt=names, **given
    )
    for name in outputs:
        close(getattr(stats, name), getattr(due, name)[ROWS], f"linear {name}")
    for computed in (grads, ms.grad(weighed, (0, 1, 2))(*arrays)):
        close(computed[0], due_grads[0][ROWS], "hidden")
        close(summed(computed[1]), due_grads[1][COLUMNS], "classifier")
        close(summed(computed[2]), due_grads[2][COLUMNS], "bias")


def check_sparse(tail: Any, reduction: Any) -> None:
    what = f"{tail} {reduction}"
    none, options = reduction == "none", {**OPTIONS, "reduction": reduction}
    given = {**options, "mask": tensor(MASK[ROWS]), "weight": tensor(WEIGHT), "parallel": CONFIG}
    up = {"grad_output": UPSTREAM} if none else {}
    weights = tensor(UPSTREAM[ROWS]) if none else ms.Tensor(1.0, ms.float64)
    own_up = {"grad_output": weights} if none else {}
    whole, ids, q = TopK(IDS, probs=Q, tail=tail), tensor(IDS[ROWS]), tensor(Q[ROWS])
    names = ("logits", "target")
    loss, grads = unixent.value_and_grad(LOGITS, whole, mask=MASK, weight=WEIGHT, wrt=names, **options, **up)
    x = tensor(LOGITS[ROWS, COLUMNS])

    def of_logits(x: ms.Tensor, q: ms.Tensor) -> ms.Tensor:
        return (unixent.cross_entropy(x, TopK(ids, probs=q, tail=tail), **given) * weights).sum()

    own, own_grads = unixent.value_and_grad(x, TopK(ids, probs=q, tail=tail), wrt=names, **given, **own_up)
    close(own, loss[ROWS] if none else loss, what)
    for computed in (own_grads, ms.grad(of_logits, (0, 1))(x, q)):
        close(computed[0], grads[0][ROWS, COLUMNS], f"{what} logits")
        close(computed[1], grads[1][ROWS], f"{what} target")

    names = ("hidden", "classifier", "target")
    loss, grads = unixent.linear_value_and_grad(
        HIDDEN, CLASSIFIER, whole, mask=MASK, weight=WEIGHT, wrt=names, **options, **up
    )
    arrays = tensor(HIDDEN[ROWS]), tensor(CLASSIFIER[COLUMNS])

    def of_hidden(hidden: ms.Tensor, classifier: ms.Tensor, q: ms.Tensor) -> ms.Tensor:
        target = TopK(ids, probs=q, tail=tail)
        return (unixent.linear_cross_entropy(hidden, classifier, target, **given) * weights).sum()

    own, own_grads = unixent.linear_value_and_grad(*arrays, TopK(ids, probs=q, tail=tail), wrt=names, **given, **own_up)
    close(own, loss[ROWS] if none else loss, f"{what} linear")
    for computed in (own_grads, ms.grad(of_hidden, (0, 1, 2))(*arrays, q)):
        close(computed[0], grads[0][ROWS], f"{what} hidden")
        close(summed(computed[1]), grads[1][COLUMNS], f"{what} classifier")
        close(computed[2], grads[2][ROWS], f"{what} target of linear")


def check_sparse_along_another_axis() -> None:
    x, target = tensor(LOGITS[ROWS, COLUMNS].T[None]), TopK(tensor(IDS[ROWS][None]), probs=tensor(Q[ROWS][None]))
    options = {"axis": 1, "reduction": "none"}

    def total(x: ms.Tensor, q: ms.Tensor) -> ms.Tensor:
        each = unixent.cross_entropy(x, TopK(target.ids, probs=q), parallel=CONFIG, **options)
        return (each * tensor(UPSTREAM[ROWS][None])).sum()

    grads = ms.grad(total, (0, 1))(x, target.probs)
    due = unixent.value_and_grad(
        LOGITS, TopK(IDS, probs=Q), reduction="none", grad_output=UPSTREAM, wrt=("logits", "target")
    )
    close(grads[0], due[1][0][ROWS, COLUMNS].T[None], "second axis")
    close(grads[1], due[1][1][ROWS][None], "target of the second axis")


def check_compiled() -> None:
    """Compiled code takes every process to hold as many classes, and splits neither."""
    x, ids, q = tensor(LOGITS[ROWS, COLUMNS]), tensor(IDS[ROWS]), tensor(Q[ROWS])

    def entropy(x: ms.Tensor) -> ms.Tensor:
        return unixent.position_stats(x, outputs="entropy", parallel=CONFIG)[2]

    def sparse(x: ms.Tensor) -> ms.Tensor:
        return unixent.cross_entropy(x, TopK(ids, probs=q), parallel=CONFIG)

    for function, name in ((entropy, "position_stats is"), (sparse, "sparse targets are")):
        with pytest.raises(unixent.BackendError, match=f"{name} split over processes eagerly"):
            ms.jit(function)(x)


def check_refusals() -> None:
    """What one process of a model group says otherwise, all refuse; and they stay in step."""
    x, ids = tensor(LOGITS[ROWS, COLUMNS]), IDS[ROWS].copy()
    ids[:1, 0] = (ids[:1, 0] + RANK) % C
    for call in (
        lambda: unixent.position_stats(x, outputs="selected_log_prob", selected=tensor(ids), parallel=CONFIG),
        lambda: unixent.cross_entropy(x, TopK(tensor(ids), probs=tensor(Q[ROWS])), parallel=CONFIG),
    ):
        if MODEL > 1:
            with pytest.raises(unixent.UnixentError, match="parallel"):
                call()
    close(unixent.position_stats(x, parallel=CONFIG, outputs="entropy").entropy, ENTROPY[ROWS], "after a refusal")


ENTROPY = unixent.position_stats(LOGITS, outputs="entropy").entropy
check_stats()
check_linear_stats()
for each in ("drop", "renormalize", "bucket"):
    check_sparse(each, "none" if each == "drop" else "mean")
check_sparse("bucket", "none")
check_sparse_along_another_axis()
if MODEL < 3:
    check_compiled()
check_refusals()
print(f"every check passed on rank {RANK}", flush=True)
