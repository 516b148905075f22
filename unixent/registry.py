"""Finding backends by name, or by the array they are for: entry points, imported only when asked for.

A distribution registers its backend under the group ``unixent.backends``, and the top-level module of the array type
that it serves under ``unixent.arrays``::

    [project.entry-points."unixent.backends"]
    mylib = "unixent_mylib:backend"

    [project.entry-points."unixent.arrays"]
    mylib = "unixent_mylib:backend"

An array's module says which backend to import, so that none is imported whose framework is not loaded already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unixent.errors import BackendUnavailableError, UnixentError, UnknownBackendError
from unixent.protocol import Backend, Capabilities, Device

if TYPE_CHECKING:
    from importlib import metadata

BACKENDS, ARRAYS = "unixent.backends", "unixent.arrays"

_BY_NAME: dict[str, Backend] = {}
_BY_MODULE: dict[str, Backend | None] = {}


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One row of `backends`: what is known of a backend.

    ``devices`` and ``capabilities`` are None until the backend has been loaded, ``version`` until its framework is
    installed; ``hint`` says how to install what is missing.
    """

    name: str
    installed: bool
    version: str | None
    devices: tuple[Device, ...] | None
    capabilities: Capabilities | None
    hint: str | None


def _entry_points(group: str = BACKENDS) -> dict[str, metadata.EntryPoint]:
    from importlib import metadata  # half of what `import unixent` would cost, and not needed before the first call

    entries: dict[str, metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=group):
        # What unixent registers can't be taken over by another distribution.
        if entry.name not in entries or _is_ours(entry):
            entries[entry.name] = entry
    return entries


def _is_ours(entry: metadata.EntryPoint) -> bool:
    return entry.dist is not None and entry.dist.name == "unixent"


def install_command(extra: str) -> str:
    """What installs what one of unixent's extras requires, wherever unixent itself came from.

    Example:
        >>> print(install_command("jax"))
        pip install "jax>=0.7.1"
    """
    from importlib import metadata

    required: list[str] = []
    with contextlib.suppress(metadata.PackageNotFoundError):
        required = metadata.requires("unixent") or []
    marked = (line.replace("'", '"').partition(";") for line in required)
    wanted = [f'"{name.strip()}"' for name, _, marker in marked if f'extra == "{extra}"' in marker]
    return f"pip install {' '.join(wanted) or extra}"


def _hint(entry: metadata.EntryPoint) -> str:
    if _is_ours(entry):
        return install_command(entry.name)
    owner = entry.dist.name if entry.dist is not None else entry.module
    return f"see the documentation of {owner}"


def _known(entries: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, sorted(entries)))


def _import(entry: metadata.EntryPoint) -> Backend:
    backend = _BY_NAME.get(entry.name)
    if backend is None:
        try:
            backend = entry.load()
        except Exception as error:  # whatever a broken installation raises
            reason = f"{type(error).__name__}: {error}"
            raise BackendUnavailableError(
                f"backend: {entry.name!r} is registered but cannot be imported ({reason}); {_hint(entry)}"
            ) from error
        _BY_NAME[entry.name] = backend
    return backend


def _load_by_name(name: str) -> bool:
    """Have `_BY_NAME` hold the backend of that name."""
    if name not in _BY_NAME:
        entries = _entry_points()
        if name not in entries:
            raise UnknownBackendError(f"backend: expected one of {_known(entries)}; got {name!r}")
        _import(entries[name])
    return True


def _load_by_module(module: str) -> bool:
    """Have `_BY_MODULE` hold the backend that declares arrays of that top-level module; whether there is one."""
    if module not in _BY_MODULE:
        declared = _entry_points(ARRAYS).get(module)
        entries = [] if declared is None else [e for e in _entry_points().values() if e.value == declared.value]
        _BY_MODULE[module] = _import(entries[0]) if entries else None
    return _BY_MODULE[module] is not None


def _declared_by(array_type: type) -> str | None:
    """The first top-level module of the type and its bases whose arrays a backend declares, which is loaded then."""
    for base in array_type.__mro__:
        module = base.__module__.partition(".")[0]
        if _load_by_module(module):
            return module
    return None


# A compiler that traces the first call of a process can't follow a search for entry points. For torch's this attribute,
# which `torch.compiler.assume_constant_result` sets, says to run the function and keep what it returns; the backend
# is read from a table afterwards.
for _function in (_load_by_name, _declared_by):
    setattr(_function, "_dynamo_marked_constant", True)  # noqa: B010 - a function has no such attribute, to a type checker


def get_backend(name: str) -> Backend:
    """The backend registered under ``name``; imports its framework on the first call, then is a dict look-up.

    Args:
        name: "numpy", "torch", "jax", "mindspore", or the name of a plug-in.

    Raises:
        UnknownBackendError: nothing is registered under that name.
        BackendUnavailableError: it is registered, but cannot be imported; the message says why, and what to install.

    Example:
        >>> import unixent
        >>> unixent.get_backend("numpy").name
        'numpy'
    """
    _load_by_name(name)
    return _BY_NAME[name]


def find_backend(array_type: type) -> Backend | None:
    """The backend that declares arrays of this type or of one of its bases, if there is one."""
    module = _declared_by(array_type)
    return None if module is None else _BY_MODULE[module]


def backend_of(array: Any, argument: str = "logits") -> Backend:
    """The backend that ``array`` belongs to.

    Raises:
        UnknownBackendError: no registered backend takes it.
        BackendUnavailableError: the one that does cannot be imported.
    """
    backend = find_backend(type(array))
    if backend is not None and backend.owns(array):
        return backend
    for base in type(array).__mro__[1:]:  # whose backend may own what that of the type itself does not
        backend = find_backend(base)
        if backend is not None and backend.owns(array):
            return backend
    type_name = f"{type(array).__module__}.{type(array).__qualname__}"
    names = ", ".join(sorted(_entry_points()))
    raise UnknownBackendError(f"{argument}: expected an array of one of the backends ({names}); got {type_name}")


def _status(entry: metadata.EntryPoint, load: bool) -> BackendStatus:
    from importlib.util import find_spec

    # A plug-in may have any name, so its own module is looked for; ours are named after their framework.
    framework = entry.name if _is_ours(entry) else entry.module.partition(".")[0]
    installed = find_spec(framework) is not None
    backend = _BY_NAME.get(entry.name)
    if backend is None and load and installed:
        try:
            backend = _import(entry)
        except UnixentError:
            installed = False
    if backend is not None:
        return BackendStatus(entry.name, True, backend.version, backend.devices(), backend.capabilities, None)
    from importlib import metadata

    version = None
    if installed:
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version(framework)
    return BackendStatus(entry.name, installed, version, None, None, None if installed else _hint(entry))


def backends(*names: str) -> tuple[BackendStatus, ...]:
    """What backends there are: installed or not, version, devices, capabilities.

    Without names every registered backend is listed and nothing is imported: devices and capabilities are those of
    backends already in use. With names, those are loaded and listed in full.

    Args:
        *names: backends to load and describe.

    Raises:
        UnknownBackendError: nothing is registered under one of the names.

    Example:
        >>> import unixent
        >>> [status.name for status in unixent.backends() if status.name == "numpy"]
        ['numpy']
        >>> [device.name for device in unixent.backends("numpy")[0].devices]
        ['cpu']
    """
    entries = _entry_points()
    for name in names:
        if name not in entries:
            raise UnknownBackendError(f"backend: expected one of {_known(entries)}; got {name!r}")
    return tuple(_status(entries[name], load=bool(names)) for name in (names or sorted(entries)))
