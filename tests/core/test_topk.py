"""What sparse targets promise of their arguments, on the backend that is always there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import unixent
from unixent import TopK

X = np.array([[2.0, 0.5, -1.0, 0.0], [0.0, 3.0, 0.0, 1.0]])
IDS = np.array([[0, 2], [1, -100]])
Q = np.array([[0.5, 0.25], [0.75, 0.125]])
TAILS = ("drop", "renormalize", "bucket")

REFUSED: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (unixent.OptionError, "tail: expected one of 'drop', 'renormalize', 'bucket'; got 'top'", {"tail": "top"}),
    (unixent.OptionError, "tail: expected one of .*; got None", {"tail": None}),
    (unixent.DTypeError, "probs: expected either probs or log_probs; got neither", {"probs": None}),
    (unixent.DTypeError, "probs: expected either probs or log_probs; got both", {"log_probs": np.log(Q)}),
    (unixent.DTypeError, "target.ids: expected an array; got None", {"ids": None}),
    (
        unixent.DTypeError,
        r"target.ids: expected class indices .* of shape \(2,\) \+ \(K,\), .*; got float64",
        {"ids": Q},
    ),
    (unixent.ShapeError, r"target.ids: expected .* K >= 1; got int64 of shape \(2,\)", {"ids": IDS[:, 0]}),
    (unixent.ShapeError, r"target.ids: .* got int64 of shape \(2, 0\)", {"ids": IDS[:, :0], "probs": Q[:, :0]}),
    (unixent.ShapeError, r"target.ids: .* got int64 of shape \(1, 2\)", {"ids": IDS[:1], "probs": Q[:1]}),
    (unixent.DTypeError, r"target.probs: expected a floating array of shape \(2, 2\); got int64", {"probs": IDS}),
    (unixent.ShapeError, r"target.probs: expected .* \(2, 2\); got float64 of shape \(2, 1\)", {"probs": Q[:, :1]}),
    (
        unixent.TargetRangeError,
        r"target.ids: expected class indices in \[0, 4\) or ignore_index=-100; got 4 at position \(1, 0\)",
        {"ids": np.array([[0, 2], [4, -100]])},
    ),
]


@pytest.mark.parametrize(("error", "match", "changes"), REFUSED, ids=[match for _, match, _ in REFUSED])
def test_what_cannot_be_meant_is_refused_by_name(error: type[Exception], match: str, changes: dict[str, Any]) -> None:
    given = {"ids": IDS, "probs": Q, **changes}
    with pytest.raises(error, match=match) as raised:
        unixent.cross_entropy(X, TopK(**given))
    assert isinstance(raised.value, unixent.UnixentError)


def test_ids_have_no_gradient_and_probabilities_have_that_of_their_dtype() -> None:
    for values in ({"probs": Q.astype(np.float32)}, {"log_probs": np.log(Q)}):
        target = TopK(IDS, **values)
        gradient = unixent.value_and_grad(X, target, wrt="target")[1]
        assert (gradient.shape, gradient.dtype) == (Q.shape, target.values.dtype)
        assert gradient[1, 1] == 0


@pytest.mark.parametrize("tail", TAILS)
def test_all_classes_selected_are_class_probabilities(tail: Any) -> None:
    q = np.random.default_rng(0).dirichlet(np.ones(4), 2)
    options: Any = {"weight": np.array([1, 2, 0.5, 1]), "mask": [1, 0.5], "label_smoothing": 0.1, "z_loss": 0.1}
    got = unixent.value_and_grad(X, TopK(np.tile(np.arange(4), (2, 1)), probs=q, tail=tail), **options)
    due = unixent.value_and_grad(X, q, **options)
    np.testing.assert_allclose(got[0], due[0], rtol=1e-14)
    np.testing.assert_allclose(got[1], due[1], rtol=1e-12, atol=1e-16)


def test_one_class_renormalized_is_a_class_index() -> None:
    target = TopK(IDS[:, :1], probs=Q[:, :1], tail="renormalize")
    np.testing.assert_allclose(unixent.cross_entropy(X, target), unixent.cross_entropy(X, IDS[:, 0]), rtol=1e-15)


@pytest.mark.parametrize("tail", TAILS)
def test_a_position_of_nothing_but_padding_has_a_teacher_that_says_nothing(tail: Any) -> None:
    target = TopK(np.full((2, 2), -100), probs=np.full((2, 2), np.nan), tail=tail)
    loss, gradient = unixent.value_and_grad(X, target, reduction="none")
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(gradient, 0)
    assert unixent.loss_terms(X, target).denominator == 2
    smoothed = unixent.cross_entropy(X, target, label_smoothing=1.0)
    np.testing.assert_allclose(smoothed, unixent.cross_entropy(X, IDS[:, 0], label_smoothing=1.0), rtol=1e-15)


def test_the_rest_of_a_confident_student_is_not_one_minus_a_sum() -> None:
    logits = np.array([[20, 0, 0, 0], [25, 0, 0, 0]], np.float32)
    target = TopK([[0], [0]], probs=[[0.25], [0.25]], tail="bucket")
    loss, gradient = unixent.value_and_grad(logits, target, reduction="none")
    np.testing.assert_allclose(loss, 0.75 * (np.array([20, 25]) - np.log(3)), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.75, -0.25, -0.25, -0.25]] * 2, rtol=1e-6)


def test_a_confident_teacher_keeps_its_rest_where_it_gives_logarithms() -> None:
    log_q = np.array([[-1e-9]], np.float32)
    logits = np.array([[0, 20, 0, 0]], np.float32)
    loss = [
        unixent.cross_entropy(logits, TopK([[1]], tail="bucket", **given))
        for given in ({"log_probs": log_q}, {"probs": np.exp(log_q)})
    ]
    L = np.log1p(3 * np.exp(-20.0))
    np.testing.assert_allclose(loss, [L + 1e-9 * (20 - np.log(3)), L], rtol=1e-6)


def test_arguments_may_be_lists_and_ids_of_any_integer_dtype() -> None:
    due = unixent.cross_entropy(X, TopK(IDS, probs=Q, tail="bucket"), ignore_index=-100)
    assert unixent.cross_entropy(X, TopK(IDS.tolist(), probs=Q.tolist(), tail="bucket")) == due
    for dtype in ("int8", "int32", "uint8"):
        ids = np.where(IDS < 0, 3, IDS).astype(dtype)
        assert unixent.cross_entropy(X, TopK(ids, probs=Q, tail="bucket"), ignore_index=3) == due


def test_the_loss_of_position_stats_is_that_of_cross_entropy() -> None:
    target, up = TopK(IDS, probs=Q, tail="bucket"), unixent.PositionStats(loss=np.array([1.0, 2.0]))
    stats, gradient = unixent.position_stats_and_grad(X, target, outputs=("loss", "entropy"), grad_output=up)
    loss, due = unixent.value_and_grad(X, target, reduction="none", grad_output=np.array([1.0, 2.0]))
    np.testing.assert_array_equal(stats.loss, loss)
    np.testing.assert_array_equal(gradient, due)
    np.testing.assert_array_equal(stats.entropy, unixent.position_stats(X, outputs="entropy").entropy)
    both = unixent.position_stats_and_grad(X, target, outputs=("loss", "entropy"))[1]
    alone = [unixent.position_stats_and_grad(X, target, outputs=name)[1] for name in ("loss", "entropy")]
    np.testing.assert_allclose(both, sum(alone), rtol=1e-12)
    with pytest.raises(unixent.OptionError, match="outputs: expected 'loss' alone"):
        unixent.position_stats(X, target, outputs="rank")


def test_the_configured_loss_takes_them() -> None:
    target = TopK(IDS, probs=Q)
    assert unixent.CrossEntropyLoss()(X, target, [1, 0]) == unixent.cross_entropy(X, target, mask=[1, 0])
    with pytest.raises(unixent.EmptyMeanError):
        unixent.cross_entropy(X, target, mask=[0, 0], on_empty="raise")


@pytest.mark.parametrize("tail", TAILS)
def test_cross_entropy_less_the_teachers_entropy_is_a_divergence(tail: Any) -> None:
    rng = np.random.default_rng(1)
    x, ids = rng.normal(size=(50, 6)), np.argsort(rng.random((50, 6)))[:, :3]
    ids[:, 2] = np.where(rng.random(50) < 0.3, ids[:, 0], ids[:, 2])
    q = rng.dirichlet(np.ones(4), 50)[:, :3]
    for given in ({"probs": q}, {"log_probs": np.log(q)}):
        target = TopK(ids, tail=tail, **given)
        entropy = unixent.entropy_of(target)
        divergence = unixent.cross_entropy(x, target, reduction="none") - entropy
        kept = np.where(tail == "renormalize", q.sum(axis=1), 1)
        p = np.exp(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))
        due = np.zeros(50)
        for n in range(50):
            dense, selected = np.zeros(6), np.isin(np.arange(6), ids[n])
            np.add.at(dense, ids[n], q[n] / kept[n])
            due[n] = (dense[selected] * np.log(dense[selected] / p[n, selected])).sum()
            if tail == "bucket":
                due[n] += (1 - q[n].sum()) * np.log((1 - q[n].sum()) / p[n, ~selected].sum())
        np.testing.assert_allclose(divergence, due, rtol=1e-9, atol=1e-12)
        assert tail == "drop" or (divergence > 0).all()


def test_the_entropy_of_probabilities_has_zero_where_they_are_zero() -> None:
    q = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], np.float32)
    for axis, given in ((-1, q), (0, q.T)):
        entropy = unixent.entropy_of(given, axis=axis)
        np.testing.assert_allclose(entropy, [np.log(2), 0], rtol=1e-6)
        assert entropy.dtype == np.float32
    with pytest.raises(unixent.DTypeError, match="target: expected probabilities"):
        unixent.entropy_of(IDS)
    with pytest.raises(unixent.OptionError, match="axis: expected an axis"):
        unixent.entropy_of(q, axis=2)


def test_a_backend_that_does_not_declare_them_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = unixent.get_backend("numpy")
    capabilities = replace(numpy.capabilities, targets=frozenset({"index", "probability"}))
    lacking = type("Lacking", (type(numpy),), {"capabilities": capabilities})()
    monkeypatch.setattr("unixent.dispatch.get_backend", lambda name: lacking)
    target = TopK(IDS, probs=Q)
    with pytest.raises(unixent.BackendError, match="target: the numpy backend takes no sparse targets"):
        unixent.cross_entropy(X, target)
    with pytest.raises(unixent.BackendError, match="entropy_of: the numpy backend takes no sparse targets"):
        unixent.entropy_of(target)


def test_a_backend_that_does_not_split_them_refuses_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pair:
        def Get_size(self) -> int:
            return 2

        def Get_rank(self) -> int:
            return 0

        def allgather(self, row: Any) -> list[Any]:
            return [row, row]

    backend, config = unixent.get_backend("numpy"), unixent.ParallelConfig(data_parallel=2, token_group=Pair())
    without = replace(backend.capabilities, parallel_targets=frozenset({"index"}), parallel_position_stats=False)
    monkeypatch.setattr(type(backend), "capabilities", without)
    with pytest.raises(unixent.BackendError, match="parallel: the numpy backend does not split sparse targets"):
        unixent.cross_entropy(X, TopK(IDS, probs=Q), parallel=config)
    with pytest.raises(unixent.BackendError, match="parallel: the numpy backend does not split position_stats"):
        unixent.position_stats(X, outputs="entropy", parallel=config)
