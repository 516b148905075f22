"""Run under mpiexec by test_mpi.py: sharded losses against those of one process, and faults.

Exits non-zero on any difference.

mpiexec -n 4 python -m mpi4py tests/parallel/mpi_worker.py DATA MODEL
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

import unixent

WORLD = MPI.COMM_WORLD
DATA, MODEL = int(sys.argv[1]), int(sys.argv[2])
GRID = WORLD.Create_cart((DATA, MODEL))
DATA_RANK, MODEL_RANK = GRID.Get_coords(GRID.Get_rank())
CONFIG = unixent.ParallelConfig(DATA, MODEL, token_group=GRID.Sub((True, False)), model_group=GRID.Sub((False, True)))

N, C, D = 13, 11, 5
# Where the shards begin and end: they are unequal, and the second of four is empty.
SHARD_BOUNDS = {1: (0, 1), 2: (0, 0.7, 1), 4: (0, 0.5, 0.5, 0.8, 1)}


def shard(size: int, degree: int, rank: int) -> slice:
    bounds = [round(size * bound) for bound in SHARD_BOUNDS[degree]]
    return slice(bounds[rank], bounds[rank + 1])


ROWS, COLUMNS = shard(N, DATA, DATA_RANK), shard(C, MODEL, MODEL_RANK)
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


def assert_close(actual: Any, expected: Any, message: str, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-13, err_msg=f"rank {WORLD.Get_rank()}: {message}")


def local_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value[ROWS] if name == "mask" else value for name, value in options.items()}


def check_logits(logits: Any, target: Any, options: dict[str, Any], rtol: float = 1e-12) -> None:
    message = f"{options} {target.dtype} {logits.dtype}"
    has_probabilities, per_position = target.ndim == 2, options.get("reduction") == "none"
    wrt = ("logits", "target") if has_probabilities else ("logits",)
    upstream, local_upstream = (
        ({"grad_output": UPSTREAM}, {"grad_output": UPSTREAM[ROWS]}) if per_position else ({}, {})
    )
    loss, grads = unixent.value_and_grad(logits, target, wrt=wrt, **options, **upstream)
    local_logits = logits[ROWS, COLUMNS]
    local_target = target[ROWS, COLUMNS] if has_probabilities else target[ROWS]
    local_loss, local_grads = unixent.value_and_grad(
        local_logits, local_target, wrt=wrt, parallel=CONFIG, **local_options(options), **local_upstream
    )
    assert_close(local_loss, loss[ROWS] if per_position else loss, message, rtol)
    without_grad = unixent.cross_entropy(local_logits, local_target, parallel=CONFIG, **local_options(options))
    np.testing.assert_array_equal(without_grad, local_loss)
    for local_grad, grad in zip(local_grads, grads, strict=True):
        assert local_grad.dtype == grad.dtype
        assert_close(local_grad.astype(float), grad[ROWS, COLUMNS].astype(float), message, rtol)


def check_linear(target: Any, options: dict[str, Any]) -> None:
    if options.get("reduction") == "none":
        return
    has_probabilities = target.ndim == 2
    wrt = ("hidden", "classifier", "bias") + (("target",) if has_probabilities else ())
    loss, grads = unixent.linear_value_and_grad(HIDDEN, CLASSIFIER, target, bias=BIAS, wrt=wrt, **options)
    local_loss, local_grads = unixent.linear_value_and_grad(
        HIDDEN[ROWS],
        CLASSIFIER[COLUMNS],
        target[ROWS, COLUMNS] if has_probabilities else target[ROWS],
        bias=BIAS[COLUMNS],
        wrt=wrt,
        parallel=CONFIG,
        chunk=3,
        **local_options(options),
    )
    assert_close(local_loss, loss, f"linear {options}")
    assert_close(local_grads[0], grads[0][ROWS], f"linear {options} hidden")
    # A process has the classifier's gradient of its own positions: their sum over the token group is that of all.
    for local_grad, grad in zip(local_grads[1:3], (grads[1][COLUMNS], grads[2][COLUMNS]), strict=True):
        total = np.ascontiguousarray(local_grad)
        if DATA > 1:
            CONFIG.token_group.Allreduce(MPI.IN_PLACE, total, op=MPI.SUM)
        assert_close(total, grad, f"linear {options} classifier")
    if has_probabilities:
        assert_close(local_grads[3], grads[3][ROWS, COLUMNS], f"linear {options} target")


def check_special_logits() -> None:
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
    confident = LOGITS.astype(np.float32)
    confident[np.arange(N), INDEX % C] += 40
    check_logits(confident, INDEX, {"reduction": "none"}, rtol=3e-6)
    one_hot = np.eye(C, dtype=np.float32)[INDEX % C]
    check_logits(confident, one_hot, {"reduction": "none"}, rtol=3e-6)
    assert (
        unixent.cross_entropy(confident[ROWS, COLUMNS], one_hot[ROWS, COLUMNS], reduction="none", parallel=CONFIG) > 0
    ).all()
    for dtype in (np.float16, np.float32):
        check_logits(LOGITS.astype(dtype), INDEX, {"reduction": "none"}, rtol=2e-3 if dtype == np.float16 else 3e-6)


def check_terms() -> None:
    terms = unixent.loss_terms(LOGITS[ROWS, COLUMNS], INDEX[ROWS], parallel=CONFIG)
    assert_close(terms, unixent.loss_terms(LOGITS, INDEX), "terms")


def check_statistics() -> None:
    outputs, logits = unixent.PositionStats._fields, LOGITS.copy()
    logits[0, [0, 10]] = 9.0  # the largest twice, on the first process and on the last
    options = {"outputs": outputs, "k": 4, "softcap": 4.0, "temperature": 0.7}
    selected = RNG.integers(C, size=(N, 3))
    expected, grad = unixent.position_stats_and_grad(logits, INDEX, selected=selected, **options)
    local_stats, local_grad = unixent.position_stats_and_grad(
        logits[ROWS, COLUMNS], INDEX[ROWS], selected=selected[ROWS], parallel=CONFIG, **options
    )
    for name, actual, whole in zip(outputs, local_stats, expected, strict=True):
        assert_close(actual, whole[ROWS], name)
    assert_close(local_grad, grad[ROWS, COLUMNS], "gradient of statistics")
    expected, grads = unixent.linear_position_stats_and_grad(HIDDEN, CLASSIFIER, INDEX, bias=BIAS, outputs="entropy")
    local_stats, local_grads = unixent.linear_position_stats_and_grad(
        HIDDEN[ROWS], CLASSIFIER[COLUMNS], INDEX[ROWS], bias=BIAS[COLUMNS], outputs="entropy", parallel=CONFIG
    )
    assert_close(local_stats.entropy, expected.entropy[ROWS], "linear entropy")
    assert_close(local_grads[0], grads[0][ROWS], "gradient of the linear entropy for hidden")


def assert_refused(expected: type[Exception], text: str, *arguments: Any, **options: Any) -> None:
    """All processes raise: those at fault ``expected`` with this text, the others that another one was refused."""
    with pytest.raises(unixent.UnixentError) as raised:
        unixent.cross_entropy(*arguments, parallel=CONFIG, **options)
    is_at_fault = raised.errisinstance(expected) and text in str(raised.value)
    assert is_at_fault or "refused its arguments" in str(raised.value), repr(raised.value)
    assert WORLD.allreduce(int(is_at_fault)) >= 1


def check_faults() -> None:
    last = WORLD.Get_rank() == WORLD.Get_size() - 1
    logits, target = LOGITS[ROWS, COLUMNS], INDEX[ROWS]
    assert_refused(unixent.OptionError, "options", logits, target, label_smoothing=0.1 if last else 0.0)
    assert_refused(unixent.OptionError, "options", logits, target, weight=WEIGHT if last else None)
    assert_refused(unixent.DTypeError, "logits", logits.astype(int) if last else logits, target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIXENT_NUM_THREADS", "many" if last else "1")
        assert_refused(unixent.OptionError, "UNIXENT_NUM_THREADS", logits, target)
    if MODEL > 1:
        assert_refused(unixent.ShapeError, "positions", logits[1:] if last else logits, target[1:] if last else target)
    elif DATA > 1:
        assert_refused(unixent.ShapeError, "number of classes", logits[:, 1:] if last else logits, target)
    if DATA_RANK == DATA - 1:
        target = target.copy()
        target[0] = C
    assert_refused(unixent.TargetRangeError, f"[0, {C})", logits, target)
    # The groups still work after all that.
    check_terms()


def main() -> None:
    for options in OPTIONS:
        for target in (INDEX, PROBABILITIES):
            check_logits(LOGITS, target, options)
            check_linear(target, options)
    check_special_logits()
    check_terms()
    check_statistics()
    check_faults()
    print(f"every check passed on rank {WORLD.Get_rank()}", flush=True)


main()
