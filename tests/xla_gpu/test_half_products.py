"""The fused linear form of half operands: products of half matrices with float32 results, for an H200."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import unixent
from gpu_programs import compiled_for_gpu, products, widened

N, D, C = 4096, 1024, 32003
NAMES = {"bfloat16": "bf16", "float16": "f16"}


def mean(h: Any, w: Any, y: Any) -> Any:
    return unixent.linear_cross_entropy(h, w, y)


def of_each(h: Any, w: Any, y: Any) -> Any:
    return jnp.sum(unixent.linear_cross_entropy(h, w, y, reduction="none"))


def smoothed(h: Any, w: Any, y: Any) -> Any:
    return unixent.linear_cross_entropy(h, w, y, label_smoothing=0.1, num_classes=32000, softcap=30.0)


def entropy(h: Any, w: Any, y: Any) -> Any:
    return jnp.sum(unixent.linear_position_stats(h, w, y, outputs=("entropy",)).entropy)


def program(function: Callable[..., Any], dtype: str, classifier: str | None = None) -> Any:
    operands = (
        jax.ShapeDtypeStruct((N, D), dtype),
        jax.ShapeDtypeStruct((C, D), classifier or dtype),
        jax.ShapeDtypeStruct((N,), "int32"),
    )
    return compiled_for_gpu(function, *operands)


@pytest.mark.parametrize("loss", [mean, of_each, smoothed, entropy])
@pytest.mark.parametrize("dtype", NAMES)
def test_products_take_half_operands_and_give_float32(dtype: str, loss: Callable[..., Any]) -> None:
    for function in (loss, jax.value_and_grad(loss, (0, 1))):
        hlo = program(function, dtype).as_text()
        assert set(products(hlo)) == {(NAMES[dtype], NAMES[dtype], "f32")}
        assert not list(widened(hlo, C * D))


def test_float32_operands_and_mixed_ones_stay_float32() -> None:
    for dtype, classifier in (("float32", "float32"), ("bfloat16", "float32"), ("float16", "bfloat16")):
        hlo = program(jax.value_and_grad(mean, (0, 1)), dtype, classifier).as_text()
        assert set(products(hlo)) == {("f32", "f32", "f32")}
        assert bool(list(widened(hlo, C * D))) == (classifier != "float32")
