"""A small network for handwritten digits, its classifier split over data x classes: four processes of MindSpore.

    pip install ".[mindspore,examples]"
    timeout -s INT -k 30 300 msrun --worker_num 4 --local_worker_num 4 --master_addr 127.0.0.1 --master_port 8118 \
        --join True --cluster_time_out 60 --log_dir logs examples/parallel/mindspore_2x2.py

Every process holds half of the images and half of the classes; the hidden layer is everybody's. It also takes the same
steps alone, on everything, and checks that losses and weights come out the same.

``--join`` makes msrun end all processes when one fails, and ``--cluster_time_out`` ends the wait for one that never
came. msrun gives each of them a session of its own, so interrupt it (``-s INT``), upon which it ends them, rather than
kill it. On two machines, with two processes each, the first of which has the address 10.0.0.1, on each of them::

    timeout -s INT -k 30 3600 msrun --worker_num 4 --local_worker_num 2 --node_rank 0 --master_addr 10.0.0.1 \
        --master_port 8118 --join True --cluster_time_out 300 --log_dir logs mindspore_2x2.py       # 1 on the second
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint
from mindspore.communication import init

import unixent
import unixent_mindspore

Array = np.ndarray[Any, Any]
RATE, WIDTH = 1.0, 32


def load() -> tuple[Array, Array]:
    """1,797 images of 8 x 8 pixels in [0, 1], and the digit that each shows."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    return (bundled.data / 16).astype(np.float32), bundled.target.astype(np.int32)


def share(size: int, parts: int, part: int) -> slice:
    return slice(size * part // parts, size * (part + 1) // parts)


def train(
    pixels: Array, digits: Array, classes: slice, steps: int, parallel: unixent.ParallelConfig | None = None
) -> tuple[list[float], list[Array]]:
    """The loss before each step, and the weights after them; of this process's images and classes."""
    rng = np.random.default_rng(0)
    hidden, classifier = rng.normal(size=(pixels.shape[1], WIDTH)) / 8, rng.normal(size=(10, WIDTH)) / WIDTH
    weights = [ms.Tensor(part, ms.float32) for part in (hidden, classifier[classes], np.zeros(10)[classes])]
    images, labels = ms.Tensor(pixels), ms.Tensor(digits)

    def loss(hidden: ms.Tensor, classifier: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        states = mint.nn.functional.relu(images @ hidden)
        return unixent.linear_cross_entropy(states, classifier, labels, bias=bias, parallel=parallel)

    step, losses = ms.value_and_grad(loss, (0, 1, 2)), []
    for _ in range(steps):
        value, grads = step(*weights)
        for i, grad in enumerate(grads):
            if parallel is not None and parallel.token_group is not None:
                # The gradient of the global loss, as far as this process's images go: their sum is the whole.
                mint.distributed.all_reduce(grad, group=parallel.token_group)
            weights[i] = weights[i] - RATE * grad
        losses.append(float(value))
    return losses, [weight.asnumpy() for weight in weights]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A digits classifier split over data x classes by MindSpore.")
    parser.add_argument("--data", type=int, default=2, help="parts of the images (default: 2)")
    parser.add_argument("--model", type=int, default=2, help="parts of the classes (default: 2)")
    parser.add_argument("--steps", type=int, default=20)
    chosen = parser.parse_args(arguments)
    ms.set_device("CPU")
    init()
    # Makes the groups; those that a script already has go into model_group and token_group, by name.
    config = unixent_mindspore.grid(unixent.ParallelConfig(chosen.data, chosen.model))
    rank = mint.distributed.get_rank()
    row, column = divmod(rank, chosen.model)
    pixels, digits = load()
    rows, columns = share(len(digits), chosen.data, row), share(10, chosen.model, column)
    losses, weights = train(pixels[rows], digits[rows], columns, chosen.steps, config)

    alone, whole = train(pixels, digits, slice(0, 10), chosen.steps)
    np.testing.assert_allclose(losses, alone, rtol=1e-4)
    for local, expected in zip(weights, (whole[0], whole[1][columns], whole[2][columns]), strict=True):
        np.testing.assert_allclose(local, expected, rtol=1e-3, atol=1e-4)
    print(
        f"process {rank}: images {rows.start}-{rows.stop}, classes {columns.start}-{columns.stop}, "
        f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, as alone",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
