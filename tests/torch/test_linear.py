"""The fused linear form on torch: equal to the unfused one in value, gradients and what they cost."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import unixent

N, D, C = 23, 6, 11
GENERATOR = torch.Generator().manual_seed(3)
INDEX = torch.randint(C, (N,), generator=GENERATOR)
INDEX[[2, 9]] = -100
MASK = torch.rand(N, generator=GENERATOR) * (torch.rand(N, generator=GENERATOR) > 0.3)
WEIGHT = torch.rand(C, generator=GENERATOR)
OPTIONS = [
    {},
    {"weight": WEIGHT},
    {"mask": MASK, "normalizer": 7.0},
    {"label_smoothing": 0.2, "weight": WEIGHT, "reduction": "sum"},
    {"z_loss": 0.1, "softcap": 2.0, "mask": MASK},
    {"reduction": "none", "label_smoothing": 0.1},
    {"reduction": "none", "weight": WEIGHT},
    {"mask": torch.zeros(N)},
]


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def operands(linear_operands):
    return partial(linear_operands, N, D, C)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("target_kind", ["index", "probability"])
@pytest.mark.parametrize("chunk", [None, 1, 5, N, 1000])
def test_equals_the_unfused_form_for_any_upstream_gradient(operands, options, target_kind, chunk):
    hidden, classifier, bias = operands()
    target = INDEX if target_kind == "index" else torch.rand(N, C, dtype=torch.float64).requires_grad_()
    leaves = (hidden, classifier, bias) if target_kind == "index" else (hidden, classifier, bias, target)
    fused = unixent.linear_cross_entropy(hidden, classifier, target, bias=bias, chunk=chunk, **options)
    plain = unixent.cross_entropy(F.linear(hidden, classifier, bias), target, **options)
    close = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(fused, plain, **close)
    upstream = torch.randn(fused.shape, dtype=fused.dtype)
    actual = torch.autograd.grad(fused, leaves, upstream)
    torch.testing.assert_close(actual, torch.autograd.grad(plain, leaves, upstream), **close)
    names = ("hidden", "classifier", "bias", "target")[: len(leaves)]
    loss, grads = unixent.linear_value_and_grad(
        hidden, classifier, target, bias=bias, chunk=chunk, grad_output=upstream, wrt=names, **options
    )
    assert not loss.requires_grad
    torch.testing.assert_close((loss, grads), (fused.detach(), actual), **close)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3, 4)])
def test_positions_may_have_any_shape(shape):
    hidden, classifier = randn(*shape, D), randn(C, D)
    target = torch.randint(C, shape)
    loss = unixent.linear_cross_entropy(hidden, classifier, target, reduction="none", chunk=5)
    assert loss.shape == shape
    torch.testing.assert_close(loss, unixent.cross_entropy(hidden @ classifier.T, target, reduction="none"))
    loss.sum().backward()
    assert hidden.grad.shape == hidden.shape


def test_every_layout_is_taken():
    hidden, classifier = randn(D, N).T, randn(D, 2 * C).T[::2]
    assert not classifier.is_contiguous()
    loss = unixent.linear_cross_entropy(hidden, classifier, INDEX, chunk=4)
    torch.testing.assert_close(loss, unixent.cross_entropy(hidden @ classifier.T, INDEX))


def test_an_inactive_position_contributes_nothing(operands):
    hidden, classifier, bias = (x.detach() for x in operands())
    poisoned = hidden.clone()
    poisoned[2], poisoned[9] = torch.nan, torch.inf
    actual = unixent.linear_value_and_grad(poisoned, classifier, INDEX, bias=bias, chunk=4)
    expected = unixent.linear_value_and_grad(hidden, classifier, INDEX, bias=bias, chunk=4)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def products(prof):
    """Number of matrix products that were run."""
    return sum(event.count for event in prof.key_averages() if event.key in ("aten::mm", "aten::addmm_"))


@pytest.mark.parametrize(
    ("trained", "expected"), [("hidden", 2), ("classifier", 2), ("bias", 1), ("hidden classifier bias", 3), ("", 1)]
)
def test_no_work_for_what_is_frozen(operands, trained, expected):
    arguments = dict(zip(("hidden", "classifier", "bias"), operands(), strict=True))
    for name, tensor in arguments.items():
        tensor.requires_grad_(name in trained.split())
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        loss = unixent.linear_cross_entropy(**arguments, target=INDEX, chunk=N)
        if trained:
            loss.backward()
    assert products(prof) == expected
    assert all((tensor.grad is not None) == (name in trained.split()) for name, tensor in arguments.items())


def test_backward_twice_accumulates(operands):
    (hidden, classifier, bias), reference = operands(), operands()
    for ours, other in zip((hidden, classifier, bias), reference, strict=True):
        other.data.copy_(ours.data)
    losses = []
    for h, w, b, loss_of in (
        (hidden, classifier, bias, lambda h, w, b, y: unixent.linear_cross_entropy(h, w, y, bias=b, chunk=5)),
        (*reference, lambda h, w, b, y: F.cross_entropy(F.linear(h, w, b), y)),
    ):
        # Two micro-batches over the same weights, the second one scaled and gone over twice.
        first, second = loss_of(h[:10], w, b, INDEX[:10]), 3 * loss_of(h[10:], w, b, INDEX[10:])
        first.backward()
        second.backward(retain_graph=True)
        second.backward()
        losses.append((first.detach(), second.detach()))
    torch.testing.assert_close(*losses)
    for ours, other in zip((hidden, classifier, bias), reference, strict=True):
        torch.testing.assert_close(ours.grad, other.grad)


def test_one_upstream_gradient_does_not_change_the_next(operands):
    hidden, classifier, bias = operands()
    loss = unixent.linear_cross_entropy(hidden, classifier, INDEX, bias=bias)
    first = torch.autograd.grad(loss, classifier, torch.tensor(2.0, dtype=torch.float64), retain_graph=True)[0]
    second = torch.autograd.grad(loss, classifier, torch.tensor(5.0, dtype=torch.float64))[0]
    torch.testing.assert_close(first / 2, second / 5)


def test_tied_embeddings_get_both_gradients():
    tokens = torch.randint(C, (N,))
    shared = randn(C, D)
    unixent.linear_cross_entropy(shared[tokens], shared, INDEX, chunk=4).backward()
    (expected,) = torch.autograd.grad(F.cross_entropy(shared[tokens] @ shared.T, INDEX), shared)
    torch.testing.assert_close(shared.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("upstream", [1.0, 2.0**-12, 2.0**10])
def test_gradients_of_halves_are_rounded_once(operands, dtype, upstream):
    wide = [x.detach() for x in operands(torch.float32)]
    leaves = [x.to(dtype).requires_grad_() for x in wide]
    hidden, classifier, bias = leaves
    loss = unixent.linear_cross_entropy(hidden, classifier, INDEX, bias=bias, dtype="float32", chunk=3)
    assert loss.dtype == torch.float32
    actual = torch.autograd.grad(loss, leaves, torch.tensor(upstream))
    exact = [x.detach().double().requires_grad_() for x in leaves]
    truth = unixent.cross_entropy(F.linear(*exact), INDEX)
    expected = torch.autograd.grad(truth, exact, torch.tensor(upstream, dtype=torch.float64))
    assert abs(loss.item() / truth.item() - 1) < 1e-6
    unit = torch.finfo(dtype).eps / 2
    for grad, other in zip(actual, expected, strict=True):
        assert grad.dtype == dtype
        # One rounding, where subnormals are 2**-24 apart in float16, after float32 sums of at most 23 terms.
        step = 2.0**-25 if dtype == torch.float16 else 0.0
        torch.testing.assert_close(grad.double(), other, rtol=unit * 1.001, atol=step + 2e-6 * upstream)


def error(actual, truth):
    return max(((x.double() - t).abs().max() / t.abs().max()).item() for x, t in zip(actual, truth, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS[:-1], ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_halves_are_never_worse_than_unfused(operands, dtype, options, scale):
    """Errors of value and gradients against float64 on the same rounded inputs, relative to the largest entry."""
    leaves = [(x.detach() * scale).to(dtype).requires_grad_() for x in operands(torch.float32)]
    exact = [x.detach().double().requires_grad_() for x in leaves]

    def both(loss, wrt):
        return (loss.detach(), *torch.autograd.grad(loss.sum(), wrt))

    truth = both(unixent.cross_entropy(F.linear(*exact), INDEX, **options), exact)
    fused = both(unixent.linear_cross_entropy(leaves[0], leaves[1], INDEX, bias=leaves[2], chunk=5, **options), leaves)
    unfused = both(unixent.cross_entropy(F.linear(*leaves), INDEX, **options), leaves)
    for ours, other, exactly in zip(fused, unfused, truth, strict=True):
        assert error([ours], [exactly]) <= max(error([other], [exactly]), torch.finfo(dtype).eps / 2)


def test_autocast_rounds_what_it_multiplies_and_nothing_else(operands):
    hidden, classifier, bias = operands(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = unixent.linear_cross_entropy(hidden, classifier, INDEX, bias=bias, chunk=4)
    assert loss.dtype == torch.float32
    rounded = [x.detach().bfloat16().float().requires_grad_() for x in (hidden, classifier)]
    expected = F.cross_entropy(F.linear(*rounded, bias), INDEX)
    torch.testing.assert_close(loss, expected)
    actual = torch.autograd.grad(loss, (hidden, classifier, bias))
    # In float32 all the way, where autocast itself would round the gradients to bfloat16 as well.
    torch.testing.assert_close(actual, torch.autograd.grad(expected, (*rounded, bias)))


def test_no_memory_for_gradients_without_grad(operands):
    hidden, classifier, bias = operands()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as prof:
        loss = unixent.linear_cross_entropy(hidden, classifier, INDEX, bias=bias)
    assert not loss.requires_grad
    assert products(prof) == 1
    with torch.inference_mode():
        torch.testing.assert_close(unixent.linear_cross_entropy(hidden, classifier, INDEX, bias=bias), loss)


PEAK = """
import resource, torch, unixent

def run(positions, classes):
    hidden = torch.randn(positions, 16, requires_grad=True)
    classifier = torch.randn(classes, 16, requires_grad=True)
    target = torch.randint(classes, (positions,))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unixent.linear_cross_entropy(hidden, classifier, target{options}).{backward}
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024

run(64, 1000)
print(run(1536, 32000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
@pytest.mark.parametrize(
    ("options", "backward"),
    [
        ("", "backward()"),
        (", reduction='none'", "square().sum().backward()"),
        (", label_smoothing=0.1, softcap=30.0, z_loss=1e-4", "backward()"),
    ],
)
def test_the_logits_never_exist(run_python, options, backward):
    peak = float(run_python(PEAK.format(options=options, backward=backward)))
    # Of 188 MiB of logits: a chunk of 32, gradients of 2, a few blocks of scratch of 4.
    assert peak < 60
