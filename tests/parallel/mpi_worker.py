"""Run under mpiexec by test_mpi.py: split losses against the whole one, and faults. Exits non-zero on any difference.

mpiexec -n 4 python -m mpi4py tests/parallel/mpi_worker.py DATA MODEL
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from mpi4py import MPI

import unixent

WORLD = MPI.COMM_WORLD
DATA, MODEL = int(sys.argv[1]), int(sys.argv[2])
GRID = WORLD.Create_cart((DATA, MODEL))
D_RANK, M_RANK = GRID.Get_coords(GRID.Get_rank())
CONFIG = unixent.ParallelConfig(DATA, MODEL, token_group=GRID.Sub((True, False)), model_group=GRID.Sub((False, True)))

N, C, D = 13, 11, 5
# Unequal parts; with more than two of them the second is empty.
CUTS = {1: (0, 1), 2: (0, 0.7, 1), 4: (0, 0.5, 0.5, 0.8, 1)}


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


def close(got: Any, expected: Any, what: str, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-13, err_msg=f"rank {WORLD.Get_rank()}: {what}")


def local(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value[ROWS] if name == "mask" else value for name, value in options.items()}


def check_logits(logits: Any, target: Any, options: dict[str, Any], rtol: float = 1e-12) -> None:
    what = f"{options} {target.dtype} {logits.dtype}"
    probabilities = target.ndim == 2
    wrt = ("logits", "target") if probabilities else ("logits",)
    none = options.get("reduction") == "none"
    upstream = {"grad_output": UPSTREAM} if none else {}
    here = {"grad_output": UPSTREAM[ROWS]} if none else {}
    loss, grads = unixent.value_and_grad(logits, target, wrt=wrt, **options, **upstream)
    own = target[ROWS, COLUMNS] if probabilities else target[ROWS]
    local_loss, local_grads = unixent.value_and_grad(
        logits[ROWS, COLUMNS], own, wrt=wrt, parallel=CONFIG, **local(options), **here
    )
    close(local_loss, loss[ROWS] if none else loss, what, rtol)
    alone = unixent.cross_entropy(logits[ROWS, COLUMNS], own, parallel=CONFIG, **local(options))
    np.testing.assert_array_equal(alone, local_loss)
    for got, expected in zip(local_grads, grads, strict=True):
        assert got.dtype == expected.dtype
        close(got.astype(float), expected[ROWS, COLUMNS].astype(float), what, rtol)


def check_linear(target: Any, options: dict[str, Any]) -> None:
    probabilities = target.ndim == 2
    wrt = ("hidden", "classifier", "bias") + (("target",) if probabilities else ())
    if options.get("reduction") == "none":
        return
    loss, grads = unixent.linear_value_and_grad(HIDDEN, CLASSIFIER, target, bias=BIAS, wrt=wrt, **options)
    own = target[ROWS, COLUMNS] if probabilities else target[ROWS]
    local_loss, local_grads = unixent.linear_value_and_grad(
        HIDDEN[ROWS], CLASSIFIER[COLUMNS], own, bias=BIAS[COLUMNS], wrt=wrt, parallel=CONFIG, chunk=3, **local(options)
    )
    close(local_loss, loss, f"linear {options}")
    close(local_grads[0], grads[0][ROWS], f"linear {options} hidden")
    # The classifier's gradient of this process's positions; summed over the token group it is the whole one.
    for got, expected in zip(local_grads[1:3], (grads[1][COLUMNS], grads[2][COLUMNS]), strict=True):
        total = np.ascontiguousarray(got)
        if DATA > 1:
            CONFIG.token_group.Allreduce(MPI.IN_PLACE, total, op=MPI.SUM)
        close(total, expected, f"linear {options} classifier")
    if probabilities:
        close(local_grads[3], grads[3][ROWS, COLUMNS], f"linear {options} target")


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
    close(terms, unixent.loss_terms(LOGITS, INDEX), "terms")


def raised_by(*arguments: Any, **options: Any) -> Exception:
    """What a split call raises on this process."""
    try:
        unixent.cross_entropy(*arguments, parallel=CONFIG, **options)
    except unixent.UnixentError as error:
        return error
    raise AssertionError("nothing was raised")


def refused(due: type[Exception], text: str, *arguments: Any, **options: Any) -> None:
    """All processes raise: those at fault ``due`` with this text, and the others that somebody else was refused."""
    error = raised_by(*arguments, **options)
    own = isinstance(error, due) and text in str(error)
    assert own or "refused its arguments" in str(error), f"{type(error).__name__}: {error}"
    assert WORLD.allreduce(int(own)) >= 1


def check_faults() -> None:
    last = WORLD.Get_rank() == WORLD.Get_size() - 1
    logits, target = LOGITS[ROWS, COLUMNS], INDEX[ROWS]
    refused(unixent.OptionError, "options", logits, target, label_smoothing=0.1 if last else 0.0)
    refused(unixent.OptionError, "options", logits, target, weight=WEIGHT if last else None)
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


def main() -> None:
    for options in OPTIONS:
        for target in (INDEX, PROBABILITIES):
            check_logits(LOGITS, target, options)
            check_linear(target, options)
    check_special()
    check_terms()
    check_faults()
    print(f"every check passed on rank {WORLD.Get_rank()}", flush=True)


main()
