"""Statistics of positions in torch: every derivative and transform, in both forms, against the usual formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import unixent
import unixent_native
from unixent import PositionStats
from unixent_torch.positions import kernel

GRADED = ("log_prob", "entropy", "logsumexp", "selected_log_prob", "loss")
OPTIONS: dict[str, Any] = {"scale": 0.5, "softcap": 4.0, "temperature": 0.7}

generator = torch.Generator().manual_seed(0)
X = 3 * torch.randn(5, 7, dtype=torch.float64, generator=generator)
Y = torch.randint(7, (5,), generator=generator)
SELECTED = torch.randint(7, (5, 3), generator=generator)


def ours(x: Tensor) -> Tensor:
    stats = unixent.position_stats(x, Y, outputs=(*GRADED, "prediction"), selected=SELECTED, **OPTIONS)
    graded = [getattr(stats, name) for name in GRADED]
    return sum((torch.sin(each).sum() for each in graded), start=x.new_zeros(()))


def usual(x: Tensor) -> Tensor:
    x = 4.0 * torch.tanh(x * 0.5 / 4.0) / 0.7
    log_p = x.log_softmax(-1)
    own = log_p.gather(-1, Y.unsqueeze(-1)).squeeze(-1)
    each = (own, -(log_p.exp() * log_p).sum(-1), x.logsumexp(-1), log_p.gather(-1, SELECTED), -own)
    return sum((torch.sin(one).sum() for one in each), start=x.new_zeros(()))


def grad(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def close(got: Any, due: Any) -> None:
    torch.testing.assert_close(got, due, rtol=1e-11, atol=1e-12)


def test_values_and_first_derivatives() -> None:
    close(ours(X), usual(X))
    close(grad(ours, X), grad(usual, X))


def test_derivatives_of_every_order_and_transform() -> None:
    along = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    close(torch.autograd.functional.hessian(ours, X), torch.autograd.functional.hessian(usual, X))
    close(torch.func.hessian(ours)(X), torch.func.hessian(usual)(X))
    close(torch.func.jvp(ours, (X,), (along,)), torch.func.jvp(usual, (X,), (along,)))
    batch = torch.stack([X, 2 * X, -X])
    close(torch.func.vmap(torch.func.grad(ours))(batch), torch.func.vmap(torch.func.grad(usual))(batch))
    due = torch.func.jvp(usual, (X,), (along,))[1]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, along)
        close(torch.autograd.forward_ad.unpack_dual(ours(dual)).tangent, due)
    rows = torch.eye(3, dtype=torch.float64)
    leaf = X[:3].clone().requires_grad_()
    entropy = unixent.position_stats(leaf, outputs="entropy").entropy
    (batched,) = torch.autograd.grad(entropy, leaf, rows, is_grads_batched=True, retain_graph=True)
    alone = torch.stack([torch.autograd.grad(entropy, leaf, row, retain_graph=True)[0] for row in rows])
    close(batched, alone)


def test_the_compiler_takes_them_whole() -> None:
    compiled = torch.compile(ours, fullgraph=True)
    close(compiled(X), ours(X))
    close(grad(compiled, X), grad(usual, X))


HIDDEN, CLASSIFIER, BIAS = (
    torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((23, 4), (7, 4), (7,))
)
INDEX = torch.randint(7, (23,), generator=generator)
INDEX[3] = -100


def linear(hidden: Tensor, classifier: Tensor, bias: Tensor) -> Tensor:
    outputs = ("log_prob", "entropy", "top_index")
    stats = unixent.linear_position_stats(hidden, classifier, INDEX, bias=bias, outputs=outputs, k=2, chunk=5)
    assert stats.log_prob is not None
    return (stats.log_prob * stats.entropy).sum()


def linear_usual(hidden: Tensor, classifier: Tensor, bias: Tensor) -> Tensor:
    log_p = (hidden @ classifier.T + bias).log_softmax(-1)
    own = log_p.gather(-1, INDEX.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(INDEX < 0, 0, own * -(log_p.exp() * log_p).sum(-1)).sum()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_linear_form_has_derivatives_of_both_orders(compiled: bool) -> None:
    leaves = [each.clone().requires_grad_() for each in (HIDDEN, CLASSIFIER, BIAS)]
    call = torch.compile(linear, fullgraph=True, backend="aot_eager") if compiled else linear
    close(torch.autograd.grad(call(*leaves), leaves), torch.autograd.grad(linear_usual(*leaves), leaves))
    if compiled:
        return
    seconds = []
    for function in (linear, linear_usual):
        firsts = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
        seconds.append(torch.autograd.grad(sum(first.sin().sum() for first in firsts), leaves))
    close(*seconds)
    close(torch.func.grad(linear, (0, 1, 2))(*leaves), torch.func.grad(linear_usual, (0, 1, 2))(*leaves))


def test_the_compilers_gradients_are_those_of_eager_mode_in_both_forms() -> None:
    outputs = ("log_prob", "entropy", "logsumexp", "log_sum_sq", "rank")

    def value(hidden: Tensor, classifier: Tensor) -> Tensor:
        linear = unixent.linear_position_stats(hidden, classifier, INDEX, outputs=outputs, chunk=5, **OPTIONS)
        whole = unixent.position_stats(hidden @ classifier.T, INDEX, outputs=outputs, **OPTIONS)
        graded = [getattr(stats, name) for stats in (linear, whole) for name in outputs[:3]]
        return sum((factor * each.sin().sum() for factor, each in enumerate(graded, 1)), start=hidden.new_zeros(()))

    leaves = [each.clone().requires_grad_() for each in (HIDDEN, CLASSIFIER)]
    due = torch.autograd.grad(value(*leaves), leaves)
    close(torch.autograd.grad(torch.compile(value, fullgraph=True)(*leaves), leaves), due)


def test_gradients_without_autograd_are_those_of_autograd() -> None:
    upstream = PositionStats(log_prob=torch.rand(23), entropy=torch.rand(23), loss=torch.rand(23))
    outputs = ("log_prob", "entropy", "loss", "correct")
    stats, grads = unixent.linear_position_stats_and_grad(
        HIDDEN, CLASSIFIER, INDEX, bias=BIAS, grad_output=upstream, outputs=outputs, chunk=5
    )
    leaves = [each.clone().requires_grad_() for each in (HIDDEN, CLASSIFIER, BIAS)]
    again = unixent.linear_position_stats(leaves[0], leaves[1], INDEX, bias=leaves[2], outputs=outputs)
    close(stats, PositionStats(*[None if each is None else each.detach() for each in again]))
    graded = [(getattr(again, name), getattr(upstream, name)) for name in outputs[:3]]
    due = torch.autograd.grad([value for value, _ in graded], leaves, [up.double() for _, up in graded])
    close(grads, due)
    logits = HIDDEN @ CLASSIFIER.T + BIAS
    _, gradient = unixent.position_stats_and_grad(logits, INDEX, grad_output=upstream, outputs=outputs)
    close(gradient @ CLASSIFIER, grads[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_blocks_of_any_layout_have_the_statistics_of_one(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 9, 40, generator=generator).to(dtype).requires_grad_()
    selected, outputs = torch.randint(9, (6, 40, 2)), ("entropy", "selected_log_prob", "prediction")

    def both() -> tuple[Any, ...]:
        stats = unixent.position_stats(x, outputs=outputs, selected=selected, axis=1)
        assert stats.entropy is not None
        assert stats.selected_log_prob is not None
        graded = stats.entropy.float().sum() + stats.selected_log_prob.float().sum()
        return stats, torch.autograd.grad(graded, x)[0]

    native = both()
    monkeypatch.setattr("unixent_torch.positions.kernel.load", lambda: None)
    whole = both()
    torch.testing.assert_close(native, whole)
    monkeypatch.setattr("unixent_torch.positions.kernel.rows_per_block", lambda x: 7)
    torch.testing.assert_close(both(), whole, rtol=0, atol=0)
    assert whole[1].dtype == dtype
    assert whole[1].shape == x.shape


@pytest.mark.parametrize("k", [1, 5, 50])
def test_the_top_is_a_stable_sort(k: int) -> None:
    for x in (torch.randn(200, 50, generator=generator), torch.randint(6, (200, 50), generator=generator).float()):
        due = torch.sort(x, dim=-1, stable=True, descending=True).indices[:, :k]
        assert torch.equal(unixent.position_stats(x, outputs="top_index", k=k).top_index, due)


def test_nothing_but_the_logits_is_kept_for_the_backward_pass() -> None:
    x = torch.randn(64, 1000, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        unixent.position_stats(x, torch.zeros(64, dtype=torch.long), outputs=("log_prob", "entropy"))
    assert [each.data_ptr() for each in kept if each.numel() >= 64_000] == [x.data_ptr()]


def test_the_linear_form_keeps_no_logits() -> None:
    hidden, classifier = torch.randn(512, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        unixent.linear_position_stats(hidden, classifier, outputs="entropy", chunk=64)
    assert max(each.numel() for each in kept) < 64 * 1000


def test_an_ignored_state_that_is_nan_reaches_no_gradient() -> None:
    hidden, classifier = torch.ones(3, 4, dtype=torch.float64), torch.eye(5, 4, dtype=torch.float64)
    hidden[1] = math.nan
    target = torch.tensor([0, -100, 2])

    def value(hidden: torch.Tensor, classifier: torch.Tensor) -> torch.Tensor:
        stats = unixent.linear_position_stats(hidden, classifier, target, outputs=("log_prob", "entropy"))
        return (stats.log_prob + stats.entropy).sum()

    operands = hidden.requires_grad_(), classifier.requires_grad_()
    plain = torch.autograd.grad(value(*operands), operands)
    again = torch.autograd.grad(value(*operands), operands, create_graph=True)
    transformed = torch.func.grad(value, (0, 1))(hidden.detach(), classifier.detach())
    second = torch.autograd.grad(sum(each.square().sum() for each in again), operands)
    for expected, *others in zip(plain, again, transformed, strict=True):
        assert expected.isfinite().all()
        for other in others:
            torch.testing.assert_close(other.detach(), expected)
    assert all(each.isfinite().all() for each in second)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch's operators for the rows."""
    if unixent_native.load() is None:
        pytest.skip("the native kernel is not built, or switched off by UNIXENT_NATIVE=0")

    def refuse(*_: Any) -> None:
        raise AssertionError("torch's operators were called")

    monkeypatch.setattr(kernel, "row_stats", refuse)
    monkeypatch.setattr(kernel, "row_gradient", refuse)


