"""The two halves of the pass over a share of the classes by the native library."""

from __future__ import annotations

import numpy as np

from unixent.pivot import ShareStats
from unixent_native import Share, load
from unixent_numpy.compat import Array
from unixent_numpy.kernel import native
from unixent_numpy.vocab_parallel.blocks import LocalLogits


def share_stats(local: LocalLogits, index: Array | None) -> ShareStats | None:
    """What this process finds in its share, for local class indices or probabilities."""
    columns = np.empty((len(ShareStats._fields), local.count))
    if not _call(local, index, columns, None, None, (), None):
        return None
    return ShareStats(columns[0].astype(np.intp), *columns[1:].astype(local.spec.acc_dtype))


def share_gradients(
    local: LocalLogits,
    columns: tuple[Array, ...],
    pivot: Array,
    position_weight: Array | None,
    grad_scale: Array,
    wrt: tuple[str, ...],
    out: tuple[Array, ...],
) -> bool:
    """Whether the gradients were written, from ``columns`` as the library takes them."""
    return _call(local, pivot, np.array(columns, np.float64), position_weight, grad_scale, wrt, out)


def _call(
    local: LocalLogits,
    pivot: Array | None,
    columns: Array,
    position_weight: Array | None,
    grad_scale: Array | None,
    wrt: tuple[str, ...],
    out: tuple[Array, ...] | None,
) -> bool:
    library = load()
    if library is None:
        return False
    pivot = None if pivot is None else pivot.reshape(local.x.shape[:-1])
    target = pivot if local.probabilities is None else local.probabilities
    assert target is not None
    weight = None if local.weight is None else local.weight[local.shard.local_classes]
    share = Share(columns, local.shard.num_classes, pivot)
    grad_scale = None if grad_scale is None else grad_scale.reshape(local.x.shape[:-1])
    rest = (position_weight, grad_scale, local.spec, wrt, out, share)
    return native.row_losses(library, local.x, target, weight, *rest) is not None
