"""The shared library: found beside this file, loaded when it is first asked for.

``UNIXENT_NATIVE=0`` switches it off, and ``UNIXENT_NATIVE_ISA`` chooses its instruction set; both are read once.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from unixent.errors import OptionError

NAME = "rows" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")

# A call as ``source/call.h`` lays it out.
MAX_AXES = 8
ADDRESSES = struct.Struct("10q")
CALL = struct.Struct(f"{4 * (3 + MAX_AXES)}q 10q {MAX_AXES}q 2q 5d")
STATISTICS = struct.Struct("25q")  # of source/statistics.h

_TEXT, _ADDRESS, _NUMBER = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64

# What each function of the library returns and takes.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "isa": (_TEXT, [_NUMBER]),
    "rows": (ctypes.c_int, [_TEXT, _TEXT, _NUMBER]),
    "statistics": (ctypes.c_int, [_TEXT, _TEXT, _TEXT, _NUMBER]),
    "in_range": (ctypes.c_int, [_ADDRESS, _NUMBER, _NUMBER]),
    "sum": (ctypes.c_double, [_ADDRESS, _NUMBER, _NUMBER]),
    "exp": (None, [_NUMBER, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER]),
    "log1p": (None, [_NUMBER, _ADDRESS, _ADDRESS, _NUMBER]),
}

_logger = logging.getLogger("unixent")


class Library(NamedTuple):
    """The library's functions, all of which let go of the interpreter lock, and what they run on here.

    Attributes:
        rows: ``(addresses, rest of the call, isa) -> status``, the pass over the logits.
        statistics: ``(addresses, rest of the call, what is asked, isa) -> status``, that for statistics of positions.
        in_range: ``(index, n, num_classes) -> whether``, of int64 class indices.
        sum: ``(x, n, dtype) -> sum``, of finite numbers, in double.
        exp: ``(isa, x, out, n, type)``, exponentials of numbers <= 0, for tests.
        log1p: ``(isa, x, out, n)``, log(1 + x) of float64 numbers >= 0, for tests.
        xla_rows: the same as ``rows`` for XLA, which calls it (``source/xla.c``).
        isas: names of the instruction sets of this machine, the default first.
        isa: index of the one that is used.
    """

    rows: Callable[..., int]
    statistics: Callable[..., int]
    in_range: Callable[..., int]
    sum: Callable[..., float]
    exp: Callable[..., None]
    log1p: Callable[..., None]
    xla_rows: Any
    isas: tuple[str, ...]
    isa: int


@lru_cache(maxsize=1)
def load() -> Library | None:
    """The library; None where it was not built, can't be loaded, or is switched off.

    Raises:
        OptionError: ``UNIXENT_NATIVE_ISA`` names an instruction set that this machine or library does not have.
    """
    if os.environ.get("UNIXENT_NATIVE") == "0":
        return None
    try:
        shared = ctypes.CDLL(str(Path(__file__).with_name(NAME)))
        if shared.unixent_call_size() != ADDRESSES.size + CALL.size + STATISTICS.size:
            raise OSError(f"{NAME} is of another version: python hatch_build.py builds it again")
        xla_rows = shared.unixent_xla_rows
        functions = {name: getattr(shared, f"unixent_{name}") for name in FUNCTIONS}
    except (OSError, AttributeError) as error:
        # Once: the result is kept.
        _logger.info("native kernel not available, using the framework's own operators: %s", error)
        return None
    for name, (result, arguments) in FUNCTIONS.items():
        functions[name].restype, functions[name].argtypes = result, arguments
    isa_name = functions.pop("isa")
    isas: tuple[str, ...] = ()
    while (isa := isa_name(len(isas))) is not None:
        isas += (isa.decode(),)
    chosen = os.environ.get("UNIXENT_NATIVE_ISA", isas[0])
    if chosen not in isas:
        raise OptionError(f"UNIXENT_NATIVE_ISA: expected one of {', '.join(isas)}; got {chosen!r}")
    return Library(**functions, xla_rows=xla_rows, isas=isas, isa=isas.index(chosen))


def kernel_name(instead: str) -> str:
    """What computes the pass over logits in host memory, for people; ``instead`` of the library where it is not."""
    isa = instruction_set()
    return instead if isa is None else f"native, {isa}"


def instruction_set() -> str | None:
    """Name of the instruction set that the native kernel uses here; None where there is no such kernel."""
    loaded = load()
    return None if loaded is None else loaded.isas[loaded.isa]
