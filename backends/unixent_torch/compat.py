"""Every private name of torch, each with a fallback that is right if slower.

Calls ask these on their way, so that a name is looked up once, when the backend is imported, and is torch's own
function wherever it can be: no frame of ours comes between. Where a release lacks a name, what stands in for it uses
public names alone, or takes the answer with which the general path is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

# What small losses take their shorter path by; without one of them, every loss takes the general one.
_missing: list[str] = []


def _private(path: str, fallback: Any) -> Any:
    """``torch.<path>``, or the fallback where this release of torch has no such name."""
    value: Any = torch
    for name in path.split("."):
        value = getattr(value, name, None)
        if value is None:
            _missing.append(path)
            return fallback
    return value


def _probe_dispatch_modes() -> int:
    """1 under a mode that changes what a factory makes, such as that of fake tensors, or records it."""
    from torch.utils import _python_dispatch  # private itself, so that it is not relied on

    stack = getattr(_python_dispatch, "_get_current_dispatch_mode_stack", None)
    return len(stack()) if stack is not None else int(type(torch.empty(0)) is not Tensor)


def _probe_transforms() -> bool:
    """Whether a transform of torch.func is running; True where torch does not tell, or the compiler can't follow."""
    if torch.compiler.is_compiling():
        return True
    peek = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
    return True if peek is None else peek() is not None


def _has_no_storage(tensor: Tensor) -> bool:
    """A tensor behind a vmap has no memory of its own; `transforms_active` detects torch.func's."""
    if transforms_active():
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return True
    return False


# How many modes that intercept every operation are active (fake tensors, tracers of programs).
num_dispatch_modes: Callable[[], int] = _private("_C._len_torch_dispatch_stack", _probe_dispatch_modes)

# Whether a transform of torch.func is running.
transforms_active: Callable[[], bool] = _private("_C._are_functorch_transforms_active", _probe_transforms)

# Whether torch.jit.trace is recording.
is_jit_tracing: Callable[[], bool] = _private("_C._is_tracing", torch.jit.is_tracing)

# Whether a tensor is batched by the vmap behind ``is_grads_batched``, which knows nothing of Functions.
is_legacy_batched: Callable[[Tensor], bool] = _private("_C._functorch.is_legacy_batchedtensor", _has_no_storage)

# Whether the backward pass that is running keeps its graph: what was saved may then be needed once more.
keeps_graph: Callable[[], bool] = _private("_C._autograd._get_current_graph_task_keep_graph", lambda: True)

# What keeps an operator's own rule for autograd from being called once more, or None.
below_autograd: Any = _private("_C._AutoDispatchBelowAutograd", None)

_top_hooks = _private("_C._autograd._top_saved_tensors_default_hooks", None)
# The hooks of torch.autograd.graph.saved_tensors_hooks that are active here, or None.
saved_tensors_hooks: Callable[[], Any] = (lambda: True) if _top_hooks is None else partial(_top_hooks, True)

_interpreters = _private("_C._functorch.get_interpreter_stack", None)
_TransformType = _private("_C._functorch.TransformType", None)
_has_level = hasattr(forward_ad, "_current_level")
_missing += [] if _has_level else ["autograd.forward_ad._current_level"]
_missing += [] if hasattr(Tensor, "_version") else ["Tensor._version"]


def statically_known(condition: Any) -> bool:
    """Whether a condition holds. An exported program must not depend on its symbols: there, whether it always does."""
    if not getattr(torch.compiler, "is_exporting", bool)():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(condition))


def in_forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open."""
    if _has_level:
        return bool(forward_ad._current_level >= 0)
    if torch.compiler.is_compiling():
        return True  # the compiler can't follow what comes next, and the answer is always safe
    try:
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
    except RuntimeError:  # without a level there are no dual numbers
        return False
    return True


def functions_lack_a_rule() -> bool:
    """Whether one of the running transforms of torch.func lacks a rule for Functions.

    torch drops the outer of two forward-mode derivatives of a Function without a word, and can't functionalize one.
    """
    if _interpreters is None or _TransformType is None:
        return True
    kinds = [interpreter.key() for interpreter in _interpreters()]
    return kinds.count(_TransformType.Jvp) > 1 or _TransformType.Functionalize in kinds


def fast_function(cls: type[Function]) -> Callable[..., Any]:
    """``cls.apply`` without its look at torch.func, and the engine's way to its backward without a look at both names.

    For functions that are applied only where no transform is running.
    """
    base = super(Function, cls)
    if "_backward_cls" not in vars(cls) or not hasattr(base, "apply"):  # its own, not that of a base
        return cls.apply  # type: ignore[no-any-return]
    cls._backward_cls.apply = cls.__dict__["backward"].__func__
    return base.apply  # type: ignore[no-any-return]


def serves_host(group: Any) -> bool:
    """Whether a process group exchanges tensors that lie in host memory."""
    devices = getattr(group, "_device_types", None)
    if devices is None:
        return "gloo" in str(torch.distributed.get_backend(group))
    return not devices or any(device.type == "cpu" for device in devices)


def float32_matmul_precision() -> str:
    """What float32 products keep, "highest", "high" or "medium", whichever of torch's two ways it was set by."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer one has been used
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


def traced_all_reduce(values: Tensor, operation: str, group: Any) -> Tensor:
    """A reduction over a group as a functional operation of the graph that is being traced."""
    try:
        from torch.distributed._functional_collectives import all_reduce
    except ImportError:
        operations = torch.distributed.ReduceOp
        torch.distributed.all_reduce(values, operations.MAX if operation == "max" else operations.SUM, group=group)
        return values
    reduced: Tensor = all_reduce(values, operation, group)
    return reduced


# Whether everything is there that the path for small losses needs.
complete = not _missing


@torch.compiler.assume_constant_result
def must_trace() -> bool:
    """While torch.compile traces: whether it accepts no break of the graph. Also where torch does not tell."""
    from torch._dynamo import symbolic_convert  # private, and slow to import: only the compiler comes here

    try:
        translator = symbolic_convert.InstructionTranslator.current_tx()
        return bool(translator.one_graph or translator.error_on_graph_break)
    except AttributeError:
        return True
