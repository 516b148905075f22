"""Softmax regression on handwritten digits, split over data x classes: four processes, NumPy and MPI.

    pip install "unixent[mpi,examples]" mpich
    timeout -k 10 120 mpiexec -iface lo -n 4 python -m mpi4py examples/parallel/numpy_2x2.py

Every process holds half of the images and half of the classes, and takes the same steps of gradient descent. It also
takes them alone, on everything, and checks that its half of the classifier comes out the same.

``-m mpi4py`` ends all processes when one raises, and ``timeout`` those that wait for one that is gone. On several
machines, with MPICH's Hydra::

    timeout -k 10 3600 mpiexec -hosts first,second -ppn 2 -n 4 python -m mpi4py numpy_2x2.py
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from mpi4py import MPI

import unixent

Array = np.ndarray[Any, Any]
RATE = 2.0


def load() -> tuple[Array, Array]:
    """1,797 images of 8 x 8 pixels in [0, 1], and the digit that each shows."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    return bundled.data / 16, bundled.target


def share(size: int, parts: int, part: int) -> slice:
    return slice(size * part // parts, size * (part + 1) // parts)


def train(
    pixels: Array, digits: Array, classes: int, steps: int, parallel: unixent.ParallelConfig | None = None
) -> tuple[list[float], Array]:
    """The loss before each step, and the classifier after them; of this process's images and classes."""
    classifier, losses = np.zeros((classes, pixels.shape[1])), []
    for _ in range(steps):
        loss, grad = unixent.linear_value_and_grad(pixels, classifier, digits, wrt="classifier", parallel=parallel)
        if parallel is not None and parallel.token_group is not None:
            # The gradient of the global loss, as far as this process's images go: their sum is the whole.
            parallel.token_group.Allreduce(MPI.IN_PLACE, grad, op=MPI.SUM)
        classifier -= RATE * grad
        losses.append(float(loss))
    return losses, classifier


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A digits classifier split over data x classes by NumPy and MPI.")
    parser.add_argument("--data", type=int, default=2, help="parts of the images (default: 2)")
    parser.add_argument("--model", type=int, default=2, help="parts of the classes (default: 2)")
    parser.add_argument("--steps", type=int, default=50)
    chosen = parser.parse_args(arguments)
    world = MPI.COMM_WORLD
    if world.Get_size() != chosen.data * chosen.model:
        parser.error(f"expected {chosen.data * chosen.model} processes; got {world.Get_size()}")

    grid = world.Create_cart((chosen.data, chosen.model))
    row, column = grid.Get_coords(grid.Get_rank())
    config = unixent.ParallelConfig(
        data_parallel=chosen.data,
        model_parallel=chosen.model,
        token_group=grid.Sub((True, False)),
        model_group=grid.Sub((False, True)),
    )
    pixels, digits = load()
    rows, columns = share(len(digits), chosen.data, row), share(10, chosen.model, column)
    losses, classifier = train(pixels[rows], digits[rows], columns.stop - columns.start, chosen.steps, config)

    alone, whole = train(pixels, digits, 10, chosen.steps)
    np.testing.assert_allclose(losses, alone, rtol=1e-9)
    np.testing.assert_allclose(classifier, whole[columns], rtol=1e-9, atol=1e-12)
    print(
        f"process {grid.Get_rank()}: images {rows.start}-{rows.stop}, classes {columns.start}-{columns.stop}, "
        f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, as alone",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
