"""The one way of a call, whatever called it: a function, a module, in either form of the loss.

1. `select_backend`: the backend named, or the one whose arrays are given.
2. `unixent.validation`: the arguments fit together and become a `Problem`.
3. the backend computes.

The options have been validated by then, once, on construction of their `LossOptions`.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import Any, cast

import numpy as np

from unixent.arguments import PYTHON_TYPES, CommonArguments, LinearArguments
from unixent.classes import pad_gradients
from unixent.errors import BackendError, UnixentError, option_error
from unixent.options import LossOptions, ParallelConfig
from unixent.protocol import (
    Array,
    Backend,
    FastPathBackend,
    LossTerms,
    ParallelBackend,
    PositionStats,
)
from unixent.registry import backend_of, find_backend, get_backend
from unixent.sharding import refuse
from unixent.statistics import StatsRequest, compute, stand_in_selection, stand_in_target, stats_request
from unixent.topk import TopK
from unixent.validation import CheckedCall, GradRequest, linear_call, logits_call

Wrt = str | tuple[str, ...]
_NO_OWNER = (np.ndarray, np.generic, *PYTHON_TYPES, TopK)  # taken beside any framework's arrays


def __getattr__(name: str) -> Any:
    """MindSpore's compiler asks every module that it meets for ``__self__``, which none has, before it looks inside.

    Only then can it be told what to compile in place of these functions: `unixent` may be imported before MindSpore.
    """
    if name == "__self__" and "mindspore" in sys.modules:
        get_backend("mindspore")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_DEFAULT_OPTIONS = LossOptions()


def make_options(common: CommonArguments, scores: tuple[Any, ...], **keywords: Any) -> LossOptions:
    """The validated options of a call."""
    if not keywords:
        return _DEFAULT_OPTIONS
    try:
        return LossOptions(**keywords)
    except Exception:
        _refuse_together(common, scores)
        raise


def select_backend(common: CommonArguments, names: tuple[str, ...], *scores: Any) -> Backend:
    """The backend of a call: the one named, or that of the one framework other than NumPy among the array arguments.

    NumPy arrays, Python numbers and lists are taken beside any framework's arrays; alone, they are NumPy's.
    """
    try:
        name = common.backend
        if name is not None:
            if not isinstance(name, str):
                raise option_error("backend", "None or a name", name)
            return get_backend(name)
        selected: tuple[str, Any, Backend] | None = None
        arguments = (*names, "target", "weight", "mask", "normalizer")
        # No slice of `common`: the compiler of torch 2.6 knows none of a NamedTuple.
        arrays = (*scores, common.target, common.weight, common.mask, common.normalizer)
        if isinstance(common.target, TopK):
            of_target = common.target.arguments()
            arguments, arrays = (*arguments, *of_target), (*arrays, *of_target.values())
        for argument, array in zip(arguments, arrays, strict=True):
            if array is None or isinstance(array, _NO_OWNER):
                continue
            if selected is not None and type(array) is type(selected[1]):
                continue
            if selected is None:
                # What belongs to no backend is refused here as logits, and by the checks as anything else.
                backend = backend_of(array, argument) if argument == names[0] else find_backend(type(array))
                selected = None if backend is None else (argument, array, backend)
            elif find_backend(type(array)) not in (None, selected[2]):
                raise BackendError(
                    f"{argument}: expected an array of {selected[2].name}, as {selected[0]} is, or a NumPy array; "
                    f"got {type(array).__module__}.{type(array).__qualname__}"
                )
        return get_backend("numpy") if selected is None else selected[2]
    except Exception:
        _refuse_together(common, scores)
        raise


def _refuse_together(common: CommonArguments, scores: tuple[Any, ...]) -> None:
    """Before a call is refused that all processes of a split loss make: the others must not wait for this one.

    The backend may not be known then; any array, or the type of a group, tells whose processes they are.
    """
    if common.parallel is None:
        return
    with contextlib.suppress(UnixentError):
        config = ParallelConfig.of(common.parallel)
        owners = [find_backend(type(each)) for each in (*scores, *common[:4], config.model_group, config.token_group)]
        known = [backend for backend in owners if backend is not None and backend.capabilities.parallel]
        backend = cast(ParallelBackend, known[0] if known else get_backend("numpy"))
        if not backend.is_single_program():
            refuse(backend, config)


def logits_loss(logits: Any, common: CommonArguments, options: LossOptions) -> Any:
    """The loss of logits, or its `LossTerms` where ``common`` asks for them."""
    backend = select_backend(common, ("logits",), logits)
    target, weight, mask, normalizer, parallel, return_terms, _ = common
    alone = weight is None and mask is None and normalizer is None and parallel is None and not return_terms
    if alone and options.num_classes is None and backend.capabilities.fast_path:
        loss = cast(FastPathBackend, backend).try_fast_cross_entropy(logits, target, options)
        if loss is not None:
            return loss
    return backend.cross_entropy(logits_call(backend, logits, common, options).problem)


def linear_loss(linear: LinearArguments, common: CommonArguments, options: LossOptions) -> Any:
    """The loss of the fused linear form."""
    backend = select_backend(common, ("hidden", "classifier", "bias"), linear.hidden, linear.classifier, linear.bias)
    return backend.linear_cross_entropy(linear_call(backend, linear, common, options).problem)


def logits_value_and_grad(
    logits: Any, common: CommonArguments, options: LossOptions, grad_output: Any, wrt: Wrt
) -> tuple[Array, Any]:
    """The loss of logits, and the gradient for ``wrt`` or the tuple of them."""
    backend = select_backend(common, ("logits",), logits)
    grads = GradRequest(wrt, ("logits", "target"), grad_output)
    call = logits_call(backend, logits, common, options, grads)
    loss, gradients = backend.value_and_grad(call.problem, call.grad_output, call.wrt)
    if options.num_classes is not None:
        gradients = pad_gradients(backend, call.problem, call.wrt, gradients, call.scores.num_local_classes)
    return loss, gradients[0] if isinstance(wrt, str) else gradients


def linear_value_and_grad(
    linear: LinearArguments, common: CommonArguments, options: LossOptions, grad_output: Any, wrt: Wrt | None
) -> tuple[Array, Any]:
    """The loss of the fused linear form, and the gradient for ``wrt`` or the tuple of them."""
    backend = select_backend(common, ("hidden", "classifier", "bias"), linear.hidden, linear.classifier, linear.bias)
    differentiable = ("hidden", "classifier") if linear.bias is None else ("hidden", "classifier", "bias")
    grads = GradRequest(differentiable if wrt is None else wrt, (*differentiable, "target"), grad_output)
    call = linear_call(backend, linear, common, options, grads)
    loss, gradients = backend.linear_value_and_grad(call.problem, call.grad_output, call.wrt)
    if options.num_classes is not None:
        gradients = pad_gradients(backend, call.problem, call.wrt, gradients, call.scores.num_local_classes)
    return loss, gradients[0] if isinstance(wrt, str) else gradients


def logits_stats(
    logits: Any,
    common: CommonArguments,
    options: LossOptions,
    request: StatsRequest,
    grads: tuple[Any, Wrt] | None = None,
) -> tuple[PositionStats, Any]:
    """The statistics of logits' positions and, where ``grads`` has the upstream gradient and wrt, the gradient."""
    backend = select_backend(common, ("logits",), logits)
    outputs = _check_stats(backend, request, common, (logits,))
    further = stats_request(backend, request, outputs, options, grads, ("logits",))
    common, stand_in = _with_target(common, options, logits)
    call = logits_call(backend, logits, common, stand_in, None, further)
    return _stats(backend, call, grads, is_padding_alone=stand_in is not options)


