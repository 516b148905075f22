"""What `position_stats` promises of its arguments, on the backend that is always there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unixent
from unixent import PositionStats

X = np.array([[2.0, 0.5, -1.0], [0.0, 3.0, 0.0]])
Y = np.array([0, 1])
Q = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])

REFUSED: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (unixent.OptionError, "outputs: expected one or several of 'loss', .*; got 'nothing'", {"outputs": "nothing"}),
    (unixent.OptionError, r"outputs: expected .*; got \(\)", {"outputs": ()}),
    (unixent.OptionError, "outputs: expected .*; got None", {"outputs": None}),
    (unixent.DTypeError, "target: expected an array, since outputs has 'rank'", {"outputs": "rank", "target": None}),
    (unixent.OptionError, "selected: expected class indices, since", {"outputs": "selected_log_prob"}),
    (unixent.OptionError, "selected: expected None, since", {"selected": np.zeros((2, 1), int)}),
    (
        unixent.ShapeError,
        r"selected: expected class indices \(integer\) of shape \(2,\) \+ \(K,\); got int64 of shape \(2,\)",
        {"outputs": "selected_log_prob", "selected": Y},
    ),
    (unixent.DTypeError, "selected: .* got float64", {"outputs": "selected_log_prob", "selected": np.zeros((2, 1))}),
    (
        unixent.TargetRangeError,
        r"selected: expected class indices in \[0, 3\) or ignore_index=-100; got 3 at position \(1, 0\)",
        {"outputs": "selected_log_prob", "selected": np.array([[0], [3]])},
    ),
    (unixent.OptionError, "k: expected an int >= 1; got 0", {"outputs": "top_index"}),
    (unixent.OptionError, "k: expected an int >= 0; got -1", {"k": -1}),
    (unixent.OptionError, "k: expected an int >= 0; got True", {"k": True}),
    (unixent.OptionError, "k: expected at most 3 classes; got 4", {"outputs": "top_index", "k": 4}),
    (unixent.OptionError, "k: expected at most 2 classes; got 3", {"outputs": "top_index", "k": 3, "num_classes": 2}),
    (unixent.OptionError, "outputs: expected 'loss' alone of what probabilities have", {"target": Q}),
    (unixent.TargetRangeError, r"target: expected class indices in \[0, 3\)", {"target": np.array([0, 3])}),
    (unixent.OptionError, "temperature: expected a finite float > 0", {"temperature": 0.0}),
    (unixent.ShapeError, "mask: expected", {"mask": np.ones(3)}),
]


@pytest.mark.parametrize(("error", "match", "changes"), REFUSED, ids=[match for _, match, _ in REFUSED])
def test_what_cannot_be_meant_is_refused_by_name(error: type[Exception], match: str, changes: dict[str, Any]) -> None:
    given = {"target": Y, "outputs": "log_prob", **changes}
    with pytest.raises(error, match=match) as raised:
        unixent.position_stats(X, **given)
    assert isinstance(raised.value, unixent.UnixentError)


def test_what_is_not_asked_for_is_none() -> None:
    stats = unixent.position_stats(X, outputs=("entropy", "prediction"))
    assert [name for name, value in stats._asdict().items() if value is not None] == ["entropy", "prediction"]


def test_the_results_have_the_dtype_of_the_logits_or_that_asked_for() -> None:
    outputs = ("log_prob", "top_log_prob", "prediction", "correct", "rank", "top_index")
    for dtype, asked in (("float16", None), ("float32", None), ("float16", "float32"), ("float64", "float16")):
        stats = unixent.position_stats(X.astype(dtype), Y, outputs=outputs, k=2, dtype=asked)
        assert stats.log_prob is not None
        assert [value.dtype.name for value in stats if value is not None] == [
            asked or dtype,
            "int64",
            "bool",
            "int64",
            asked or dtype,
            "int64",
        ]


def test_a_loss_is_that_of_cross_entropy_with_all_of_its_options() -> None:
    options: Any = {
        "label_smoothing": 0.1,
        "z_loss": 0.1,
        "mask": np.array([0.5, 1.0]),
        "weight": np.array([1, 2, 3.0]),
    }
    for target in (Y, Q):
        stats, gradient = unixent.position_stats_and_grad(X, target, outputs="loss", **options)
        loss, expected = unixent.value_and_grad(X, target, reduction="none", **options)
        np.testing.assert_array_equal(stats.loss, loss)
        np.testing.assert_array_equal(gradient, expected)


def test_probabilities_have_what_needs_no_target() -> None:
    stats = unixent.position_stats(X, Q, outputs=("entropy", "loss"))
    np.testing.assert_array_equal(stats.entropy, unixent.position_stats(X, outputs="entropy").entropy)


def test_a_target_out_of_range_that_is_not_read_is_nan_and_no_class() -> None:
    outputs = ("log_prob", "entropy", "correct", "rank", "prediction")
    stats = unixent.position_stats(X, np.array([3, 1]), outputs=outputs, validate="off")
    assert np.isnan([stats.log_prob[0], stats.entropy[0]]).all()
    assert (stats.correct[0], stats.rank[0], stats.prediction[0]) == (False, -1, -1)
    assert (stats.correct[1], stats.rank[1], stats.prediction[1]) == (True, 0, 1)


def test_a_selection_is_padded_by_ignore_index() -> None:
    selected = np.array([[0, -100], [2, -100]], np.int8)
    stats = unixent.position_stats(X, outputs="selected_log_prob", selected=selected)
    chosen = unixent.position_stats(X, selected[:, 0].astype(int)).log_prob
    np.testing.assert_array_equal(stats.selected_log_prob, np.stack([chosen, np.zeros(2)], axis=1))


def test_upstream_gradients_are_of_what_was_asked_and_ones_where_none_is_given() -> None:
    outputs = ("entropy", "log_prob", "prediction")
    _, both = unixent.position_stats_and_grad(X, Y, outputs=outputs)
    ones = PositionStats(entropy=np.ones(2), log_prob=np.ones(2))
    np.testing.assert_array_equal(both, unixent.position_stats_and_grad(X, Y, outputs=outputs, grad_output=ones)[1])
    alone = [unixent.position_stats_and_grad(X, Y, outputs=name)[1] for name in ("entropy", "log_prob")]
    np.testing.assert_allclose(both, sum(alone), rtol=1e-12)
    for grad_output, error, match in (
        (np.ones(2), unixent.DTypeError, "grad_output: expected a PositionStats; got ndarray"),
        (PositionStats(logsumexp=np.ones(2)), unixent.OptionError, "grad_output: .*; got 'logsumexp'"),
        (PositionStats(entropy=np.ones(3)), unixent.ShapeError, r"grad_output.entropy: .* shape \(2,\)"),
    ):
        with pytest.raises(error, match=match):
            unixent.position_stats_and_grad(X, Y, outputs=outputs, grad_output=grad_output)
    with pytest.raises(unixent.OptionError, match="outputs: expected one with a gradient"):
        unixent.position_stats_and_grad(X, outputs="prediction")


def test_a_backend_that_does_not_declare_statistics_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = unixent.get_backend("numpy")
    lacking = type("Lacking", (type(numpy),), {"capabilities": unixent.Capabilities(dtypes=frozenset({"float64"}))})()
    monkeypatch.setattr("unixent.dispatch.get_backend", lambda name: lacking)
    with pytest.raises(unixent.BackendError, match="position_stats: the numpy backend does not provide"):
        unixent.position_stats(X, Y)


def test_statistics_are_not_split_over_processes() -> None:
    class Alone:
        def Get_size(self) -> int:
            return 1

        def Get_rank(self) -> int:
            return 0

    config = unixent.ParallelConfig()
    np.testing.assert_array_equal(
        unixent.position_stats(X, Y, parallel=config).log_prob, unixent.position_stats(X, Y).log_prob
    )


@pytest.mark.parametrize("ignored", [-100, -1, 0])
def test_ignore_index_pads_what_is_selected_without_a_target_too(ignored: int) -> None:
    selected = np.array([[1, ignored], [ignored, 2]])
    arguments: dict[str, Any] = {"outputs": ("selected_log_prob", "entropy"), "selected": selected}
    alone = unixent.position_stats(X, ignore_index=ignored, **arguments)
    beside = unixent.position_stats(X, np.array([1, 1]), ignore_index=ignored, **arguments)
    np.testing.assert_array_equal(alone.selected_log_prob, beside.selected_log_prob)
    np.testing.assert_array_equal(alone.selected_log_prob == 0, selected == ignored)
    np.testing.assert_array_equal(alone.entropy, beside.entropy)
    assert (alone.entropy > 0).all()


def test_the_only_class_may_be_ignore_index_where_there_is_no_target() -> None:
    arguments: dict[str, Any] = {"outputs": ("entropy", "max_prob", "selected_log_prob"), "selected": [[0], [0]]}
    hidden, classifier = np.ones((2, 3)), np.ones((1, 3))
    padded = np.pad(classifier, ((0, 4), (0, 0)))
    for stats in (
        unixent.position_stats([[3.0], [-2.0]], ignore_index=0, **arguments),
        unixent.position_stats([[3.0, -2.0]], ignore_index=0, axis=0, **arguments),
        unixent.position_stats([[3.0, 1.0], [-2.0, 1.0]], ignore_index=0, num_classes=1, **arguments),
        unixent.linear_position_stats(hidden, classifier, ignore_index=0, **arguments),
        unixent.linear_position_stats(hidden, padded, ignore_index=0, num_classes=1, **arguments),
    ):
        np.testing.assert_array_equal(stats.entropy, [0, 0])
        np.testing.assert_array_equal(stats.max_prob, [1, 1])
        np.testing.assert_array_equal(stats.selected_log_prob, [[0], [0]])


def test_what_pads_the_selection_has_0_whatever_the_logits_hold() -> None:
    """Also where it is the only class. The gradient of a row of NaN is NaN, as without padding."""
    both = {"outputs": ("logsumexp", "selected_log_prob"), "ignore_index": 0}
    for logits in (np.array([[np.nan], [1.0]]), np.array([[np.inf], [1.0]]), np.array([[-np.inf], [1.0]])):
        one = unixent.position_stats(logits, selected=np.zeros((2, 2), np.uint8), **both)
        two = unixent.position_stats(np.pad(logits, ((0, 0), (0, 1))), selected=np.zeros((2, 2), int), **both)
        linear = unixent.linear_position_stats(logits, np.ones((1, 1)), selected=np.zeros((2, 2), int), **both)
        for stats in (one, two, linear):
            np.testing.assert_array_equal(stats.selected_log_prob, np.zeros((2, 2)))
        np.testing.assert_array_equal(np.isnan(one.logsumexp), [True, False])
    given = {"outputs": "selected_log_prob", "selected": np.array([[0], [0]]), "ignore_index": 0}
    _, gradient = unixent.position_stats_and_grad(np.array([[np.nan], [1.0]]), **given)
    np.testing.assert_array_equal(gradient, [[np.nan], [0.0]])
    given["selected"] = np.array([[0, 1], [1, 0]])
    stats = unixent.position_stats(np.array([[np.nan], [1.0]]), validate="off", **given)
    np.testing.assert_array_equal(stats.selected_log_prob, [[0.0, np.nan], [np.nan, 0.0]])


def test_beside_the_only_class_all_that_is_selected_is_out_of_range() -> None:
    message = r"selected: expected class indices in \[0, 1\) or ignore_index=0; got 1 at position \(1, 0\)"
    with pytest.raises(unixent.TargetRangeError, match=message):
        unixent.position_stats(
            np.ones((2, 1)), outputs="selected_log_prob", selected=np.array([[0], [1]]), ignore_index=0
        )