ALL: tuple[Any, ...] = PositionStats._fields


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "options", [{}, OPTIONS, {"axis": 0}, {**OPTIONS, "axis": 0}], ids=["rows", "capped", "columns", "capped-columns"]
)
def test_everyday_calls_take_the_native_kernel_and_one_call_has_the_bits_of_two(
    refused: None, dtype: torch.dtype, options: Any
) -> None:
    shape = (4000, 6) if "axis" in options else (6, 4000)
    x = (3 * torch.randn(shape, generator=generator)).to(dtype)
    y, selected = torch.tensor([0, 5, -100, 7, 8, 3999]), torch.randint(4000, (6, 2), generator=generator)
    upstream = PositionStats(**{name: torch.randn(6, generator=generator) for name in GRADED[:3]})
    call: Any = {"outputs": ALL[1:], "selected": selected, "k": 5, **options}
    stats, gradient = unixent.position_stats_and_grad(x, y, grad_output=upstream, **call)
    leaf = x.clone().requires_grad_()
    again = unixent.position_stats(leaf, y, **call)
    of_outputs = [getattr(upstream, name).to(dtype) for name in GRADED[:3]]
    if dtype in (torch.float32, torch.float64):  # an upstream gradient of an output has its dtype
        (late,) = torch.autograd.grad([getattr(again, name) for name in GRADED[:3]], leaf, of_outputs)
        assert torch.equal(late, gradient)
    for name in ALL[1:]:
        torch.testing.assert_close(getattr(again, name).detach(), getattr(stats, name), rtol=0, atol=0, equal_nan=True)


