"""Run by test_processes.py on each of two processes: what threads of one process can't stand for.

torchrun ... tests/torch/parallel/worker.py checks
python tests/torch/parallel/worker.py lost RANK STORE exits|hangs
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import unixent
from unixent_torch import compat

N, C = 6, 10
GENERATOR = torch.Generator().manual_seed(2)
LOGITS = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64) * 2
INDEX = torch.randint(C, (N,), generator=GENERATOR)
INDEX[3] = -100
PROBABILITIES = torch.rand(N, C, generator=GENERATOR, dtype=torch.float64)
WEIGHT = torch.rand(C, generator=GENERATOR, dtype=torch.float64)
DIRECTION = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64)
EVERYTHING = {"label_smoothing": 0.2, "weight": WEIGHT, "z_loss": 0.1, "softcap": 2.0}
CASES = [
    (INDEX, {}),
    (INDEX, EVERYTHING),
    (INDEX, {"reduction": "none"}),
    (PROBABILITIES, {}),
    (PROBABILITIES, EVERYTHING),
]


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def local(target: torch.Tensor, columns: slice) -> torch.Tensor:
    return target[:, columns] if target.ndim == 2 else target


def transforms(config: unixent.ParallelConfig) -> None:
    """Forward mode, and torch.func, whose levels are those of a whole process. Unequal parts."""
    columns = slice(0, 7) if dist.get_rank() == 0 else slice(7, C)
    for target, options in CASES:

        def loss(x, y, split=None, options=options):
            return unixent.cross_entropy(x, y, parallel=split, **options)

        y = local(target, columns)
        value, tangent = torch.func.jvp(lambda x: loss(x, target), (LOGITS,), (DIRECTION,))  # noqa: B023
        actual, moved = torch.func.jvp(lambda x: loss(x, y, config), (LOGITS[:, columns],), (DIRECTION[:, columns],))  # noqa: B023
        close(actual, value)
        close(moved, tangent)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(LOGITS[:, columns], DIRECTION[:, columns])
            close(forward_ad.unpack_dual(loss(dual, y, config)).tangent, tangent)
        if value.ndim:
            continue
        # Hessian times a direction: forward over reverse, and reverse over forward.
        gradient = torch.func.grad(lambda x: loss(x, target))  # noqa: B023
        split = torch.func.grad(lambda x: loss(x, y, config))  # noqa: B023
        grad, change = torch.func.jvp(gradient, (LOGITS,), (DIRECTION,))
        actual, moved = torch.func.jvp(split, (LOGITS[:, columns],), (DIRECTION[:, columns],))
        close(actual, grad[:, columns])
        close(moved, change[:, columns])
        other = torch.func.grad(
            lambda x: torch.func.jvp(lambda x: loss(x, y, config), (x,), (DIRECTION[:, columns],))[1]  # noqa: B023
        )(LOGITS[:, columns])
        close(other, change[:, columns])
    x, y = LOGITS[:, columns], INDEX
    for name, constant in {"weight": WEIGHT, "mask": torch.ones(N), "normalizer": torch.tensor(2.0)}.items():
        with forward_ad.dual_level():
            moving = {name: forward_ad.make_dual(constant, constant)}
            with pytest.raises(unixent.OptionError, match=f"{name}: expected a constant"):
                unixent.cross_entropy(x, y, parallel=config, **moving)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda x: unixent.cross_entropy(x, y, parallel=config))(torch.stack([x, x]))
    hidden, classifier = torch.ones(N, 3), torch.ones(columns.stop - columns.start, 3)
    with pytest.raises(unixent.BackendError, match=r"transform of torch\.func"):
        torch.func.grad(lambda h: unixent.linear_cross_entropy(h, classifier, y, parallel=config))(hidden)
    transforms_of_statistics(config)


GRADED = ("loss", "log_prob", "entropy", "logsumexp")


def statistics_of(x: torch.Tensor, config: unixent.ParallelConfig | None = None) -> torch.Tensor:
    """Every output with a derivative as a column, of index targets with a transform of the logits."""
    options = {"softcap": 4.0, "temperature": 0.7, "z_loss": 0.1, "parallel": config}
    stats = unixent.position_stats(x, INDEX, outputs=GRADED, **options)
    return torch.stack([getattr(stats, name) for name in GRADED], -1)


def transforms_of_statistics(config: unixent.ParallelConfig) -> None:
    """As far as the split loss goes: torch.func.grad, forward mode and forward over reverse; vmap does not."""
    columns = slice(0, 7) if dist.get_rank() == 0 else slice(7, C)
    x, along = LOGITS[:, columns], DIRECTION[:, columns]
    whole = torch.func.jvp(statistics_of, (LOGITS,), (DIRECTION,))
    for got, due in zip(torch.func.jvp(lambda x: statistics_of(x, config), (x,), (along,)), whole, strict=True):
        close(got, due)

    def total(x, split=None):
        return statistics_of(x, split).square().sum()

    whole = torch.func.jvp(torch.func.grad(total), (LOGITS,), (DIRECTION,))
    split = torch.func.grad(lambda x: total(x, config))
    for got, due in zip(torch.func.jvp(split, (x,), (along,)), whole, strict=True):
        close(got, due[:, columns])
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda x: statistics_of(x, config))(torch.stack([x, x]))
    hidden, classifier = torch.ones(N, 3), torch.ones(columns.stop - columns.start, 3)
    with pytest.raises(unixent.BackendError, match=r"transform of torch\.func"):
        torch.func.grad(lambda h: unixent.linear_position_stats(h, classifier, INDEX, parallel=config).log_prob.sum())(
            hidden
        )


def compiled_statistics(config: unixent.ParallelConfig) -> None:
    columns = slice(0, 5) if dist.get_rank() == 0 else slice(5, C)
    torch.compiler.reset()
    whole, x = LOGITS.clone().requires_grad_(), LOGITS[:, columns].clone().requires_grad_()
    expected = statistics_of(whole)
    compiled = torch.compile(lambda x: statistics_of(x, config), fullgraph=True, backend="aot_eager")
    actual = compiled(x)
    close(actual, expected)
    expected.square().sum().backward()
    actual.square().sum().backward()
    close(x.grad, whole.grad[:, columns])
    unequal = slice(0, 7) if dist.get_rank() == 0 else slice(7, C)
    torch.compiler.reset()
    counted = (INDEX != -100).unsqueeze(-1)
    assert (
        torch.compile(lambda x: statistics_of(x, config), backend="aot_eager")(LOGITS[:, unequal])
        .isnan()[counted.expand(-1, len(GRADED))]
        .all()
    )


def compiled(config: unixent.ParallelConfig) -> None:
    """One graph without a break; a division of the classes that a compiled program can't know is NaN."""
    columns = slice(0, 5) if dist.get_rank() == 0 else slice(5, C)
    for target, options in CASES[::2]:
        torch.compiler.reset()
        whole, x = LOGITS.clone().requires_grad_(), LOGITS[:, columns].clone().requires_grad_()
        expected = unixent.cross_entropy(whole, target, **options)

        @torch.compile(fullgraph=True, backend="aot_eager")
        def loss(x, y, options=options):
            return unixent.cross_entropy(x, y, parallel=config, **options)

        actual = loss(x, local(target, columns))
        close(actual, expected)
        expected.sum().backward()
        actual.sum().backward()
        close(x.grad, whole.grad[:, columns])
    unequal = slice(0, 7) if dist.get_rank() == 0 else slice(7, C)
    torch.compiler.reset()
    assert torch.compile(lambda x, y: unixent.cross_entropy(x, y, parallel=config), backend="aot_eager")(
        LOGITS[:, unequal], INDEX
    ).isnan()
    compiled_statistics(config)


