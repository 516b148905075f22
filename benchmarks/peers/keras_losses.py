"""Keras' categorical cross-entropies from logits, on one of its backends a process.

They compute in `floatx`, float32, whatever dtype comes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

from peers.adapting import only, peer
from unixent_conformance.harness import Unsupported
from unixent_conformance.implementation import Implementation

REDUCTIONS = {"none": None, "sum": "sum", "mean": "sum_over_batch_size"}


def _loss(
    backend: str,
    logits: Any,
    target: Any,
    *,
    mask: Any = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    """A mask is Keras' sample_weight, ignore_index its ignore_class."""
    keras = _keras(backend)
    only("reduction", reduction, *REDUCTIONS)
    if "float" in str(target.dtype):
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=label_smoothing, axis=axis, reduction=REDUCTIONS[reduction]
        )
    else:
        if label_smoothing:
            raise Unsupported("SparseCategoricalCrossentropy has no label_smoothing")
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=ignore_index, axis=axis, reduction=REDUCTIONS[reduction]
        )
    return loss(target, logits, sample_weight=mask)


def _keras(backend: str) -> Any:
    os.environ["KERAS_BACKEND"] = backend
    import keras

    if keras.backend.backend() != backend:
        raise Unsupported(f"this process has Keras on {keras.backend.backend()}; one process has one")
    return keras


_OPTIONS = frozenset({"mask", "axis", "reduction", "ignore_index", "label_smoothing", "logits", "target"})


def __getattr__(name: str) -> Implementation:
    """`on_torch` and `on_jax`. Keras is imported when one is asked for, which takes longer than a case may."""
    backend = name.removeprefix("on_")
    if backend == name:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _keras(backend)
    return replace(peer(f"keras on {backend}", partial(_loss, backend), "keras"), options=_OPTIONS)