def test_the_linear_form_takes_the_native_kernel(refused: None) -> None:
    leaves = [each.clone().requires_grad_() for each in (HIDDEN, CLASSIFIER, BIAS)]
    close(torch.autograd.grad(linear(*leaves), leaves), torch.autograd.grad(linear_usual(*leaves), leaves))


def test_backward_passes_with_other_threads_and_graphs_kept_have_the_same_bits() -> None:
    x = torch.randn(300, 3000, generator=generator).requires_grad_()
    entropy, grads = unixent.position_stats(x, outputs="entropy").entropy, []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            grads.append(torch.autograd.grad(entropy, x, torch.ones(300), retain_graph=True)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(grads[0], each) for each in grads)


def test_states_and_classifiers_may_be_transposed() -> None:
    """A recurrent layer's states are: [batch, length] of what it holds as [length, batch]."""
    hidden = torch.randn(7, 3, 5, dtype=torch.float64).transpose(0, 1).requires_grad_()
    classifier = torch.randn(5, 11, dtype=torch.float64).t().requires_grad_()
    stats = unixent.linear_position_stats(hidden, classifier, outputs=("entropy", "logsumexp"), chunk=4)
    usual = unixent.position_stats(hidden @ classifier.t(), outputs=("entropy", "logsumexp"))
    of, operands = ("entropy", "logsumexp"), (hidden, classifier)
    grads = [torch.autograd.grad(sum(getattr(each, name).sum() for name in of), operands) for each in (stats, usual)]
    close(*grads)


@pytest.mark.parametrize("wrap", [lambda f: f, torch.func.vmap, torch.compile], ids=["eager", "vmap", "compile"])
def test_the_only_class_as_padding_has_0_beside_a_logit_that_is_nan(wrap: Callable[..., Any]) -> None:
    def stats(x: Tensor, selected: Tensor) -> Tensor:
        given: dict[str, Any] = {"outputs": "selected_log_prob", "ignore_index": 0, "validate": "off"}
        return unixent.position_stats(x, selected=selected, **given).selected_log_prob

    x, selected = torch.tensor([[[math.nan], [1.0]]]), torch.tensor([[[0, 0], [0, 1]]])
    got = wrap(stats)(x, selected)
    assert torch.equal(got.isnan(), torch.tensor([[[False, False], [False, True]]]))
    assert torch.equal(got.nan_to_num(), torch.zeros(1, 2, 2))
