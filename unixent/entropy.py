"""The entropy of a teacher: what its cross-entropy with a student has beyond their divergence."""

from __future__ import annotations

from typing import Any, cast

from unixent import dispatch, sparse_targets
from unixent.arguments import FLOATS, Argument, CommonArguments, describe_arguments
from unixent.errors import BackendError, DTypeError, option_error
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions
from unixent.problem import check_topk
from unixent.protocol import SparseBackend
from unixent.topk import TopK


def entropy_of(
    target: Any, *, axis: int = -1, ignore_index: int = DEFAULT_IGNORE_INDEX, backend: str | None = None
) -> Any:
    r"""The entropy of each position's target, in nats: cross-entropy less this is the Kullback-Leibler divergence.

    With q_k the probabilities of a `TopK`, those of one class added up, Q their sum, and 0 log 0 = 0:

    .. code-block:: text

        probabilities    -sum_c q_c log q_c
        "drop"           -sum_k q_k log q_k, so that the difference is sum_k q_k log(q_k / p_k), of any sign
        "renormalize"    -sum_k (q_k/Q) log(q_k/Q)
        "bucket"         -sum_k q_k log q_k - (1 - Q) log(1 - Q), where Q < 1

    The difference is a divergence where the loss has no class weights, smoothing, z-loss or mask, of which nothing
    enters here, and, but for "drop", where the target's probabilities sum to 1, the bucket included; it is >= 0 then.

    Args:
        target: a `TopK`, or probabilities with the classes along ``axis``.
        axis: the class axis of probabilities.
        ignore_index: the id that pads a `TopK`.
        backend: as in `cross_entropy`.

    Returns:
        An array of shape P, in the dtype of the probabilities; a constant of the student's.

    Raises:
        DTypeError, ShapeError: probabilities are not floating, ids not integers of the same shape.
        BackendError: the backend does not declare sparse targets.

    Example:
        >>> import numpy as np, unixent
        >>> teacher = unixent.TopK(np.array([[0, 2]]), probs=np.array([[0.5, 0.25]]), tail="bucket")
        >>> print(unixent.entropy_of(teacher).round(6), unixent.entropy_of(np.array([0.5, 0.5])).round(6))
        [1.039721] 0.693147
    """
    given = target.arguments() if isinstance(target, TopK) else {"target": target}
    selected = dispatch.select_backend(CommonArguments(None, backend=backend), tuple(given), *given.values())
    if "sparse" not in selected.capabilities.targets:
        raise BackendError(f"entropy_of: the {selected.name} backend takes no sparse targets")
    options = LossOptions(axis=axis, ignore_index=ignore_index)
    arguments, along = describe_arguments(selected, given), cast(SparseBackend, selected).along
    if isinstance(target, TopK):
        ids, values = check_topk(selected, arguments, target, arguments["target.ids"].info.shape[:-1])
        index, array = along.astype(ids.array, ids.info.dtype), along.astype(values.array, _acc_dtype(values))
        limits = along.xp.iinfo(index.dtype)
        fits = limits.min <= options.ignore_index <= limits.max
        padding = index == options.ignore_index if fits else index != index
        result = sparse_targets.entropy(along, target.teacher, array, index, padding)
    else:
        values = arguments["target"]
        if values.info.dtype not in FLOATS:
            raise DTypeError(f"target: expected probabilities (floating) or a TopK; got {values.info.dtype}")
        if not -len(values.info.shape) <= options.axis < len(values.info.shape):
            raise option_error("axis", f"an axis of probabilities of shape {values.info.shape}", axis)
        array = along.xp.moveaxis(along.astype(values.array, _acc_dtype(values)), options.axis, -1)
        result = 0 - along.sum(sparse_targets.times_log(along.xp, array, array))
    return along.astype(result[..., 0], values.info.dtype)


def _acc_dtype(values: Argument) -> str:
    return "float64" if values.info.dtype == "float64" else "float32"
