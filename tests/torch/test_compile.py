"""Under the compiler: one graph, one compilation for all batch sizes, the eager result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad

import unixent
from unixent_torch import CrossEntropyLoss

unixent.get_backend("torch")


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def inputs(rows: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(rows)
    x = 4 * torch.randn(rows, 7, dtype=torch.float64, generator=source)
    return x.to(dtype).requires_grad_(), torch.randint(7, (rows,), generator=source)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ignore": {"ignore_index": 3, "reduction": "sum"},
    "all": {
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "softcap": 5.0,
        "reduction": "none",
        "weight": torch.arange(7.0),
    },
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    # Each compiles C++: the half dtype with and without the terms of every class, the others with one of the two.
    [("plain", torch.float32), ("plain", torch.bfloat16), ("ignore", torch.float64), ("all", torch.bfloat16)],
    ids=str,
)
def test_generated_code_agrees_with_eager(name: str, dtype: torch.dtype) -> None:
    def call(x: Any, y: Any) -> Any:
        return unixent.cross_entropy(x, y, **CALLS[name])

    x, y = inputs(6, dtype)
    eager, compiled = call(x, y), torch.compile(call, fullgraph=True)(x, y)
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(compiled, eager, rtol=tolerance, atol=0)
    (due,), (got,) = (torch.autograd.grad(value.sum(), x) for value in (eager, compiled))
    torch.testing.assert_close(got, due, rtol=tolerance, atol=tolerance * due.abs().max().item())


@pytest.mark.parametrize(
    "options", [{"dtype": "float64"}, {"dtype": torch.float32}, {"softcap": 5}, {"z_loss": 1}], ids=str
)
def test_options_that_are_made_canonical_compile(options: dict[str, Any]) -> None:
    x, y = inputs(4)
    compiled = torch.compile(unixent.cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y, **options), unixent.cross_entropy(x, y, **options))


FIRST = """
import torch, unixent
from torch._dynamo.testing import CompileCounter
x, y = torch.eye(4, 5, requires_grad=True), torch.arange(4)
counter = CompileCounter()
loss = torch.compile(lambda: {call}, backend=counter, fullgraph=True)
first = loss()
first.backward()
assert counter.frame_count == 1 and x.grad.any()
loss()
assert counter.frame_count == 1
torch.testing.assert_close(first, {call})
"""


@pytest.mark.parametrize(
    "call",
    [
        "unixent.cross_entropy(x, y)",
        "unixent.cross_entropy(x, y, backend='torch')",
        "unixent.linear_cross_entropy(x, torch.eye(5), y)",
    ],
)
def test_the_first_call_of_a_process_may_be_a_compiled_one(run_python: Callable[[str], str], call: str) -> None:
    run_python(FIRST.format(call=call))


@pytest.mark.parametrize("name", ["logits", "target", "classifier"])
def test_a_parameter_is_taken_by_a_compiled_loss(name: str) -> None:
    calls: dict[str, Callable[[Any], torch.Tensor]] = {
        "logits": lambda p: unixent.cross_entropy(p, torch.arange(4)),
        "target": lambda p: unixent.cross_entropy(torch.eye(4, 7), p),
        "classifier": lambda p: unixent.linear_cross_entropy(torch.ones(3, 7), p, torch.arange(3)),
    }
    parameter = torch.nn.Parameter(inputs(4)[0].detach())
    got, due = torch.compile(calls[name], fullgraph=True, backend="eager")(parameter), calls[name](parameter)
    torch.testing.assert_close(got, due)
    torch.testing.assert_close(torch.autograd.grad(got, parameter), torch.autograd.grad(due, parameter))


def test_generated_code_keeps_confident_rows() -> None:
    x = torch.tensor([[20.0, 0.0], [120.0, 40.0]], requires_grad=True)
    loss = torch.compile(unixent.cross_entropy, fullgraph=True)(x, torch.tensor([0, 0]), reduction="none")
    loss.sum().backward()
    truth = torch.log1p(torch.exp(torch.tensor([-20.0, -80.0], dtype=torch.float64))).float()
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(x.grad, torch.stack([-truth, truth], 1), rtol=1e-6, atol=0)


def test_one_compilation_serves_every_batch_size() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def call(x: Any, y: Any) -> Any:
        return unixent.cross_entropy(x, y, label_smoothing=0.1)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    compiled(*inputs(3)).backward()
    first = counter.frame_count
    for rows in (5, 8, 13):
        x, y = inputs(rows)
        torch.testing.assert_close(compiled(x, y), call(x, y))
    assert counter.frame_count == first


@pytest.mark.parametrize("target", ["indices", "mask", "probabilities", "sparse"])
def test_an_empty_batch_compiles(target: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    targets = {
        "probabilities": torch.zeros(0, 7),
        "sparse": unixent.TopK(none[:, None], probs=torch.zeros(0, 1), tail="bucket"),
    }
    options: dict[str, Any] = {"mask": none == 0} if target == "mask" else {"label_smoothing": 0.1}

    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        losses = [
            unixent.cross_entropy(x, targets.get(target, none), on_empty=value, **options) for value in ("zero", "nan")
        ]
        return losses[0], losses[1]

    x = torch.zeros(0, 7, requires_grad=True)
    zero, nan = torch.compile(both, fullgraph=True)(x)
    (zero + nan).backward()
    assert (zero.item(), bool(nan.isnan()), x.grad.shape) == (0, True, x.shape)


def test_automatic_dynamic_shapes_settle_after_two_compilations() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(unixent.cross_entropy, fullgraph=True, backend=counter)
    for rows in (3, 5, 8, 13, 21):
        compiled(*inputs(rows)).backward()
    assert counter.frame_count == 2


def test_an_index_out_of_range_is_nan_in_a_compiled_loss() -> None:
    compiled = torch.compile(unixent.cross_entropy, fullgraph=True, backend="aot_eager")
    x, _ = inputs(3)
    loss = compiled(x, torch.tensor([0, 7, -1]), reduction="none")
    assert loss.isnan().tolist() == [False, True, True]
    loss.sum().backward()
    assert x.grad.isnan().all(1).tolist() == [False, True, True]
    assert x.grad.isnan().any(1).tolist() == [False, True, True]


def test_a_single_position_with_class_weights_compiles() -> None:
    x, y = inputs(1)

    def call(x: Any, y: Any) -> Any:
        return unixent.cross_entropy(x, y, weight=torch.arange(1.0, 8.0), reduction="sum")

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x[0], y[0]), call(x[0], y[0]))


def test_compiled_value_and_grad_agrees_with_eager() -> None:
    x, _ = inputs(4, torch.float64)
    q = torch.rand(4, 7)

    def call(x: Any, q: Any) -> Any:
        return unixent.value_and_grad(x, q, wrt=("logits", "target"), reduction="none", grad_output=torch.arange(4.0))

    (value, grads), (due, due_grads) = (f(x.detach(), q) for f in (torch.compile(call, fullgraph=True), call))
    torch.testing.assert_close(value, due)
    torch.testing.assert_close(grads, due_grads)


def test_a_compiled_derivative_agrees_with_eager() -> None:
    x, y = inputs(4, torch.float64)
    gradient = grad(lambda x: unixent.cross_entropy(x, y, z_loss=0.1))
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x.detach()), gradient(x.detach()))


def test_the_compiled_module_agrees_with_eager() -> None:
    x, y = inputs(4)
    loss = CrossEntropyLoss(weight=torch.rand(7), label_smoothing=0.1)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(x, y), loss(x, y))


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_module_serves_every_batch_size(strict: bool) -> None:
    rows = torch.export.Dim("rows")
    x, y = inputs(4)
    program = torch.export.export(
        CrossEntropyLoss(), (x.detach(), y), dynamic_shapes=({0: rows}, {0: rows}), strict=strict
    )
    for other in (4, 9):
        x, y = inputs(other)
        torch.testing.assert_close(program.module()(x.detach(), y), CrossEntropyLoss()(x.detach(), y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_no_value_is_read_on_an_accelerator(options: dict[str, Any], dtype: torch.dtype) -> None:
    """A meta tensor has no values: what works on one does not wait for an accelerator."""
    options = {name: value.to("meta") if name == "weight" else value for name, value in options.items()}
    x = torch.empty(6, 7, dtype=dtype, device="meta", requires_grad=True)
    y = torch.empty(6, dtype=torch.int64, device="meta")
    (unixent.cross_entropy(x, y, **options) * 2).sum().backward()
    assert x.grad.shape == x.shape
    unixent.value_and_grad(x, y, **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_linear_form_has_shapes_on_the_meta_device(reduction: str) -> None:
    h, w = (torch.empty(rows, 3, device="meta", requires_grad=True) for rows in (6, 7))
    y = torch.empty(6, dtype=torch.int64, device="meta")
    loss = unixent.linear_cross_entropy(h, w, y, reduction=reduction)
    assert loss.shape == ((6,) if reduction == "none" else ())
    loss.sum().backward()
    assert h.grad.shape == h.shape
    assert grad(lambda h: unixent.linear_cross_entropy(h, w.detach(), y))(h.detach()).shape == h.shape
    assert unixent.linear_value_and_grad(h, w, y)[1][1].shape == w.shape
    assert CrossEntropyLoss(reduction=reduction)(h.half(), y).shape == loss.shape


def test_fake_tensors_give_the_shape_of_the_loss() -> None:
    with FakeTensorMode():
        assert unixent.cross_entropy(torch.empty(6, 7), torch.empty(6, dtype=torch.int64)).shape == ()


def test_compiled_value_and_grad_asks_for_no_gradient() -> None:
    x, y = inputs(4)
    assert x.requires_grad
    for call in (unixent.value_and_grad, lambda x, y: unixent.linear_value_and_grad(x, torch.eye(7), y, wrt="hidden")):
        for result in torch.compile(call, fullgraph=True, backend="aot_eager")(x, y):
            assert not result.requires_grad
