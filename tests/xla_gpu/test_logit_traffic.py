"""Two reads of the logits and one write for loss and gradient, one read for the loss: programs for an H200."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import unixent
from gpu_programs import Traffic, traffic

# Of both stages of a reduction over rows of this many classes, beside what there is for each position.
TEMPORARIES = 0.04


def operands(dtype: str, *shape: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    return jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[:-1], "int32")


def is_two_reads_and_a_write(moved: Traffic, dtype: str, temporaries: float = TEMPORARIES) -> bool:
    size = jnp.dtype(dtype).itemsize
    return (moved.read, moved.written) == (2 * size, size) and moved.temporaries < temporaries


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"z_loss": 1e-4}, {"softcap": 30.0}, {"scale": 0.5}, {"num_classes": 31990, "softcap": 30.0}],
    ids=str,
)
def test_loss_and_gradient_read_the_logits_twice(options: dict[str, Any], dtype: str) -> None:
    loss = jax.value_and_grad(lambda x, y: unixent.cross_entropy(x, y, **options))
    moved = traffic(loss, *operands(dtype, 8192, 32000))
    assert is_two_reads_and_a_write(moved, dtype), moved


# A reduction for mixed targets has six numbers a row and tile.
MIXED_TEMPORARIES = 3 * TEMPORARIES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [{}, {"z_loss": 1e-4}, {"softcap": 30.0}, {"num_classes": 31990}, {"num_classes": 31990, "softcap": 30.0}],
    ids=str,
)
def test_so_does_label_smoothing(options: dict[str, Any], dtype: str) -> None:
    loss = jax.value_and_grad(lambda x, y: unixent.cross_entropy(x, y, label_smoothing=0.1, **options))
    moved = traffic(loss, *operands(dtype, 8192, 32000))
    assert is_two_reads_and_a_write(moved, dtype, MIXED_TEMPORARIES), moved


@pytest.mark.parametrize("shape", [(64, 21, 256, 64), (65536, 100), (65536, 512, 1)], ids=str)
def test_so_does_label_smoothing_of_other_shapes(shape: tuple[int, ...]) -> None:
    loss = jax.value_and_grad(lambda x, y: unixent.cross_entropy(x, y, label_smoothing=0.1, axis=1))
    target = jax.ShapeDtypeStruct((shape[0], *shape[2:]), "int32")
    moved = traffic(loss, jax.ShapeDtypeStruct(shape, "bfloat16"), target)
    # Some forty bytes a position.
    assert is_two_reads_and_a_write(moved, "bfloat16", MIXED_TEMPORARIES + 40 / shape[1]), moved


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-4, "softcap": 30.0}], ids=str)
def test_class_probabilities_are_read_twice_besides(options: dict[str, Any], dtype: str) -> None:
    logits, size = jax.ShapeDtypeStruct((8192, 32000), dtype), jnp.dtype(dtype).itemsize

    def loss(x: Any, q: Any) -> Any:
        return unixent.cross_entropy(x, q, **options)

    moved = traffic(jax.value_and_grad(loss), logits, logits)
    assert (moved.read, moved.written) == (4 * size, size), moved
    assert moved.temporaries < MIXED_TEMPORARIES
    moved = traffic(jax.value_and_grad(loss, (0, 1)), logits, logits)
    assert (moved.read, moved.written) == (4 * size, 2 * size), moved
    assert moved.temporaries < MIXED_TEMPORARIES
    moved = traffic(loss, logits, logits)
    assert (moved.read, moved.written) == (2 * size, 0), moved


@pytest.mark.parametrize("shape", [(8192, 151936), (65536, 512), (32768, 256), (8, 151936), (64, 128, 32000)], ids=str)
def test_so_do_other_shapes(shape: tuple[int, ...]) -> None:
    moved = traffic(jax.value_and_grad(unixent.cross_entropy), *operands("bfloat16", *shape))
    # Some thirty bytes a position.
    assert is_two_reads_and_a_write(moved, "bfloat16", TEMPORARIES + 32 / shape[-1]), moved


def test_so_do_weights_masks_and_an_upstream_gradient() -> None:
    logits, target = operands("float32", 8192, 32000)

    def gradient(x: Any, y: Any, weight: Any, mask: Any, upstream: Any) -> Any:
        def losses(x: Any) -> Any:
            return unixent.cross_entropy(x, y, weight=weight, mask=mask, reduction="none")

        value, pullback = jax.vjp(losses, x)
        return value, pullback(upstream)

    position = jax.ShapeDtypeStruct(target.shape, "float32")
    moved = traffic(gradient, logits, target, jax.ShapeDtypeStruct((32000,), "float32"), position, position)
    assert is_two_reads_and_a_write(moved, "float32"), moved


def test_so_do_batched_calls_and_another_class_axis() -> None:
    def of_batch(x: Any, y: Any) -> Any:
        return jnp.sum(jax.vmap(unixent.cross_entropy)(x, y))

    moved = traffic(jax.value_and_grad(of_batch), *operands("float32", 64, 128, 32000))
    assert is_two_reads_and_a_write(moved, "float32"), moved

    def along_1(x: Any, y: Any) -> Any:
        return unixent.cross_entropy(x, y, axis=1)

    logits, target = jax.ShapeDtypeStruct((64, 32000, 128), "float32"), jax.ShapeDtypeStruct((64, 128), "int32")
    moved = traffic(jax.value_and_grad(along_1), logits, target)
    assert is_two_reads_and_a_write(moved, "float32"), moved


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_alone_reads_the_logits_once(dtype: str) -> None:
    moved = traffic(unixent.cross_entropy, *operands(dtype, 8192, 32000))
    assert (moved.read, moved.written) == (jnp.dtype(dtype).itemsize, 0)
    assert moved.temporaries < TEMPORARIES


def test_the_counter_sees_what_the_usual_loss_writes_down() -> None:
    def usual(x: Any, y: Any) -> Any:
        x = x.astype("float32")
        picked = jnp.take_along_axis(x, y[:, None], 1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(x, 1) - picked)

    moved = traffic(jax.value_and_grad(usual), *operands("bfloat16", 8192, 32000))
    assert moved.read + moved.written > 12
    assert moved.temporaries > 1
