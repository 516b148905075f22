"""The Triton programs beside the composed pass, their layouts, and what they are not asked."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import unixent
from unixent.logit_transform import LogitTransform
from unixent_torch.kernel import KernelSpec, composed, row_losses, triton
from unixent_torch.kernel.triton import launch
from unixent_torch.kernel.triton.configuration import configure


def spec(smoothing: float = 0.0, z_loss: float = 0.0, softcap: float | None = None, b: float = 1.0) -> KernelSpec:
    return KernelSpec(torch.float32, smoothing, z_loss, LogitTransform(softcap, b), False)


def rows_agree(got: Tensor, due: Tensor) -> None:
    """To 2^-20 of the largest entry of the row, and NaN where it is due."""
    assert (got.dtype, got.shape) == (due.dtype, due.shape)
    assert torch.equal(got.isnan(), due.isnan())
    got, due = got.nan_to_num().double(), due.nan_to_num().double()
    bound = due.abs().amax(-1, keepdim=True) * 2.0**-20 if due.ndim else due.abs() * 2.0**-20
    assert ((got - due).abs() <= bound).all()


OPTIONS = [
    spec(s, z, softcap, b) for s, z, softcap, b in itertools.product((0, 0.1), (0, 1e-2), (None, 3.0), (1.0, 0.7))
]


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("classes", [1, 7, 100])
def test_every_option_agrees_with_the_composed_pass(
    classes: int, weighted: bool, probabilities: bool, tiles: str
) -> None:
    x, y = torch.randn(5, 3, classes) * 4, torch.randint(classes, (5, 3))
    target = torch.softmax(torch.randn(5, 3, classes), -1) if probabilities else y
    wrt = ("logits", "target") if probabilities else ("logits",)
    v, weight = torch.rand(5, 3), None
    v[0, 1], v[1, 1], v[2, 2] = 0, math.nan, 1
    x[0, 1] = math.nan
    x[3, 0, 0] = -math.inf
    if weighted:
        weight = torch.rand(classes)
        weight[0] = 0
    for options in OPTIONS:
        operands = (x, target, weight, v, torch.rand(5, 3), options, wrt)
        assert triton.takes(options, x, target, weight, v)
        (losses, grads), (due, due_grads) = row_losses(*operands), composed.row_losses(*operands)
        rows_agree(losses.reshape(-1, 1), due.reshape(-1, 1))
        for grad, due_grad in zip(grads, due_grads, strict=True):
            rows_agree(grad, due_grad)
        assert not grads[0][0, 1].any()


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values of shape (2, 6, 4, 5), laid out in every way."""
    wide = torch.zeros(4, 12, 8, 5)
    wide[::2, ::2, ::2] = x
    return {
        "contiguous": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        "every second": wide[::2, ::2, ::2],
        "broadcast": x[:1].expand(2, -1, -1, -1),
    }


@pytest.mark.parametrize("name", layouts(torch.zeros(2, 6, 4, 5)))
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_every_layout_is_read_and_written(axis: int, name: str) -> None:
    x = layouts(torch.randn(2, 6, 4, 5))[name]
    rows = x.movedim(axis, -1)
    q = torch.softmax(torch.randn(rows.shape), -1)
    y = torch.randint(x.shape[axis], rows.shape[:-1])
    for target, wrt in ((y, ("logits",)), (q, ("logits", "target"))):
        operands = (target, None, None, torch.rand(rows.shape[:-1]), spec(), wrt)
        losses, grads = row_losses(rows, *operands)
        due, due_grads = composed.row_losses(rows, *operands)
        rows_agree(losses.reshape(-1, 1), due.reshape(-1, 1))
        for grad, due_grad in zip(grads, due_grads, strict=True):
            rows_agree(grad, due_grad)
            assert grad.stride() == due_grad.stride()


def test_a_class_axis_before_one_position_axis_is_read_in_place() -> None:
    x = torch.randn(4, 10, 6, 5).movedim(1, -1)
    layout = launch.layout_of(x)
    assert layout is not None
    assert (layout.outer, layout.inner, layout.strides) == (4, 30, ((300, 1, 30),))


