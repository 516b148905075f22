"""What compiled code adds: the same errors while compiling, NaN where values can't be read, Python arguments, modes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

import unixent
import unixent_mindspore  # noqa: F401 - tells MindSpore's compiler of unixent

LOGITS = np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32)
INDEX = np.array([0, 4, 2, 2], np.int32)


def compiled(**options):
    @ms.jit
    def loss(logits, target):
        return unixent.cross_entropy(logits, target, **options)

    return loss


@pytest.mark.parametrize(
    ("error", "text", "options", "shape"),
    [
        (unixent.ShapeError, "target: expected class indices", {}, (3,)),
        (unixent.OptionError, "label_smoothing: expected a float", {"label_smoothing": 2.0}, (4,)),
        (unixent.OptionError, "reduction: expected one of", {"reduction": "median"}, (4,)),
        (unixent.BackendError, "backend: expected None or 'mindspore'", {"backend": "torch"}, (4,)),
    ],
)
def test_errors_while_compiling_are_those_of_an_eager_call(error, text, options, shape):
    with pytest.raises(error, match=text):
        compiled(**options)(ms.Tensor(LOGITS), ms.Tensor(np.zeros(shape, np.int32)))
    assert not Path("rank_0").exists()


def test_a_shape_that_is_not_known_while_compiling_is_refused_by_name():
    """MindSpore 2.10 runs no Python callback in a graph of dynamic shapes."""
    loss = ms.jit(unixent.cross_entropy, dynamic=1)
    for count in (4, 3):
        loss(ms.Tensor(LOGITS[:count]), ms.Tensor(INDEX[:count]))
    with pytest.raises(unixent.ShapeError, match=r"logits: expected a shape that is known .*; got \(None, None\)"):
        loss(ms.Tensor(LOGITS[:2]), ms.Tensor(INDEX[:2]))


def test_hidden_states_of_width_0_are_refused_by_name():
    empty = ms.Tensor(np.zeros((4, 0), np.float32)), ms.Tensor(np.zeros((5, 0), np.float32)), ms.Tensor(INDEX)
    np.testing.assert_allclose(unixent.linear_cross_entropy(*empty).asnumpy(), np.log(5), rtol=1e-6)
    with pytest.raises(unixent.ShapeError, match=r"hidden: expected at least 1 column .*; got shape \(4, 0\)"):
        ms.jit(unixent.linear_cross_entropy)(*empty)


@pytest.mark.parametrize("name", ["softcap", "z_loss", "label_smoothing", "ignore_index"])
def test_a_tensor_as_an_option_is_refused(name):
    @ms.jit
    def loss(logits, value):
        return unixent.cross_entropy(logits, [0, 4, 2, 2], **{name: value})

    value = ms.Tensor(1, ms.int32 if name == "ignore_index" else ms.float32)
    with pytest.raises(unixent.OptionError, match=f"{name}: expected a constant of Python; got a tensor"):
        loss(ms.Tensor(LOGITS), value)


def test_a_list_that_holds_tensors_is_refused():
    @ms.jit
    def loss(logits, target):
        return unixent.cross_entropy(logits, [target[0], target[1], target[2], target[3]])

    with pytest.raises(unixent.DTypeError, match=r"target: .* got a list that holds a mindspore"):
        loss(ms.Tensor(LOGITS), ms.Tensor(INDEX))


def test_options_beyond_float32_are_right_or_refused_by_name():
    """MindSpore's compiler keeps a Python float as a float32; the options of a module stay as they are."""
    for softcap in (1e300, 1e-50):
        module = unixent.CrossEntropyLoss(softcap=softcap)

        @ms.jit
        def of_module(logits, target, module=module):
            return module(logits, target)

        expected = unixent.cross_entropy(LOGITS, INDEX, softcap=softcap)
        computed = of_module(ms.Tensor(LOGITS), ms.Tensor(INDEX))
        np.testing.assert_allclose(computed.asnumpy(), expected, rtol=1e-6)
        with pytest.raises(unixent.OptionError, match="softcap: expected a number that float32 holds"):
            compiled(softcap=softcap)(ms.Tensor(LOGITS), ms.Tensor(INDEX))


def test_a_normalizer_may_change_between_calls():
    @ms.jit
    def both(logits, target, normalizer):
        return unixent.value_and_grad(logits, target, normalizer=normalizer)

    for value in (2.0, 3, ms.Tensor(4.0, ms.float32), ms.Tensor(5.0, ms.float32), ms.Tensor(1e-50, ms.float64)):
        loss, grad = both(ms.Tensor(LOGITS), ms.Tensor(INDEX), value)
        expected = unixent.value_and_grad(LOGITS, INDEX, normalizer=float(value))
        np.testing.assert_allclose(loss.asnumpy(), expected[0], rtol=1e-6)
        np.testing.assert_allclose(grad.asnumpy(), expected[1], rtol=1e-6)


