"""The one exception family, the same on every backend.

Every error is a `UnixentError` and also the built-in exception that Python programmers expect for its kind, so that
``except ValueError`` keeps working. Every message names the argument, what was expected and what came.
"""

from __future__ import annotations

from typing import NoReturn


class UnixentError(Exception):
    """Base class of every error that unixent raises on purpose."""


class ShapeError(UnixentError, ValueError):
    """An argument has a shape that does not fit the others."""


class DTypeError(UnixentError, TypeError):
    """An argument has a dtype, or is of a type, that the call does not take."""


class OptionError(UnixentError, ValueError):
    """An option is outside its range, or does not go with another option."""


class TargetRangeError(UnixentError, IndexError):
    """A class index lies outside ``[0, C)`` and is not ``ignore_index``."""


class NonFiniteError(UnixentError, FloatingPointError):
    """The loss or its gradient is NaN or infinite, and the caller asked for the check."""


class EmptyMeanError(UnixentError, ZeroDivisionError):
    """The denominator of a mean is zero and ``on_empty="raise"``."""


class BackendError(UnixentError, RuntimeError):
    """A backend cannot serve this call: mixed frameworks or devices, or a capability that it does not declare."""


class UnknownBackendError(UnixentError, LookupError):
    """No backend of that name, or none for arrays of that type, is registered."""


class BackendUnavailableError(UnixentError, ImportError):
    """A registered backend cannot be imported, usually because its framework is not installed."""


def refuse_script(name: str) -> NoReturn:
    """Raise for a function or a module that torch.jit.script is to compile. It asks for ``__prepare_scriptable__``."""
    raise BackendError(
        f"torch.jit.script: {name} is Python, which TorchScript does not compile; use torch.compile or torch.export, "
        "or torch.jit.trace"
    )


def option_error(name: str, expected: str, value: object, hint: str = "") -> OptionError:
    """The error for an option that is not what was expected."""
    try:
        came = repr(value)
    except Exception:  # Python prints no int of thousands of digits, and a repr may do anything
        came = f"an unprintable {type(value).__name__}"
    return OptionError(f"{name}: expected {expected}; got {came}{hint}")
