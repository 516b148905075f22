"""Weight, mask and normalizer are constants: a derivative along one is refused, whatever transform asks for it.

An operator looks, since torch runs it at each level of nested transforms with the tensor as it is there, in a program
that is being compiled as well; reading ``requires_grad`` of the argument sees one level alone, and no tangent. What it
returns holds nothing and is never used, so that compilers drop the call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from unixent.arguments import not_constant
from unixent.protocol import LossProblem
from unixent_torch import compat

_library = torch.library.Library("unixent", "FRAGMENT")
_library.define("refuse_derivative(Tensor constant, str name) -> Tensor")


def _nothing(constant: Tensor, name: str) -> Tensor:
    return constant.new_empty(0)


def _refuse(constant: Tensor, name: str) -> Tensor:
    if (constant.requires_grad and torch.is_grad_enabled()) or forward_ad.unpack_dual(constant).tangent is not None:
        raise not_constant(name)
    if compat.below_autograd is None:
        return _nothing(constant, name)
    with compat.below_autograd():
        return _operator(constant, name)


def _each(info: Any, in_dims: Any, constant: Tensor, name: str) -> tuple[Tensor, None]:
    return _operator(constant, name), None


_operator: Any = torch.ops.unixent.refuse_derivative
_library.impl("refuse_derivative", _nothing, "CompositeExplicitAutograd")
_library.impl("refuse_derivative", _refuse, "Autograd")
torch.library.register_fake("unixent::refuse_derivative", _nothing, lib=_library)
torch.library.register_vmap("unixent::refuse_derivative", _each, lib=_library)


def refuse_derivatives(problem: LossProblem) -> None:
    """Raise where a derivative along weight, mask or normalizer is asked for, in reverse or forward mode."""
    for name in ("weight", "mask", "normalizer"):
        constant = getattr(problem, name)
        if isinstance(constant, Tensor):
            _operator(constant, name)
