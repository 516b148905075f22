"""What a tracer records has no value of the example's in it: it holds for other logits, targets and sizes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functionalize, grad
from torch.fx.experimental.proxy_tensor import make_fx

import unixent
from unixent_torch import CrossEntropyLoss, LinearCrossEntropyLoss

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")

C = 5
WEIGHT = torch.linspace(0.5, 2, C)
EXAMPLE = torch.linspace(-1, 1, 6 * C).view(6, C), torch.tensor([0, 1, 2, 3, 4, 0])
OTHER = 100 * torch.cos(torch.arange(9.0 * C)).view(9, C), torch.tensor([4, 4, 2, -100, 0, 0, 1, 3, 2])
CLASSIFIER = torch.sin(torch.arange(1.0 * C * C)).view(C, C)

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "plain": unixent.cross_entropy,
    "sum": lambda x, y: unixent.cross_entropy(x, y, reduction="sum"),
    "none": lambda x, y: unixent.cross_entropy(x, y, reduction="none"),
    "options": lambda x, y: unixent.cross_entropy(x, y, label_smoothing=0.1, softcap=5.0, z_loss=0.1, weight=WEIGHT),
    "mask": lambda x, y: unixent.cross_entropy(x, y, mask=y > 0),
    "probabilities": lambda x, y: unixent.cross_entropy(x, (x / 50).softmax(-1)),
    "fused linear": lambda x, y: unixent.linear_cross_entropy(x, CLASSIFIER, y, chunk=2),
    "terms": lambda x, y: torch.stack(unixent.loss_terms(x, y)),
    "module": CrossEntropyLoss(WEIGHT),
}


@pytest.fixture(autouse=True)
def _tracing_warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        yield


def with_gradient(loss: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = loss(x, y)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_jit_trace_records_the_operations_and_no_value(loss: Loss) -> None:
    traced = torch.jit.trace(loss, EXAMPLE)
    for arguments in (EXAMPLE, OTHER):
        torch.testing.assert_close(with_gradient(traced, *arguments), with_gradient(loss, *arguments))


def test_a_traced_module_can_be_saved_and_loaded() -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(CrossEntropyLoss(), EXAMPLE), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(*OTHER), CrossEntropyLoss()(*OTHER))


def test_jit_trace_refuses_a_gradient_of_ours() -> None:
    with pytest.raises(unixent.BackendError, match=r"value_and_grad: torch\.jit\.trace"):
        torch.jit.trace(unixent.value_and_grad, EXAMPLE)


class Model(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(x, y)


FUNCTIONS = [getattr(unixent, name) for name in unixent.__all__ if name.endswith(("entropy", "_grad", "_terms"))]


def calls_the_function(x: Tensor, y: Tensor) -> Tensor:
    return unixent.cross_entropy(x, y)


class CallsTheFunction(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return unixent.cross_entropy(x, y)


@pytest.mark.parametrize("function", [*FUNCTIONS, calls_the_function, CallsTheFunction(), unixent.CrossEntropyLoss()])
def test_jit_script_of_a_function_is_refused_by_name(function: Any) -> None:
    with pytest.raises(unixent.BackendError, match=r"torch\.jit\.script: \w+ is Python.*; use torch\.compile"):
        torch.jit.script(function)


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), LinearCrossEntropyLoss(C, C)], ids=["logits", "linear"])
def test_jit_script_is_refused_by_name(loss: nn.Module) -> None:
    for module in (loss, Model(loss)):
        with pytest.raises(unixent.BackendError, match=r"torch\.jit\.script: \w+ is Python"):
            torch.jit.script(module)


def test_symbolic_trace_is_refused_by_name() -> None:
    for loss in (CrossEntropyLoss(), Model(CrossEntropyLoss()), LinearCrossEntropyLoss(C, C)):
        with pytest.raises(unixent.BackendError, match=r"input: torch\.fx\.symbolic_trace .* leaf module"):
            torch.fx.symbolic_trace(loss)
    with pytest.raises(unixent.UnixentError, match=r"got .*Proxy"):
        torch.fx.symbolic_trace(lambda x, y: unixent.cross_entropy(x, y))


def test_symbolic_trace_keeps_a_loss_that_is_a_leaf() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, CrossEntropyLoss) or super().is_leaf_module(module, name)

    model = Model(CrossEntropyLoss(WEIGHT))
    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    torch.testing.assert_close(with_gradient(traced, *OTHER), with_gradient(model, *OTHER))


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", ["plain", "options", "fused linear", "probabilities"])
def test_make_fx_records_the_operations_and_no_value(name: str, tracing_mode: str) -> None:
    loss, other = LOSSES[name], (OTHER[0][:6], OTHER[1][:6])
    graph = make_fx(lambda x, y: with_gradient(loss, x, y), tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(
        *EXAMPLE
    )
    torch.testing.assert_close(graph(*other), with_gradient(loss, *other))
    if tracing_mode == "symbolic":
        torch.testing.assert_close(graph(*OTHER), with_gradient(loss, *OTHER))


@pytest.mark.parametrize("name", ["plain", "options", "fused linear"])
def test_make_fx_of_functionalize_and_grad_records_no_value(name: str) -> None:
    loss, other = LOSSES[name], (OTHER[0][:6], OTHER[1][:6])
    for transform in (functionalize, grad):
        call = transform(lambda x, y: loss(x, y))
        torch.testing.assert_close(make_fx(call)(*EXAMPLE)(*other), call(*other))


def test_value_and_grad_can_be_recorded_as_well() -> None:
    other = OTHER[0][:6], OTHER[1][:6]
    for call in (
        lambda x, y: unixent.value_and_grad(x, y),
        lambda x, y: unixent.linear_value_and_grad(x, CLASSIFIER, y),
    ):
        torch.testing.assert_close(make_fx(call)(*EXAMPLE)(*other), call(*other))


def test_the_exporter_that_traces_passes_every_argument_of_forward() -> None:
    """torch.onnx.export gives the defaults of forward by position."""
    x, y = EXAMPLE
    expected = CrossEntropyLoss()(x, y)
    arguments: tuple[Any, ...] = (x, y, None, None)
    torch.testing.assert_close(CrossEntropyLoss()(*arguments), expected)
    assert LinearCrossEntropyLoss(C, C)(*arguments).isfinite()