def test_unknown_keywords_are_refused_while_compiling():
    with pytest.raises(TypeError, match="unexpected keyword argument 'label_smoothin'"):
        compiled(label_smoothin=0.1)(ms.Tensor(LOGITS), ms.Tensor(INDEX))
    assert not Path("rank_0").exists()


def test_a_public_function_is_compiled_by_itself():
    computed = ms.jit(unixent.cross_entropy)(ms.Tensor(LOGITS), ms.Tensor(INDEX))
    np.testing.assert_allclose(computed.asnumpy(), unixent.cross_entropy(LOGITS, INDEX), rtol=1e-6)


def test_an_index_out_of_range_is_nan_in_value_and_gradient():
    target = ms.Tensor(np.array([0, 5, -1, 2], np.int32))

    @ms.jit
    def both(logits):
        return unixent.value_and_grad(logits, target, reduction="none")

    loss, gradient = (computed.asnumpy() for computed in both(ms.Tensor(LOGITS)))
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(gradient).all(1), [False, True, True, False])


def test_lists_numbers_and_numpy_arrays_are_taken_beside_tensors():
    weight = np.linspace(1, 2, 5)

    @ms.jit
    def loss(logits):
        return unixent.cross_entropy(logits, [0, 4, 2, 2], weight=[1, 1.25, 1.5, 1.75, 2], normalizer=3)

    expected = unixent.cross_entropy(LOGITS, INDEX, weight=weight, normalizer=3)
    np.testing.assert_allclose(loss(ms.Tensor(LOGITS)).asnumpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mask", [[[1.0], [0.5]], [[1, 0, 1]], [[True], [False]]], ids=str)
def test_a_mask_of_size_1_along_an_axis_holds_for_all_of_it(mask, reduction):
    rng = np.random.default_rng(6)
    hidden, classifier, target = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 4)), rng.integers(5, size=(2, 3))
    logits, mask, options = hidden @ classifier.T, np.array(mask), {"reduction": reduction}
    own = ms.Tensor(mask)

    def grad(logits):
        return unixent.value_and_grad(logits, ms.Tensor(target), mask=own, **options)[1]

    @ms.jit
    def derivatives(logits, hidden, classifier):
        linear = unixent.linear_value_and_grad(hidden, classifier, ms.Tensor(target), mask=own, **options)[1]
        return grad(logits), ms.grad(grad)(logits), *linear

    computed = derivatives(*map(ms.Tensor, (logits, hidden, classifier)))
    full = {"mask": np.broadcast_to(mask, target.shape).copy(), **options}
    _, due = unixent.value_and_grad(logits, target, **full)
    # Rows of the Hessian add up to 0.
    expected = (due, np.zeros_like(due), *unixent.linear_value_and_grad(hidden, classifier, target, **full)[1])
    for got, due in zip(computed, expected, strict=True):
        np.testing.assert_allclose(got.asnumpy(), due, rtol=1e-12, atol=1e-15)


def test_loss_terms_are_a_pair():
    @ms.jit
    def mean(logits, target):
        numerator, denominator = unixent.loss_terms(logits, target)
        return numerator / denominator

    computed = mean(ms.Tensor(LOGITS), ms.Tensor(INDEX)).asnumpy()
    np.testing.assert_allclose(computed, unixent.cross_entropy(LOGITS, INDEX), rtol=1e-6)


@pytest.mark.parametrize("wrt", ["logits", "target", ("target", "logits")], ids=str)
def test_value_and_grad_equals_the_numpy_backend(wrt):
    probabilities = np.random.default_rng(4).dirichlet(np.ones(5), size=4).astype(np.float32)

    @ms.jit
    def both(logits, target, upstream):
        return unixent.value_and_grad(logits, target, grad_output=upstream, wrt=wrt)

    computed = both(ms.Tensor(LOGITS), ms.Tensor(probabilities), ms.Tensor(2.0, ms.float32))[1]
    expected = unixent.value_and_grad(LOGITS, probabilities, grad_output=np.float32(2), wrt=wrt)[1]
    for got, due in zip(*((computed, expected) if isinstance(wrt, tuple) else ((computed,), (expected,))), strict=True):
        np.testing.assert_allclose(got.asnumpy(), due, rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, 3])
