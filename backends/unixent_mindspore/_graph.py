"""The public functions inside ``mindspore.jit``, graph mode, ``jvp`` and ``vmap``.

MindSpore compiles Python source. It would compile unixent's own call path too, which is not written in the subset that
it knows; so its parser is told to put these functions in the place of the public ones.
"""

from __future__ import annotations

from typing import Any

from mindspore.graph._parse.resources import convert_object_map

import unixent
from unixent_mindspore._compile import check_wrt, prepare, pulled, signature, tensor


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: Any = None,
    on_empty: str = "zero",
    dtype: Any = None,
    validate: str = "auto",
    parallel: Any = None,
    backend: str | None = None,
) -> Any:
    """`unixent.cross_entropy` in compiled code."""
    options = (axis, reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, dtype, validate)
    inputs = (logits, None, None, target, weight, mask, normalizer)
    cell, tensors = prepare(inputs, options, (parallel, backend, "loss", None), False)
    return cell(*tensors)


def loss_terms(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    axis: int = -1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    dtype: Any = None,
    validate: str = "auto",
    parallel: Any = None,
    backend: str | None = None,
) -> Any:
    """`unixent.loss_terms` in compiled code, where the terms are a plain tuple."""
    options = (axis, "sum", ignore_index, label_smoothing, z_loss, softcap, "zero", dtype, validate)
    inputs = (logits, None, None, target, weight, mask, None)
    cell, tensors = prepare(inputs, options, (parallel, backend, "terms", None), False)
    return cell(*tensors)


def value_and_grad(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: Any = None,
    on_empty: str = "zero",
    dtype: Any = None,
    validate: str = "auto",
    parallel: Any = None,
    backend: str | None = None,
    grad_output: Any = None,
    wrt: Any = "logits",
) -> Any:
    """`unixent.value_and_grad` in compiled code."""
    options = (axis, reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, dtype, validate)
    inputs = (logits, None, None, target, weight, mask, normalizer)
    cell, tensors = prepare(inputs, options, (parallel, backend, "pull", None), False)
    upstream = tensor(grad_output, "grad_output")
    names = check_wrt(wrt, (signature(tensors[0]), signature(tensors[3]), signature(upstream)), options, None)
    return pulled(cell, tensors, names, wrt, upstream)


def linear_cross_entropy(
    hidden: Any,
    classifier: Any,
    target: Any,
    *,
    bias: Any = None,
    weight: Any = None,
    mask: Any = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: Any = None,
    on_empty: str = "zero",
    dtype: Any = None,
    validate: str = "auto",
    parallel: Any = None,
    chunk: int | None = None,
    backend: str | None = None,
) -> Any:
    """`unixent.linear_cross_entropy` in compiled code."""
    options = (-1, reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, dtype, validate)
    inputs = (hidden, classifier, bias, target, weight, mask, normalizer)
    cell, tensors = prepare(inputs, options, (parallel, backend, "loss", chunk), True)
    return cell(*tensors)


def linear_value_and_grad(
    hidden: Any,
    classifier: Any,
    target: Any,
    *,
    bias: Any = None,
    weight: Any = None,
    mask: Any = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: Any = None,
    on_empty: str = "zero",
    dtype: Any = None,
    validate: str = "auto",
    parallel: Any = None,
    chunk: int | None = None,
    backend: str | None = None,
    grad_output: Any = None,
    wrt: Any = None,
) -> Any:
    """`unixent.linear_value_and_grad` in compiled code."""
    options = (-1, reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, dtype, validate)
    inputs = (hidden, classifier, bias, target, weight, mask, normalizer)
    cell, tensors = prepare(inputs, options, (parallel, backend, "pull", chunk), True)
    upstream = tensor(grad_output, "grad_output")
    wanted = wrt
    if wanted is None:
        wanted = ("hidden", "classifier") if bias is None else ("hidden", "classifier", "bias")
    signatures = (signature(tensors[0]), signature(tensors[3]), signature(upstream))
    names = check_wrt(wanted, signatures, options, bias is not None)
    return pulled(cell, tensors, names, wanted, upstream)


def register() -> None:
    """Let the compiler take these functions for the public ones."""
    for function in (cross_entropy, loss_terms, value_and_grad, linear_cross_entropy, linear_value_and_grad):
        convert_object_map[getattr(unixent, function.__name__)] = function
