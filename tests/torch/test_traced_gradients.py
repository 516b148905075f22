"""`value_and_grad` where operations are recorded: the gradient of plain operations is that of the kernel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import unixent
from unixent.logit_transform import LogitTransform
from unixent_torch.kernel import KernelSpec, row_losses, traced

NAN, INF = math.nan, math.inf
LOGITS = torch.tensor(
    [
        [20.0, 0.0, -3.0, 1.0],
        [-90.0, 40.0, 0.5, -INF],
        [-INF, -INF, 2.0, -INF],
        [1.0, 1.0, 1.0, 1.0],
        [0.0, INF, 1.0, 0.0],
        [NAN, 0.0, 1.0, 0.0],
        [0.0, 300.0, -300.0, 1.0],
        [3.0, 2.0, 1.0, 0.0],
    ]
)
INDEX = torch.tensor([0, 0, 2, 3, 1, 1, 2, 0])
PROBABILITIES = torch.tensor([[0.25, 0.5, 0.25, 0.0], [0.0, 0.0, 1.0, 0.0]]).repeat(4, 1)
WEIGHT = torch.tensor([0.5, 0.0, 2.0, 1.0])
POSITION_WEIGHT = torch.tensor([1.0, 0.5, 1.0, 2.0, 0.0, 0.0, 1.0, NAN])
SCALE = torch.tensor([1.0, 2.0, -1.0, 0.5, 1.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("target_kind", ["index", "probability"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_they_are_those_of_the_kernel(masked: bool, target_kind: str, weighted: bool, dtype: torch.dtype) -> None:
    acc_dtype = torch.promote_types(dtype, torch.float32)
    target, wrt = (INDEX, ("logits",)) if target_kind == "index" else (PROBABILITIES.to(dtype), ("target", "logits"))
    weights = [each.to(acc_dtype) if given else None for each, given in ((WEIGHT, weighted), (POSITION_WEIGHT, masked))]
    for smoothing, z_loss, softcap in itertools.product((0.0, 0.1, 1.0), (0.0, 0.01), (None, 5.0)):
        spec = KernelSpec(acc_dtype, smoothing, z_loss, LogitTransform(softcap), True)
        arguments = (LOGITS.to(dtype), target, *weights, SCALE.to(acc_dtype), spec, wrt)
        rtol = 16 * torch.finfo(dtype).eps
        for got, due in zip(traced.row_gradients(*arguments), row_losses(*arguments)[1], strict=True):
            atol = rtol * due.nan_to_num(0, 0, 0).abs().amax(-1, keepdim=True)
            assert got.dtype == due.dtype == dtype
            close = torch.isclose(got, due, rtol=rtol, atol=0, equal_nan=True) | ((got - due).abs() <= atol)
            assert close.all(), (spec, got, due)


class Program(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arrays: Tensor) -> Any:
        return self.function(*arrays)


def value_and_grad(x: Tensor, y: Tensor, upstream: Tensor) -> Any:
    return unixent.value_and_grad(x, y, grad_output=upstream, softcap=5.0, z_loss=0.1)


def one_per_position(x: Tensor, y: Tensor, upstream: Tensor) -> Any:
    return unixent.value_and_grad(x, y, grad_output=upstream.expand(x.shape[:-1]), reduction="none")


def linear_value_and_grad(x: Tensor, y: Tensor, upstream: Tensor) -> Any:
    return unixent.linear_value_and_grad(x, torch.eye(4), y, grad_output=upstream)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("call", [value_and_grad, one_per_position, linear_value_and_grad])
def test_a_gradient_is_exported_with_its_upstream_one_as_an_input(call: Callable[..., Any], strict: bool) -> None:
    x, y, upstream, rows = LOGITS[[0, 3, 6, 7]], INDEX[[0, 3, 6, 7]], torch.tensor(0.75), Dim("rows", min=2)
    shapes = {"arrays": ({0: rows}, {0: rows}, None)}
    program = export(Program(call), (x, y, upstream), strict=strict, dynamic_shapes=shapes).module()
    for arguments in ((x, y, upstream), (x[:2], y[1:3], torch.tensor(-2.0))):
        torch.testing.assert_close(program(*arguments), call(*arguments))
