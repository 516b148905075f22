"""Sparse targets in MindSpore: both forms, eagerly and compiled, against the NumPy backend and differences of its
gradients."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import unixent
import unixent_mindspore
from unixent import PositionStats, TopK

CASES = [(tail, log) for tail in ("drop", "renormalize", "bucket") for log in (False, True)]
FORMS = ["eager", "jit"]
RNG = np.random.default_rng(7)
X, Q = 2 * RNG.normal(size=(5, 7)), RNG.random((5, 3)) / 3
IDS = np.argsort(RNG.random((5, 7)))[:, :3]
IDS[1] = IDS[1, 0]
IDS[2, 1:] = -100
MASK, WEIGHT = np.array([1.0, 0.5, 1.0, 0.0, 1.0]), RNG.random(7) + 0.5
HIDDEN, CLASSIFIER, BIAS = (RNG.normal(size=shape) for shape in ((5, 4), (7, 4), (7,)))
OPTIONS = {"softcap": 4.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.05}
UP, STEP = RNG.normal(size=5), 1e-5


def own(array):
    return ms.Tensor(array)


def in_form(function, form):
    return ms.jit(function) if form == "jit" else function


def close(got, due, rtol=1e-12, atol=0.0):
    np.testing.assert_allclose(got.asnumpy(), due, rtol=rtol, atol=atol)


def directions(*arrays):
    return tuple(np.cos(1 + 3 * each) for each in arrays)


def differences(gradients, arrays, along):
    """How gradients change along the directions."""
    ahead, behind = (
        gradients(*[each + sign * STEP * step for each, step in zip(arrays, along, strict=True)]) for sign in (1, -1)
    )
    return [(a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True)]


def of_logits(tail, log, reduction):
    """Loss of logits and teacher, whose upstream gradient is not constant, its gradients by the NumPy backend, and both
    arrays."""
    options = {"mask": own(MASK), "weight": own(WEIGHT), "reduction": reduction, **OPTIONS}
    host_options = {**options, "mask": MASK, "weight": WEIGHT, "wrt": ("logits", "target")}

    def loss(x, q):
        target = TopK(own(IDS), log_probs=q, tail=tail) if log else TopK(own(IDS), probs=q, tail=tail)
        each = unixent.cross_entropy(x, target, **options)
        return (each * own(UP)).sum() if reduction == "none" else each * each

    def gradients(x, q):
        target = TopK(IDS, log_probs=q, tail=tail) if log else TopK(IDS, probs=q, tail=tail)
        if reduction == "none":
            return unixent.value_and_grad(x, target, grad_output=UP, **host_options)[1]
        value, grads = unixent.value_and_grad(x, target, **host_options)
        return tuple(2 * value * each for each in grads)

    return loss, gradients, (X, np.log(Q) if log else Q)


def of_hidden(tail, log):
    """The same of the fused linear form."""
    names = ("hidden", "classifier", "bias", "target")

    def loss(hidden, classifier, bias, q):
        target = TopK(own(IDS), log_probs=q, tail=tail) if log else TopK(own(IDS), probs=q, tail=tail)
        each = unixent.linear_cross_entropy(
            hidden, classifier, target, bias=bias, mask=own(MASK), weight=own(WEIGHT), chunk=2, **OPTIONS
        )
        return each * each

    def gradients(hidden, classifier, bias, q):
        target = TopK(IDS, log_probs=q, tail=tail) if log else TopK(IDS, probs=q, tail=tail)
        value, grads = unixent.linear_value_and_grad(
            hidden, classifier, target, bias=bias, mask=MASK, weight=WEIGHT, chunk=2, wrt=names, **OPTIONS
        )
        return tuple(2 * value * each for each in grads)

    return loss, gradients, (HIDDEN, CLASSIFIER, BIAS, np.log(Q) if log else Q)


def orders_of_two(loss, steps):
    """Both derivatives of a loss of two arrays, the second along ``steps``. MindSpore differentiates no ``*arrays``."""

    def first(x, q):
        return ms.grad(loss, (0, 1))(x, q)

    def moved(x, q):
        grads = ms.grad(loss, (0, 1))(x, q)
        return (grads[0] * steps[0]).sum() + (grads[1] * steps[1]).sum()

    def second(x, q):
        return ms.grad(moved, (0, 1))(x, q)

    return first, second


def orders_of_four(loss, steps):
    """The same of four."""

    def first(hidden, classifier, bias, q):
        return ms.grad(loss, (0, 1, 2, 3))(hidden, classifier, bias, q)

    def moved(hidden, classifier, bias, q):
        grads = ms.grad(loss, (0, 1, 2, 3))(hidden, classifier, bias, q)
        of_scores = (grads[0] * steps[0]).sum() + (grads[1] * steps[1]).sum() + (grads[2] * steps[2]).sum()
        return of_scores + (grads[3] * steps[3]).sum()

    def second(hidden, classifier, bias, q):
        return ms.grad(moved, (0, 1, 2, 3))(hidden, classifier, bias, q)

    return first, second


def check_both_orders(loss, gradients, arrays, form):
    along, given = directions(*arrays), tuple(map(own, arrays))
    first, second = (orders_of_two if len(arrays) == 2 else orders_of_four)(loss, tuple(map(own, along)))
    for got, due in zip(in_form(first, form)(*given), gradients(*arrays), strict=True):
        close(got, due, atol=1e-13)
    for got, due in zip(in_form(second, form)(*given), differences(gradients, arrays, along), strict=True):
        close(got, due, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("tail", "log"), CASES)
def test_derivatives_of_both_orders_for_logits_and_teacher(tail, log, form):
    check_both_orders(*of_logits(tail, log, "mean" if log else "none"), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("tail", "log"), [("drop", True), ("renormalize", False), ("bucket", True)])
def test_the_linear_form_has_derivatives_of_both_orders(tail, log, form):
    check_both_orders(*of_hidden(tail, log), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_values_and_gradients_of_every_dtype_are_the_numpy_backends(form, dtype):
    def both(x, q):
        target = TopK(own(IDS), probs=q, tail="bucket")
        return unixent.value_and_grad(x, target, wrt=("logits", "target"), grad_output=own(UP), reduction="none")

    x, q = (own(each.astype(np.float32)).astype(getattr(ms, dtype)) for each in (X, Q))
    value, grads = in_form(both, form)(x, q)
    wide = [each.astype(ms.float32).asnumpy() for each in (x, q)]
    options = {"wrt": ("logits", "target"), "grad_output": UP, "reduction": "none"}
    due, due_grads = unixent.value_and_grad(wide[0], TopK(IDS, probs=wide[1], tail="bucket"), **options)
    for got, expected in zip((value, *grads), (due, *due_grads), strict=True):
        assert got.dtype == getattr(ms, dtype)
        np.testing.assert_array_equal(
            got.astype(ms.float32).asnumpy(), own(expected).astype(got.dtype).astype(ms.float32).asnumpy()
        )


def test_vmap_and_forward_mode_are_one_call_each():
    loss, gradients, (x, q) = of_logits("bucket", False, "none")
    close(
        ms.vmap(loss)(own(np.stack([x, -x])), own(np.stack([q, q]))),
        [loss(own(each), own(q)).asnumpy() for each in (x, -x)],
    )
    along = directions(x, q)
    value, tangent = ms.jvp(loss, (own(x), own(q)), tuple(map(own, along)))
    close(value, loss(own(x), own(q)).asnumpy())
    close(tangent, sum((grad * step).sum() for grad, step in zip(gradients(x, q), along, strict=True)))


@pytest.mark.parametrize("form", FORMS)
def test_terms_and_the_framework_s_own_class_take_them(form):
    loss = unixent_mindspore.CrossEntropyLoss(label_smoothing=0.1, dtype="float64")

    def of_class(x, q, mask):
        return loss(x, TopK(own(IDS), probs=q, tail="renormalize"), mask)

    def terms(x, q, mask):
        return unixent.loss_terms(x, TopK(own(IDS), probs=q, tail="renormalize"), mask=mask)

    given, target = (own(X), own(Q), own(MASK)), TopK(IDS, probs=Q, tail="renormalize")
    close(in_form(of_class, form)(*given), unixent.cross_entropy(X, target, mask=MASK, label_smoothing=0.1))
    for got, due in zip(in_form(terms, form)(*given), unixent.loss_terms(X, target, mask=MASK), strict=True):
        close(got, due)


@pytest.mark.parametrize("form", FORMS)
def test_they_are_the_loss_among_the_outputs_of_positions(form):
    def weighed(x, q):
        target = TopK(own(IDS), probs=q, tail="bucket")
        stats = unixent.position_stats(x, target, outputs=("entropy", "loss", "prediction"), mask=own(MASK))
        return (stats[0] * own(UP)).sum() + (stats[2] * stats[2]).sum()

    def gradients(x, q):
        target, entropy = TopK(IDS, probs=q, tail="bucket"), unixent.position_stats(x, outputs="entropy", mask=MASK)
        up = PositionStats(loss=UP, entropy=2 * entropy.entropy)
        options = {"outputs": ("loss", "entropy"), "mask": MASK, "grad_output": up}
        of_target = unixent.value_and_grad(x, target, mask=MASK, reduction="none", grad_output=UP, wrt="target")[1]
        return unixent.position_stats_and_grad(x, target, **options)[1], of_target

    check_both_orders(weighed, gradients, (X, Q), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outputs", ["loss", ("log_sum_sq", "loss"), ("loss", "selected_log_prob", "entropy")])
def test_gradients_of_positions_by_a_function_are_those_of_numpy(form, outputs):
    selected = IDS if "selected_log_prob" in outputs else None

    def both(hidden, classifier, q, selected):
        target = TopK(own(IDS), log_probs=q, tail="bucket")
        options = {"outputs": outputs, "selected": selected, "grad_output": PositionStats(loss=own(UP))}
        return unixent.linear_position_stats_and_grad(hidden, classifier, target, **options)

    given = own(HIDDEN), own(CLASSIFIER), own(np.log(Q)), None if selected is None else own(IDS)
    stats, grads = in_form(both, form)(*given)
    options = {"outputs": outputs, "selected": selected, "grad_output": PositionStats(loss=UP)}
    target = TopK(IDS, log_probs=np.log(Q), tail="bucket")
    due, due_grads = unixent.linear_position_stats_and_grad(HIDDEN, CLASSIFIER, target, **options)
    for got, expected in zip(stats, due, strict=True):
        if expected is not None:
            close(got, expected)
    for got, expected in zip(grads, due_grads, strict=True):
        close(got, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(0, 7), (7,), (2, 7, 3)], ids=str)
def test_any_number_of_positions_along_any_axis(form, shape):
    axis, positions = min(1, len(shape) - 1), shape[:-1] if len(shape) < 3 else (2, 3)
    x, ids = RNG.normal(size=shape), RNG.integers(0, 7, size=(*positions, 2))
    q, along = RNG.random(ids.shape) / 2, RNG.normal(size=shape)

    def loss(x, q):
        return unixent.cross_entropy(x, TopK(own(ids), probs=q, tail="bucket"), axis=axis, reduction="sum")

    def first(x, q):
        return ms.grad(loss)(x, q)

    def moved(x, q):
        return (ms.grad(loss)(x, q) * own(along)).sum()

    def second(x, q):
        return ms.grad(moved)(x, q)

    def gradient(x):
        target = TopK(ids, probs=q, tail="bucket")
        return (unixent.value_and_grad(x, target, axis=axis, reduction="sum")[1],)

    close(in_form(first, form)(own(x), own(q)), gradient(x)[0])
    close(in_form(second, form)(own(x), own(q)), differences(gradient, (x,), (along,))[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_classes_that_do_not_exist_have_no_part(form):
    wide = np.concatenate([X, np.full((5, 2), np.nan)], axis=1)

    def both(x):
        target = TopK(own(IDS), probs=own(Q), tail="bucket")
        return unixent.value_and_grad(x, target, num_classes=7, label_smoothing=0.1)

    value, grad = in_form(both, form)(own(wide))
    due, due_grad = unixent.value_and_grad(X, TopK(IDS, probs=Q, tail="bucket"), label_smoothing=0.1)
    close(value, due)
    close(grad, np.pad(due_grad, ((0, 0), (0, 2))))


def test_an_id_that_is_no_class_is_refused_where_it_can_be_read_and_nan_elsewhere():
    ids = IDS.copy()
    ids[0, 2] = 7

    def loss(x):
        return unixent.cross_entropy(x, TopK(own(ids), probs=own(Q)), reduction="none")

    def total(x):
        return loss(x).sum()

    def first(x):
        return ms.grad(total)(x)

    def moved(x):
        return (ms.grad(total)(x) * own(X)).sum()

    def second(x):
        return ms.grad(moved)(x)

    with pytest.raises(unixent.TargetRangeError, match=r"target.ids: expected class indices in \[0, 7\)"):
        loss(own(X))
    assert np.isnan(ms.jit(loss)(own(X)).asnumpy()).tolist() == [True, False, False, False, False]
    for derivative in (first, second):
        rows = np.isnan(ms.jit(derivative)(own(X)).asnumpy())
        assert rows.all(-1).tolist() == rows.any(-1).tolist() == [True, False, False, False, False]


def test_a_target_that_is_a_constant_of_compiled_code_is_the_one_that_was_passed():
    def loss(x, target):
        return unixent.cross_entropy(x, target)

    compiled = ms.jit(loss)
    for q in (Q, Q / 2):
        target = TopK(own(IDS), probs=own(q), tail="bucket")
        close(compiled(own(X), target), unixent.cross_entropy(X, TopK(IDS, probs=q, tail="bucket")))
        close(compiled(own(X), TopK(IDS.tolist(), probs=q, tail="bucket")), compiled(own(X), target).asnumpy())


@pytest.mark.parametrize("form", FORMS)
def test_errors_are_those_of_an_eager_call(form):
    def refused(error, match, ids=IDS, **given):
        def loss(x, ids):
            return unixent.cross_entropy(x, TopK(ids, **given))

        with pytest.raises(error, match=match):
            in_form(loss, form)(own(X), own(ids))

    refused(unixent.OptionError, "tail: expected one of 'drop', 'renormalize', 'bucket'", probs=own(Q), tail="no")
    refused(unixent.DTypeError, "expected either probs or log_probs; got both", probs=own(Q), log_probs=own(Q))
    refused(unixent.ShapeError, r"target\.ids: expected class indices \(integer\)", ids=IDS[:4], probs=own(Q))
    refused(unixent.DTypeError, r"target\.log_probs: expected a floating array", log_probs=own(IDS))


@pytest.mark.parametrize(("tail", "log"), CASES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_the_entropy_of_a_teacher_is_the_numpy_backends(tail, log, dtype):
    q = own((np.log(Q) if log else Q).astype(np.float32)).astype(getattr(ms, dtype))
    wide = (q.astype(ms.float32) if dtype == "bfloat16" else q).asnumpy()
    name = "log_probs" if log else "probs"
    got = unixent.entropy_of(TopK(own(IDS), **{name: q}, tail=tail))
    due = own(unixent.entropy_of(TopK(IDS, **{name: wide}, tail=tail))).astype(q.dtype)
    assert got.dtype == q.dtype
    np.testing.assert_array_equal(got.astype(ms.float64).asnumpy(), due.astype(ms.float64).asnumpy())


def test_the_entropy_of_probabilities_is_the_numpy_backends_and_refused_in_compiled_code():
    q = RNG.dirichlet(np.ones(7), size=4)
    close(unixent.entropy_of(own(q)), unixent.entropy_of(q))
    close(unixent.entropy_of(own(q.T), axis=0), unixent.entropy_of(q))

    @ms.jit
    def entropy(q):
        return unixent.entropy_of(q)

    with pytest.raises(unixent.BackendError, match="entropy_of: expected an eager call with the mindspore backend"):
        entropy(own(q))


def test_third_derivatives_are_refused():
    loss, _, (x, q) = of_logits("bucket", False, "mean")

    def first(x):
        return ms.grad(loss)(x, own(q)).sum()

    def second(x):
        return ms.grad(first)(x).sum()

    with pytest.raises(NotImplementedError, match="at most two derivatives"):
        ms.grad(second)(own(x))
