"""Tensors that are not in host memory: none is read, nothing is copied between memories, launches are counted.

Tensors on "meta" stand for those of an accelerator: reading one raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import unixent
from unixent_torch import compat

N, C, D = 64, 1000, 16
# Operations that make another view of memory, or memory without contents: no launch.
VIEWS = {
    "alias", "as_strided", "detach", "empty", "empty_like", "expand", "new_empty", "new_empty_strided", "permute",
    "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unsqueeze", "view", "_reshape_alias",
    "_unsafe_view", "resolve_neg", "lift_fresh", "empty_strided", "unbind",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts the operations that a device would run; one that touches host memory as well is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        assert devices <= {"meta"}, f"{operation} touches {devices}"
        name = operation.overloadpacket._qualified_op_name.partition("::")[2]
        if name not in VIEWS:
            self.launches[name] += 1
        return result


@pytest.fixture(autouse=True)
def like_no_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode that counts is not taken for one that records."""
    monkeypatch.setattr(compat, "num_dispatch_modes", lambda: 0)


def launches(loss_of: Callable[..., Tensor], *inputs: Tensor) -> int:
    """How many operations a loss and its gradient take."""
    with Operations() as operations:
        loss_of(*inputs).sum().backward()
    for x in inputs:
        assert x.grad is not None
        assert x.grad.shape == x.shape
    return operations.launches.total()


def device(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every number": {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 30.0, "temperature": 0.5, "scale": 2.0},
    "weight and mask": {"weight": device(C), "mask": device(N)},
    "normalizer": {"normalizer": device()},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "empty mean": {"on_empty": "zero", "mask": device(N, dtype=torch.bool)},
}
TARGETS = {
    "indices": device(N, dtype=torch.int64),
    "small indices": device(N, dtype=torch.uint8),
    "probabilities": device(N, C),
    "sparse": unixent.TopK(device(N, 5, dtype=torch.int64), probs=device(N, 5), tail="bucket"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_loss_reads_nothing(target: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    x = device(N, C, dtype=dtype).requires_grad_()
    launches(lambda x: unixent.cross_entropy(x, target, **options), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_linear_form_reads_nothing(target: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    hidden, classifier = (device(*shape, dtype=dtype).requires_grad_() for shape in ((N, D), (C, D)))
    launches(lambda h, w: unixent.linear_cross_entropy(h, w, target, chunk=16, **options), hidden, classifier)


@pytest.mark.parametrize("outputs", [("log_prob", "entropy"), ("loss", "logsumexp", "correct", "rank", "top_log_prob")])
def test_statistics_read_nothing(outputs: tuple[str, ...]) -> None:
    x = device(N, C).requires_grad_()
    stats = lambda x: getattr(unixent.position_stats(x, TARGETS["indices"], outputs=outputs, k=3), outputs[0])  # noqa: E731
    launches(stats, x)


def test_the_operators_of_a_loss_do_not_grow_with_the_positions() -> None:
    """Blocks of rows are for the caches of a host."""

    def of(n: int) -> int:
        y = device(n, dtype=torch.int64)
        return launches(lambda x: unixent.cross_entropy(x, y), device(n, C).requires_grad_())

    assert of(64) == of(4096) <= 114
