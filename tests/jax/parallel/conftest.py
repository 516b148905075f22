"""A mesh of eight virtual devices, and the inputs that the tests split over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import unixent
from unixent_conformance.model import Call

B, S, C = 4, 3, 12
RNG = np.random.default_rng(11)
LOGITS = RNG.normal(size=(B, S, C)) * 3
INDEX = RNG.integers(C, size=(B, S)).astype(np.int32)
INDEX[[0, 3], [1, 2]] = -100
LOGITS[1, 1, INDEX[1, 1]] += 30  # a confident row
PROBABILITIES = RNG.dirichlet(np.ones(C), (B, S)) * (RNG.random((B, S, C)) > 0.3)
WEIGHT = RNG.random(C) * (np.arange(C) != 2)
MASK = RNG.random((B, S)) * (RNG.random((B, S)) > 0.3)
UPSTREAM = RNG.normal(size=(B, S))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight": {"reduction": "sum", "weight": WEIGHT},
    "none": {"reduction": "none", "mask": MASK, "grad_output": UPSTREAM},
    "normalizer": {"mask": MASK, "weight": WEIGHT, "normalizer": 7.5},
    "smoothing": {"label_smoothing": 0.2, "weight": WEIGHT, "mask": MASK},
    "smoothing alone": {"label_smoothing": 1.0},
    "z-loss and softcap": {"z_loss": 0.1, "softcap": 4.0, "weight": WEIGHT},
    "empty": {"mask": np.zeros((B, S))},
    "empty, nan": {"mask": np.zeros((B, S)), "on_empty": "nan"},
}
EXTRA = ("weight", "mask", "grad_output")


def build(target_kind: str, options: str, dtype: str = "float32") -> Call:
    given = dict(OPTIONS[options])
    narrow = np.asarray(jax.numpy.zeros(0, dtype)).dtype
    extra = {name: given.pop(name).astype("float32") for name in EXTRA if name in given}
    target = INDEX if target_kind == "index" else PROBABILITIES.astype("float32")
    return Call(LOGITS.astype(narrow), target, options=given, **extra)


@pytest.fixture(autouse=True)
def _unoptimized(unoptimized: None) -> None:
    """What crosses devices, and the rules of what is split, are the point here."""


@pytest.fixture(scope="session")
def call() -> Callable[..., Call]:
    return build


@pytest.fixture(scope="session")
def mesh() -> Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


@pytest.fixture(scope="session")
def axes() -> unixent.ParallelConfig:
    """The same mesh for calls inside shard_map, by the names of its axes."""
    return unixent.ParallelConfig(2, 4, token_group="data", model_group="model")


@pytest.fixture
def wide() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
