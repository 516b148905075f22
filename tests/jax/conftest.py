"""Eight virtual devices, which must be asked for before the first use of JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import Array
from jax._src.interpreters import mlir

from unixent_jax.kernel import by_platform, class_axis, native, one_pass
from unixent_jax.kernel.rows import RowSpec
from unixent_jax.linear import products

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def wide() -> Iterator[None]:
    """64-bit dtypes for the length of a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def unoptimized() -> Iterator[None]:
    """Programs that compile in little more than half the time.

    For derivative rules and collectives, which are asked of programs as traced; accuracy, memory and the catalogue are
    asked of programs as XLA optimizes them.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", params=["single device", "many devices", "gpu"])
def formulation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The tests thrice: as in a process of one device, as where logits may be sharded, and in the form for GPUs.

    All of a module's, one formulation after the other, so that they share what is compiled.
    """
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "gpu":
            compute_as_on_a_gpu(patched)
        else:
            is_single = request.param == "single device"
            patched.setattr(class_axis, "is_on_one_device", lambda x: is_single)
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


@pytest.fixture
def gpu_form() -> Iterator[list[str]]:
    """The form for GPUs; what is yielded grows by the dtype of each pass that is traced."""
    with pytest.MonkeyPatch.context() as patched:
        yield compute_as_on_a_gpu(patched)
    jax.clear_caches()


def compute_as_on_a_gpu(patched: pytest.MonkeyPatch) -> list[str]:
    """Has the CPU compute what a single GPU would be given; the dtypes of the passes that are traced from now on."""
    traced: list[str] = []

    def on_gpu(x: Array, *operands: Array, forms: by_platform.Forms, spec: RowSpec) -> Any:
        traced.append(x.dtype.name)
        return forms.gpu(spec, x, *operands)

    patched.setattr(class_axis, "is_on_one_device", lambda x: True)
    patched.setattr(native, "takes", lambda x, spec: False)
    patched.setitem(mlir._platform_specific_lowerings["cpu"], by_platform.rows_p, None)  # taken back at the end
    mlir.register_lowering(by_platform.rows_p, mlir.lower_fun(on_gpu, multiple_results=True), platform="cpu")
    patched.setitem(mlir._platform_specific_lowerings["cpu"], products.product_p, None)
    of_halves = mlir.lower_fun(lambda *arrays, axes: products.of_halves(*arrays, axes=axes), multiple_results=False)
    mlir.register_lowering(products.product_p, of_halves, platform="cpu")
    patched.setattr(one_pass, "reduce_parts", partial(_by_blocks, one_pass.reduce_parts))
    jax.clear_caches()
    return traced


def _by_blocks(reduce_parts: Callable[..., Any], combine: Any, start: Any, parts: Any, axis: int) -> Any:
    """A row a block at a time, as the threads of a GPU have parts of it; XLA on the CPU adds it up in sequence."""
    before, (classes, *after), size = parts[0].shape[:axis], parts[0].shape[axis:], 64
    if classes <= size:
        return reduce_parts(combine, start, parts, axis)
    padding = [(0, -classes % size if i == axis else 0) for i in range(parts[0].ndim)]
    padded = (jnp.pad(part, padding, constant_values=value) for part, value in zip(parts, start, strict=True))
    blocks = tuple(part.reshape(*before, -(-classes // size), size, *after) for part in padded)
    return _by_blocks(reduce_parts, combine, start, reduce_parts(combine, start, blocks, axis + 1), axis)


@pytest.fixture
def single_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process of one device."""
    monkeypatch.setattr(class_axis, "is_on_one_device", lambda x: True)
    jax.clear_caches()
    yield
    jax.clear_caches()