def test_linear_value_and_grad_equals_the_numpy_backend(chunk):
    rng = np.random.default_rng(5)
    hidden, classifier, bias = (rng.normal(size=shape) for shape in ((4, 3), (5, 3), (5,)))

    @ms.jit
    def both(hidden, classifier, bias, target):
        return unixent.linear_value_and_grad(hidden, classifier, target, bias=bias, chunk=chunk)

    loss, computed = both(*(ms.Tensor(item) for item in (hidden, classifier, bias, INDEX)))
    value, expected = unixent.linear_value_and_grad(hidden, classifier, INDEX, bias=bias, chunk=chunk)
    np.testing.assert_allclose(loss.asnumpy(), value, rtol=1e-14)
    for got, due in zip(computed, expected, strict=True):
        np.testing.assert_allclose(got.asnumpy(), due, rtol=1e-13)


def test_calls_from_python_in_graph_mode_equal_the_numpy_backend():
    ms.set_context(mode=ms.GRAPH_MODE)
    inputs = ms.Tensor(LOGITS), ms.Tensor(INDEX)
    loss, gradient = unixent.value_and_grad(*inputs)
    expected = unixent.value_and_grad(LOGITS, INDEX)
    np.testing.assert_array_equal(loss.asnumpy(), expected[0])
    np.testing.assert_array_equal(gradient.asnumpy(), expected[1])
    np.testing.assert_array_equal(unixent.cross_entropy(*inputs).asnumpy(), expected[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_targets_that_would_crash_a_gather_raise_eagerly(value):
    for bad in (5, -1, np.iinfo(np.int32).max, np.iinfo(np.int32).min):
        target = np.array([0, 1, 2, bad], np.int32)
        with pytest.raises(unixent.TargetRangeError, match=r"target: .* position \(3,\)"):
            unixent.cross_entropy(ms.Tensor(np.full_like(LOGITS, value)), ms.Tensor(target))


IMPORTS = {
    "mindspore first": "import mindspore as ms, numpy as np, unixent",
    "unixent first": "import unixent, mindspore as ms, numpy as np",
}
FIRST_CALLS = {
    "function": "ms.jit(unixent.cross_entropy)(x, y)",
    "module": "ms.jit(unixent.CrossEntropyLoss())(x, y)",
    "function in a function": "inside(x, y)",
    "module in a function": "around_module(x, y)",
    "module made in a function": "making_module(x, y)",
    "module in a cell": "Network()(x, y)",
    "value_and_grad": "ms.jit(unixent.value_and_grad)(x, y)[0]",
    "linear": "ms.jit(unixent.linear_cross_entropy)(ms.ops.ones((2, 1)), ms.ops.zeros((3, 1)), y)",
    "jvp": "ms.jvp(of_logits, x, x)[0]",
    "grad in graph mode": "graph_mode_grad()",
}
PROGRAM = """
    from pathlib import Path

    x, y = ms.Tensor(np.ones((2, 3), np.float32)), ms.Tensor([0, 1])
    module = unixent.CrossEntropyLoss()

    @ms.jit
    def inside(logits, target):
        return unixent.cross_entropy(logits, target)

    def of_logits(logits):
        return unixent.cross_entropy(logits, y)

    @ms.jit
    def around_module(logits, target):
        return module(logits, target)

    @ms.jit
    def making_module(logits, target):
        return unixent.CrossEntropyLoss()(logits, target)

    class Network(ms.nn.Cell):
        def __init__(self):
            super().__init__()
            self.loss = module

        @ms.jit
        def construct(self, logits, target):
            return self.loss(logits, target)

    def graph_mode_grad():
        ms.set_context(mode=ms.GRAPH_MODE)
        return ms.value_and_grad(unixent.cross_entropy)(x, y)[0]

    loss = {call}
    print(loss.asnumpy().round(4), Path("rank_0").exists())
"""


@pytest.mark.parametrize(
    ("form", "order"),
    # Both orders where the ways into unixent differ; for the others the first call's way is that of a function.
    [(form, order) for form in ("function", "module in a function") for order in IMPORTS]
    + [(form, "unixent first") for form in FIRST_CALLS if form not in ("function", "module in a function")],
)
def test_the_first_call_of_a_process_may_be_a_compiled_one(form, order, tmp_path):
    """With ``import unixent`` alone, before or after MindSpore's; and nothing is left in the working directory."""
    path = tmp_path / "program.py"
    path.write_text(IMPORTS[order] + textwrap.dedent(PROGRAM.replace("{call}", FIRST_CALLS[form])))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.stdout.strip() == "1.0986 False", done.stderr
