"""Generated calls of the native kernel, and what must hold of each: NumPy's operators in float64 give the reference."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from unixent.logit_transform import LogitTransform
from unixent_native.library import Library
from unixent_numpy import vocab_parallel
from unixent_numpy.kernel import KernelSpec, composed, native
from unixent_numpy.vocab_parallel.blocks import Shard
from unixent_numpy.vocab_parallel.composed import row_losses as share_losses

try:
    import ml_dtypes

    DTYPES = [np.dtype(name) for name in ("f2", ml_dtypes.bfloat16, "f4", "f8")]
except ImportError:
    DTYPES = [np.dtype(name) for name in ("f2", "f4", "f8")]

# Around whole vectors, the most classes of a short row, 256, and whole chunks of 2,048.
NUM_CLASSES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 21, 33, 64, 100, 256, 257, 512, 1000, 2047, 2048, 2049, 4096, 5000)


class Call(NamedTuple):
    """Operands of `unixent_numpy.kernel.row_losses`."""

    x: Any
    target: Any
    weight: Any
    position_weight: Any
    grad_scale: Any
    spec: KernelSpec

    @property
    def wrt(self) -> tuple[str, ...]:
        return ("logits",) if self.target.dtype.kind == "i" else ("logits", "target")


def strided(rng: np.random.Generator, array: Any) -> Any:
    """The same numbers in other memory: axes in another order, reversed, or with holes."""
    choice = rng.integers(5)
    if choice == 0:
        order = rng.permutation(array.ndim)
        return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
    if choice == 1:
        axis = rng.integers(array.ndim)
        return np.flip(np.ascontiguousarray(np.flip(array, axis)), axis)
    if choice == 2:
        axis, step = rng.integers(array.ndim), int(rng.integers(2, 4))
        holes = np.full([step * n if i == axis else n for i, n in enumerate(array.shape)], np.nan, array.dtype)
        view = holes[tuple([slice(None, None, step) if i == axis else slice(None) for i in range(array.ndim)])]
        view[...] = array
        return view
    if choice == 3:
        raw = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)  # unaligned
        raw[...] = array
        return raw
    return np.ascontiguousarray(array)


def random_call(rng: np.random.Generator) -> Call:
    """A call of any kind that the kernel takes."""
    num_classes = int(rng.choice(NUM_CLASSES))
    positions = tuple(rng.integers(1, (40, 6, 4)[: rng.integers(0, 4)]).tolist())
    if num_classes > 600:
        positions = tuple(min(size, 3) for size in positions)
    dtype = DTYPES[rng.integers(len(DTYPES))]
    acc = np.dtype("f8" if dtype == np.dtype("f8") else "f4")
    x = rng.normal(size=(*positions, num_classes)) * rng.choice([0.1, 1, 5, 30])
    softcap = rng.choice([None, None, 5.0, 30.0])
    transform = LogitTransform(softcap, float(rng.choice([1, 1, 1, 0.25, 1.3])))
    if rng.random() < 0.3:
        special = rng.random(x.shape) < rng.choice([0.02, 0.3])
        x[special] = rng.choice([np.nan, -1e4] if softcap else [np.inf, np.nan, *[-np.inf] * 8], special.sum())
    weight = rng.random(num_classes).astype(acc) * (rng.random(num_classes) < 0.8) if rng.random() < 0.4 else None
    position_weight = None
    if rng.random() < 0.5:
        position_weight = np.asarray(rng.random(positions)).astype(acc)
        position_weight = np.where(rng.random(positions) < 0.3, 0, position_weight).astype(acc)
        position_weight = np.where(rng.random(positions) < 0.05, np.nan, position_weight).astype(acc)
    if rng.random() < 0.4:
        target = rng.random(x.shape) * (rng.random(x.shape) < 0.7)
        target = strided(
            rng, (target / np.maximum(target.sum(-1, keepdims=True), 1e-3)).astype(rng.choice([dtype, acc]))
        )
    else:
        target = np.asarray(rng.integers(num_classes, size=positions))
    grad_scale = np.asarray(rng.normal(size=positions if rng.random() < 0.7 else ())).astype(acc)
    if position_weight is not None:
        grad_scale = position_weight * grad_scale
    smoothing, z_loss = float(rng.choice([0, 0, 0.1, 1])), float(rng.choice([0, 0, 1e-2]))
    return Call(
        strided(rng, x.astype(dtype)),
        target,
        weight,
        position_weight,
        grad_scale,
        KernelSpec(acc, smoothing, z_loss, transform),
    )


def check(library: Library, call: Call) -> None:
    """The kernel's results are those of NumPy in float64, NaN and infinities included, within the promised bounds."""
    done = native.row_losses(library, *call, call.wrt)
    alone = native.row_losses(library, *call[:4], None, call.spec)
    assert done is not None
    assert alone is not None
    np.testing.assert_array_equal(alone[0], done[0])
    compare(call, done, composed.row_losses(*widened(call), call.wrt))


