"""A loss split by classes on JAX: time and temporary memory, beside sharded arrays under plain jit.

    python benchmarks/jax_split.py [--devices 4 --rows 1024 --classes 32000 --rounds 7]

Value and gradient. The forms run in turn in one process; reported is the median of the rounds' ratios to the whole loss
on one device. The devices are virtual and share this machine's cores, so that times say little about real ones;
temporaries are those of each device, as `memory_analysis()` reports them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import unixent
from measuring import machine


def main() -> None:
    parser = argparse.ArgumentParser(description="A loss split by classes on JAX.")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", chosen.devices)
    mesh = jax.make_mesh((1, chosen.devices), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    config = unixent.ParallelConfig.from_mesh(mesh, data="data", model="model")
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (chosen.rows, chosen.classes))
    y = jax.random.randint(keys[1], (chosen.rows,), 0, chosen.classes)
    placed = (
        jax.device_put(x, NamedSharding(mesh, P("data", "model"))),
        jax.device_put(y, NamedSharding(mesh, P("data"))),
    )

    def split(logits: Any, target: Any) -> Any:
        return unixent.cross_entropy(logits, target, parallel=config)

    forms = {
        "whole, on one device": (unixent.cross_entropy, (x, y)),
        "split": (split, placed),
        "sharded arrays under plain jit": (unixent.cross_entropy, placed),
    }
    steps = {
        name: (jax.jit(jax.value_and_grad(loss)).lower(*given).compile(), given)
        for name, (loss, given) in forms.items()
    }

    def seconds(name: str) -> float:
        step, given = steps[name]
        start = time.perf_counter()
        jax.block_until_ready(step(*given))
        return time.perf_counter() - start

    rounds = [{name: seconds(name) for name in steps} for _ in range(chosen.rounds + 1)][1:]
    print(machine())
    print(f"jax {jax.__version__}, {chosen.devices} virtual devices, {chosen.rows} x {chosen.classes} float32\n")
    print("| form | time / whole | temporaries, bytes |\n|---|---:|---:|")
    first = next(iter(steps))
    for name, (step, _) in steps.items():
        ratio = statistics.median(times[name] / times[first] for times in rounds)
        print(f"| {name} | {ratio:.2f} | {step.memory_analysis().temp_size_in_bytes:,} |")


if __name__ == "__main__":
    main()
