"""The fused linear form on JAX against optax on the logits, all jitted: time, and temporary memory as compiled.

    python benchmarks/jax_linear_cross_entropy.py [--positions 2048 --width 512 --classes 32000 --rounds 7 --busy 2]

Value and gradients for hidden states and classifier. The forms run in turn in one process, and what is reported is the
median of the rounds' ratios to the unfused form: a machine that is busy for a while slows all forms of a round.
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

Step = Callable[[jax.Array, jax.Array, jax.Array], Any]


def unfused(hidden: jax.Array, classifier: jax.Array, target: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ classifier.T, target).mean()


def products(hidden: jax.Array, classifier: jax.Array, target: jax.Array) -> Any:
    """The three matrix products and nothing else: no form can be faster."""
    logits = hidden @ classifier.T
    return logits @ classifier, logits.T @ hidden


def forms(chunk: int | None) -> dict[str, Step]:
    def fused(*given: jax.Array) -> Any:
        return unixent.linear_cross_entropy(*given, chunk=chunk)

    return {
        "optax on hidden @ classifier.T": jax.value_and_grad(unfused, (0, 1)),
        "unixent.linear_cross_entropy": jax.value_and_grad(fused, (0, 1)),
        "three matrix products": products,
    }


def seconds(compiled: Any, arrays: tuple[jax.Array, ...]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arrays))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="The fused linear form on JAX against optax.")
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    add_busy_option(parser)
    chosen = parser.parse_args()

    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (chosen.positions, chosen.width))
    classifier = jax.random.normal(keys[1], (chosen.classes, chosen.width)) / chosen.width**0.5
    arrays = hidden, classifier, jax.random.randint(keys[2], (chosen.positions,), 0, chosen.classes)
    compiled = {name: jax.jit(form).lower(*arrays).compile() for name, form in forms(chosen.chunk).items()}

    def measure() -> list[dict[str, float]]:
        return [{name: seconds(form, arrays) for name, form in compiled.items()} for _ in range(chosen.rounds + 1)][1:]

    measured = by_load(chosen.busy, measure)

    print(machine())
    print(f"Python {platform.python_version()}, jax {jax.__version__}, optax {optax.__version__}, {jax.devices()}")
    print(f"positions {chosen.positions}, width {chosen.width}, classes {chosen.classes}, float32\n")
    columns = " | ".join(f"seconds{load} | multiple of unfused{load}" for load in measured)
    print(f"| form | {columns} | temporaries / logits |\n|---|{'---|---|' * len(measured)}---|")
    first, logits = next(iter(compiled)), chosen.positions * chosen.classes * hidden.dtype.itemsize
    for name, form in compiled.items():
        cells = []
        for rounds in measured.values():
            cells.append(f"{statistics.median(times[name] for times in rounds):.2f}")
            cells.append(f"{statistics.median(times[name] / times[first] for times in rounds):.2f}")
        temporaries = form.memory_analysis().temp_size_in_bytes / logits
        print(f"| {name} | {' | '.join(cells)} | {temporaries:.2f} |")


if __name__ == "__main__":
    main()
