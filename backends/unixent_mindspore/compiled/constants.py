"""What the compiler makes of constants: a function marked `compile_time` runs as ordinary Python, on constants."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from functools import wraps
from typing import Any

from mindspore import Tensor
from mindspore.ops.primitive import constexpr

from unixent.arguments import as_backend_array
from unixent.errors import BackendError, OptionError
from unixent.options import LossOptions
from unixent.topk import TopK
from unixent_mindspore.backend import MindsporeBackend


def compile_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that the compiler calls with constants."""

    @wraps(function)
    def run(*values: Any) -> Any:
        try:
            return function(*values)
        except Exception:
            # MindSpore dumps a graph that failed to compile, by default into the working directory.
            os.environ.setdefault("MS_OM_PATH", tempfile.mkdtemp(prefix="unixent-"))
            raise

    return constexpr(run, check=False)  # type: ignore[no-any-return]


def as_tensor(value: Any, name: str) -> Tensor:
    """A Python number, list or NumPy array as a tensor, by the rules of an eager call."""
    return as_backend_array(MindsporeBackend(), name, value, None)


@compile_time
def constant(value: Any, name: str) -> Tensor:
    return as_tensor(value, name)


@compile_time
def constant_target(value: Any) -> tuple[Any, ...]:
    """A target that is a constant, as the tuple that a `TopK` of the graph is: its name, ids, values and teacher."""
    if not isinstance(value, TopK):
        return "constant", None, as_tensor(value, "target"), None
    ids, values = (as_tensor(array, name) for name, array in value.arguments().items())
    return "TopK", ids, values, tuple(value.teacher)


@compile_time
def loss_options(keywords: dict[str, Any]) -> LossOptions:
    for name, value in keywords.items():
        if isinstance(value, Tensor):  # one of the graph, in whose place stands one of zeros
            raise OptionError(f"{name}: expected a constant of Python; got a tensor of {value.dtype}")
        if isinstance(value, float) and (
            value == math.inf or (value == 0 and name in ("scale", "softcap", "temperature"))
        ):
            raise beyond_float32(name, value, "a module made outside of the function keeps its options as they are")
    return LossOptions(**keywords)


def beyond_float32(name: str, value: float, instead: str) -> OptionError:
    return OptionError(
        f"{name}: expected a number that float32 holds, since MindSpore compiles a Python float as one; got {value} "
        f"({instead})"
    )


@compile_time
def teacher_of(tail: Any, has_probs: bool, has_log_probs: bool) -> tuple[Any, ...]:
    """What is static of a `TopK`, which refuses what it does eagerly."""
    given = {"probs": has_probs or None, "log_probs": has_log_probs or None}
    return tuple(TopK(None, **given, tail=tail).teacher)


@compile_time
def refused_entropy() -> Tensor:
    raise BackendError(
        "entropy_of: expected an eager call with the mindspore backend; got one in code that MindSpore compiles (the "
        "teacher's entropy does not depend on the student: compute it before, and pass it)"
    )