def linear_stats(
    linear: LinearArguments,
    common: CommonArguments,
    options: LossOptions,
    request: StatsRequest,
    grads: tuple[Any, Wrt | None] | None = None,
) -> tuple[PositionStats, Any]:
    """The same of the fused linear form."""
    backend = select_backend(common, ("hidden", "classifier", "bias"), linear.hidden, linear.classifier, linear.bias)
    outputs = _check_stats(backend, request, common, (linear.hidden, linear.classifier, linear.bias))
    differentiable = ("hidden", "classifier") if linear.bias is None else ("hidden", "classifier", "bias")
    if grads is not None and grads[1] is None:
        grads = (grads[0], differentiable)
    further = stats_request(backend, request, outputs, options, grads, differentiable)
    common, stand_in = _with_target(common, options, linear.hidden, linear.classifier)
    call = linear_call(backend, linear, common, stand_in, None, further)
    return _stats(backend, call, grads, is_padding_alone=stand_in is not options)


def _check_stats(
    backend: Backend, request: StatsRequest, common: CommonArguments, scores: tuple[Any, ...]
) -> tuple[str, ...]:
    """The outputs asked for."""
    if not backend.capabilities.position_stats:
        raise BackendError(f"position_stats: the {backend.name} backend does not provide statistics of positions")
    try:
        return request.check(common.target is not None)
    except Exception:
        _refuse_together(common, scores)
        raise


def _with_target(
    common: CommonArguments, options: LossOptions, scores: Any, classifier: Any = None
) -> tuple[CommonArguments, LossOptions]:
    """The call with a target, where it has none."""
    if common.target is not None:
        return common, options
    classifier_shape = None if classifier is None else _shape_of(classifier)
    target, options = stand_in_target(_shape_of(scores), classifier_shape, options, common.parallel is not None)
    return common._replace(target=target), options


def _shape_of(array: Any) -> tuple[int, ...]:
    return tuple(array.shape) if hasattr(array, "shape") else np.shape(array)


def _stats(
    backend: Backend, call: CheckedCall, grads: tuple[Any, Any] | None, *, is_padding_alone: bool
) -> tuple[PositionStats, Any]:
    """What a call asks for; with ``is_padding_alone``, the only class is ignore_index, and there is no target."""
    problem = call.problem
    if is_padding_alone and problem.selected is not None:
        problem = replace(problem, selected=stand_in_selection(problem.selected))
    stats, gradients = compute(backend, problem, call.grad_output, call.wrt)
    if problem.call.options.num_classes is not None:
        gradients = pad_gradients(backend, problem.call, call.wrt, gradients, call.scores.num_local_classes)
    return stats, gradients[0] if grads is not None and isinstance(grads[1], str) else gradients


__all__ = [
    "CommonArguments",
    "LinearArguments",
    "LossTerms",
    "PositionStats",
    "StatsRequest",
    "linear_loss",
    "linear_stats",
    "linear_value_and_grad",
    "logits_loss",
    "logits_stats",
    "logits_value_and_grad",
    "select_backend",
]
