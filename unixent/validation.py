"""A call, checked once for all backends: of one process, or of one among those that a loss is split over.

`unixent.scores` looks at the scores, `unixent.problem` at what goes with them. Only what ``Backend.describe`` says of
the arrays is looked at, so that the same code runs eagerly, under a trace and on an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from unixent import sharding
from unixent.arguments import (
    FLOATS,
    INTEGERS,
    NUMBERS,
    REALS,
    Argument,
    CommonArguments,
    LinearArguments,
    check_shape_dtype,
    describe_arguments,
)
from unixent.errors import BackendError, EmptyMeanError, OptionError, option_error
from unixent.options import LossOptions, ParallelConfig
from unixent.problem import checked_normalizer, make_problem, reads_values
from unixent.protocol import Backend, LinearProblem, LossProblem, ParallelBackend, Problem, Sharding
from unixent.scores import Scores, linear_scores, logits_scores
from unixent.topk import TopK


class GradRequest(NamedTuple):
    """Which gradients a call asks for, as it was given: ``wrt`` among the names that have one."""

    wrt: Any
    differentiable: tuple[str, ...]
    grad_output: Any


class CheckedCall(NamedTuple):
    """A call whose arguments fit together: its problem, and the gradients that it asks for."""

    problem: Any
    scores: Scores
    wrt: tuple[str, ...]
    grad_output: Any


class FurtherRequest(NamedTuple):
    """What a call asks besides the loss of its positions.

    Attributes:
        text: what has to be the same on all processes that it is split over.
        positions: what has to be the same within a model group.
        build: the checked call, made of that of the loss.
    """

    text: Callable[[], str]
    positions: Callable[[Scores], bytes]
    build: Callable[[CheckedCall], CheckedCall]


def logits_call(
    backend: Backend,
    logits: Any,
    common: CommonArguments,
    options: LossOptions,
    grads: GradRequest | None = None,
    further: FurtherRequest | None = None,
) -> CheckedCall:
    """The checked call of the logits form, with a `Problem`."""
    check = partial(logits_scores, backend, options)
    return _checked_call(Problem, backend, {"logits": logits}, check, common, options, grads, further)


def linear_call(
    backend: Backend,
    linear: LinearArguments,
    common: CommonArguments,
    options: LossOptions,
    grads: GradRequest | None = None,
    further: FurtherRequest | None = None,
) -> CheckedCall:
    """The checked call of the fused linear form, with a `LinearProblem`."""
    if not backend.capabilities.linear:
        raise BackendError(f"linear_cross_entropy: the {backend.name} backend does not provide the fused linear form")
    hidden, classifier, bias, chunk = linear
    check = partial(linear_scores, backend, chunk)
    given = {"hidden": hidden, "classifier": classifier, "bias": bias}
    return _checked_call(LinearProblem, backend, given, check, common, options, grads, further)


def _checked_call(
    form: type[LossProblem],
    backend: Backend,
    given: dict[str, Any],
    check: Callable[[dict[str, Argument]], Scores],
    common: CommonArguments,
    options: LossOptions,
    grads: GradRequest | None,
    further: FurtherRequest | None,
) -> CheckedCall:
    """The call of one process, or of this process among those that a loss is split over."""
    config = None if common.parallel is None else _parallel_config(backend, common.parallel)
    if config is None:
        scores, arguments = _read(backend, given, check, common, options)
        if grads is None:
            problem = make_problem(form, backend, scores, arguments, common, options, None)
            call = CheckedCall(problem, scores, (), None)
            return call if further is None else further.build(call)
        return _build(form, backend, scores, arguments, common, options, None, grads)
    peers = cast(ParallelBackend, backend)

    def read() -> tuple[Scores, dict[str, Argument]]:
        if grads is not None:
            check_wrt(grads.wrt, grads.differentiable)
        return _read(backend, given, check, common, options)

    def build(split: Sharding) -> CheckedCall:
        call = _build(form, backend, *read(), common, options, split, grads)
        return call if further is None else further.build(call)

    if peers.is_global(next(iter(given.values())), config):
        classes = read()[0].num_local_classes
        whole = Sharding(config.model_group, config.token_group, (classes,), config.mesh, config.context_parallel)
        return build(whole)
    split = sharding.exchange_signatures(peers, config, lambda: _signature(peers, *read(), common, options, further))
    return sharding.commit(peers, config, lambda: build(split))


def _read(
    backend: Backend,
    given: dict[str, Any],
    check: Callable[[dict[str, Argument]], Scores],
    common: CommonArguments,
    options: LossOptions,
) -> tuple[Scores, dict[str, Argument]]:
    """The arguments as the backend's arrays, and the scores, checked by themselves."""
    target, weight, mask, normalizer, *_ = common
    if normalizer is not None:
        normalizer = checked_normalizer(normalizer, options)
    array = None if isinstance(normalizer, float) else normalizer
    targets = target.arguments() if isinstance(target, TopK) else {"target": target}
    arguments = describe_arguments(backend, {**given, **targets, "weight": weight, "mask": mask, "normalizer": array})
    return check(arguments), arguments


