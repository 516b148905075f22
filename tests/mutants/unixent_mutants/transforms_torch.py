"""A plain loss in torch that is right under every transform, and ways to be wrong under one of them.

The plain one is operations that torch differentiates by itself, in float64, with the logits moved by their maximum:
exact enough for float32. The faults are those of hand-written kernels: a gradient formed in the forward pass, rules of
`torch.autograd.Function` that nothing else holds to the value, branches that a compiler takes once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unixent_mutants.faults import fault


def plain(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Right: sum_c t_c (lse - x_c) + z lse^2 at every position that counts."""
    return reduced(logits, target, mask, reduction, ignore_index, lambda x, t: rows(x, t, z_loss, softcap))


def reduced(x: Tensor, target: Tensor, mask: Any, reduction: str, ignore_index: int, row_losses: Any) -> Tensor:
    """The reduction of what `row_losses` makes of logits and target target_coefs, NaN at an index out of range."""
    classes = x.shape[-1]
    v = torch.ones(x.shape[:-1], dtype=torch.float64) if mask is None else mask.double()
    if target.is_floating_point():
        t, out_of_range = target.double(), torch.zeros_like(v, dtype=torch.bool)
    else:
        v = torch.where(target == ignore_index, 0, v)
        out_of_range = (target != ignore_index) & ((target < 0) | (target >= classes))
        t = (torch.arange(classes) == target[..., None]).double()
    active = (v != 0)[..., None]
    losses = torch.where(out_of_range, torch.nan, v * row_losses(torch.where(active, x.double(), 0), t))
    if reduction == "none":
        return losses.to(x.dtype)
    if reduction == "sum":
        return losses.sum().to(x.dtype)
    total = v.sum()
    return torch.where(total == 0, 0, losses.sum() / torch.where(total == 0, 1, total)).to(x.dtype)


def rows(x: Tensor, t: Tensor, z_loss: float, softcap: float | None) -> Tensor:
    """The loss of every row."""
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    peak = x.detach().amax(-1, keepdim=True)
    lse = torch.log(torch.exp(x - peak).sum(-1, keepdim=True))
    far = lse - (x - peak)
    far = torch.where((t == 0) & torch.isinf(far), 0, far)
    return (t * far).sum(-1) + z_loss * (lse + peak)[..., 0] ** 2


def softmax_gradient(x: Tensor, t: Tensor) -> Tensor:
    """d rows/d x without penalty and cap."""
    return torch.softmax(x, -1) * t.sum(-1, keepdim=True) - t


def right(x: Tensor, t: Tensor, up: Tensor) -> Tensor:
    """The gradient of x under an upstream gradient."""
    return up[..., None] * softmax_gradient(x, t)


def with_backward(backward: Any, **rules: Any) -> Any:
    """`rows` with rules of its own: backward(x, t, upstream) is the gradient of x, and probabilities have none."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    members: dict[str, Any] = {
        "forward": lambda x, t: rows(x, t, 0.0, None),
        "setup_context": save,
        "backward": lambda ctx, up: (backward(*ctx.saved_tensors, up), None),
        **rules,
    }
    statics = {name: staticmethod(member) for name, member in members.items()}
    made: Any = type("Rows", (torch.autograd.Function,), {**statics, "generate_vmap_rule": True})
    return made.apply


@fault("forward", "class indices")
def forward_mode_gives_zero(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The forward derivative is 0, as of torch's own `F.linear_cross_entropy`."""

    def zero(ctx: Any, moved: Tensor, turned: Any) -> Tensor:
        return torch.zeros_like(moved[..., 0])

    return reduced(logits, target, None, reduction, -100, with_backward(right, jvp=zero))


