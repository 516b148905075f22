"""A plain loss in MindSpore that is right where it is differentiated, and ways to be wrong there.

The plain one is primitives that MindSpore differentiates by itself, in float64; the faults are those of hand-written
`bprop` rules and of gradients that are stopped.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from unixent_mutants.faults import fault


def plain(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Right: sum_c t_c (lse - x_c) at every position that is not ignored, of finite logits."""
    return reduced(logits, target, reduction, rows)


def reduced(logits: Tensor, target: Tensor, reduction: str, row_losses: Any) -> Tensor:
    """The reduction of what `row_losses` makes of logits and target target_coefs."""
    x = logits.astype(ms.float64)
    active = ops.ones(x.shape[:-1], ms.bool_) if target.is_floating_point() else target != -100
    x = ops.where(active.expand_dims(-1), x, ops.zeros_like(x))
    if target.is_floating_point():
        t = target.astype(ms.float64)
    else:
        t = (ops.arange(x.shape[-1]) == target.expand_dims(-1)).astype(ms.float64)
    losses = ops.where(active, row_losses(x, t), ops.zeros(active.shape, ms.float64))
    if reduction == "none":
        return losses.astype(logits.dtype)
    total = active.astype(ms.float64).sum() if reduction == "mean" else 1.0
    return (losses.sum() / total).astype(logits.dtype)


def rows(x: Tensor, t: Tensor) -> Tensor:
    """The loss of every row."""
    return (t * (ops.logsumexp(x, -1, True) - x)).sum(axis=-1)


class Rows(nn.Cell):
    """`rows` with a rule of its own, in which the gradient is a constant."""

    def construct(self, x: Tensor, t: Tensor) -> Tensor:
        return rows(x, t)

    def bprop(self, x: Tensor, t: Tensor, out: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        grad = ops.stop_gradient(ops.softmax(x, -1) * t.sum(axis=-1, keepdims=True) - t)
        return up.expand_dims(-1) * grad, ops.zeros_like(t)


@fault("grad", "second derivatives")
def gradient_saved_as_a_constant(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The rule's gradient is a constant to whoever differentiates it: nested gradients are 0."""
    return reduced(logits, target, reduction, Rows())


@fault("grad", "z-loss")
def penalty_on_a_stopped_normaliser(
    logits: Tensor, target: Tensor, *, z_loss: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """stop_gradient on the log-normaliser of the z-loss: a value without a gradient."""

    def row_losses(x: Tensor, t: Tensor) -> Tensor:
        return rows(x, t) + z_loss * ops.logsumexp(ops.stop_gradient(x), -1) ** 2

    return reduced(logits, target, reduction, row_losses)


@fault("grad", "class probabilities")
def target_stopped(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """stop_gradient on probability targets: a teacher that should learn too does not."""
    return plain(logits, ops.stop_gradient(target), reduction=reduction)


@fault("vmap", "class indices")
def mapped_examples_share_one_mean(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The mean is read off the whole batch that is mapped over, taken to be the first example's."""
    losses = plain(logits, target, reduction="none")
    return losses if reduction == "none" else losses[0] if reduction == "mean" else losses.sum()
