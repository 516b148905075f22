"""A small classifier of handwritten digits, split over data x classes: a mesh of four devices, JAX.

    pip install ".[jax,examples]"
    python examples/parallel/jax_2x2.py

The axis "data" of the mesh shards the images, "model" the classifier's classes; the loss gets the mesh once, and the
compiler does the rest. The gradient of each parameter has the parameter's sharding. The program also trains on one
device, and checks that losses and parameters come out the same.

Here one process drives four devices; on a machine without accelerators these are virtual devices on its cores. With
several processes, each gets the address of the first and their number, and holds its part of the mesh::

    timeout -k 10 3600 python jax_2x2.py --coordinator first:1234 --processes 2 --process 0     # on the first machine
    timeout -k 10 3600 python jax_2x2.py --coordinator first:1234 --processes 2 --process 1     # on the second

``timeout`` ends a process that waits for one that is gone.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import unixent

RATE, WIDTH, CLASSES = 0.5, 32, 10
SPECS = {"layer": P(), "classifier": P("model", None)}


def load() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """1,796 images of 8 x 8 pixels in [0, 1], which two devices can share, and the digit that each shows."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    return (bundled.data[:-1] / 16).astype("float32"), bundled.target[:-1].astype("int32")


def start() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    shapes = {"layer": (64, WIDTH), "classifier": (CLASSES, WIDTH)}
    return {name: rng.normal(size=shape, scale=0.1).astype("float32") for name, shape in shapes.items()}


@partial(jax.jit, static_argnames="parallel")
def step(parameters: Any, pixels: Any, digits: Any, parallel: unixent.ParallelConfig | None) -> tuple[Any, Any]:
    """The loss, and the parameters after a step of gradient descent."""

    def loss(parameters: Any) -> Any:
        hidden = jnp.tanh(pixels @ parameters["layer"])
        return unixent.linear_cross_entropy(hidden, parameters["classifier"], digits, parallel=parallel)

    value, grads = jax.value_and_grad(loss)(parameters)
    return value, jax.tree.map(lambda parameter, grad: parameter - RATE * grad, parameters, grads)


def train(parameters: Any, pixels: Any, digits: Any, steps: int, parallel: Any = None) -> tuple[list[float], Any]:
    """The loss before each step, and the parameters after them."""
    losses = []
    for _ in range(steps):
        value, parameters = step(parameters, pixels, digits, parallel)
        losses.append(float(value))
    return losses, parameters


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A digits classifier split over data x classes by JAX.")
    parser.add_argument("--data", type=int, default=2, help="parts of the images (default: 2)")
    parser.add_argument("--model", type=int, default=2, help="parts of the classes (default: 2)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where the first of several processes listens")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    chosen = parser.parse_args(arguments)
    count, rest = divmod(chosen.data * chosen.model, chosen.processes)
    if rest:
        parser.error(f"expected a number of processes that divides {chosen.data * chosen.model}")
    # Where there are no accelerators, as many devices as this process is to hold. Before the first use of JAX.
    jax.config.update("jax_num_cpu_devices", count)
    if chosen.coordinator:
        jax.distributed.initialize(chosen.coordinator, chosen.processes, chosen.process, shutdown_timeout_seconds=5)

    devices = np.reshape(jax.devices()[: chosen.data * chosen.model], (chosen.data, chosen.model))
    mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    config = unixent.ParallelConfig.from_mesh(mesh, data="data", model="model")

    def put(array: Any, place: P) -> jax.Array:
        """The array over the mesh; each process gives the parts of its own devices."""
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, place), array.__getitem__)

    pixels, digits = load()
    placed = {name: put(array, SPECS[name]) for name, array in start().items()}
    losses, parameters = train(placed, put(pixels, P("data", None)), put(digits, P("data")), chosen.steps, config)

    alone, whole = train(start(), pixels, digits, chosen.steps)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    for name, parameter in parameters.items():
        assert parameter.sharding.is_equivalent_to(NamedSharding(mesh, SPECS[name]), 2)
        for part in parameter.addressable_shards:
            np.testing.assert_allclose(part.data, whole[name][part.index], rtol=1e-4, atol=1e-5)
    held = {name: parameter.addressable_shards[0].data.shape for name, parameter in parameters.items()}
    print(f"process {chosen.process}: each device holds {held}, loss {losses[0]:.4f} -> {losses[-1]:.4f}, as alone")
    if chosen.coordinator:
        jax.distributed.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
