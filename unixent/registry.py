"""Finding backends by name or by the type of an array: entry points, loaded only when asked for."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unixent.errors import BackendUnavailableError, UnknownBackendError
from unixent.protocol import Backend, Capabilities

if TYPE_CHECKING:
    from importlib import metadata

GROUP = "unixent.backends"

# Plain dicts, since torch.compile traces a dict look-up but not a functools cache.
_BY_NAME: dict[str, Backend] = {}
_BY_TYPE: dict[type, Backend] = {}


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One row of `backends`: what is known of a backend.

    ``devices`` and ``capabilities`` are None until the backend has been loaded, ``version`` until its framework is
    installed; ``hint`` says how to install what is missing.
    """

    name: str
    installed: bool
    version: str | None
    devices: tuple[str, ...] | None
    capabilities: Capabilities | None
    hint: str | None


def _entry_points() -> dict[str, metadata.EntryPoint]:
    from importlib import metadata  # half of what `import unixent` would cost, and not needed before the first call

    found: dict[str, metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=GROUP):
        # Our own names can't be taken over by another distribution.
        if entry.name not in found or _is_ours(entry):
            found[entry.name] = entry
    return found


def _is_ours(entry: metadata.EntryPoint) -> bool:
    return entry.module == f"unixent_{entry.name}" and entry.dist is not None and entry.dist.name == "unixent"


def _hint(entry: metadata.EntryPoint) -> str:
    if _is_ours(entry):
        return f'pip install "unixent[{entry.name}]"'
    owner = entry.dist.name if entry.dist is not None else entry.module
    return f"see the documentation of {owner}"


def _load(entry: metadata.EntryPoint) -> Backend:
    try:
        backend: Backend = entry.load()
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend: {entry.name!r} is registered but cannot be imported ({error}); {_hint(entry)}"
        ) from error
    _keep(entry.name, backend)
    return backend


def _keep(name: str, backend: Backend) -> None:
    _BY_NAME[name] = backend
    _BY_TYPE.update(dict.fromkeys(getattr(backend, "array_types", ()), backend))


def _torch() -> Backend | None:
    """torch's backend by a plain import: torch.compile can follow that in a first call, but no search."""
    try:
        from unixent_torch import backend
    except ImportError:
        return None  # whose reason the search finds out
    if not backend.one_program():  # a look-up table that grew while a call was traced would have it compiled again
        _keep("torch", backend)
    return backend


def get_backend(name: str) -> Backend:
    """The backend registered under ``name``; imports its framework on the first call, then is a dict look-up.

    Args:
        name: "numpy", "torch", "jax", "mindspore", or the name of a plug-in.

    Raises:
        UnknownBackendError: nothing is registered under that name.
        BackendUnavailableError: it is registered, but its framework cannot be imported; the message says what to
            install.

    Example:
        >>> import unixent
        >>> unixent.get_backend("numpy").name
        'numpy'
    """
    backend = _BY_NAME.get(name)
    if backend is None and name == "torch":
        backend = _torch()
    if backend is not None:
        return backend
    entries = _entry_points()
    if name not in entries:
        known = ", ".join(map(repr, sorted(entries)))
        raise UnknownBackendError(f"backend: expected one of {known}; got {name!r}")
    return _load(entries[name])


def _candidates() -> Iterator[Backend]:
    """Loaded backends first, then those whose framework is already imported: others can't own any array."""
    loaded = dict(_BY_NAME)  # another thread may load one meanwhile, which is then met below
    yield from loaded.values()
    for name, entry in _entry_points().items():
        if name in loaded or (_is_ours(entry) and name not in sys.modules):
            continue
        try:
            yield _BY_NAME.get(name) or _load(entry)
        except BackendUnavailableError:
            continue


def backend_of(array: Any, argument: str = "logits") -> Backend:
    """The backend that ``array`` belongs to, by its type.

    Raises:
        UnknownBackendError: no registered backend owns it.
    """
    backend = _BY_TYPE.get(type(array))
    if backend is None and type(array).__module__.partition(".")[0] == "torch":
        backend = _torch()
    if backend is not None:
        return backend
    for backend in _candidates():
        if backend.owns(array):
            _BY_TYPE[type(array)] = backend
            return backend
    kind = f"{type(array).__module__}.{type(array).__qualname__}"
    known = ", ".join(sorted(_entry_points()))
    raise UnknownBackendError(f"{argument}: expected an array of one of the backends ({known}); got {kind}")


def _status(entry: metadata.EntryPoint, load: bool) -> BackendStatus:
    # A plug-in may have any name, so its own module is looked for; ours are named after their framework.
    framework = entry.name if _is_ours(entry) else entry.module.partition(".")[0]
    installed = importlib.util.find_spec(framework) is not None
    backend = _BY_NAME.get(entry.name)
    if backend is None and load and installed:
        try:
            backend = _load(entry)
        except BackendUnavailableError:
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
        >>> unixent.backends("numpy")[0].devices
        ('cpu',)
    """
    entries = _entry_points()
    for name in names:
        if name not in entries:
            raise UnknownBackendError(f"backend: expected one of {', '.join(map(repr, sorted(entries)))}; got {name!r}")
    return tuple(_status(entries[name], load=bool(names)) for name in (names or sorted(entries)))
