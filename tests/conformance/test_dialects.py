"""A dialect is a bound of what it names: it explains value and gradient of an input, nothing that is merely near."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from unixent_conformance.cases import catalogue
from unixent_conformance.dialects import explain
from unixent_conformance.harnesses import load
from unixent_conformance.model import Array, Tier
from unixent_conformance.results import Verdict
from unixent_conformance.runner import run_case
from unixent_conformance.under_test import Subject
from unixent_mutants import mutants
from unixent_mutants.judging import explained
from unixent_mutants.plain import Plain, Stats


@pytest.mark.parametrize("word", ["value", "gradient"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_block_padding_that_a_softcap_revives_is_no_loss_of_digits(reduction: str, word: str) -> None:
    result = explained(mutants()["CapRevivesBlockPadding"], f"softcap/hard/float32-{reduction}/{word}")
    assert result.verdict.value == "silently wrong", result
    assert result.units > 100


class SumsToOne(Plain):
    """lse - sum_c t_c x_c, as if targets summed to 1."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        excess = v * (1 - t.sum(axis=1)) * stats.lse
        return self.zero_inactive(super().position_losses(stats, t, v) + excess, v)

    def position_gradients(self, stats: Stats, t: Array, v: Array) -> Array:
        return np.asarray(v[:, None] * (stats.p - t))


class SumsToOneBelowTheLargest(SumsToOne):
    """The same of z = x - max(x): lse(z) - sum_c t_c z_c."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        excess = v * (1 - t.sum(axis=1)) * stats.nll.min(axis=1)
        return self.zero_inactive(Plain.position_losses(self, stats, t, v) + excess, v)


class GradientSumsToOne(SumsToOne):
    """p - t, of a value that is right."""

    position_losses = Plain.position_losses


class ZLossByCount(Plain):
    """The z-loss of a mean is divided by the number of positions, the rest by their weights."""

    def penalty(self, lse: Array) -> Array:
        return np.asarray(super().penalty(lse) * self.scale_of_z)

    def penalty_gradient(self, stats: Stats) -> Array:
        return np.asarray(super().penalty_gradient(stats) * self.scale_of_z)

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        d = super().denominators(v, w, q, indices)
        self.scale_of_z = d.sum() / max((v != 0).sum(), 1)
        return d


class ClippedBelow(Plain):
    """No logit is further than 64 below the largest of its row."""

    def cap(self, x: Array) -> Array:
        return np.asarray(np.maximum(super().cap(x), x.max(axis=1, keepdims=True) - 64))


@pytest.mark.parametrize(
    ("loss", "id", "dialect"),
    [
        (SumsToOne, "class-probabilities/unnormalised/float32-sum/", "targets taken to sum to 1"),
        (
            SumsToOneBelowTheLargest,
            "class-probabilities/unnormalised/float32-sum/",
            "targets taken to sum to 1, below the largest",
        ),
        (
            GradientSumsToOne,
            "class-probabilities/unnormalised/float32-sum/",
            "targets taken to sum to 1, gradient only",
        ),
        (ZLossByCount, "z-loss/with-weights/float32-mean/", "z-loss averaged by count"),
        (ClippedBelow, "confident-rows/80-behind/float32/", "log-probability clipped below"),
        (ClippedBelow, "minus-infinity/at-the-target/float32-none/", "log-probability clipped below"),
    ],
)
def test_a_convention_of_other_libraries_is_named(loss: type[Plain], id: str, dialect: str) -> None:
    results = [explained(loss, id + word) for word in ("value", "gradient")]
    assert {name for result in results for name in result.dialects} == {dialect}, results
    assert all(result.verdict.ok for result in results)


class MeanOverAllInTheValue(mutants()["MeanOverAllPositions"]):  # type: ignore[misc]
    """A convention in the value, another in the gradient: nobody's."""

    def mean(self, numerator: Any, denominator: Any) -> tuple[Any, Any]:
        value, factor = super().mean(numerator, denominator)
        return value, factor * self.positions / (2 * denominator)

    def denominator(self, d: Array) -> Any:
        self.positions = len(d)
        return super().denominator(d)


