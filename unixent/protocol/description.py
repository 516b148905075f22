"""What a backend says of arrays, of devices and of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

Array = Any  # whatever the framework calls its array


class ArrayInfo(NamedTuple):
    """What the checks need to know of an array, without touching its values.

    Attributes:
        shape: its shape; entries may be symbolic under a trace.
        dtype: canonical NumPy-style name: "float16", "bfloat16", "float32", "float64", "int8", ..., "uint64", "bool".
        device: where it lives, as the framework prints it; compared between the arguments of one call. Empty where it
            is bound to none (a traced array, an array that moves to where the others are).
        readable: its values can be read without stalling: an eager array in host memory. A 0-d one converts by `float`.
        concrete: it has values at all; False under a trace.
        requires_grad: the framework knows that a gradient of this array is requested.
        layout: empty for an array whose elements all lie in memory; else how the framework calls it ("sparse_coo",
            "nested", ...): such an array is refused.
    """

    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    readable: bool = True
    concrete: bool = True
    requires_grad: bool = False
    layout: str = ""


class Device(NamedTuple):
    """A device, and what the loss is to expect there.

    Attributes:
        name: as the framework prints it.
        kernel: what computes the pass over the logits there, for people ("native, avx2", "Triton", "XLA").
        batch_invariant: value and gradient of a position have the same bits whatever the other positions are, in every
            form of the loss.
    """

    name: str
    kernel: str
    batch_invariant: bool = False


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do, as data: the checks, the docs table and the suite's expectations are made from it.

    Attributes:
        dtypes: dtypes of logits that are taken.
        targets: kinds of target that are taken: "index", "probability", "sparse" (see `SparseBackend`).
        transforms: names of the framework's transforms that the loss goes through: "grad", "jit", "vmap", "jvp", ...
        linear: `unixent.linear_cross_entropy` is served.
        parallel: a `ParallelConfig` of degree above 1 is served.
        fast_path: calls without arrays beside logits and target are offered to the backend before they are checked.
        position_stats: `unixent.position_stats` is served, and with ``linear`` `unixent.linear_position_stats`.
        parallel_targets: kinds of target that are taken where positions or classes are split over processes.
        parallel_position_stats: so they are where positions or classes are split over processes.
        traces_values: what is no array of the framework in a program that it traces (symbolic sizes, NumPy arrays and
            lists whose dtype cannot be asked there) is the backend's to hand over.
    """

    dtypes: frozenset[str]
    targets: frozenset[str] = frozenset({"index", "probability"})
    transforms: frozenset[str] = frozenset()
    linear: bool = False
    parallel: bool = False
    fast_path: bool = False
    position_stats: bool = False
    parallel_position_stats: bool = False
    parallel_targets: frozenset[str] = frozenset({"index", "probability"})
    traces_values: bool = False
