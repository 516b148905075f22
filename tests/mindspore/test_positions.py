"""Statistics of positions in MindSpore: both forms, eagerly and compiled, against the NumPy backend and differences of
its gradients."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import unixent
import unixent_mindspore  # noqa: F401 - tells MindSpore's compiler of unixent
from unixent import PositionStats

FIELDS = PositionStats._fields
GRADED = FIELDS[:5]
FORMS = ["eager", "jit"]
RNG = np.random.default_rng(5)
X, DIRECTION, STEP = 2 * RNG.normal(size=(4, 7)), RNG.normal(size=(4, 7)), 1e-5
Y, SELECTED = np.array([0, 6, -100, 3]), np.array([[1, 2, 1], [0, -100, 6], [1, 1, 1], [5, 3, 0]])
PROBABILITY = RNG.dirichlet(np.ones(7), size=4)
OPTIONS = {"scale": 1.2, "softcap": 4.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.02}
UP = PositionStats(
    **{name: RNG.normal(size=SELECTED.shape if name == "selected_log_prob" else Y.shape) for name in GRADED}
)
HIDDEN, CLASSIFIER, BIAS = (RNG.normal(size=shape) for shape in ((4, 3), (7, 3), (7,)))


def own(array):
    return ms.Tensor(array)


def in_form(function, form):
    return ms.jit(function) if form == "jit" else function


def close(got, due, rtol=1e-12, atol=0.0):
    np.testing.assert_allclose(got.asnumpy(), due, rtol=rtol, atol=atol)


def weighed(logits):
    """sum(UP * outputs)."""
    stats = unixent.position_stats(logits, own(Y), outputs=(*GRADED, "rank"), selected=own(SELECTED), **OPTIONS)
    total = 0
    for i in range(5):
        total = total + (stats[i] * own(UP[i])).sum()
    return total


def numpy_gradient(logits):
    given = {"selected": SELECTED, "outputs": GRADED, "grad_output": UP}
    return unixent.position_stats_and_grad(logits, Y, **given, **OPTIONS)[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_output_is_that_of_the_numpy_backend(form, dtype):
    logits = X.astype(dtype)

    def stats(logits, target, selected):
        return unixent.position_stats(logits, target, outputs=FIELDS, selected=selected, k=3)

    got = in_form(stats, form)(own(logits), own(Y), own(SELECTED))
    due = unixent.position_stats(logits, Y, outputs=FIELDS, selected=SELECTED, k=3)
    for name, output, expected in zip(FIELDS, got, due, strict=True):
        np.testing.assert_array_equal(output.asnumpy(), expected, err_msg=name)
        assert output.asnumpy().dtype == expected.dtype, name


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_widened_and_the_result_rounded_once(form):
    logits = own(X.astype(np.float32)).astype(ms.bfloat16)
    wide = unixent.position_stats(logits.astype(ms.float32).asnumpy(), outputs="entropy").entropy

    def value(logits):
        return unixent.position_stats(logits, outputs="entropy")[FIELDS.index("entropy")]

    got = in_form(value, form)(logits)
    assert got.dtype == ms.bfloat16
    np.testing.assert_array_equal(
        got.astype(ms.float32).asnumpy(), own(wide).astype(ms.bfloat16).astype(ms.float32).asnumpy()
    )
    grad = in_form(ms.grad(lambda logits: value(logits).astype(ms.float32).sum()), "eager")(logits)
    assert grad.dtype == ms.bfloat16


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_numpy_backend(form):
    def grad(logits):
        return ms.grad(weighed)(logits)

    close(in_form(grad, form)(own(X)), numpy_gradient(X))


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_are_differences(form):
    def along(logits):
        return (ms.grad(weighed)(logits) * own(DIRECTION)).sum()

    def hvp(logits):
        return ms.grad(along)(logits)

    due = (numpy_gradient(X + STEP * DIRECTION) - numpy_gradient(X - STEP * DIRECTION)) / (2 * STEP)
    close(in_form(hvp, form)(own(X)), due, rtol=1e-6, atol=1e-8)


def numpy_linear_gradients(*scores):
    hidden, classifier, bias = scores
    given = {"bias": bias, "selected": SELECTED, "outputs": GRADED, "grad_output": UP, "chunk": 2}
    return unixent.linear_position_stats_and_grad(hidden, classifier, Y, **given, **OPTIONS)[1]


def linear_weighed(hidden, classifier, bias):
    outputs = (*GRADED, "top_index")
    given = {"bias": bias, "outputs": outputs, "selected": own(SELECTED), "k": 2, "chunk": 2}
    stats = unixent.linear_position_stats(hidden, classifier, own(Y), **given, **OPTIONS)
    total = 0
    for i in range(5):
        total = total + (stats[i] * own(UP[i])).sum()
    return total


@pytest.mark.parametrize("form", FORMS)
def test_the_linear_form_without_options_is_that_of_the_numpy_backend(form):
    def log_prob(hidden, classifier, target):
        return unixent.linear_position_stats(hidden, classifier, target, outputs=("log_prob",), chunk=3)[1]

    got = in_form(log_prob, form)(own(HIDDEN), own(CLASSIFIER), own(Y))
    close(got, unixent.linear_position_stats(HIDDEN, CLASSIFIER, Y, outputs=("log_prob",)).log_prob)


@pytest.mark.parametrize("form", FORMS)
def test_the_linear_form_has_derivatives_of_both_orders(form):
    scores, along = (HIDDEN, CLASSIFIER, BIAS), tuple(np.cos(each) for each in (HIDDEN, CLASSIFIER, BIAS))
    given, steps = tuple(map(own, scores)), tuple(map(own, along))

    def grads(hidden, classifier, bias):
        return ms.grad(linear_weighed, (0, 1, 2))(hidden, classifier, bias)

    def moved(hidden, classifier, bias):
        first = ms.grad(linear_weighed, (0, 1, 2))(hidden, classifier, bias)
        return (first[0] * steps[0]).sum() + (first[1] * steps[1]).sum() + (first[2] * steps[2]).sum()

    def second(hidden, classifier, bias):
        return ms.grad(moved, (0, 1, 2))(hidden, classifier, bias)

    for got, due in zip(in_form(grads, form)(*given), numpy_linear_gradients(*scores), strict=True):
        close(got, due)
    ahead, behind = (
        numpy_linear_gradients(*(each + sign * STEP * step for each, step in zip(scores, along, strict=True)))
        for sign in (1, -1)
    )
    for got, a, b in zip(in_form(second, form)(*given), ahead, behind, strict=True):
        close(got, (a - b) / (2 * STEP), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_by_a_function_are_those_of_numpy_and_differentiable(form):
    def gradient(logits, upstream):
        given = {"outputs": ("correct", "log_prob", "entropy"), "grad_output": PositionStats(entropy=upstream)}
        return unixent.position_stats_and_grad(logits, own(Y), **given)[1]

    def along(logits, upstream):
        return (gradient(logits, upstream) * own(DIRECTION)).sum()

    def second(logits, upstream):
        return ms.grad(along, (0, 1))(logits, upstream)

    def numpys(logits, upstream=UP.entropy):
        given = {"outputs": "entropy", "grad_output": PositionStats(entropy=upstream)}
        return unixent.position_stats_and_grad(logits, Y, **given)[1]

    given = own(X), own(UP.entropy)
    close(in_form(gradient, form)(*given), numpys(X))
    of_logits, of_upstream = in_form(second, form)(*given)
    due = (numpys(X + STEP * DIRECTION) - numpys(X - STEP * DIRECTION)) / (2 * STEP)
    close(of_logits, due, rtol=1e-6, atol=1e-8)
    close(of_upstream, (numpys(X, np.ones(4)) * DIRECTION).sum(1), rtol=1e-9, atol=1e-12)


def test_linear_gradients_by_a_function_are_those_of_numpy():
    def gradients(hidden, classifier):
        return unixent.linear_position_stats_and_grad(hidden, classifier, own(Y), outputs=("log_prob", "rank"))[1]

    due = unixent.linear_position_stats_and_grad(HIDDEN, CLASSIFIER, Y)[1]
    for form in FORMS:
        for got, numpys in zip(in_form(gradients, form)(own(HIDDEN), own(CLASSIFIER)), due, strict=True):
            close(got, numpys)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_among_the_outputs_has_the_gradient_of_probabilities(form):
    def value(logits, target):
        stats = unixent.position_stats(logits, target, outputs=("loss", "entropy"))
        return (stats[0] * own(UP.loss)).sum() + stats[2].sum()

    def grad(logits, target):
        return ms.grad(value, 1)(logits, target)

    given = {"wrt": "target", "reduction": "none", "grad_output": UP.loss}
    due = unixent.value_and_grad(X, PROBABILITY, **given)[1]
    close(in_form(grad, form)(own(X), own(PROBABILITY)), due)


def test_vmap_and_forward_mode_are_one_call_each():
    def grad(logits):
        return ms.grad(weighed)(logits)

    batch = np.stack([X, -X, 0.5 * X])
    close(ms.vmap(weighed)(own(batch)), [(weighed(own(x))).asnumpy() for x in batch])
    close(ms.vmap(grad)(own(batch)), [numpy_gradient(x) for x in batch])
    value, tangent = ms.jvp(weighed, own(X), own(DIRECTION))
    close(value, weighed(own(X)).asnumpy())
    close(tangent, (numpy_gradient(X) * DIRECTION).sum())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(0, 7), (7,), (2, 7, 3)], ids=str)
def test_any_number_of_positions_along_any_axis(form, shape):
    axis = min(1, len(shape) - 1)
    logits = RNG.normal(size=shape)
    outputs = ("entropy", "prediction", "top_log_prob")

    def stats(logits):
        return unixent.position_stats(logits, outputs=outputs, k=2, axis=axis)

    def grad(logits):
        return ms.grad(total)(logits)

    def total(logits):
        return stats(logits)[FIELDS.index("entropy")].sum()

    got, due = in_form(stats, form)(own(logits)), unixent.position_stats(logits, outputs=outputs, k=2, axis=axis)
    for name in outputs:
        output = got[FIELDS.index(name)].asnumpy()
        np.testing.assert_array_equal(output, getattr(due, name))
        assert output.dtype == getattr(due, name).dtype
    gradient = unixent.position_stats_and_grad(logits, outputs="entropy", axis=axis)[1]
    close(in_form(grad, form)(own(logits)), gradient)


@pytest.mark.parametrize("form", FORMS)
def test_classes_that_do_not_exist_have_no_part(form):
    wide = np.concatenate([X, np.full((4, 2), np.nan)], axis=1)

    def both(logits):
        return unixent.position_stats_and_grad(logits, own(Y), outputs=("entropy", "top_index"), k=7, num_classes=7)

    (stats, gradient), (due, due_gradient) = in_form(both, form)(own(wide)), both(X)
    np.testing.assert_array_equal(stats[11].asnumpy(), due.top_index.asnumpy())
    close(stats[2], due.entropy.asnumpy())
    close(gradient, np.pad(due_gradient.asnumpy(), ((0, 0), (0, 2))))


@pytest.mark.parametrize("form", FORMS)
def test_errors_are_those_of_an_eager_call(form):
    def stats(**given):
        def value(logits):
            return unixent.position_stats(logits, **given)[1]

        return in_form(value, form)(own(X))

    with pytest.raises(unixent.DTypeError, match="target: expected an array, since outputs has 'log_prob'"):
        stats()
    with pytest.raises(unixent.OptionError, match="outputs: expected one or several"):
        stats(outputs="perplexity")
    with pytest.raises(unixent.OptionError, match="k: expected an int >= 1"):
        stats(outputs="top_index")


def test_a_class_that_cannot_be_read_is_nan():
    selected = np.array([[0, 7], [-1, -100], [0, 0], [1, 2]])

    @ms.jit
    def chosen(logits, selected):
        return unixent.position_stats(logits, outputs="selected_log_prob", selected=selected)[4]

    got = chosen(own(X), own(selected)).asnumpy()
    np.testing.assert_array_equal(np.isnan(got), [[False, True], [True, False], [False, False], [False, False]])
    with pytest.raises(unixent.TargetRangeError, match="selected"):
        unixent.position_stats(own(X), outputs="selected_log_prob", selected=own(selected))


def test_third_derivatives_are_refused():
    def entropy(logits):
        return unixent.position_stats(logits, outputs="entropy").entropy.sum()

    def first(logits):
        return ms.grad(entropy)(logits).sum()

    def second(logits):
        return ms.grad(first)(logits).sum()

    with pytest.raises(NotImplementedError, match="at most two derivatives"):
        ms.grad(second)(own(X))


@pytest.mark.parametrize("form", FORMS)
def test_the_only_class_as_padding_has_0_beside_a_logit_that_is_nan(form):
    def stats(logits, selected):
        return unixent.position_stats(logits, outputs="selected_log_prob", selected=selected, ignore_index=0)

    got = in_form(stats, form)(own(np.array([[np.nan], [1.0]])), own(np.zeros((2, 2), np.int64)))
    assert got[FIELDS.index("selected_log_prob")].asnumpy().tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("form", FORMS)
def test_the_only_class_may_be_ignore_index_where_there_is_no_target(form):
    def stats(logits):
        return unixent.position_stats(logits, outputs=("entropy", "max_prob"), ignore_index=0)

    got = in_form(stats, form)(own(np.array([[3.0], [-2.0]])))
    assert got[FIELDS.index("entropy")].asnumpy().tolist() == [0, 0]
    assert got[FIELDS.index("max_prob")].asnumpy().tolist() == [1, 1]
