"""Ways to write loss and gradient in JAX that keep the relative accuracy of confident rows, against optax: time,
temporaries, and the error of the loss where the target leads by far. Prints the table of docs/jax.md.

    python benchmarks/jax_formulations.py [--rounds 15] [--rows 1024] [--classes 32000]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

Both = tuple[Array, Array]


def at_target(x: Array, y: Array) -> Array:
    return lax.broadcasted_iota(jnp.int32, x.shape, 1) == y[:, None]


def picked(x: Array, y: Array) -> Array:
    return jnp.take_along_axis(x, y[:, None], 1, mode="promise_in_bounds")


def finish(e: Array, shift: Array, x_y: Array, y: Array) -> Both:
    """Mean loss and gradient from e, whose target entry is 0."""
    rest, gap = jnp.sum(e, 1, keepdims=True), shift - x_y
    back, far = gap - shift, shift > x_y
    low = (shift - (gap - back)) - (x_y + back)
    near = jnp.exp(-jnp.abs(gap)) * jnp.where(far, 1 - low, 1 + low)
    total = jnp.where(far, rest + near, 1 + rest * near)
    loss = jnp.where(far, gap + (low + jnp.log(rest + near)), jnp.log1p(rest * near))
    scale = jnp.where(far, 1, near) / total / len(e)
    return loss.mean(), jnp.where(at_target(e, y), -rest * scale, e * scale)


def stock(x: Array, y: Array) -> Both:
    loss, grad = jax.value_and_grad(lambda x: optax.softmax_cross_entropy_with_integer_labels(x, y).mean())(x)
    return loss, grad


def row_maximum(x: Array, y: Array) -> Both:
    top = jnp.max(x, 1, keepdims=True)
    return finish(jnp.where(at_target(x, y), 0, jnp.exp(x - top)), top, picked(x, y), y)


def masked_maximum(x: Array, y: Array) -> Both:
    others = jnp.where(at_target(x, y), -jnp.inf, x)
    top = jnp.max(others, 1, keepdims=True)
    return finish(jnp.exp(others - top), top, picked(x, y), y)


def masked_copy(x: Array, y: Array) -> Both:
    others = jnp.put_along_axis(x, y[:, None], -jnp.inf, 1, inplace=False)
    top = jnp.max(others, 1, keepdims=True)
    return finish(jnp.exp(others - top), top, picked(x, y), y)


def compensated(x: Array, y: Array) -> Both:
    x_y, top = picked(x, y), jnp.max(x, 1, keepdims=True)
    shift = jnp.where(x_y == top, top - 60, top)
    high = x - shift
    back = high - x
    low = (x - (high - back)) - (shift + back)
    e = jnp.exp(high)
    return finish(jnp.where(at_target(x, y), 0, e + e * low), shift, x_y, y)


def compensated_whole_shift(x: Array, y: Array) -> Both:
    x_y, top = picked(x, y), jnp.max(x, 1, keepdims=True)
    shift = jnp.floor(top) - jnp.where(x_y == top, 60, 0)
    high = x - shift
    low = x - (high + shift)
    e = jnp.exp(high)
    e = jnp.put_along_axis(e + e * low, y[:, None], 0, 1, inplace=False, mode="promise_in_bounds")
    return finish(e, shift, x_y, y)


def masked_sum_of_target(x: Array, y: Array) -> Both:
    """As the one before, without a gather or scatter: what sharded logits need."""
    x_y = jnp.sum(jnp.where(at_target(x, y), x, 0), 1, keepdims=True)
    top = jnp.max(x, 1, keepdims=True)
    shift = jnp.floor(top) - jnp.where(x_y == top, 60, 0)
    high = x - shift
    low = x - (high + shift)
    e = jnp.exp(high)
    return finish(jnp.where(at_target(x, y), 0, e + e * low), shift, x_y, y)


def blocks_of_rows(x: Array, y: Array) -> Both:
    def step(total: Array, block: Both) -> tuple[Array, Array]:
        loss, grad = masked_maximum(*block)
        return total + loss, grad

    parts = len(x) // 16
    total, grad = lax.scan(step, jnp.zeros(()), (x.reshape(parts, 16, -1), y.reshape(parts, 16)))
    return total / parts, grad.reshape(x.shape) / parts


FORMULATIONS: dict[str, Callable[[Array, Array], Both]] = {
    "optax": stock,
    "row maximum": row_maximum,
    "maximum of the others, by mask": masked_maximum,
    "maximum of the others, in a copy": masked_copy,
    "two-sum": compensated,
    "whole-number shift (used)": compensated_whole_shift,
    "the same by masks (used if sharded)": masked_sum_of_target,
    "scan over blocks of 16 rows": blocks_of_rows,
}


def confident_error(function: Callable[[Array, Array], Both]) -> float:
    """Largest relative error of the loss, in units of 2^-24, where one of two classes leads by 20 to 60."""
    program, worst = jax.jit(function), 0.0
    for gap in np.linspace(20, 60, 41, dtype=np.float32):
        x = np.array([[0.1, gap]] * 16, np.float32)
        exact = np.log1p(np.exp(x[0, 0].astype(float) - x[0, 1]))
        worst = max(worst, abs(float(program(x, np.ones(16, np.int32))[0]) - exact) / exact * 2**24)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description="Formulations of the loss in JAX.")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    x = jax.random.normal(jax.random.key(0), (chosen.rows, chosen.classes))
    y = jax.random.randint(jax.random.key(1), (chosen.rows,), 0, chosen.classes)
    compiled = {name: jax.jit(function).lower(x, y).compile() for name, function in FORMULATIONS.items()}
    clocks = {"time": time.perf_counter, "processor time": time.process_time}
    timings: dict[tuple[str, str], list[float]] = {(name, clock): [] for name in compiled for clock in clocks}
    for _ in range(chosen.rounds):
        for name, program in compiled.items():
            starts = {clock: read() for clock, read in clocks.items()}
            jax.block_until_ready(program(x, y))
            for clock, read in clocks.items():
                timings[name, clock].append(read() - starts[clock])
    print(f"| {chosen.rows} x {chosen.classes} | time | processor time | temporaries, bytes | error when confident |")
    print("|---|---|---|---|---|")
    for name, program in compiled.items():
        ratios = [
            statistics.median(a / b for a, b in zip(timings[name, clock], timings["optax", clock], strict=True))
            for clock in clocks
        ]
        size = program.memory_analysis().temp_size_in_bytes
        error = confident_error(FORMULATIONS[name])
        print(f"| {name} | {ratios[0]:.2f} | {ratios[1]:.2f} | {size:,} | {error:.2g} u |", flush=True)


if __name__ == "__main__":
    main()