def _build(
    form: type[LossProblem],
    backend: Backend,
    scores: Scores,
    arguments: dict[str, Argument],
    common: CommonArguments,
    options: LossOptions,
    split: Sharding | None,
    grads: GradRequest | None,
) -> CheckedCall:
    problem = make_problem(form, backend, scores, arguments, common, options, split)
    if grads is None:
        return CheckedCall(problem, scores, (), None)
    names = check_wrt(grads.wrt, grads.differentiable)
    if "target" in names and problem.target_kind == "index":
        expected = _one_of([name for name in grads.differentiable if name != "target"])
        raise OptionError(f"wrt: expected {expected}, since class indices have no gradient; got 'target'")
    return CheckedCall(problem, scores, names, _checked_grad_output(backend, grads.grad_output, scores, options))


def _one_of(names: list[str]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def _parallel_config(backend: Backend, value: Any) -> ParallelConfig | None:
    config = ParallelConfig.of(value)
    parallel = backend.capabilities.parallel
    # A group of one process is still its framework's: under jax, what it was summed over must be seen to be.
    grouped = parallel and (config.model_group is not None or config.token_group is not None)
    if config.degree == 1 and not grouped:
        return None
    if not parallel:
        raise BackendError(
            f"parallel: the {backend.name} backend does not split a loss over processes; expected degrees of 1, got "
            f"data_parallel={config.data_parallel}, model_parallel={config.model_parallel}, "
            f"context_parallel={config.context_parallel}"
        )
    return config


def _signature(
    backend: ParallelBackend,
    scores: Scores,
    arguments: dict[str, Argument],
    common: CommonArguments,
    options: LossOptions,
    further: FurtherRequest | None,
) -> sharding.CallSignature:
    """What the processes of a split loss compare of their calls."""
    info, fields = scores.first.info, scores.form_fields
    given = [name for name in ("weight", "mask", "normalizer") if getattr(common, name) is not None]
    # Of a fused linear call also how wide its hidden states are and how they are cut into chunks.
    form = (info.shape[-1], fields["chunk"]) if "hidden" in fields else ()
    topk = common.target if isinstance(common.target, TopK) else None
    target_kind = arguments["target"].info.dtype in FLOATS if topk is None else topk.teacher

    def call() -> bytes:
        more = "" if further is None else further.text()
        text = f"{options} {given} {common.return_terms} {info.dtype} {scores.acc_dtype} {form} {target_kind} {more}"
        return text.encode()

    def positions() -> bytes:
        parts = [str(scores.positions).encode()]
        # In one dtype each: the processes may have theirs in any.
        compared: list[tuple[str, Any, Any]] = [("target", INTEGERS, np.int64), ("mask", REALS, np.float32)]
        if topk is not None:
            ids, values = topk.arguments()
            parts += [str(arguments[ids].info.shape).encode()]
            compared += [(ids, INTEGERS, np.int64), (values, FLOATS, np.float32)]
        for name, dtypes, dtype in compared:
            argument = arguments.get(name)
            if argument and argument.info.dtype in dtypes and reads_values(argument.info, options):
                parts.append(values_as(backend, argument, dtype))
        return b"".join(parts if further is None else [*parts, further.positions(scores)])

    return sharding.CallSignature(call, positions, scores.num_local_classes)


def values_as(backend: ParallelBackend, argument: Argument, dtype: Any) -> bytes:
    """The values of an argument in one dtype, to be compared."""
    with np.errstate(all="ignore"):
        return np.asarray(backend.to_numpy(argument.array)).astype(dtype).tobytes()


def _checked_grad_output(backend: Backend, value: Any, scores: Scores, options: LossOptions) -> Any:
    """The upstream gradient of a value-and-gradient call: of the shape of the loss."""
    if value is None:
        return None
    shape = scores.positions if options.reduction == "none" else ()
    argument = describe_arguments(backend, {"grad_output": value}, scores.first)["grad_output"]
    return check_shape_dtype(argument, shape, NUMBERS)


def check_wrt(wrt: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """What to differentiate with respect to, as a tuple of names."""
    names = (wrt,) if isinstance(wrt, str) else wrt
    if not isinstance(names, (tuple, list)) or not names or any(name not in allowed for name in names):
        raise option_error("wrt", f"one or several of {', '.join(map(repr, allowed))}", wrt)
    return tuple(names)


def empty_mean() -> EmptyMeanError:
    """The error for a mean whose denominator is 0 under ``on_empty="raise"``; for backends."""
    return EmptyMeanError(
        "on_empty: expected a mean with a denominator other than 0; got 0, since every position is masked, ignored "
        "or of weight 0"
    )
