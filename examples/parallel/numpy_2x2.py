"""Softmax regression on handwritten digits, sharded over data and classes: four processes, NumPy and MPI.

    pip install ".[mpi,examples]" mpich
    timeout -k 10 120 mpiexec -iface lo -n 4 python -m mpi4py examples/parallel/numpy_2x2.py

Every process holds half of the images and half of the classes, and takes the same steps of gradient descent. It then
takes them by itself, on all images and classes, and checks that its half of the classifier is the same.

``-m mpi4py`` ends all processes when one raises, and ``timeout`` ends those that wait for one that has ended. On
several machines, with MPICH's Hydra::

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


def shard(size: int, degree: int, rank: int) -> slice:
    """What the process ``rank`` of ``degree`` holds of ``size`` rows or columns."""
    return slice(size * rank // degree, size * (rank + 1) // degree)


def train(
    pixels: Array, digits: Array, classes: int, steps: int, parallel: unixent.ParallelConfig | None = None
) -> tuple[list[float], Array]:
    """The loss before each step, and the classifier after the last one, for this process's images and classes."""
    classifier, losses = np.zeros((classes, pixels.shape[1])), []
    for _ in range(steps):
        loss, grad = unixent.linear_value_and_grad(pixels, classifier, digits, wrt="classifier", parallel=parallel)
        if parallel is not None and parallel.token_group is not None:
            # The gradient of the global loss for this process's images: their sum is that of all.
            parallel.token_group.Allreduce(MPI.IN_PLACE, grad, op=MPI.SUM)
        classifier -= RATE * grad
        losses.append(float(loss))
    return losses, classifier


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A digits classifier sharded over data and classes by NumPy and MPI.")
    parser.add_argument("--data", type=int, default=2, help="parts of the images (default: 2)")
    parser.add_argument("--model", type=int, default=2, help="parts of the classes (default: 2)")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args(arguments)
    world = MPI.COMM_WORLD
    if world.Get_size() != options.data * options.model:
        parser.error(f"expected {options.data * options.model} processes; got {world.Get_size()}")

    grid = world.Create_cart((options.data, options.model))
    data_rank, model_rank = grid.Get_coords(grid.Get_rank())
    config = unixent.ParallelConfig(
        data_parallel=options.data,
        model_parallel=options.model,
        token_group=grid.Sub((True, False)),
        model_group=grid.Sub((False, True)),
    )
    pixels, digits = load()
    rows, columns = shard(len(digits), options.data, data_rank), shard(10, options.model, model_rank)
    losses, classifier = train(pixels[rows], digits[rows], columns.stop - columns.start, options.steps, config)

    expected_losses, expected_classifier = train(pixels, digits, 10, options.steps)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    np.testing.assert_allclose(classifier, expected_classifier[columns], rtol=1e-9, atol=1e-12)
    print(
        f"process {grid.Get_rank()}: images {rows.start}-{rows.stop}, classes {columns.start}-{columns.stop}, "
        f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, as alone",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
