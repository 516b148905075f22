"""One of several processes of jax.distributed, started by test_processes.py: exits non-zero on any difference.

python tests/jax/parallel/worker.py ADDRESS PROCESSES RANK
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import unixent
from unixent_conformance.expected import expected
from unixent_conformance.model import Call

ADDRESS, COUNT, RANK = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
RNG = np.random.default_rng(3)
N, C, D = 8, 12, 5
LOGITS = (RNG.normal(size=(N, C)) * 3).astype(np.float32)
INDEX = RNG.integers(C, size=N).astype(np.int32)
INDEX[3] = -100
PROBABILITIES = RNG.dirichlet(np.ones(C), N).astype(np.float32)
TEACHER, IDS = PROBABILITIES[:, :3], np.argsort(RNG.random((N, C)))[:, :3].astype(np.int32)
WEIGHT, MASK = RNG.random(C).astype(np.float32), RNG.random(N).astype(np.float32)
HIDDEN, CLASSIFIER = (RNG.normal(size=size).astype(np.float32) for size in ((N, D), (C, D)))


def check(call: Call, quantity: Any, actual: Any, mesh: Any) -> None:
    collect = jax.jit(lambda array: array, out_shardings=NamedSharding(mesh, P()))
    for part, got in zip(expected(call, quantity), actual, strict=True):
        array = np.asarray(collect(got))
        # Without x64 an index is an int32.
        comparison = part.compare(array.astype(np.int64) if array.dtype.kind == "i" else array)
        assert comparison.ok, (RANK, part.name, comparison)


def main() -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(
        ADDRESS, COUNT, RANK, initialization_timeout=60, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=5
    )
    assert (jax.process_count(), len(jax.devices()), len(jax.local_devices())) == (COUNT, 2 * COUNT, 2)
    # Both axes cross processes or stay within one, one after the other.
    for devices in (np.reshape(jax.devices(), (COUNT, 2)), np.reshape(jax.devices(), (COUNT, 2)).T):
        mesh = jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        config = unixent.ParallelConfig.from_mesh(mesh, data="data", model="model")

        def put(array: np.ndarray[Any, Any], *spec: str | None, mesh: Any = mesh) -> jax.Array:
            return jax.make_array_from_callback(array.shape, NamedSharding(mesh, P(*spec)), array.__getitem__)

        logits = put(LOGITS, "data", "model")
        targets = {"index": put(INDEX, "data"), "probability": put(PROBABILITIES, "data", "model")}
        for target_kind, target in targets.items():
            for options in ({}, {"label_smoothing": 0.2}):
                # The whole class weight and a mask, as each process has them: NumPy arrays.
                extra = {"weight": WEIGHT, "mask": MASK}
                truth = Call(LOGITS, INDEX if target_kind == "index" else PROBABILITIES, options=options, **extra)
                function = partial(unixent.value_and_grad, parallel=config, **options)
                check(truth, "logits gradient", function(logits, target, **extra), mesh)
                check(truth, "logits gradient", jax.jit(function)(logits, target, **extra), mesh)
        truth = Call(None, INDEX, hidden=HIDDEN, classifier=CLASSIFIER, options={"z_loss": 0.1})
        fused = jax.jit(partial(unixent.linear_value_and_grad, parallel=config, z_loss=0.1))
        loss, grads = fused(put(HIDDEN, "data"), put(CLASSIFIER, "model"), targets["index"])
        check(truth, "linear gradients", (loss, *grads), mesh)

        target = unixent.TopK(put(IDS, "data"), probs=put(TEACHER, "data"), tail="bucket")
        truth = Call(LOGITS, TEACHER, ids=IDS, tail="bucket", weight=WEIGHT, options={"label_smoothing": 0.2})
        function = partial(unixent.value_and_grad, wrt=("logits", "target"), parallel=config, label_smoothing=0.2)
        loss, grads = jax.jit(function)(logits, target, weight=WEIGHT)
        check(truth, "logits gradient", (loss, grads[0]), mesh)
        check(truth, "target gradient", (loss, grads[1]), mesh)
        for output in ("log_prob", "entropy", "rank"):
            truth = Call(LOGITS, INDEX, statistic=output)
            stats = unixent.position_stats(logits, targets["index"], outputs=output, parallel=config)
            check(truth, "loss", (getattr(stats, output),), mesh)

        # One process's NaN is everybody's, and so is its index out of range, which nobody could read.
        for array, target in ((np.where(np.arange(N) == 1, 99, INDEX), None), (INDEX, np.nan)):
            x = LOGITS if target is None else np.where(np.arange(N * C).reshape(N, C) == 0, np.nan, LOGITS)
            bad = unixent.cross_entropy(put(x, "data", "model"), put(array.astype(np.int32), "data"), parallel=config)
            assert np.isnan(bad.addressable_data(0)), (RANK, bad.addressable_data(0))
    print("every check passed", flush=True)
    jax.distributed.shutdown()


main()
