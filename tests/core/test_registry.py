"""Backends by name and by type, and that nothing is imported before it is asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

import unixent
from unixent import registry

FRAMEWORKS = ("torch", "jax", "mindspore")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "use",
    [
        "",
        "unixent.backends()",
        "unixent.cross_entropy([[1.0, 2.0]], [0])",
        "unixent.cross_entropy(numpy.ones((2, 3)), numpy.zeros(2, int))",
        "unixent.value_and_grad(numpy.ones((2, 3)), numpy.zeros(2, int), backend='numpy')",
    ],
)
def test_no_framework_is_imported(use):
    heavy = [*FRAMEWORKS, "scipy", "rich", "typer", "pytest", "unixent_conformance"]
    code = f"import sys, numpy, unixent\n{use}\nprint([name for name in {heavy!r} if name in sys.modules])"
    assert run(code).strip() == "[]"


def test_backends_lists_every_entry_point_once():
    names = [status.name for status in unixent.backends()]
    assert names == sorted({entry.name for entry in metadata.entry_points(group="unixent.backends")})
    assert {"numpy", *FRAMEWORKS} <= set(names)


def test_a_missing_framework_is_listed_with_its_hint():
    missing = [status for status in unixent.backends() if not status.installed and status.name in FRAMEWORKS]
    for status in missing:
        assert status.hint is not None
        assert status.hint.startswith(f'pip install "{status.name}>=')
        with pytest.raises(unixent.BackendUnavailableError, match=re.escape(status.hint)):
            unixent.get_backend(status.name)
    present = [status for status in unixent.backends() if status.installed]
    assert all(status.hint is None for status in present)


@pytest.mark.parametrize(
    "error", ["ImportError('no libfoo')", "OSError('libfoo.so: bad ELF')", "RuntimeError('old driver')"]
)
def test_whatever_a_plugin_raises_on_import_is_a_backend_unavailable_error(error, monkeypatch, tmp_path):
    (tmp_path / "broken_backend.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = metadata.EntryPoint("broken", "broken_backend:backend", registry.BACKENDS)
    monkeypatch.setattr(registry, "_entry_points", lambda group=registry.BACKENDS: {"broken": entry})
    with pytest.raises(unixent.BackendUnavailableError, match=f"'broken' is registered but .*{error.split('(')[0]}"):
        unixent.get_backend("broken")
    (status,) = unixent.backends("broken")
    assert not status.installed


def test_a_plugin_is_imported_for_its_own_arrays_only(monkeypatch, tmp_path):
    """A process that has none of its arrays never imports it, whichever other arrays it uses."""
    (tmp_path / "lazy_backend.py").write_text("raise ImportError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    backend = metadata.EntryPoint("lazy", "lazy_backend:backend", registry.BACKENDS)
    arrays = metadata.EntryPoint("lazylib", "lazy_backend:backend", registry.ARRAYS)
    declared = {registry.BACKENDS: {"lazy": backend}, registry.ARRAYS: {"lazylib": arrays}}
    original = registry._entry_points
    monkeypatch.setattr(
        registry, "_entry_points", lambda group=registry.BACKENDS: {**original(group), **declared[group]}
    )
    monkeypatch.setattr(registry, "_BY_MODULE", {})

    class Stranger:
        __module__ = "elsewhere"

    class Own(Stranger):
        __module__ = "lazylib.arrays"

    unixent.cross_entropy(np.zeros((2, 3)), np.zeros(2, int))
    with pytest.raises(unixent.UnknownBackendError, match=r"got elsewhere\."):
        unixent.cross_entropy(Stranger(), np.zeros(2, int))
    with pytest.raises(unixent.BackendUnavailableError, match="'lazy' is registered but cannot be imported"):
        unixent.cross_entropy(Own(), np.zeros(2, int))


def test_named_backends_are_loaded_and_described():
    (status,) = unixent.backends("numpy")
    assert status.devices is not None
    (device,) = status.devices
    assert device.name == "cpu"
    assert device.batch_invariant
    assert status.capabilities is not None
    assert status.version == np.__version__
    with pytest.raises(unixent.UnknownBackendError):
        unixent.backends("nunpy")


def test_a_backend_satisfies_the_protocol():
    assert isinstance(unixent.get_backend("numpy"), unixent.Backend)


def test_the_backend_of_a_base_takes_what_that_of_the_type_does_not_own(monkeypatch):
    class OwnsNothing:
        def owns(self, array):
            return False

    monkeypatch.setitem(registry._BY_MODULE, "strange", OwnsNothing())
    strange = type("Strange", (np.ndarray,), {"__module__": "strange"})
    assert registry.backend_of(np.zeros((2, 3)).view(strange)).name == "numpy"


def test_subclasses_and_scalars_belong_to_numpy_and_masked_arrays_to_nobody():
    class Sub(np.ndarray):
        pass

    logits = np.zeros((2, 3)).view(Sub)
    assert float(unixent.cross_entropy(logits, np.zeros(2, int))) == pytest.approx(np.log(3))
    with pytest.raises(unixent.BackendError, match=r"logits: expected a NumPy array.* got numpy\.ma\..*MaskedArray"):
        unixent.cross_entropy(np.ma.masked_array(np.zeros((2, 3))), np.zeros(2, int))
    with pytest.raises(unixent.UnixentError):
        unixent.cross_entropy(np.zeros((2, 3)), np.ma.masked_array(np.zeros(2, int)))


def test_threads_variable_is_honoured():
    code = (
        "import numpy, threading, unixent\n"
        "unixent.value_and_grad(numpy.ones((512, 512), 'f'), numpy.zeros(512, int))\n"
        "print(sum(t.name.startswith('unixent') for t in threading.enumerate()))"
    )
    environment = {**os.environ, "UNIXENT_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "0"
