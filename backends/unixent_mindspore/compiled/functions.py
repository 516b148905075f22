"""`unixent.dispatch` and its arguments, written in the subset of Python that MindSpore's compiler knows.

It knows no star in a tuple, no try, and plain tuples only: `LossTerms` too are one here.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from unixent.options import LossOptions
from unixent_mindspore.compiled.checks import checked_loss, checked_value_and_grad, grad_index
from unixent_mindspore.compiled.constants import constant, constant_target, loss_options, refused_entropy, teacher_of
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


def topk(ids: Any, *, probs: Any = None, log_probs: Any = None, tail: Any = "drop") -> Any:
    """A `unixent.TopK`, as a tuple that starts with its name."""
    teacher = teacher_of(tail, probs is not None, log_probs is not None)
    if log_probs is None:
        return "TopK", tensor(ids, "target.ids"), tensor(probs, "target.probs"), teacher
    return "TopK", tensor(ids, "target.ids"), tensor(log_probs, "target.log_probs"), teacher


def entropy_of(target: Any, **keywords: Any) -> Any:
    return refused_entropy()


def is_topk(target: Any) -> bool:
    return isinstance(target, tuple) and len(target) == 4 and isinstance(target[0], str)


def target_parts(target: Any) -> Any:
    """What stands for a target among the `INPUTS`, its ids, and what is static of a sparse one."""
    if target is None or isinstance(target, Tensor):
        return target, None, None
    parts = target if is_topk(target) else constant_target(target)
    return parts[2], parts[1], parts[3]


def with_tensors(scores: tuple[Any, ...], common: tuple[Any, ...]) -> Any:
    """The arrays of a call in the order of `INPUTS`, but for a normalizer that is a number; that number, and what is
    static of a sparse target."""
    target, ids, teacher = target_parts(common[0])
    number = None
    if common[3] is not None and not isinstance(common[3], Tensor):
        number = common[3]
    tensors = (
        scores[0],
        scores[1],
        scores[2],
        target,
        tensor(common[1], "weight"),
        tensor(common[2], "mask"),
        common[3] if number is None else None,
        ids,
        None,
    )
    return tensors, number, teacher


def cell_inputs(tensors: tuple[Any, ...], number: Any) -> Any:
    """What a cell takes."""
    inputs: Any = ()
    for item in tensors:
        inputs = inputs + (ABSENT if item is None else item,)
    if number is not None:
        inputs = inputs[:6] + (constant(number, "normalizer"),) + inputs[7:]
    return inputs


def loss(scores: tuple[Any, ...], common: tuple[Any, ...], options: LossOptions, chunk: Any, linear: bool) -> Any:
    tensors, number, teacher = with_tensors(scores, common)
    cell = checked_loss(infos_of(tensors), number, teacher, common[4:], options, chunk, linear)
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
    tensors, number, teacher = with_tensors(scores, common)
    upstream = tensor(grad_output, "grad_output")
    infos, upstream_info = infos_of(tensors), info_of(upstream)
    cell = checked_value_and_grad(infos, number, teacher, common[4:], options, chunk, names, wrt, upstream_info)
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