def dtensors(config: unixent.ParallelConfig) -> None:
    """Of a compiled program, whatever the placement of a call and whether a DTensor holds a gradient; broken graphs."""
    mesh, index = init_device_mesh("cpu", (2,)), INDEX.clamp(0)
    whole, eye = LOGITS.clone().requires_grad_(), torch.eye(C, dtype=LOGITS.dtype)
    expected = unixent.cross_entropy(whole, index)
    expected.backward()
    placed = {
        "logits": [(Shard(1),), (Shard(0),), (Replicate(),), (Shard(1),)],
        "linear": [
            (Shard(0), Replicate()),
            (Replicate(), Shard(0)),
            (Replicate(), Replicate()),
            (Shard(0), Replicate()),
        ],
    }
    for form, layouts in placed.items():
        torch.compiler.reset()
        function, gradient = unixent.cross_entropy, unixent.value_and_grad
        if form == "linear":
            function, gradient = unixent.linear_cross_entropy, unixent.linear_value_and_grad
        loss = torch.compile(lambda *arguments: function(*arguments), backend="aot_eager")  # noqa: B023
        for layout in layouts:
            arrays = [
                distribute_tensor(each.clone(), mesh, [placement]).requires_grad_()
                for each, placement in zip((LOGITS, eye), layout, strict=False)
            ]
            for _ in range(2):
                value = loss(*arrays, index)
                close(value.full_tensor(), expected)
                value.backward()
            close(arrays[0].grad.full_tensor(), 2 * whole.grad)
            both = torch.compile(lambda *arguments: gradient(*arguments), backend="aot_eager")  # noqa: B023
            value, gradients = both(*arrays, index)
            close(value.full_tensor(), expected)
            close((gradients[0] if form == "linear" else gradients).full_tensor(), whole.grad)
    sparse_dtensors()


