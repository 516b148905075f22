"""What a loss launches on a device. Tensors on "meta" stand for a GPU's: nothing runs, and reading one raises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import unixent
from unixent_torch import compat
from unixent_torch.kernel import triton
from unixent_torch.kernel.triton import launch, positions

PROGRAMS = ("index_tiles", "mixed_tiles", "combine_index", "combine_mixed", "gradient_tiles")
BESIDE = ("position_columns", "sums_of_blocks", "mean_of_blocks")
VIEWS = {
    "alias", "as_strided", "detach", "empty", "empty_like", "expand", "new_empty", "permute", "select", "slice", "t",
    "unsqueeze", "view",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """The operations of torch's and the programs, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operation.overloadpacket._qualified_op_name.partition("::")[2]
        if name not in VIEWS:
            self.names.append(name)
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    counting = Launches()

    class Program:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert all(size > 0 for size in grid)
            return lambda *args, **options: counting.names.append(self.name)

    for name in PROGRAMS:
        monkeypatch.setattr(launch, name, Program(name))
    for name in BESIDE:
        monkeypatch.setattr(positions, name, Program(name))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(triton, "DEVICES", ["meta"])
    monkeypatch.setattr(compat, "num_dispatch_modes", lambda: 0)
    return counting


def device(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


SMOOTHED = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 30.0, "weight": device(1000), "mask": device(64)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), [("index", {}), ("mixed", SMOOTHED)], ids=["plain", "every option"])
def test_a_mean_takes_six_launches(name: str, options: dict[str, Any], dtype: torch.dtype, launches: Launches) -> None:
    x, y = device(64, 1000, dtype=dtype).requires_grad_(), device(64, dtype=torch.int64)
    with launches:
        loss = unixent.cross_entropy(x, y, **options)
    rounding = ["_to_copy"] if dtype is torch.bfloat16 else []
    passes = [f"{name}_tiles", f"combine_{name}"]
    assert launches.names == ["position_columns", "sum", *passes, "sums_of_blocks", "mean_of_blocks", *rounding]
    launches.names.clear()
    with launches:
        loss.backward()
    assert launches.names[-1] == "gradient_tiles"
    assert len(launches.names) <= 10  # the rest is of single numbers


def test_an_unreduced_loss_takes_three_launches(launches: Launches) -> None:
    x, y = device(4, 10, 5, 5), device(4, 5, 5, dtype=torch.uint8)
    with launches:
        unixent.cross_entropy(x, y, axis=1, reduction="none")
    assert launches.names == ["position_columns", "index_tiles", "combine_index"]
