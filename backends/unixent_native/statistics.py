"""A call for statistics of positions, packed the way ``source/statistics.h`` reads it: that of `call` for the rows, and
an address for each output and upstream gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unixent.logit_transform import LogitTransform
from unixent_native.call import Strided, packed_call
from unixent_native.library import ADDRESSES, STATISTICS, Library

_OUTPUTS = (
    *("log_prob", "entropy", "logsumexp", "selected_log_prob", "log_sum_sq", "max_prob"),
    *("prediction", "correct", "rank", "top_log_prob", "top_index", "mean_logit"),
    *("rest_log_prob", "regularizer"),
)
_GRADED = ("log_prob", "entropy", "logsumexp", "selected_log_prob", "rest_log_prob", "regularizer")

#: The most classes from the top: a list of them is kept in order, which takes too long for many.
MAX_TOP = 64

#: How many numbers are kept of each position for its gradient.
KEPT = 9


def has_statistics(outputs: Iterable[str], k: int) -> bool:
    """Whether the library computes these outputs, and their gradients."""
    asked = set(outputs)
    return k <= MAX_TOP and asked <= set(_OUTPUTS) and not {"rest_log_prob", "entropy"} <= asked


def row_statistics(
    library: Library,
    shape: tuple[int, ...],
    x: Strided,
    *,
    index: int,
    position_weight: int,
    selected: int,
    selected_weight: int,
    num_selected: int,
    smoothing: int,
    z_loss: float,
    k: int,
    outputs: Mapping[str, int],
    upstream: Mapping[str, int],
    kept: int = 0,
    x_grad: Strided | None,
    acc_dtype: int,
    transform: LogitTransform,
    threads: int,
) -> bool:
    """Statistics of positions P, and the gradient if it is asked for. Numbers are addresses, 0 where there is nothing.

    Args:
        library: the library.
        shape: P + (C,), C >= 1.
        x, x_grad: logits and their gradient, which may be the same memory.
        index: int64 targets in [0, C), P in C order, or 0.
        position_weight: v, P in C order, of the accumulation dtype.
        selected, selected_weight: int64 classes in [0, C) and their weights 0, 1 or NaN, P + (K,) in C order.
        smoothing, z_loss: b_c of the regularizer, (C,), of the accumulation dtype, and z; 0 where there is none.
        num_selected, k: K; how many of the largest classes are asked for, at most `MAX_TOP`.
        outputs: by name, P, P + (K,) or P + (k,) in C order, to be written: indices as int64, ``correct`` as bytes, the
            rest in the accumulation dtype.
        upstream: by name, of the accumulation dtype.
        kept: float64, `KEPT` + P: what a call without a gradient leaves there makes one with it read the logits but
            once, which then has no outputs.
        acc_dtype: that of float32 or float64.
        transform: what becomes of the logits first.
        threads: the most threads to use.

    Returns:
        Whether it was done. Not taken are arrays at no address, and positions along more than `MAX_AXES` strides.

    Raises:
        MemoryError: no memory for a chunk of each thread.
    """
    rest = packed_call(shape, (x, None, x_grad, None), 0, acc_dtype, 0.0, z_loss, transform, threads)
    if rest is None:
        return False
    if 0 in shape[:-1]:
        return True
    if not x.data or (x_grad is not None and not x_grad.data):
        return False
    at = (x.data, 0, 0 if x_grad is None else x_grad.data, 0, index, 0, position_weight, 0, 0, kept)
    asked = STATISTICS.pack(
        *[outputs.get(name, 0) for name in _OUTPUTS],
        *[upstream.get(name, 0) for name in _GRADED],
        selected,
        selected_weight,
        smoothing,
        num_selected,
        k,
    )
    if library.statistics(ADDRESSES.pack(*at), rest, asked, library.isa):
        raise MemoryError("unixent: no memory for a chunk of logits")
    return True
