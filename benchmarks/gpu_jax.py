"""Times of the jitted loss and gradient on JAX's default device against optax, as JSON, for `gpu.py`.

python benchmarks/gpu_jax.py [--small]
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import optax

import unixent

SHAPES = ((8192, 151936), (8192, 32000), (65536, 512))


def main(small: bool) -> None:
    rows = []
    for shape in ((64, 1000),) if small else SHAPES:
        for dtype in (jnp.bfloat16, jnp.float32):
            x = (4 * jax.random.normal(jax.random.key(0), shape)).astype(dtype)
            y = jax.random.randint(jax.random.key(1), shape[:1], 0, shape[1])
            calls = {
                "optax": lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, y).mean(),
                "unixent on JAX": unixent.cross_entropy,
            }
            steps = {name: jax.jit(jax.value_and_grad(call)) for name, call in calls.items()}
            seconds: dict[str, list[float]] = {name: [] for name in steps}
            for turn in range(12):
                for name, step in steps.items():
                    start = time.perf_counter()
                    jax.block_until_ready(step(x, y))
                    if turn >= 2:  # compiled by then
                        seconds[name].append(time.perf_counter() - start)
            medians = {name: statistics.median(each) for name, each in seconds.items()}
            problem = f"{list(shape)} {jnp.dtype(dtype).name}, both"
            rows += [
                {"problem": problem, "what": name, "ms": median * 1e3, "ratio": median / medians["optax"]}
                for name, median in medians.items()
            ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main("--small" in sys.argv[1:])
