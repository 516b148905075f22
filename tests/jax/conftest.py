"""Eight virtual devices, which must be asked for before the first use of JAX."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

from unixent_jax.kernel import class_axis

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def wide() -> Iterator[None]:
    """64-bit dtypes for the length of a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module", params=["single device", "many devices"])
def formulation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The tests twice: as in a process of one device, and as where logits may be sharded.

    All of a module's, one formulation after the other, so that they share what is compiled.
    """
    is_single = request.param == "single device"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(class_axis, "is_on_one_device", lambda x: is_single)
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


@pytest.fixture
def single_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process of one device."""
    monkeypatch.setattr(class_axis, "is_on_one_device", lambda x: True)
    jax.clear_caches()
    yield
    jax.clear_caches()
