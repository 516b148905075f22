"""What a compiled loss is given besides tensors: numbers that change, symbolic sizes, NumPy arrays and lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import unixent
from unixent_torch import CrossEntropyLoss

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 7, requires_grad=True), torch.randint(7, (rows,))


@pytest.mark.parametrize("name", ["normalizer", "softcap", "z_loss", "label_smoothing"])
def test_numbers_may_change_between_compiled_calls(name: str) -> None:
    x, y = inputs(4)
    counter = CompileCounterWithBackend("eager")

    def call(number: float) -> torch.Tensor:
        return unixent.cross_entropy(x, y, **{name: number})

    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for number in (0.5, 0.25, 0.75, 0.125):
        torch.testing.assert_close(compiled(number), call(number))
    assert counter.frame_count <= 2


def test_a_size_may_be_the_normalizer_of_a_compiled_loss() -> None:
    def call(x: Any, y: Any) -> torch.Tensor:
        return unixent.cross_entropy(x, y, normalizer=2 * x.shape[0])

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    for rows in (3, 5, 8):
        x, y = inputs(rows)
        torch.testing.assert_close(compiled(x, y), call(x, y))


SIZES: dict[str, Callable[[Any], Any]] = {
    "size": lambda x: x.shape[0],
    "product": lambda x: 2 * x.shape[0] * x.shape[1] + 1,
    "all": lambda x: x.numel(),
    "whole quotient": lambda x: x.shape[1] // 2,
    "quotient": lambda x: x.shape[1] / 2,
}


@pytest.mark.parametrize("tracer", ["compile", "strict export", "export"])
@pytest.mark.parametrize("size", SIZES)
def test_symbolic_sizes_and_expressions_of_them_are_normalizers(size: str, tracer: str) -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return unixent.cross_entropy(x, y, normalizer=SIZES[size](x))

    x, y = torch.arange(84.0).reshape(3, 4, 7) % 5, torch.arange(12).reshape(3, 4) % 7
    if tracer == "compile":
        traced: Any = torch.compile(Loss(), dynamic=True, fullgraph=True, backend="eager")
    else:
        sizes = {0: torch.export.Dim("rows", min=2), 1: torch.export.Dim("columns", min=2)}
        exported = torch.export.export(
            Loss(), (x, y), dynamic_shapes={"x": sizes, "y": sizes}, strict=tracer == "strict export"
        )
        traced = exported.module()
    for part in (slice(None), slice(2)):
        torch.testing.assert_close(traced(x[part], y[part]), Loss()(x[part], y[part]))


INDEX_LIST = [0, 6, 2, 3]
SIDE_ARGUMENTS: dict[str, Any] = {
    "int64 indices": lambda x, y: unixent.cross_entropy(x, np.array(INDEX_LIST)),
    "uint8 indices": lambda x, y: unixent.cross_entropy(x, np.array(INDEX_LIST, np.uint8)),
    "list of indices": lambda x, y: unixent.cross_entropy(x, INDEX_LIST),
    "probabilities": lambda x, y: unixent.cross_entropy(x, np.full((4, 7), 0.125, np.float32)),
    "list of probabilities": lambda x, y: unixent.cross_entropy(x, [[0.125] * 7] * 4),
    "weight": lambda x, y: unixent.cross_entropy(x, y, weight=np.linspace(0.1, 2, 7)),
    "list of weights": lambda x, y: unixent.cross_entropy(x, y, weight=[1, 2, 3, 4, 5, 6, 7]),
    "mask": lambda x, y: unixent.cross_entropy(x, y, mask=np.array([True, False, True, True])),
    "list as mask": lambda x, y: unixent.cross_entropy(x, y, mask=[True, False, 0.5, 2]),
    "normalizer": lambda x, y: unixent.cross_entropy(x, y, normalizer=np.array(3.0)),
    "module": lambda x, y: CrossEntropyLoss(ignore_index=-1)(x, np.array(INDEX_LIST)),
    "linear": lambda x, y: unixent.linear_cross_entropy(x, np.eye(7, dtype=np.float32), INDEX_LIST, bias=[0.5] * 7),
}


@pytest.mark.parametrize(
    ("name", "fullgraph"),
    [*((name, True) for name in SIDE_ARGUMENTS), ("int64 indices", False), ("list of weights", False)],
)
def test_numpy_arrays_and_lists_are_taken_by_a_compiled_loss(name: str, fullgraph: bool) -> None:
    call, (x, y) = SIDE_ARGUMENTS[name], inputs(4)
    compiled = torch.compile(call, fullgraph=fullgraph, backend="eager")
    due, got = call(x, y), compiled(x, y)
    torch.testing.assert_close(got, due)
    torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(due, x))


def test_values_of_numpy_arrays_are_inputs_of_the_graph_and_not_constants() -> None:
    x, _ = inputs(4)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(unixent.cross_entropy, fullgraph=True, backend=counter)
    for first in (0, 3, 5):
        target = np.array([first, 1, 2, 6])
        torch.testing.assert_close(compiled(x, target), unixent.cross_entropy(x, target))
    assert counter.frame_count == 1


def test_a_list_of_tensors_is_not_taken_by_a_compiled_loss_either() -> None:
    x, _ = inputs(4)
    with pytest.raises(unixent.DTypeError, match=r"target: expected .* a list that holds a torch\.Tensor"):
        torch.compile(unixent.cross_entropy, backend="eager")(x, [torch.full((7,), 0.125)] * 4)
