"""Private names of MindSpore, each with a fallback that is right if slower, and what it does on NumPy 2."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from mindspore import Tensor


def _private(name: str, *modules: str) -> Any:
    """A private name from the first of some modules that has it, or None: MindSpore moved them in 2.7."""
    for module in modules:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(import_module(module), name)
    return None


_EXECUTOR = _private("_pynative_executor", "mindspore.graph.api", "mindspore.common.api")
_COMPILED_IN_PLACE_OF = _private(
    "convert_object_map", "mindspore.graph._parse.resources", "mindspore._extends.parse.resources"
)


def is_recording() -> bool:
    """Whether eager calls are recorded for a derivative. Where that can't be asked they may be: the slower way."""
    return True if _EXECUTOR is None else bool(_EXECUTOR.requires_grad())


def compile_in_place_of(original: Any, replacement: Callable[..., Any]) -> None:
    """Have MindSpore's parser compile ``replacement`` where code names ``original``.

    Where the parser has no such table, it compiles the original, which it refuses: an error, never a wrong number.
    """
    if _COMPILED_IN_PLACE_OF is not None:
        _COMPILED_IN_PLACE_OF[original] = replacement


def warn_of_numpy_2() -> None:
    """Warn on NumPy 2, for which MindSpore 2.10 was not compiled though its metadata allow it.

    The one error that MindSpore raises there on its first use is taken away from the caller.
    """
    if int(np.__version__.partition(".")[0]) < 2:
        return
    warnings.warn(
        f"MindSpore is not compiled for NumPy {np.__version__}: NumPy scalars as operands raise TypeError, and "
        "asnumpy(), item() and tolist() of bfloat16 tensors raise or crash the process. unixent's own results are "
        "right, but yours may not get that far. Install a working pair: pip install 'mindspore==2.10.0' 'numpy<2'",
        RuntimeWarning,
        stacklevel=2,
    )
    with contextlib.suppress(SystemError):  # once per process, at the first operation with a Python scalar
        Tensor([0.0]) + 1.0
