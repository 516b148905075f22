"""Loss and gradient on JAX against optax, all jitted: time, and temporary memory as the compiler plans it.

    python benchmarks/jax_cross_entropy.py [--rounds 15] [--busy 2] [--shape 1024x32000 --shape 256x128256]

Both sides run in turn in one process, and what is reported is the median of the rounds' ratios: a machine that is
busy for a while slows both sides of a round.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import optax

import unixent
from measuring import add_busy_option, by_load, machine


def stock(x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()


PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "value and gradient": (jax.value_and_grad(unixent.cross_entropy), jax.value_and_grad(stock)),
    "value alone": (unixent.cross_entropy, stock),
}


def seconds(compiled: Any, x: jax.Array, y: jax.Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(compiled(x, y))
    return time.perf_counter() - start


def row(name: str, shape: tuple[int, int], rounds: int, busy: int) -> str:
    x = jax.random.normal(jax.random.key(0), shape)
    y = jax.random.randint(jax.random.key(1), shape[:1], 0, shape[1])
    ours, theirs = (jax.jit(function).lower(x, y).compile() for function in PAIRS[name])
    temporaries = [side.memory_analysis().temp_size_in_bytes for side in (ours, theirs)]

    def measure() -> list[tuple[float, float]]:
        return [(seconds(ours, x, y), seconds(theirs, x, y)) for _ in range(rounds + 2)][2:]

    cells = f"{f'{shape[0]} x {shape[1]}':>12}  {name:<20}"
    for timings in by_load(busy, measure).values():
        own, other = (statistics.median(side) * 1e3 for side in zip(*timings, strict=True))
        cells += f"{own:9.1f}{other:9.1f}{statistics.median(a / b for a, b in timings):8.2f}"
    return f"{cells}{temporaries[0]:14,}{temporaries[1]:12,}"


def main() -> None:
    parser = argparse.ArgumentParser(description="unixent on JAX against optax.")
    parser.add_argument("--shape", action="append", default=[], metavar="ROWSxCLASSES")
    parser.add_argument("--rounds", type=int, default=15)
    add_busy_option(parser)
    chosen = parser.parse_args()
    shapes = [tuple(map(int, shape.split("x"))) for shape in chosen.shape or ["1024x32000", "256x128256"]]

    print(machine())
    print(f"Python {platform.python_version()}, jax {jax.__version__}, optax {optax.__version__}, {jax.devices()}")
    print(f"float32, medians of {chosen.rounds} rounds; milliseconds, ratio, temporaries in bytes")
    columns = f"{'unixent':>9}{'optax':>9}{'ratio':>8}" * (2 if chosen.busy else 1)
    if chosen.busy:
        print(f"first three columns on the machine as it is, the next beside {chosen.busy} busy processes")
    print(f"{'shape':>12}  {'':<20}{columns}{'unixent':>14}{'optax':>12}")
    for rows, classes in shapes:
        for name in PAIRS:
            print(row(name, (rows, classes), chosen.rounds, chosen.busy), flush=True)


if __name__ == "__main__":
    main()