def sparse_dtensors() -> None:
    """Sparse targets that lie otherwise than their positions, in unequal parts: five of them and three classes each."""
    mesh, rows = init_device_mesh("cpu", (2,)), LOGITS[:5]
    ids, probs = rows.topk(3).indices, PROBABILITIES[:5, :3] / 4
    whole, teacher = rows.clone().requires_grad_(), probs.clone().requires_grad_()
    expected = unixent.cross_entropy(whole, unixent.TopK(ids, probs=teacher, tail="bucket"), label_smoothing=0.1)
    expected.backward()
    for of_logits in (Shard(0), Shard(1), Replicate()):
        for of_ids, of_probs in ((Shard(1), Shard(0)), (Shard(0), Replicate()), (Replicate(), Shard(1))):
            x = distribute_tensor(rows.clone(), mesh, [of_logits]).requires_grad_()
            q = distribute_tensor(probs.clone(), mesh, [of_probs]).requires_grad_()
            target = unixent.TopK(distribute_tensor(ids, mesh, [of_ids]), probs=q, tail="bucket")
            loss = unixent.cross_entropy(x, target, label_smoothing=0.1)
            close(loss.full_tensor(), expected)
            loss.backward()
            assert q.grad.placements == q.placements
            close(x.grad.full_tensor(), whole.grad)
            close(q.grad.full_tensor(), teacher.grad)
            plain = unixent.TopK(target.ids, probs=q.detach(), tail="bucket")
            _, grad = unixent.value_and_grad(x.detach(), plain, wrt="target", label_smoothing=0.1)
            assert grad.placements == q.placements
            close(grad.full_tensor(), teacher.grad)


def accelerators(config: unixent.ParallelConfig) -> None:
    """A group that takes no host memory: what the processes agree on goes over one of their own beside it."""
    columns = (slice(0, 4), slice(4, C))[dist.get_rank()]
    whole = unixent.cross_entropy(LOGITS, INDEX)
    used: list[object] = []
    gather = dist.all_gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compat, "serves_host", lambda group: False)
        patch.setattr(dist, "all_gather", lambda *args, group: used.append(group) or gather(*args, group=group))
        for _ in range(2):
            close(unixent.cross_entropy(LOGITS[:, columns], INDEX, parallel=config), whole)
        smoothing = 0.1 * dist.get_rank()
        with pytest.raises(unixent.OptionError):
            unixent.cross_entropy(LOGITS[:, columns], INDEX, label_smoothing=smoothing, parallel=config)
    assert len(set(used)) == 1
    assert used[0] is not config.model_group
    assert dist.get_backend(used[0]) == "gloo"


def lost(rank: int, store: str, how: str) -> None:
    """The second process is gone after a first loss; the first raises, within the limit of five seconds."""
    limit = timedelta(seconds=5)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    config = unixent.ParallelConfig(model_parallel=2, model_group=dist.group.WORLD)
    columns = slice(0, 5) if rank == 0 else slice(5, C)
    assert unixent.cross_entropy(LOGITS[:, columns], INDEX, parallel=config).isfinite()
    if rank == 1:
        if how == "hangs":
            time.sleep(60)
        os._exit(3)
    start = time.monotonic()
    try:
        unixent.cross_entropy(LOGITS[:, columns], INDEX, parallel=config)
    except RuntimeError as error:
        print(f"raised after {time.monotonic() - start:.1f} s: {type(error).__name__}", flush=True)
        os._exit(0)  # taking the group down would wait for the other one again


def main() -> None:
    if sys.argv[1] == "lost":
        lost(int(sys.argv[2]), sys.argv[3], sys.argv[4])
        return
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.set_num_threads(1)
    config = unixent.ParallelConfig(model_parallel=2, model_group=dist.group.WORLD)
    for check in (transforms, compiled, dtensors, accelerators):
        check(config)
    print(f"every check passed on rank {dist.get_rank()}", flush=True)
    dist.destroy_process_group()
    # torch's functional collectives keep the group, and so its threads, beyond this line. One that still ends its last
    # call while the interpreter goes down aborts the process ("terminate called without an active exception").
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