class Alone:
    """A group whose other processes add nothing."""

    rank, size = 0, 1

    def all_reduce(self, values: Any, operation: str) -> Any:
        return values


def check_share(library: Library, call: Call, rng: np.random.Generator) -> None:
    """The same of the two halves, the call's classes being some of all, and its targets among all."""
    num_classes, before, behind = call.x.shape[-1], *rng.integers(4, size=2).tolist()
    shard = Shard(Alone(), before, num_classes, before + num_classes + behind)
    if call.weight is not None:
        ends = rng.random((2, max(before, behind))).astype(call.weight.dtype)
        call = call._replace(weight=np.concatenate([ends[0, :before], call.weight, ends[1, :behind]]))
    if call.target.dtype.kind == "i":
        call = call._replace(target=np.asarray(rng.integers(shard.num_classes, size=call.target.shape)))
    with np.errstate(all="ignore"):
        with mock.patch.object(vocab_parallel.native, "load", return_value=library):
            done = share_losses(shard, *call, call.wrt)
        with mock.patch.object(vocab_parallel.native, "load", return_value=None):
            compare(call, done, share_losses(shard, *widened(call), call.wrt))


WIDE = np.dtype("f8")


def widened(call: Call) -> Call:
    """The call in float64."""
    x, target, *rest, spec = call
    target = target if target.dtype.kind == "i" else target.astype(WIDE)
    rest = [None if each is None else each.astype(WIDE) for each in rest]
    return Call(x.astype(WIDE), target, *rest, spec._replace(acc_dtype=WIDE))


def compare(call: Call, done: Any, due: Any) -> None:
    """Losses and gradients agree with those in float64."""
    x, target, _, _, grad_scale, spec = call
    (losses, grads), (expected, expected_grads), wide = done, due, WIDE
    with np.errstate(all="ignore"):
        scale = grad_scale.astype(wide)
        u, logs = float(np.finfo(spec.acc_dtype).eps) / 2, 2 * np.log2(x.shape[-1])
        largest = np.where(np.isfinite(x.astype(wide)), np.abs(x.astype(wide)), 0).max(-1)
        is_plain = target.dtype.kind == "i" and not spec.label_smoothing and not spec.z_loss
        is_plain = is_plain and spec.transform == LogitTransform()
        size = np.abs(expected) if is_plain else np.abs(expected) + 20 * (1 + largest) * (1 + largest * spec.z_loss)
        # A subnormal loss is rounded to a multiple of the smallest one.
        near(losses, expected, (8 + logs) * u * size + float(np.finfo(spec.acc_dtype).smallest_subnormal))
        for grad, exact in zip(grads, expected_grads, strict=True):
            rounding = (
                float(np.finfo(np.float32).eps if grad.dtype.itemsize > 2 else 2.0**-7) if grad.dtype != wide else u
            )
            size = np.abs(exact)
            if not is_plain:
                size = (
                    size
                    + np.where(np.isfinite(exact), np.abs(exact), 0).max(-1, keepdims=True)
                    + np.abs(scale)[..., None]
                )
            bound = ((16 + logs + 8 * largest[..., None]) * u + rounding) * size
            tiny = 6e-8 if grad.dtype == np.dtype("f2") else 1e-37 if spec.acc_dtype == np.dtype("f4") else 1e-307
            near(grad, exact, bound + tiny, overflows=grad.dtype == np.dtype("f2"))


def near(got: Any, expected: Any, bound: Any, overflows: bool = False) -> None:
    got, expected = np.asarray(got).astype("f8"), np.asarray(expected)
    if overflows:
        expected = np.where(np.abs(expected) > 65504, np.sign(expected) * np.inf, expected)
    assert (np.isnan(got) == np.isnan(expected)).all()
    infinite = np.isinf(got) | np.isinf(expected)
    assert (got[infinite] == expected[infinite]).all()
    finite = np.isfinite(got)
    excess = np.abs(got - expected)[finite] - np.broadcast_to(bound, got.shape)[finite]
    assert (excess <= 0).all(), (excess.max(), got[finite][excess.argmax()], expected[finite][excess.argmax()])