def test_positions_do_not_depend_on_each_other(tiles: str) -> None:
    x, y = torch.randn(40, 70) * 5, torch.randint(70, (40,))
    together = row_losses(x, y, None, None, 1.0, spec(), ("logits",))
    for n in (0, 17, 39):
        losses, (grad,) = row_losses(x[n : n + 1], y[n : n + 1], None, None, 1.0, spec(), ("logits",))
        assert torch.equal(losses, together[0][n : n + 1])
        assert torch.equal(grad, together[1][0][n : n + 1])


def test_confident_rows_that_rise_slowly_keep_their_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile has its own shift: no sum is rescaled from one class to the next."""
    classes = 151936
    x = torch.linspace(-20, 0, classes).repeat(2, 1)
    x[:, 5] = 40.0
    y = torch.tensor([5, 6])
    losses = row_losses(x, y, None, None, None, spec())[0].double()
    exact = torch.logsumexp(x.double(), -1) - x.double()[torch.arange(2), y]
    exact[0] = torch.log1p(torch.exp(x[0].double().scatter(0, y[:1], -math.inf) - 40).sum())
    bound = (8 + 2 * math.log2(classes)) * 2.0**-24
    assert ((losses - exact).abs() <= bound * exact).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_two_reads_and_one_write(dtype: torch.dtype, reduction: str, passes: list[str]) -> None:
    x = torch.randn(6, 50).to(dtype).requires_grad_()
    loss = unixent.cross_entropy(x, torch.randint(50, (6,)), reduction=reduction, label_smoothing=0.1)
    assert passes == ["row_statistics"]
    (loss.sum() * 3).backward()
    assert passes == ["row_statistics", "row_gradients"]
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_no_gradient_is_formed_without_need(passes: list[str]) -> None:
    x, y = torch.randn(6, 50, requires_grad=True), torch.randint(50, (6,))
    unixent.cross_entropy(x, y, z_loss=0.1)
    with torch.no_grad():
        unixent.cross_entropy(x, y, z_loss=0.1)
    assert passes == ["row_statistics"] * 2


def test_a_graph_that_is_kept_gives_the_gradient_again() -> None:
    x, y = torch.randn(6, 50, requires_grad=True), torch.randint(50, (6,))
    loss = unixent.cross_entropy(x, y, z_loss=0.1)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_second_derivatives_are_those_of_the_composed_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(3, 20), torch.randint(20, (3,))

    def hessian() -> Tensor:
        loss = lambda z: unixent.cross_entropy(z, y, z_loss=0.1)  # noqa: E731
        return torch.autograd.functional.hessian(loss, x)  # type: ignore[no-any-return]

    got = hessian()
    monkeypatch.setattr(triton, "DEVICES", [])
    torch.testing.assert_close(got, hessian())


def test_what_the_programs_do_not_take() -> None:
    x, y = torch.randn(3, 20), torch.randint(20, (3,))
    assert triton.takes(spec(), x, y)
    double = KernelSpec(torch.float64, 0.0, 0.0, LogitTransform(), False)
    assert not triton.takes(double, x.double(), y)
    assert not triton.takes(double, x, y)
    assert not triton.takes(spec(), x.as_subclass(type("Other", (Tensor,), {})), y)
    assert not triton.takes(spec(), torch.ones(3, 20, device="meta"), y)
    assert not triton.takes(spec(), x, y, torch.ones(20, device="meta"))


@pytest.mark.parametrize("classes", [1, 15, 16, 1000, 1024, 1025, 32000, 151936])
@pytest.mark.parametrize("adjacent", [True, False])
def test_tiles_hold_powers_of_two_and_stay_in_registers(classes: int, adjacent: bool) -> None:
    for widest in (4096, 16384):
        rows, tile, num_warps = configure(classes, adjacent, widest)
        assert rows & (rows - 1) == tile & (tile - 1) == num_warps & (num_warps - 1) == 0
        assert tile <= widest
        assert rows * tile <= 32 * 32 * num_warps


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_no_positions_are_no_launch(shape: tuple[int, ...]) -> None:
    losses, (grad,) = row_losses(
        torch.empty(shape), torch.empty(shape[:-1], dtype=torch.int64), None, None, 1.0, spec(), ("logits",)
    )
    assert (losses.shape, grad.shape) == (shape[:-1], shape)
