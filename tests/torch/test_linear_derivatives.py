"""What torch's own chunked form refuses or gets wrong: derivatives of any order, every transform, the compiler."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import func
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import unixent

unixent.get_backend("torch")

N, D, C = 7, 3, 5
GENERATOR = torch.Generator().manual_seed(4)


def randn(*shape, generator=None):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


INDEX = torch.randint(C, (N,), generator=GENERATOR)
INDEX[2] = -100
ARGUMENTS = (randn(N, D, generator=GENERATOR), randn(C, D, generator=GENERATOR), randn(C, generator=GENERATOR))
PROBABILITIES = torch.rand(N, C, generator=GENERATOR, dtype=torch.float64)
CASES = {
    "index": (INDEX, {}),
    "none": (INDEX, {"reduction": "none", "z_loss": 0.1, "softcap": 2.0}),
    "probability": (PROBABILITIES, {"weight": torch.rand(C, generator=GENERATOR)}),
    "mask": (INDEX, {"label_smoothing": 0.1, "mask": torch.tensor([1, 0, 1, 1, 0.5, 1, 0])}),
    "probability-none": (PROBABILITIES, {"reduction": "none"}),
}


@pytest.fixture(params=CASES)
def case(request):
    """The fused and the unfused form as functions of hidden, classifier, bias and, if any, probabilities; and those."""
    target, options = CASES[request.param]

    def fused(hidden, classifier, bias, target=target):
        return unixent.linear_cross_entropy(hidden, classifier, target, bias=bias, chunk=3, **options)

    def plain(hidden, classifier, bias, target=target):
        return unixent.cross_entropy(F.linear(hidden, classifier, bias), target, **options)

    return fused, plain, ARGUMENTS if target is INDEX else (*ARGUMENTS, PROBABILITIES)


def leaves(arguments):
    return tuple(x.clone().requires_grad_() for x in arguments)


def equal(actual, expected):
    for got, other in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        torch.testing.assert_close(got, other, rtol=1e-9, atol=1e-11)


def test_first_derivatives_match_finite_differences(case):
    fused, _, arguments = case
    options = dict.fromkeys(("check_forward_ad", "check_batched_grad", "check_batched_forward_grad"), True)
    assert gradcheck(fused, leaves(arguments), fast_mode=True, **options)


def test_second_derivatives_match_finite_differences(case):
    fused, _, arguments = case
    assert gradgradcheck(fused, leaves(arguments), fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize(
    "name", ["grad", "jacrev", "jacfwd", "hessian", "jacrev-jacrev", "jacrev-jacfwd", "jacfwd-jacfwd"]
)
def test_transforms_agree_with_the_unfused_form(case, name):
    fused, plain, arguments = case
    every = tuple(range(len(arguments)))

    def total(function):
        return lambda *values: function(*values).sum()

    transforms = {
        "grad": lambda f: func.grad(total(f), every),
        "jacrev": lambda f: func.jacrev(f, every),
        "jacfwd": lambda f: func.jacfwd(f, every),
        "hessian": lambda f: func.hessian(total(f), every),
        "jacrev-jacrev": lambda f: func.jacrev(func.jacrev(total(f), (0, 1)), (0, 1)),
        "jacrev-jacfwd": lambda f: func.jacrev(func.jacfwd(total(f), (0, 1)), (0, 1)),
        "jacfwd-jacfwd": lambda f: func.jacfwd(func.jacfwd(total(f), (0, 1)), (0, 1)),
    }
    equal(transforms[name](fused)(*arguments), transforms[name](plain)(*arguments))


def test_forward_mode_agrees_with_the_unfused_form(case):
    fused, plain, arguments = case

    def tangent(function):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, torch.ones_like(x)) for x in arguments]
            return forward_ad.unpack_dual(function(*duals)).tangent

    assert tangent(fused).abs().sum() > 0
    equal(tangent(fused), tangent(plain))


@pytest.mark.parametrize("batched", [(0,), (1,), (0, 1), (2,)])
def test_vmap_agrees_with_the_unfused_form(case, batched):
    fused, plain, arguments = case
    dims = tuple(0 if i in batched else None for i in range(len(arguments)))
    stacked = [randn(4, *x.shape) if i in batched else x for i, x in enumerate(arguments)]

    def each(function):
        gradient = func.grad(lambda *values: function(*values).sum(), (0, 1))
        return func.vmap(function, dims)(*stacked), func.vmap(gradient, dims)(*stacked)

    equal(each(fused), each(plain))


def test_vmap_over_class_weights_agrees_with_the_unfused_form():
    weights = torch.rand(4, C, dtype=torch.float64)

    def each(function):
        return func.vmap(func.grad(function, 1), (None, None, 0))(*ARGUMENTS[:2], weights)

    equal(
        each(lambda h, w, weight: unixent.linear_cross_entropy(h, w, INDEX, weight=weight)),
        each(lambda h, w, weight: unixent.cross_entropy(h @ w.T, INDEX, weight=weight)),
    )


def test_an_inactive_position_contributes_to_no_derivative():
    hidden = ARGUMENTS[0].clone()
    hidden[2] = torch.nan

    def loss(hidden, classifier, bias):
        return unixent.linear_cross_entropy(hidden, classifier, INDEX, bias=bias, chunk=3)

    for transform in (func.grad, func.hessian, func.jacfwd):
        equal(transform(loss, (0, 1))(hidden, *ARGUMENTS[1:]), transform(loss, (0, 1))(*ARGUMENTS))


def test_the_gradient_under_torch_func_holds_no_logits():
    # The transforms record every plain operation; chunks of 64 rows of 2000 classes are 1 MB, all of the logits 16 MB.
    hidden, classifier = randn(1024, 4), randn(2000, 4)
    target = torch.randint(2000, (1024,))
    sizes = []

    def pack(x):
        sizes.append(x.numel())
        return x

    def loss(hidden, classifier):
        return unixent.linear_cross_entropy(hidden, classifier, target, chunk=64)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        a, b = hidden.requires_grad_(), classifier.requires_grad_()
        grads = torch.autograd.grad(loss(a, b), (a, b), create_graph=True)
        assert grads[0].requires_grad
    assert max(sizes) <= classifier.numel()


def compiled(function, backend="aot_eager"):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize("name", CASES)
def test_compiles_as_one_graph(name):
    target, options = CASES[name]

    def loss(hidden, classifier, bias, target):
        return unixent.linear_cross_entropy(hidden, classifier, target, bias=bias, chunk=3, **options)

    traced = compiled(loss)
    values = leaves((*ARGUMENTS, PROBABILITIES)) if target is PROBABILITIES else (*leaves(ARGUMENTS), target)
    wrt = [x for x in values if x.requires_grad]
    actual, expected = traced(*values), loss(*values)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    upstream = torch.randn_like(expected)
    equal(torch.autograd.grad(actual, wrt, upstream), torch.autograd.grad(expected, wrt, upstream))
    with torch.no_grad():
        torch.testing.assert_close(traced(*values), expected.detach(), rtol=0, atol=0)


def test_compiles_once_for_any_number_of_positions():
    hidden, classifier, _ = leaves(ARGUMENTS)
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    traced = compiled(lambda h, w, y: unixent.linear_cross_entropy(h, w, y, chunk=3), count)
    for positions in (4, 5, 6, 7):
        actual = traced(hidden[:positions], classifier, INDEX[:positions])
        equal(actual, unixent.linear_cross_entropy(hidden[:positions], classifier, INDEX[:positions]))
    assert count.frame_count <= 2  # once for the first shape, once for every other


def test_generated_code_agrees_with_eager():
    hidden, classifier, bias = leaves(x.float() for x in ARGUMENTS)

    def loss(hidden, classifier, bias):
        return 2 * unixent.linear_cross_entropy(hidden * 3, classifier, INDEX, bias=bias).square()

    actual, expected = compiled(loss, "inductor")(hidden, classifier, bias), loss(hidden, classifier, bias)
    torch.testing.assert_close(actual, expected)
    wrt = (hidden, classifier, bias)
    torch.testing.assert_close(torch.autograd.grad(actual, wrt), torch.autograd.grad(expected, wrt))


@pytest.mark.parametrize("transform", [func.grad, func.hessian, func.jacfwd])
def test_compiled_transforms_agree_with_eager(transform):
    def loss(hidden, classifier, bias):
        return unixent.linear_cross_entropy(hidden, classifier, INDEX, bias=bias, chunk=3)

    equal(compiled(transform(loss))(*ARGUMENTS), transform(loss)(*ARGUMENTS))


def test_compiled_value_and_grad_agrees_with_eager():
    def both(hidden, classifier, bias):
        return unixent.linear_value_and_grad(hidden, classifier, INDEX, bias=bias, chunk=3)

    equal(compiled(both)(*ARGUMENTS), both(*ARGUMENTS))


AUTOCAST = {
    "jvp": lambda f: lambda x: func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "hessian": func.hessian,
    "jacfwd of jacfwd": lambda f: func.jacfwd(func.jacfwd(f)),
    "functionalize": func.functionalize,
    "double backward": lambda f: lambda x: torch.autograd.functional.hessian(f, x),
}


@pytest.mark.parametrize("transform", AUTOCAST.values(), ids=AUTOCAST)
def test_autocast_rounds_what_is_multiplied_and_no_logits_or_derivatives(transform):
    hidden, classifier, _ = (x.bfloat16() for x in ARGUMENTS)

    def loss(dtype):
        return lambda x: unixent.linear_cross_entropy(x, classifier.to(dtype), INDEX)

    due = transform(loss(torch.float64))(hidden.double()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = transform(loss(torch.float32))(hidden.float())
    torch.testing.assert_close(got, due, rtol=1e-5, atol=1e-6)


def test_hidden_states_may_be_the_classifier_of_a_compiled_loss():
    x = ARGUMENTS[0].detach().requires_grad_()

    def loss(x):
        return unixent.linear_cross_entropy(x, x, torch.arange(len(x)))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(loss(x), x))


def test_the_operator_passes_opcheck():
    hidden, classifier, bias = copy.deepcopy(ARGUMENTS)
    count, static = torch.ones((), dtype=torch.float64), (torch.float64, 0.1, 0.0, None, 0.7, True, 0, 0.0, 3, None)
    torch.library.opcheck(
        torch.ops.unixent.linear_cross_entropy.default,
        (hidden, classifier, bias, INDEX.clamp(min=0), None, None, count, None, *static, "hidden bias"),
    )
