"""NumPy's names for what the statistics of rows are made of."""

from __future__ import annotations

from functools import partial

import numpy as np

from unixent.row_statistics import Along
from unixent.semantics import product
from unixent_numpy.compat import Array, bfloat16


def _top(x: Array, k: int) -> Array:
    classes = x.shape[1]
    if k < classes:
        # Whatever reaches the k-th largest: mostly k classes, more where several are equal.
        reaches = x >= np.partition(x, classes - k, axis=1)[:, classes - k, None]
        if (reaches.sum(axis=1) == k).all():
            reaching = np.nonzero(reaches)[1].reshape(-1, k)
            order = np.argsort(-np.take_along_axis(x, reaching, axis=1), axis=1, kind="stable")
            return np.take_along_axis(reaching, order, axis=1)
    return np.argsort(-x, axis=1, kind="stable")[:, :k]


def _add_at(x: Array, index: Array, values: Array) -> Array:
    np.add.at(x, (np.arange(len(x))[:, None], index), values)  # x is the caller's own
    return x


ALONG = Along(
    xp=np,
    take=lambda x, index: np.take_along_axis(x, index, axis=-1),
    sum=lambda x: x.sum(axis=-1, keepdims=True),
    max=lambda x: x.max(axis=-1, keepdims=True),
    argmax=lambda x: x.argmax(axis=-1)[..., None],
    top=_top,
    classes=lambda x: np.arange(x.shape[-1]),
    add_at=_add_at,
    product=partial(product, np),
    constant=lambda x: x,
    astype=lambda x, name: x.astype(bfloat16() if name == "bfloat16" else name),
)
