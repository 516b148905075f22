"""`unixent.dispatch` and its arguments, written in the subset of Python that MindSpore's compiler knows.

It knows no star in a tuple, no try, and plain tuples only: `LossTerms` too are one here.
"""

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
        infos = infos + (info_of(item),)
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
        inputs = inputs + (ABSENT if item is None else item,)
    if number is not None:
        inputs = inputs[:6] + (constant(number, "normalizer"),)
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
    value, grads = cell((upstream,) + cell_inputs(tensors, number))
    if isinstance(wrt, str):
        return value, grads[grad_index(wrt, names)]
    chosen: Any = ()
    for name in wrt:
        chosen = chosen + (grads[grad_index(name, names)],)
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
    return target, weight, mask, normalizer, parallel, return_terms, backend


def linear_arguments(hidden: Any, classifier: Any, bias: Any = None, chunk: Any = None) -> Any:
    return tensor(hidden, "hidden"), tensor(classifier, "classifier"), tensor(bias, "bias"), chunk


def options(**keywords: Any) -> Any:
    return loss_options(keywords)


def make_options(common: Any, scores: Any, **keywords: Any) -> Any:
    return loss_options(keywords)


def logits_loss(logits: Any, common: Any, options: Any) -> Any:
    return loss((tensor(logits, "logits"), None, None), common, options, None, False)


def linear_loss(linear: Any, common: Any, options: Any) -> Any:
    return loss(linear[:3], common, options, linear[3], True)


def logits_value_and_grad(logits: Any, common: Any, options: Any, grad_output: Any, wrt: Any) -> Any:
    scores = (tensor(logits, "logits"), None, None)
    return value_and_grads(scores, common, options, None, ("logits",), wrt, grad_output)


def linear_value_and_grad(linear: Any, common: Any, options: Any, grad_output: Any, wrt: Any) -> Any:
    names = ("hidden", "classifier") if linear[2] is None else ("hidden", "classifier", "bias")
    wanted = names if wrt is None else wrt
    return value_and_grads(linear[:3], common, options, linear[3], names, wanted, grad_output)
