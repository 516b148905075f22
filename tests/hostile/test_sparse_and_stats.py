"""What generated calls of sparse targets and of statistics have found, on each backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unixent
from test_hostile import BACKENDS
from unixent import TopK
from unixent_hostile.drawing import TAILS
from unixent_hostile.frameworks import FRAMEWORKS, Framework

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def framework(backend: str) -> Framework:
    return FRAMEWORKS[backend]()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
def test_a_row_of_which_nothing_is_known_is_nan_whatever_its_teacher_says(
    framework: Framework, tail: Any, options: dict[str, Any]
) -> None:
    x = framework.give(np.array([[np.nan, 1.0], [np.inf, 0.0], [-np.inf, -np.inf], [0.0, 1.0], [0.0, 1.0]], "f4"))
    ids = framework.give(np.array([[-100], [-100], [0], [-100], [0]]))
    target = TopK(ids, probs=framework.give(np.zeros((5, 1), "f4")), tail=tail)
    losses = framework.read(unixent.cross_entropy(x, target, reduction="none", **options))
    assert np.isnan(losses[:3]).all()
    assert np.isfinite(losses[3:]).all()
    _, gradient = unixent.value_and_grad(x, target, **options)
    assert np.isnan(framework.read(gradient)[:3]).all()


def test_logits_may_be_further_apart_than_the_largest_number(framework: Framework) -> None:
    largest = np.finfo("f4").max
    x = framework.give(np.array([[largest, -largest], [-largest, largest]], "f4"))
    stats = unixent.position_stats(x, outputs=("entropy", "log_sum_sq"))
    assert (framework.read(stats.entropy) == 0).all()
    assert (framework.read(stats.log_sum_sq) == 0).all()
    _, gradient = unixent.position_stats_and_grad(x, outputs=("entropy",))
    assert (framework.read(gradient) == 0).all()


def test_an_index_dtype_need_not_hold_the_number_of_classes(framework: Framework) -> None:
    rng = np.random.default_rng(0)
    x, narrow = rng.normal(size=(4, 206)).astype("f4"), rng.integers(-1, 127, size=(4, 3)).astype("i1")
    answers = []
    for ids in (narrow, narrow.astype("i8")):
        given = framework.give(x), framework.give(ids)
        picked = unixent.position_stats(given[0], selected=given[1], outputs=("selected_log_prob",), ignore_index=-1)
        target = TopK(given[1], probs=framework.give(np.full(ids.shape, 0.25, "f4")), tail="bucket")
        loss = unixent.cross_entropy(given[0], target, ignore_index=-1)
        answers.append(np.append(framework.read(picked.selected_log_prob), framework.read(loss)))
    np.testing.assert_array_equal(*answers)
    assert np.isfinite(answers[0]).all()


@pytest.mark.parametrize("positions", [(), (0,), (0, 3), (2, 0, 3)])
def test_the_linear_form_serves_one_position_and_none(framework: Framework, positions: tuple[int, ...]) -> None:
    hidden, classifier = framework.give(np.ones((*positions, 4), "f4")), framework.give(np.ones((5, 4), "f4"))
    target = framework.give(np.zeros(positions, "i8"))
    selected = framework.give(np.zeros((*positions, 2), "i8"))
    outputs = ("log_prob", "entropy", "selected_log_prob", "top_index", "rank")
    stats = unixent.linear_position_stats(hidden, classifier, target, outputs=outputs, selected=selected, k=3)
    widths = {"selected_log_prob": (2,), "top_index": (3,)}
    for name in outputs:
        assert framework.read(getattr(stats, name)).shape == (*positions, *widths.get(name, ()))
    teacher = TopK(selected, probs=framework.give(np.full((*positions, 2), 0.25, "f4")), tail="bucket")
    losses = framework.read(unixent.linear_cross_entropy(hidden, classifier, teacher, reduction="none"))
    assert losses.shape == positions
    np.testing.assert_allclose(losses, 0.5 * np.log(5) + 0.5 * np.log(5 / 4), rtol=1e-6)
    _, (gradient, _) = unixent.linear_value_and_grad(hidden, classifier, teacher, wrt=("hidden", "classifier"))
    assert framework.read(gradient).shape == (*positions, 4)


def differentiated(framework: Framework, x: Any, ids: Any, values: Any, **options: Any) -> Any:
    """The gradient of a loss for the teacher's log-probabilities, or what ``values_name`` says, by value_and_grad and
    by the framework's own differentiation."""
    tail, values_name = options.pop("tail"), options.pop("values_name", "log_probs")
    given = [framework.give(each) for each in (x, ids, values)]

    def loss(x: Any, ids: Any, values: Any) -> Any:
        return unixent.cross_entropy(x, TopK(ids, tail=tail, **{values_name: values}), **options)

    target = TopK(given[1], tail=tail, **{values_name: given[2]})
    yield framework.read(unixent.value_and_grad(given[0], target, wrt="target", **options)[1])
    if framework.traits.autodiff:
        yield framework.read(framework.autograd(loss, given, [2], None)[1][0])


@pytest.mark.parametrize("tail", TAILS)
def test_what_a_teacher_rules_out_has_no_derivative_where_the_student_does_too(framework: Framework, tail: Any) -> None:
    x, ids = np.array([[0.0, 1.0, -np.inf]], "f4"), np.array([[2, 0]])
    for gradient in differentiated(framework, x, ids, np.array([[-np.inf, -0.7]], "f4"), tail=tail):
        assert gradient[0, 0] == 0
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("tail", TAILS)
def test_a_probability_of_0_keeps_others_finite_where_its_loss_is_infinite(framework: Framework, tail: Any) -> None:
    x, ids = np.array([[0.0, 1.0, -np.inf]], "f4"), np.array([[2, 0]])
    for gradient in differentiated(framework, x, ids, np.array([[0.0, 0.25]], "f4"), tail=tail, values_name="probs"):
        assert gradient[0, 0] == np.inf
        assert np.isfinite(gradient[0, 1])


@pytest.mark.parametrize("tail", TAILS)
def test_a_class_of_weight_0_has_no_derivative_where_its_loss_is_infinite(framework: Framework, tail: Any) -> None:
    x, ids, weight = np.array([[0.0, 1.0, -np.inf]], "f4"), np.array([[2, 0]]), framework.give(np.zeros(3, "f4"))
    for gradient in differentiated(framework, x, ids, np.log(np.array([[0.5, 0.25]], "f4")), tail=tail, weight=weight):
        assert np.isfinite(gradient).all()


def test_what_a_small_share_leaves_to_the_bucket_has_an_exact_derivative(framework: Framework) -> None:
    """1 - q for q = exp(-8.9) has the derivative -q, not 1 + expm1 of it."""
    x, values = np.array([[0.3, 0.1, -0.5]], "f4"), np.array([[-8.9]], "f4")
    p = np.exp(x.astype("f8")) / np.exp(x.astype("f8")).sum()
    due = np.exp(values.astype("f8")) * (-np.log(p[0, 1]) + np.log(p[0, 0] + p[0, 2]))
    for gradient in differentiated(framework, x, np.array([[1]]), values, tail="bucket"):
        np.testing.assert_allclose(gradient, due, rtol=2e-6)
