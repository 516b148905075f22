"""The conventions of other libraries for statistics: each is named where its formula gives value and gradient, and what
is near to it is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unixent
from unixent_conformance.model import Array
from unixent_mutants.judging import named
from unixent_mutants.statistics import RightStats, softmax

ENTROPY, LOG_PROB = "statistics/entropy-", "statistics/log_prob-"
WRONG = "silently wrong"


class EveryRow(RightStats):
    """Statistics that know no mask and look at no target but for the log-probability."""

    def log_softmax(self, x: Array) -> Array:
        """As TRL and verl have it: of the largest logit's differences."""
        m = x.max(axis=1, keepdims=True)
        return np.asarray((x - m) - np.log(np.exp(x - m).sum(axis=1, keepdims=True)))

    def entropy(self, x: Array) -> Array:
        """-sum p log p, as TRL's entropy_from_logits."""
        log_p = self.log_softmax(x)
        return np.asarray(-(np.exp(log_p) * log_p).sum(axis=1))

    def entropy_gradient(self, x: Array) -> Array:
        log_p = self.log_softmax(x)
        return np.asarray(-np.exp(log_p) * (log_p + self.entropy(x)[:, None]))

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name == "entropy":
            return self.entropy(logits).astype(value.dtype)
        own = self.log_softmax(logits)[np.arange(len(target)), np.clip(target, 0, logits.shape[1] - 1)]
        return np.where((target < 0) | (value == 0), value, own).astype(value.dtype)

    def change_gradient(self, name: str, grad: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        if name == "entropy":
            return np.asarray(options["up"][:, None] * self.entropy_gradient(logits), grad.dtype)
        hot = np.arange(logits.shape[1]) == target[:, None]
        naive = options["up"][:, None] * (hot - np.exp(self.log_softmax(logits)))
        return np.where((target < 0)[:, None], grad, naive).astype(grad.dtype)


class EntropyOfSoftmax(EveryRow):
    """lse - sum p x, as verl's and Megatron's vocabulary-parallel entropy."""

    def entropy(self, x: Array) -> Array:
        m = x.max(axis=1)
        lse = m + np.log(np.exp(x - m[:, None]).sum(axis=1))
        return np.asarray(lse - (softmax(x) * x).sum(axis=1))

    def entropy_gradient(self, x: Array) -> Array:
        p = softmax(x)
        return np.asarray(p * ((p * x).sum(axis=1, keepdims=True) - x))


class InBits(EveryRow):
    """An entropy of logarithms to the base 2."""

    def entropy(self, x: Array) -> Array:
        return np.asarray(super().entropy(x) / np.log(2))


class GradientOfPLogP(EveryRow):
    """An entropy whose gradient leaves out that p sums to 1."""

    def entropy_gradient(self, x: Array) -> Array:
        log_p = self.log_softmax(x)
        return np.asarray(-np.exp(log_p) * (log_p + 1))


@pytest.mark.parametrize("peer", [EveryRow, EntropyOfSoftmax])
def test_the_usual_entropies_are_named_by_the_digits_they_lose(peer: type[RightStats]) -> None:
    assert named(peer, f"{ENTROPY}plain/float32") <= {"absolute accuracy", "accuracy of the logits"}
    accuracy = named(peer, f"{ENTROPY}20-and-zeros/float32")
    assert accuracy
    assert accuracy <= {"absolute accuracy", "accuracy of the logits"}


def test_the_usual_log_probability_is_named_by_the_digits_it_loses() -> None:
    assert named(EveryRow, f"{LOG_PROB}20-and-zeros/float32") == {"absolute accuracy"}
    assert named(EveryRow, f"{LOG_PROB}confident/float32") == {"absolute accuracy"}


@pytest.mark.parametrize("peer", [EveryRow, EntropyOfSoftmax])
def test_an_entropy_that_is_nan_beside_minus_infinity_is_named(peer: type[RightStats]) -> None:
    assert "entropy with 0·∞ = NaN" in named(peer, f"{ENTROPY}minus-infinity/float32")


def test_an_entropy_of_what_does_not_count_is_that_of_every_row() -> None:
    assert named(EveryRow, f"{ENTROPY}ignored-and-masked/float64", ("value",)) == {"statistics of every row"}
    assert named(EveryRow, f"{ENTROPY}NaN-ignored/float64") == {"statistics of every row"}
    assert named(EveryRow, f"{ENTROPY}out-of-range-unread/float64") == {"statistics of every row"}


def test_a_log_probability_of_a_clamped_target_is_named() -> None:
    assert "index out of range: clamped" in named(EveryRow, f"{LOG_PROB}out-of-range-unread/float64")


class TemperatureFirst(RightStats):
    """Logits divided by the temperature and capped then, as if the order did not matter."""

    def given(self, logits: Array, target: Array, options: dict[str, Any]) -> tuple[Array, Array, dict[str, Any]]:
        scale = options.get("scale", 1.0) / options.get("temperature", 1.0)
        return logits, target, {**options, "scale": scale, "temperature": 1.0}


@pytest.mark.parametrize("output", ["entropy", "log_prob"])
def test_a_temperature_before_the_cap_is_no_convention(output: str) -> None:
    assert named(TemperatureFirst, f"statistics/{output}-around-a-softcap/float32") == {WRONG}


@pytest.mark.parametrize("peer", [InBits, GradientOfPLogP])
def test_an_entropy_that_is_none_stays_wrong(peer: type[RightStats]) -> None:
    for name in ("plain", "hopeless", "out-of-range-unread"):
        assert WRONG in named(peer, f"{ENTROPY}{name}/float32"), name


class InFloat32(RightStats):
    """Statistics that come in float32, whatever the logits are."""

    def change(self, name: str, value: Array, logits: Array, target: Array, options: dict[str, Any]) -> Array:
        more = {**options, "dtype": "float32"}
        return np.asarray(getattr(unixent.position_stats(logits, target, outputs=(name,), **more), name))


def test_statistics_in_float32_are_named() -> None:
    assert named(InFloat32, f"{ENTROPY}plain/bfloat16", ("value",)) == {"result in float32"}
