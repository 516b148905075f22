"""Triton kernels on CPU tensors, through Triton's interpreter, with the interpreter's gaps filled.

    from unixent_conformance import triton_interpreter

    triton_interpreter.enable()  # before triton is imported

    from mylib.kernels import fused_cross_entropy

A compiled kernel gets its Python floats as float32, has CUDA's libdevice, and knows bfloat16. The interpreter passes
floats on as Python's, so that `softcap.to(tl.float32)` fails; has no libdevice, so that `tanh` gives nothing; and
computes with the bits of a bfloat16 as if they were an integer, and truncates where a GPU rounds to the nearest.
docs/triton.md says what remains that it cannot show.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np

from unixent_conformance.harness import Unsupported

# Functions of libdevice by NumPy's name, where it is another; the rest of SAME have the same.
RENAMED: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh, "atan": np.arctan,
    "atan2": np.arctan2, "atanh": np.arctanh, "exp10": lambda x: x.dtype.type(10) ** x, "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x), "fast_expf": np.exp, "fast_logf": np.log, "fast_log2f": np.log2,
    "fast_powf": np.power, "fast_dividef": np.divide, "fast_tanhf": np.tanh, "div_rn": np.divide,
}  # fmt: skip
SAME = (
    "cbrt ceil copysign cos cosh exp exp2 expm1 floor fmod hypot isinf isnan log log10 log1p log2 "
    "rint sin sinh sqrt tan tanh trunc"
)
LIBDEVICE = {**RENAMED, **{name: getattr(np, name) for name in SAME.split()}}

# A kernel finds them in one of these: the second is where older releases and some libraries look.
MODULES = ("triton.language.extra.libdevice", "triton.language.extra.cuda.libdevice")

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def enable() -> None:
    """Let `triton.jit` interpret every kernel of this process, also where there is a GPU: the suite's tensors are on
    the CPU. Calling it again changes nothing.

    Raises ImportError where triton is not installed, RuntimeError where it was imported before.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    import torch
    from triton.runtime import interpreter

    if getattr(interpreter, "_unixent", False):
        return
    if not isinstance(interpreter.tl.sum, interpreter.InterpretedFunction):
        raise RuntimeError("triton was imported before triton_interpreter.enable(): its own functions are compiled")
    interpreter._unixent = True
    _give_floats_as_float32(interpreter)
    _compute_in_bfloat16(interpreter)
    _know_functions_by_other_names(interpreter)
    _refuse_what_it_lacks(interpreter)
    for name in MODULES:
        module = import_module(name)
        for function, by_numpy in LIBDEVICE.items():
            if hasattr(module, function):
                setattr(module, function, _elementwise(interpreter, by_numpy))
    if not torch.cuda.is_available():  # launchers say `with torch.cuda.device(x.device)`
        torch.cuda.device = lambda device: nullcontext()


def _give_floats_as_float32(interpreter: Any) -> None:
    convert = interpreter._implicit_cvt

    def as_compiled(argument: Any) -> Any:
        return _scalar(interpreter, argument) if isinstance(argument, float) else convert(argument)

    interpreter._implicit_cvt = as_compiled


def _scalar(interpreter: Any, value: float) -> Any:
    tl = interpreter.tl
    with np.errstate(over="ignore"):
        data = np.array([value], np.float32)
    return tl.tensor(interpreter.TensorHandle(data, tl.float32), tl.float32)


