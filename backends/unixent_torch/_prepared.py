"""What a logits-level and a fused linear problem have in common once they reach torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unixent.protocol import LossProblem
from unixent.validation import empty_mean
from unixent_torch._kernel import Spec
from unixent_torch._positions import Positions
from unixent_torch._reduction import Call, Denominator

_Transform = torch._C._functorch.TransformType


# Looked up once: they are asked on every call, several times.
modes_active, transforms_active = torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active


def is_traced() -> bool:
    """Whether operations are recorded rather than run: by the compiler, or by a mode such as that of fake tensors."""
    return torch.compiler.is_compiling() or modes_active() > 0


def in_transform() -> bool:
    """Whether a transform of torch.func is running."""
    found: bool = transforms_active()
    return found


def is_composed() -> bool:
    """Whether the loss has to be made of plain operations: for tracers, and for transforms that Functions lack."""
    if is_traced():
        return True
    if not in_transform():
        return False
    kinds = [interpreter.key() for interpreter in torch._C._functorch.get_interpreter_stack()]
    # torch drops the outer of two forward-mode derivatives of a Function without a word, and can't functionalize one.
    return kinds.count(_Transform.Jvp) > 1 or _Transform.Functionalize in kinds


class Prepared:
    """A problem with its positions known and its denominator found.

    Args:
        problem: the problem.
        lead: its tensor of shape P + (C,) or P + (D,).
        target: its target, the classes last.
    """

    def __init__(self, problem: LossProblem, lead: Tensor, target: Tensor) -> None:
        options = problem.options
        self._problem = problem
        self._shape, self._device = lead.shape[:-1], lead.device
        self.composed = is_composed()
        kind = torch.float64 if problem.acc_dtype == "float64" else torch.float32
        on_cpu = lead.is_cpu
        self._host = on_cpu and not self.composed and not in_transform()
        self.weight = None if problem.weight is None else problem.weight.to(kind)
        self.positions = Positions.of(problem, target, self.weight, self._host)
        spec = Spec(kind, options.label_smoothing, options.z_loss, options.softcap, on_cpu)
        kept = len(self._shape) if options.reduction == "none" else 0
        self.call = Call(spec, kept, 0.0 if options.on_empty == "zero" else torch.nan)
        self.denominator = self._denominator()

    def total(self) -> Tensor:
        """The sum of the d_n."""
        d = self.positions.d
        if d is not None:
            return d.sum()
        return torch.full((), float(self._shape.numel()), dtype=self.call.spec.acc_dtype, device=self._device)

    def counted(self) -> Tensor | float:
        """`total`, as a number where every position counts 1."""
        return self.total() if self.positions.d is not None or self.composed else float(self._shape.numel())

    def _denominator(self) -> Denominator:
        problem = self._problem
        if problem.return_terms or problem.options.reduction != "mean":
            return None
        value: Any = problem.normalizer
        if value is None:
            value = self.counted()
        if isinstance(value, Tensor):
            value = value.to(self.call.spec.acc_dtype)
            value = value.item() if self._host else value
        if problem.check_empty and value == 0:
            raise empty_mean()
        return value

    def loss(self) -> Tensor:
        """The reduced loss in the accumulation dtype."""
        raise NotImplementedError

    def loss_and_grads(self, grad_output: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The reduced loss, and its gradient for each of ``wrt``."""
        raise NotImplementedError

    def upstream(self, grad_output: Tensor | None) -> Tensor:
        """The upstream gradient in the accumulation dtype; ones without any."""
        kind = self.call.spec.acc_dtype
        if grad_output is None:
            return torch.ones(self._shape[: self.call.kept], dtype=kind, device=self._device)
        return grad_output.to(kind)

    def finish(self, value: Tensor) -> Tensor:
        """``value`` in the dtype of the result."""
        dtype: torch.dtype = getattr(torch, self._problem.result_dtype)
        return value if value.dtype == dtype else value.to(dtype)
