"""Every derivative MindSpore can take, eagerly and compiled, against differences of the NumPy backend's gradients."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import unixent
import unixent_mindspore  # noqa: F401 - tells MindSpore's compiler of unixent

RNG = np.random.default_rng(11)
SHAPE, STEP = (4, 7), 1e-5
LOGITS, DIRECTION = RNG.normal(size=SHAPE), RNG.normal(size=SHAPE)
INDEX, PROBABILITY = np.array([0, 6, -100, 3]), RNG.dirichlet(np.ones(7), size=4)
WEIGHT, MASK = RNG.uniform(0.5, 2, 7), np.array([1, 0.5, 1, 2])
RECIPES = {
    "plain": (INDEX, {}),
    "none": (INDEX, {"reduction": "none"}),
    "sum and normalizer": (INDEX, {"normalizer": 3.0, "z_loss": 0.1}),
    "every option": (INDEX, {"weight": WEIGHT, "mask": MASK, "label_smoothing": 0.1, "z_loss": 0.02, "softcap": 3.0}),
    "probabilities": (PROBABILITY, {"weight": WEIGHT, "mask": MASK, "label_smoothing": 0.1, "reduction": "sum"}),
    "probabilities, capped": (PROBABILITY, {"softcap": 2.0, "z_loss": 0.1, "reduction": "none"}),
}
FORMS = ["eager", "jit"]


@pytest.fixture(params=RECIPES, ids=str)
def recipe(request):
    target, options = RECIPES[request.param]
    own = {name: ms.Tensor(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}

    def loss(logits, target):
        return unixent.cross_entropy(logits, target, **own).sum()

    return target, options, loss


def in_form(function, form):
    return ms.jit(function) if form == "jit" else function


def gradients(target, options, logits=LOGITS, wrt="logits"):
    return unixent.value_and_grad(logits, target, wrt=wrt, **options)[1]


def expected_hvp(target, options):
    """The Hessian times DIRECTION, by central differences."""
    ahead = gradients(target, options, LOGITS + STEP * DIRECTION)
    return (ahead - gradients(target, options, LOGITS - STEP * DIRECTION)) / (2 * STEP)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_the_numpy_backend(recipe, form):
    target, options, loss = recipe

    def grad(logits, target):
        return ms.grad(loss)(logits, target)

    computed = in_form(grad, form)(ms.Tensor(LOGITS), ms.Tensor(target))
    np.testing.assert_allclose(computed.asnumpy(), gradients(target, options), rtol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_for_probabilities_equal_the_numpy_backend(form):
    target, options = PROBABILITY, {"reduction": "sum"}

    def loss(logits, target):
        return unixent.cross_entropy(logits, target, reduction="sum")

    def grad(logits, target):
        return ms.grad(loss, 1)(logits, target)

    computed = in_form(grad, form)(ms.Tensor(LOGITS), ms.Tensor(target))
    expected = gradients(target, options, wrt="target")
    np.testing.assert_allclose(computed.asnumpy(), expected, rtol=1e-13)


def test_value_and_grad_and_grad_operation_equal_the_numpy_backend():
    def loss(logits, target):
        return unixent.cross_entropy(logits, target)

    inputs = ms.Tensor(LOGITS), ms.Tensor(INDEX)
    value, grad = ms.value_and_grad(loss)(*inputs)
    expected = unixent.value_and_grad(LOGITS, INDEX)
    np.testing.assert_allclose(value.asnumpy(), expected[0], rtol=1e-14)
    np.testing.assert_allclose(grad.asnumpy(), expected[1], rtol=1e-14)
    scaled = ms.ops.GradOperation(sens_param=True)(loss)(*inputs, ms.Tensor(2.5, ms.float64))
    np.testing.assert_allclose(scaled.asnumpy(), 2.5 * expected[1], rtol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_equal_differences(recipe, form):
    target, options, loss = recipe
    direction = ms.Tensor(DIRECTION)

    def along(logits, target):
        return (ms.grad(loss)(logits, target) * direction).sum()

    def hvp(logits, target):
        return ms.grad(along)(logits, target)

    computed = in_form(hvp, form)(ms.Tensor(LOGITS), ms.Tensor(target))
    np.testing.assert_allclose(computed.asnumpy(), expected_hvp(target, options), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_of_a_function_of_the_mean_equal_differences(form):
    """The upstream gradient depends on the logits too: MindSpore alone gives 0 for the Hessian of x.sum() ** 2."""
    target, direction = ms.Tensor(INDEX), ms.Tensor(DIRECTION)

    def square(logits):
        return unixent.cross_entropy(logits, target) ** 2

    def along(logits):
        return (ms.grad(square)(logits) * direction).sum()

    def hvp(logits):
        return ms.grad(along)(logits)

    value, grad = unixent.value_and_grad(LOGITS, INDEX)
    expected = 2 * grad * (grad * DIRECTION).sum() + 2 * value * expected_hvp(INDEX, {})
    computed = in_form(hvp, form)(ms.Tensor(LOGITS))
    np.testing.assert_allclose(computed.asnumpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_mixed_second_derivatives_for_probabilities_equal_the_formula(form):
    """d/dq of <d loss/dx, v> = (1 - s) w (<p, v> - v), per position and unit of mask."""

    def loss(logits, target):
        return unixent.cross_entropy(logits, target, reduction="sum")

    def along(logits, target):
        return (ms.grad(loss)(logits, target) * ms.Tensor(DIRECTION)).sum()

    def hvp(logits, target):
        return ms.grad(along, 1)(logits, target)

    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = (softmax * DIRECTION).sum(1, keepdims=True) - DIRECTION
    computed = in_form(hvp, form)(ms.Tensor(LOGITS), ms.Tensor(PROBABILITY))
    np.testing.assert_allclose(computed.asnumpy(), expected, rtol=1e-12)


def test_third_derivatives_are_refused():
    target = ms.Tensor(INDEX)

    def loss(logits):
        return unixent.cross_entropy(logits, target)

    def first(logits):
        return ms.grad(loss)(logits).sum()

    def second(logits):
        return ms.grad(first)(logits).sum()

    with pytest.raises(NotImplementedError, match="at most two derivatives"):
        ms.grad(second)(ms.Tensor(LOGITS))


def test_jvp_equals_differences(recipe):
    target, options, _ = recipe
    own = {name: ms.Tensor(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}
    target_ = ms.Tensor(target)

    def loss(logits):
        return unixent.cross_entropy(logits, target_, **own)

    value, tangent = ms.jvp(loss, ms.Tensor(LOGITS), ms.Tensor(DIRECTION))
    ahead = unixent.cross_entropy(LOGITS + STEP * DIRECTION, target, **options)
    behind = unixent.cross_entropy(LOGITS - STEP * DIRECTION, target, **options)
    np.testing.assert_allclose(value.asnumpy(), unixent.cross_entropy(LOGITS, target, **options), rtol=1e-14)
    np.testing.assert_allclose(tangent.asnumpy(), (ahead - behind) / (2 * STEP), rtol=1e-6, atol=1e-9)


def test_vmap_and_vmap_of_grad_equal_one_call_each():
    def loss(logits, target):
        return unixent.cross_entropy(logits, target, label_smoothing=0.1)

    def grad(logits, target):
        return ms.grad(loss)(logits, target)

    rng = np.random.default_rng(12)
    logits, target = rng.normal(size=(3, *SHAPE)), rng.integers(7, size=(3, 4))
    pairs = [unixent.value_and_grad(x, y, label_smoothing=0.1) for x, y in zip(logits, target, strict=True)]
    inputs = ms.Tensor(logits), ms.Tensor(target)
    np.testing.assert_allclose(ms.vmap(loss)(*inputs).asnumpy(), [value for value, _ in pairs], rtol=1e-13)
    np.testing.assert_allclose(ms.vmap(grad)(*inputs).asnumpy(), [grad for _, grad in pairs], rtol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_value_and_grad_is_differentiable(form):
    """`unixent.value_and_grad` under `mindspore.grad` gives a gradient that depends on the logits."""
    target = ms.Tensor(INDEX)

    def along(logits):
        return (unixent.value_and_grad(logits, target)[1] * ms.Tensor(DIRECTION)).sum()

    def hvp(logits):
        return ms.grad(along)(logits)

    computed = in_form(hvp, form)(ms.Tensor(LOGITS))
    np.testing.assert_allclose(computed.asnumpy(), expected_hvp(INDEX, {}), rtol=1e-6, atol=1e-9)


def test_weight_as_a_parameter_that_is_trained_is_refused():
    weight = ms.Parameter(ms.Tensor(WEIGHT), name="weight")

    def loss(logits, target):
        return unixent.cross_entropy(logits, target, weight=weight)

    with pytest.raises(unixent.OptionError, match="weight: expected a constant"):
        loss(ms.Tensor(LOGITS), ms.Tensor(INDEX))