def _compute_in_bfloat16(interpreter: Any) -> None:
    """Hold bfloat16 as numbers of that type: NumPy then rounds each operation to the nearest."""
    tl, builder, as_numpy = interpreter.tl, interpreter.InterpreterBuilder, interpreter._get_np_dtype
    cast, convert, load, store = (
        getattr(builder, name) for name in ("cast_impl", "create_fp_to_fp", "create_masked_load", "create_masked_store")
    )

    def as_numpy_with_bfloat16(dtype: Any) -> Any:
        scalar = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        return _BFLOAT16 if scalar == tl.bfloat16 else as_numpy(dtype)

    def cast_rounded(self: Any, value: Any, dtype: Any) -> Any:
        if tl.bfloat16 not in (value.dtype.scalar, dtype.scalar):
            return cast(self, value, dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            data = value.data.astype(as_numpy_with_bfloat16(dtype.scalar))
        return interpreter.TensorHandle(data, dtype.scalar)

    def convert_rounded(self: Any, value: Any, dtype: Any, rounding: Any) -> Any:
        bfloat16 = tl.bfloat16 in (value.dtype.scalar, dtype.scalar) and min(value.data.itemsize, _width(dtype)) > 1
        return cast_rounded(self, value, dtype) if bfloat16 else convert(self, value, dtype, rounding)

    def load_bits(self: Any, pointers: Any, mask: Any, other: Any, *policy: Any) -> Any:
        if pointers.get_element_ty() != tl.bfloat16:
            return load(self, pointers, mask, other, *policy)
        fill = np.zeros(pointers.data.shape, np.uint16) if other is None else other.data.view(np.uint16)
        bits = interpreter._interpreter.load(pointers.data, mask.data, fill, np.dtype(np.uint16))
        return interpreter.TensorHandle(bits.view(_BFLOAT16), tl.bfloat16)

    def store_bits(self: Any, pointers: Any, value: Any, mask: Any, *policy: Any) -> Any:
        if value.data.dtype == _BFLOAT16:
            value = interpreter.TensorHandle(value.data.view(np.uint16), value.dtype)
        return store(self, pointers, value, mask, *policy)

    interpreter._get_np_dtype = as_numpy_with_bfloat16
    builder.cast_impl, builder.create_fp_to_fp = cast_rounded, convert_rounded
    builder.create_masked_load, builder.create_masked_store = load_bits, store_bits


def _width(dtype: Any) -> int:
    return int(dtype.scalar.primitive_bitwidth) // 8


def _know_functions_by_other_names(interpreter: Any) -> None:
    """The language's functions that a kernel's module has under names of its own: `cast = tl.cast`. The interpreter
    gives its state to those alone that are called as attributes of `tl`."""
    patch = interpreter._patch_lang

    def patch_with_names(function: Any) -> Any:
        names = function.__globals__
        for name, member in list(names.items()):
            if interpreter.tl.core.is_builtin(member):
                names[name] = _with_semantic(interpreter, member)
        return patch(function)

    interpreter._patch_lang = patch_with_names


def _with_semantic(interpreter: Any, member: Any) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return member(*arguments, **{**options, "_semantic": interpreter.interpreter_semantic})

    return call


def _refuse_what_it_lacks(interpreter: Any) -> None:
    """What no interpreter can run (inline assembly, another library's code) is no fault of the kernel."""
    launch = interpreter.GridExecutor.__call__

    def launch_or_refuse(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return launch(self, *arguments, **options)
        except interpreter.InterpreterError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, NotImplementedError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise Unsupported(f"Triton's interpreter: {cause}") from error

    interpreter.GridExecutor.__call__ = launch_or_refuse


def _elementwise(interpreter: Any, by_numpy: Callable[..., Any]) -> Callable[..., Any]:
    tl = interpreter.tl

    def function(*arguments: Any, _semantic: Any = None) -> Any:
        tensors = [a if isinstance(a, tl.tensor) else _scalar(interpreter, float(a)) for a in arguments]
        with np.errstate(all="ignore"):
            data = np.asarray(by_numpy(*(tensor.handle.data for tensor in tensors)))
        widest = max(tensors, key=lambda tensor: tensor.handle.data.size)
        dtype = tl.int1 if data.dtype == np.bool_ else widest.dtype
        shape = widest.type.with_element_ty(dtype) if widest.type.is_block() else dtype
        if data.dtype != np.bool_:
            data = data.astype(widest.handle.data.dtype)
        return tl.tensor(interpreter.TensorHandle(data, dtype.scalar), shape)

    return function
