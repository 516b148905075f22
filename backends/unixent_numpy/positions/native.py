"""Statistics of rows by the native library, for arrays whose memory it can read."""

from __future__ import annotations

import numpy as np

from unixent_native import DTYPES, MAX_AXES, has_statistics, load
from unixent_native import row_statistics as native_row_statistics
from unixent_native.library import Library
from unixent_numpy.compat import Array
from unixent_numpy.kernel import KernelSpec
from unixent_numpy.kernel.native import is_native, strided


def row_statistics(
    x: Array,
    target: Array,
    selected: Array | None,
    selected_weight: Array | None,
    smoothing: Array | None,
    position_weight: Array | None,
    upstream: dict[str, Array],
    outputs: dict[str, Array],
    k: int,
    spec: KernelSpec,
    threads: int,
    out: Array | None = None,
    library: Library | None = None,
) -> bool:
    """Fills the outputs of N rows, and puts the gradient in ``out``, which may be ``x``; whether it did.

    Args:
        x: logits, P + (C,), any strides.
        target, selected, selected_weight, smoothing, position_weight: (N,), (N, K) and (C,), as
            `unixent.row_statistics.Classes` has them, and v; None for ones, of smoothing for zeros.
        upstream: gradients of outputs by name, (N,) or (N, K); those that are not there are 0.
        outputs: by name, C-contiguous, (N,), (N, K) or (N, k): in the accumulation dtype, int64 or bool.
        k: the number of classes from the top.
        spec: the kernel's options; its z-loss is that of the regularizer.
        threads: the most threads to use.
        out: of the shape and dtype of x; None for no gradient.
        library: the library; None for the one that is there.
    """
    library = library or load()
    if library is None or not has_statistics((*outputs, *upstream), k):
        return False
    if not x.shape[-1] or not is_native(x) or not x.dtype.isnative or x.ndim > MAX_AXES + 1:
        return False
    dtype = spec.acc_dtype
    # Held by name until the call is over: what goes in is addresses.
    index, classes = (None if each is None else np.ascontiguousarray(each, np.int64) for each in (target, selected))
    floating = selected_weight, position_weight, smoothing
    weights, v, base = (None if each is None else np.ascontiguousarray(each, dtype) for each in floating)
    grads = {name: np.ascontiguousarray(each, dtype) for name, each in upstream.items()}

    def address(array: Array | None) -> int:
        return 0 if array is None else array.ctypes.data

    return native_row_statistics(
        library,
        x.shape,
        strided(x),
        index=address(index),
        position_weight=address(v),
        selected=address(classes),
        selected_weight=address(weights),
        num_selected=0 if classes is None else classes.shape[1],
        smoothing=address(base),
        z_loss=spec.z_loss,
        k=k,
        outputs={name: address(each) for name, each in outputs.items()},
        upstream={name: address(each) for name, each in grads.items()},
        x_grad=None if out is None else strided(out),
        acc_dtype=DTYPES[dtype.name],
        transform=spec.transform,
        threads=threads,
    )
