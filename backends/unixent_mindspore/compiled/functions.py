"""The public functions, written in the subset of Python that MindSpore's compiler knows: no star in a tuple, no try."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from unixent.options import LossOptions
from unixent_mindspore.compiled.checks import (
    checked_loss,
    checked_value_and_grad,
    constant,
    grad_index,
    loss_options,
)
from unixent_mindspore.kernel import ABSENT


def tensor(value: Any, name: str) -> Any:
    if value is None or isinstance(value, Tensor):
        return value
    return constant(value, name)


def info_of(value: Tensor | None) -> Any:
    return None if value is None else (value.shape, value.dtype)


def infos_of(tensors: tuple[Any, ...]) -> Any:
    infos: Any = ()
    for item in tensors:
        infos = infos + (info_of(item),)  # noqa: RUF005 - the compiler knows no star in a tuple
    return infos


def with_tensors(scores: tuple[Any, ...], common: tuple[Any, ...]) -> Any:
    """The arrays of a call in the order of `INPUTS`, but for a normalizer that is a number; and that number."""
    number = None
    if common[3] is not None and not isinstance(common[3], Tensor):
        number = common[3]
    tensors = (
        scores[0],
        scores[1],
        scores[2],
        tensor(common[0], "target"),
        tensor(common[1], "weight"),
        tensor(common[2], "mask"),
        common[3] if number is None else None,
    )
    return tensors, number


def cell_inputs(tensors: tuple[Any, ...], number: Any) -> Any:
    """What a cell takes."""
    inputs: Any = ()
    for item in tensors:
        inputs = inputs + (ABSENT if item is None else item,)  # noqa: RUF005
    if number is not None:
        inputs = inputs[:6] + (constant(number, "normalizer"),)  # noqa: RUF005
    return inputs


def loss(scores: tuple[Any, ...], common: tuple[Any, ...], options: LossOptions, chunk: Any, linear: bool) -> Any:
    tensors, number = with_tensors(scores, common)
    cell = checked_loss(infos_of(tensors), number, common[4:], options, chunk, linear)
    return cell(cell_inputs(tensors, number))


def value_and_grads(
    scores: tuple[Any, ...],
    common: tuple[Any, ...],
    options: LossOptions,
    chunk: Any,
    names: tuple[str, ...],
    wrt: Any,
    grad_output: Any,
) -> Any:
    tensors, number = with_tensors(scores, common)
    upstream = tensor(grad_output, "grad_output")
    infos, upstream_info = infos_of(tensors), info_of(upstream)
    cell = checked_value_and_grad(infos, number, common[4:], options, chunk, names, wrt, upstream_info)
    value, grads = cell((upstream,) + cell_inputs(tensors, number))  # noqa: RUF005
    if isinstance(wrt, str):
        return value, grads[grad_index(wrt, names)]
    chosen: Any = ()
    for name in wrt:
        chosen = chosen + (grads[grad_index(name, names)],)  # noqa: RUF005
    return value, chosen


def common_arguments(
    target: Any,
    weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    parallel: Any = None,
    return_terms: Any = False,
    backend: Any = None,
) -> Any:
    """`unixent.arguments.CommonArguments` in compiled code, which knows plain tuples only."""
    return target, weight, mask, normalizer, parallel, return_terms, backend


def logits_loss(logits: Any, common: Any, options: Any) -> Any:
    """`unixent.dispatch.logits_loss` in compiled code."""
    return loss((tensor(logits, "logits"), None, None), common, options, None, False)


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    parallel: Any = None,
    backend: Any = None,
    **options: Any,
) -> Any:
    """`unixent.cross_entropy` in compiled code."""
    common = (target, weight, mask, normalizer, parallel, False, backend)
    return logits_loss(logits, common, loss_options("cross_entropy", options))


def loss_terms(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    parallel: Any = None,
    backend: Any = None,
    **options: Any,
) -> Any:
    """`unixent.loss_terms` in compiled code, where the terms are a plain tuple."""
    common = (target, weight, mask, None, parallel, True, backend)
    return logits_loss(logits, common, loss_options("loss_terms", options))


def value_and_grad(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    parallel: Any = None,
    backend: Any = None,
    grad_output: Any = None,
    wrt: Any = "logits",
    **options: Any,
) -> Any:
    """`unixent.value_and_grad` in compiled code."""
    common = (target, weight, mask, normalizer, parallel, False, backend)
    checked, scores = loss_options("value_and_grad", options), (tensor(logits, "logits"), None, None)
    return value_and_grads(scores, common, checked, None, ("logits",), wrt, grad_output)


def linear_cross_entropy(
    hidden: Any,
    classifier: Any,
    target: Any,
    *,
    bias: Any = None,
    weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    parallel: Any = None,
    chunk: Any = None,
    backend: Any = None,
    **options: Any,
) -> Any:
    """`unixent.linear_cross_entropy` in compiled code."""
    common = (target, weight, mask, normalizer, parallel, False, backend)
    scores = (tensor(hidden, "hidden"), tensor(classifier, "classifier"), tensor(bias, "bias"))
    return loss(scores, common, loss_options("linear_cross_entropy", options), chunk, True)


def linear_value_and_grad(
    hidden: Any,
    classifier: Any,
    target: Any,
    *,
    bias: Any = None,
    weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    parallel: Any = None,
    chunk: Any = None,
    backend: Any = None,
    grad_output: Any = None,
    wrt: Any = None,
    **options: Any,
) -> Any:
    """`unixent.linear_value_and_grad` in compiled code."""
    common = (target, weight, mask, normalizer, parallel, False, backend)
    scores = (tensor(hidden, "hidden"), tensor(classifier, "classifier"), tensor(bias, "bias"))
    names = ("hidden", "classifier") if bias is None else ("hidden", "classifier", "bias")
    checked = loss_options("linear_value_and_grad", options)
    return value_and_grads(scores, common, checked, chunk, names, names if wrt is None else wrt, grad_output)
