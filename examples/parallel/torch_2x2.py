"""A network for handwritten digits, split over data x classes: four processes, PyTorch on gloo.

    pip install ".[torch,examples]"
    timeout -k 10 300 torchrun --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0 --nproc-per-node=4 \\
        examples/parallel/torch_2x2.py

Every process holds half of the images and half of the classes. The hidden layer is the same on all of them: under
DistributedDataParallel over the processes that share the images, whose average is turned into a sum by one factor. The
classifier is split, and the loss fused with it. At the end each process trains alone, on everything, and checks that
the losses and its part of the network came out the same.

``timeout`` ends processes that wait for one that is gone, after the two minutes that each of them waits for another at
most; torchrun ends the others when one raises. On several machines, two processes on each::

    timeout -k 10 3600 torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=first:29400 \\
        examples/parallel/torch_2x2.py
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import unixent
from unixent_torch import LinearCrossEntropyLoss

HIDDEN, CLASSES, RATE = 32, 10, 0.5


def load() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 x 8 pixels in [0, 1], and the digit that each shows."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    return torch.from_numpy(bundled.data / 16), torch.from_numpy(bundled.target)


def share(size: int, parts: int, part: int) -> slice:
    return slice(size * part // parts, size * (part + 1) // parts)


def network(columns: slice, config: unixent.ParallelConfig | None = None) -> tuple[nn.Module, LinearCrossEntropyLoss]:
    """A hidden layer, and the loss with the classifier of some of the classes; from the same numbers everywhere."""
    numbers = torch.Generator().manual_seed(0)
    body = nn.Sequential(nn.Linear(64, HIDDEN), nn.Tanh()).double()
    head = LinearCrossEntropyLoss(
        HIDDEN, columns.stop - columns.start, dtype=torch.float64, label_smoothing=0.1, parallel_config=config
    )
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=numbers, dtype=torch.float64))
        whole = 0.1 * torch.randn(CLASSES, HIDDEN, generator=numbers, dtype=torch.float64)
        head.linear.weight.copy_(whole[columns])
    return body, head


def train(
    body: nn.Module, head: LinearCrossEntropyLoss, pixels: Tensor, digits: Tensor, steps: int, tokens: int = 1
) -> list[float]:
    """The loss before each step of gradient descent; ``tokens`` processes average their gradients."""
    optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=RATE)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = head(body(pixels), digits)
        (loss * tokens).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A digits network split over data x classes by torch.")
    parser.add_argument("--data", type=int, default=2, help="parts of the images (default: 2)")
    parser.add_argument("--model", type=int, default=2, help="parts of the classes (default: 2)")
    parser.add_argument("--steps", type=int, default=50)
    chosen = parser.parse_args(arguments)
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    torch.set_num_threads(1)
    try:
        if dist.get_world_size() != chosen.data * chosen.model:
            parser.error(f"expected {chosen.data * chosen.model} processes; got {dist.get_world_size()}")
        mesh = dist.init_device_mesh("cpu", (chosen.data, chosen.model), mesh_dim_names=("dp", "tp"))
        config = unixent.ParallelConfig.from_mesh(mesh, data="dp", model="tp")
        pixels, digits = load()
        rows = share(len(digits), chosen.data, mesh.get_local_rank("dp"))
        columns = share(CLASSES, chosen.model, mesh.get_local_rank("tp"))

        body, head = network(columns, config)
        # Every part of the classifier has its own replicas, and so has the hidden layer: those that share the images.
        body = DistributedDataParallel(body, process_group=config.token_group)
        head = DistributedDataParallel(head, process_group=config.token_group)
        losses = train(body, head, pixels[rows], digits[rows], chosen.steps, chosen.data)

        alone_body, alone_head = network(slice(0, CLASSES))
        alone = train(alone_body, alone_head, pixels, digits, chosen.steps)
        torch.testing.assert_close(losses, alone, rtol=1e-9, atol=0.0)
        for own, whole in zip(body.parameters(), alone_body.parameters(), strict=True):
            torch.testing.assert_close(own, whole, rtol=1e-8, atol=1e-11)
        (own,), (whole,) = head.parameters(), alone_head.parameters()
        torch.testing.assert_close(own, whole[columns], rtol=1e-8, atol=1e-11)
        dist.barrier()  # nobody leaves while another is still at work
        print(
            f"process {dist.get_rank()}: images {rows.start}-{rows.stop}, classes {columns.start}-{columns.stop}, "
            f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, as alone",
            flush=True,
        )
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