@fault("forward", "softcap")
def forward_mode_forgets_the_cap(
    logits: Tensor, target: Tensor, *, softcap: float | None = None, z_loss: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """The forward derivative of the cap is taken to be 1, the backward one is right."""

    class Cap(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return softcap * torch.tanh(x / softcap) if softcap else x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, up: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return up / torch.cosh(x / softcap) ** 2 if softcap else up

        @staticmethod
        def jvp(ctx: Any, moved: Tensor) -> Tensor:
            return moved.clone()

    return reduced(logits, target, None, reduction, -100, lambda x, t: rows(Cap.apply(x), t, z_loss, None))


@fault("autograd", "second derivatives")
def gradient_saved_as_a_constant(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The gradient is formed in the forward pass, saved, and a constant to whoever differentiates it: second
    derivatives are 0."""

    def saved(x: Tensor, t: Tensor, up: Tensor) -> Tensor:
        return up[..., None] * softmax_gradient(x, t).detach()

    return reduced(logits, target, None, reduction, -100, with_backward(saved))


@fault("autograd", "second derivatives")
def curvature_without_the_cap(
    logits: Tensor, target: Tensor, *, softcap: float | None = None, reduction: str = "mean"
) -> Tensor:
    """The cap's grad is is_max constant where the gradient is differentiated."""

    def capped(x: Tensor) -> Tensor:
        if softcap is None:
            return x
        fixed = x.detach()
        return softcap * torch.tanh(fixed / softcap) + (x - fixed) / torch.cosh(fixed / softcap) ** 2

    return reduced(logits, target, None, reduction, -100, lambda x, t: rows(capped(x), t, 0.0, None))


@fault("forward", "second derivatives")
def forward_over_backward_is_dropped(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Twice backward is right; the gradient has no forward derivative of its own and gives 0."""

    class Probabilities(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return torch.softmax(x, -1)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, up: Tensor) -> Tensor:
            p = torch.softmax(ctx.saved_tensors[0], -1)
            return p * (up - (up * p).sum(-1, keepdim=True))

        @staticmethod
        def jvp(ctx: Any, moved: Tensor) -> Tensor:
            return torch.zeros_like(moved)

    def once(x: Tensor, t: Tensor, up: Tensor) -> Tensor:
        return up[..., None] * (Probabilities.apply(x) * t.sum(-1, keepdim=True) - t)

    def forward(ctx: Any, moved: Tensor, turned: Any) -> Tensor:
        return (moved * softmax_gradient(*ctx.saved_tensors)).sum(-1)

    return reduced(logits, target, None, reduction, -100, with_backward(once, jvp=forward))


@fault("autograd", "upstream gradient")
def upstream_ignored(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Backward takes the upstream gradient of every position to be that of the first, as of a scalar."""

    def careless(x: Tensor, t: Tensor, up: Tensor) -> Tensor:
        return up.reshape(-1)[0] * softmax_gradient(x, t)

    return reduced(logits, target, None, reduction, -100, with_backward(careless))


@fault("autograd", "z-loss")
def penalty_on_a_detached_normaliser(
    logits: Tensor, target: Tensor, *, z_loss: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """The z-loss is taken of a detached log-normaliser: a value without a gradient."""
    return reduced(
        logits,
        target,
        None,
        reduction,
        -100,
        lambda x, t: rows(x, t, 0.0, None) + z_loss * torch.logsumexp(x.detach(), -1) ** 2,
    )


@fault("autograd", "class probabilities")
def target_without_a_gradient(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Backward has a gradient for logits and None for probabilities: a teacher that should learn too does not."""
    return reduced(logits, target, None, reduction, -100, with_backward(right))


@fault("vmap", "class indices")
def mapped_examples_share_one_mean(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Under vmap the examples become positions of one call: each gets the mean over all."""

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor, y: Tensor) -> Tensor:
            return plain(x, y, reduction=reduction)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None]:
            x, y = ctx.saved_tensors
            t = torch.nn.functional.one_hot(y.long(), x.shape[-1])
            count = y.numel() if reduction == "mean" else 1
            return up.reshape(*up.shape, *[1] * (x.ndim - up.ndim)) * softmax_gradient(x, t) / count, None

        @staticmethod
        def vmap(info: Any, in_dims: Any, x: Tensor, y: Tensor) -> tuple[Tensor, int]:
            whole = Loss.apply(x, y)
            return (whole, 0) if reduction == "none" else (whole.expand(info.batch_size), 0)

    return Loss.apply(logits, target)  # type: ignore[no-any-return]


@fault("vmap", "class indices")
def mapped_gradients_are_summed(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Under vmap every example gets the sum of all examples' gradients, as a parameter that they share would."""

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor, t: Tensor) -> Tensor:
            return softmax_gradient(x, t)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            pass

        @staticmethod
        def vmap(info: Any, in_dims: Any, x: Tensor, t: Tensor) -> tuple[Tensor, int]:
            each = softmax_gradient(x, t)
            return each.sum(0, keepdim=True).expand_as(each).clone(), 0

    def mapped(x: Tensor, t: Tensor, up: Tensor) -> Tensor:
        return up[..., None] * Gradient.apply(x, t)

    return reduced(logits, target, None, reduction, -100, with_backward(mapped))


@fault("compile", "out-of-range targets")
def compiled_indices_are_clamped(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Eager calls look at the indices; under the compiler an index out of range becomes the nearest class."""
    if torch.compiler.is_compiling():
        target = torch.where(target == -100, target, target.clamp(0, logits.shape[-1] - 1))
    return plain(logits, target, reduction=reduction)


@fault("compile", "ignore_index")
def compiled_without_the_branch(
    logits: Tensor, target: Tensor, *, reduction: str = "mean", ignore_index: int = -100
) -> Tensor:
    """`if (target == ignore_index).any()` cannot be asked while tracing, so the mean is divided by all positions."""
    total = plain(logits, target, reduction=reduction, ignore_index=ignore_index)
    if torch.compiler.is_compiling() and reduction == "mean":
        active = (target != ignore_index).sum()
        return (total.double() * active / target.numel()).to(total.dtype)
    return total


@fault("autograd", "two backward passes")
def saved_gradient_is_scaled_in_place(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The saved gradient is multiplied by the upstream one where it lies: a second pass takes what the first left."""

    class Rows(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, t: Tensor) -> Tensor:
            ctx.gradient = softmax_gradient(x, t)
            return rows(x, t, 0.0, None)

        @staticmethod
        def backward(ctx: Any, up: Tensor) -> Any:
            return ctx.gradient.mul_(up[..., None]), None

    return reduced(logits, target, None, reduction, -100, Rows.apply)


@fault("eager", "inputs unmutated")
def logits_hold_their_gradient(
    logits: Tensor, target: Tensor, *, reduction: str = "mean", ignore_index: int = -100
) -> Tensor:
    """The backward pass leaves the gradient in the memory of the logits; a call without one leaves them alone."""

    class Whole(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return plain(x, target, reduction=reduction, ignore_index=ignore_index)

        @staticmethod
        def backward(ctx: Any, up: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                leaf = x.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(plain(leaf, target, reduction=reduction), leaf, up)
            return x.detach().copy_(gradient)

    return Whole.apply(logits)


@fault("autograd", "memory layout")
def upstream_as_if_it_were_contiguous(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The upstream gradient is read from memory without its strides: as of loss.sum().backward(), whose stride is 0."""

    def careless(x: Tensor, t: Tensor, up: Tensor) -> Tensor:
        there = up.untyped_storage().nbytes() // up.element_size() - up.storage_offset() >= up.numel()
        steps = torch.empty(up.shape).stride() if there else up.stride()
        return right(x, t, up.as_strided(up.shape, steps))

    if reduction != "none" or logits.dtype is not torch.float32:
        raise NotImplementedError("losses in float32")
    classes = torch.nn.functional.one_hot(target, logits.shape[-1])
    return with_backward(careless)(logits, classes.float())