def test_a_value_is_explained_by_a_convention_that_its_gradient_follows_too() -> None:
    id = "ignore_index/the-default/float32-mean/value"
    assert explained(mutants()["MeanOverAllPositions"], id).dialects == ("mean over all positions",)
    result = explained(MeanOverAllInTheValue, id)
    assert result.verdict.value == "silently wrong", result


class ThreeConventions(
    mutants()["MeanOverAllPositions"],
    mutants()["ResultInFloat32"],
    mutants()["SmoothingOverTheOthers"],  # type: ignore[misc]
):
    """A mean over all positions, smoothed over the others, in float32 where half precision is given."""


def test_three_conventions_at_once_are_wrong() -> None:
    result = explained(ThreeConventions, "label-smoothing/ignored-positions/float16-mean/value")
    assert result.verdict.value == "silently wrong", result


def test_two_conventions_are_both_named() -> None:
    result = explained(ThreeConventions, "label-smoothing/ignored-positions/float32-mean/value")
    assert set(result.dialects) == {"mean over all positions", "smoothing over the other classes"}, result


class LseMinusLogit(Plain):
    """lse - x, of logits that have no offset taken off."""

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        return replace(right, nll=right.lse[:, None] - x)


class ClampsAtTwenty(Plain):
    """A shift by 16 meets a clamp."""

    def cap(self, x: Array) -> Array:
        return np.asarray(np.minimum(super().cap(x), 20))


def test_digits_that_each_of_two_answers_lacks_are_no_broken_invariance() -> None:
    lost = explained(LseMinusLogit, "invariances/shift/plain/float32")
    assert lost.dialects == ("accuracy of the logits",), lost
    for loss, word in ((ClampsAtTwenty, "shift"), (mutants()["PositionDependent"], "permutation")):
        result = explained(loss, f"invariances/{word}/plain/float32")
        assert result.verdict.value == "silently wrong", result


@pytest.mark.parametrize("name", ["3e38-elsewhere", "largest-against-0"])
def test_roundings_that_leave_no_digits_explain_nothing(name: str) -> None:
    result = explained(mutants()["ClipsLogits"], f"ends-of-the-number-line/{name}/float32-none/value")
    assert result.verdict.value == "silently wrong", result


@pytest.mark.parametrize("name", ["PaddingMaskIsAdded", "PaddingOfProbabilitiesCounts"])
def test_classes_that_do_not_exist_have_part_in_no_convention(name: str) -> None:
    subject, wrong = Subject(load("numpy"), mutants()[name]().implementation()), 0
    for tested in catalogue(Tier.QUICK, features=["num_classes"]):
        result = run_case(tested, subject)
        wrong += result.verdict is Verdict.WRONG
        assert explain(result, tested, subject).verdict is result.verdict
    assert wrong


def test_an_empty_mean_that_does_not_raise_is_a_mean_that_is_nan() -> None:
    result = explained(mutants()["EmptyMeanIsNaN"], "empty-mean/all-ignored/raise/value")
    assert result.dialects == ("empty mean is NaN",)


class MeanOverAllIfSmoothed(Plain):
    """A mean over all positions where targets are smoothed, over those that count elsewhere."""

    smoothed = True

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        if bool(self.options["label_smoothing"]) is self.smoothed:
            return np.ones_like(v)
        return Plain.denominators(self, v, w, q, indices)


class MeanOverAllUnlessSmoothed(MeanOverAllIfSmoothed):
    """The other way round."""

    smoothed = False


@pytest.mark.parametrize("word", ["value", "gradient"])
@pytest.mark.parametrize(
    ("loss", "stem"),
    [
        (MeanOverAllIfSmoothed, "label-smoothing/ignored-positions"),
        (MeanOverAllUnlessSmoothed, "ignore_index/the-default"),
        (mutants()["DefaultIgnoredStillCounted"], "ignore_index/the-default"),
    ],
)
def test_a_convention_of_one_option_alone_is_none(loss: type[Plain], stem: str, word: str) -> None:
    result = explained(loss, f"{stem}/float32-mean/{word}")
    assert result.verdict.value == "silently wrong", result
