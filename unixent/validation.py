"""From a call's arguments to a `Problem`: what must fit together, checked once for all backends.

Only what ``Backend.describe`` says of the arrays is looked at, so that the same code runs eagerly, under a trace and
on an accelerator. Values are read in one place, `_check_target_range`, and only where reading does not stall.
"""

from __future__ import annotations

import math
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
    not_constant,
)
from unixent.classes import take_existing
from unixent.errors import (
    BackendError,
    DTypeError,
    EmptyMeanError,
    OptionError,
    ShapeError,
    TargetRangeError,
    option_error,
)
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions, ParallelConfig
from unixent.protocol import ArrayInfo, Backend, LinearProblem, LossProblem, ParallelBackend, Problem, Sharding
from unixent.scores import Scores, linear_scores, logits_scores


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


def logits_call(
    backend: Backend, logits: Any, common: CommonArguments, options: LossOptions, grads: GradRequest | None = None
) -> CheckedCall:
    """The checked call of the logits form, with a `Problem`."""
    check = partial(logits_scores, backend, options)
    return _checked_call(Problem, backend, {"logits": logits}, check, common, options, grads)


def linear_call(
    backend: Backend,
    linear: LinearArguments,
    common: CommonArguments,
    options: LossOptions,
    grads: GradRequest | None = None,
) -> CheckedCall:
    """The checked call of the fused linear form, with a `LinearProblem`."""
    if not backend.capabilities.linear:
        raise BackendError(f"linear_cross_entropy: the {backend.name} backend does not provide the fused linear form")
    hidden, classifier, bias, chunk = linear
    check = partial(linear_scores, backend, chunk)
    given = {"hidden": hidden, "classifier": classifier, "bias": bias}
    return _checked_call(LinearProblem, backend, given, check, common, options, grads)


def _checked_call(
    form: type[LossProblem],
    backend: Backend,
    given: dict[str, Any],
    check: Callable[[dict[str, Argument]], Scores],
    common: CommonArguments,
    options: LossOptions,
    grads: GradRequest | None,
) -> CheckedCall:
    """The call of one process, or of this process among those that a loss is split over."""
    config = None if common.parallel is None else _parallel_config(backend, common.parallel)
    if config is None:
        scores, arguments = _read(backend, given, check, common, options)
        if grads is None:
            problem = _problem(form, backend, scores, arguments, common, options, None)
            return CheckedCall(problem, scores, (), None)
        return _build(form, backend, scores, arguments, common, options, None, grads)
    peers = cast(ParallelBackend, backend)

    def read() -> tuple[Scores, dict[str, Argument]]:
        if grads is not None:
            check_wrt(grads.wrt, grads.differentiable)
        return _read(backend, given, check, common, options)

    def build(split: Sharding) -> CheckedCall:
        return _build(form, backend, *read(), common, options, split, grads)

    if peers.is_global(next(iter(given.values())), config):
        classes = read()[0].num_local_classes
        whole = Sharding(config.model_group, config.token_group, (classes,), config.mesh, config.context_parallel)
        return build(whole)
    split = sharding.exchange_signatures(peers, config, lambda: _signature(peers, *read(), common, options))
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
        normalizer = _checked_normalizer(normalizer, options)
    array = None if isinstance(normalizer, float) else normalizer
    arguments = describe_arguments(
        backend, {**given, "target": target, "weight": weight, "mask": mask, "normalizer": array}
    )
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
    problem = _problem(form, backend, scores, arguments, common, options, split)
    if grads is None:
        return CheckedCall(problem, scores, (), None)
    names = check_wrt(grads.wrt, grads.differentiable)
    if "target" in names and problem.target_kind == "index":
        expected = _one_of([name for name in grads.differentiable if name != "target"])
        raise OptionError(f"wrt: expected {expected}, since class indices have no gradient; got 'target'")
    return CheckedCall(problem, scores, names, _checked_grad_output(backend, grads.grad_output, scores, options))


def _problem(
    form: type[LossProblem],
    backend: Backend,
    scores: Scores,
    arguments: dict[str, Argument],
    common: CommonArguments,
    options: LossOptions,
    split: Sharding | None,
) -> LossProblem:
    """The problem, all of its fields checked."""
    first, positions, shape, num_held, acc_dtype, form_fields = scores
    if split is not None:
        num_held = split.num_classes
    elif num_held < 1:
        name = "classifier" if first.name == "hidden" else first.name
        raise ShapeError(f"{name}: expected at least 1 class; got shape {shape}")
    classes = num_held
    if options.num_classes is not None:
        classes = options.num_classes
        if classes > num_held:
            raise option_error("num_classes", f"None or an int in [1, {num_held}]", classes)
    target, weight, mask = arguments["target"], arguments.get("weight"), arguments.get("mask")
    target_kind = _check_target(backend, target, positions, shape)
    if target_kind == "probability" and options.ignore_index != DEFAULT_IGNORE_INDEX:
        raise OptionError(
            f"ignore_index: expected the default {DEFAULT_IGNORE_INDEX} with probability targets, which have no index "
            f"to ignore (use mask); got {options.ignore_index}"
        )
    if weight is not None:
        check_shape_dtype(weight, (classes,), FLOATS)
    if mask is not None:
        if mask.info.shape != positions:
            mask = _expanded_mask(backend, mask, positions)
        check_shape_dtype(mask, positions, REALS)
    normalizer = common.normalizer
    if "normalizer" in arguments:
        normalizer = check_shape_dtype(arguments["normalizer"], (), NUMBERS)
        if _reads_values(arguments["normalizer"].info, options):
            _check_normalizer_value(float(normalizer), normalizer)
    elif normalizer is not None:
        normalizer = float(normalizer)
    for constant in ("weight", "mask", "normalizer"):
        if constant in arguments and arguments[constant].info.requires_grad:
            raise not_constant(constant)
    reads_target = target_kind == "index" and _reads_values(target.info, options)
    # Of classes that are split over processes, each narrows its own share: only the backend knows which that is.
    has_padding = classes != num_held and (split is None or split.model_group is None)
    problem = form(
        **form_fields,
        target=target.array,
        weight=None if weight is None else weight.array,
        mask=None if mask is None else mask.array,
        normalizer=normalizer,
        options=options,
        num_classes=classes,
        target_kind=target_kind,
        acc_dtype=acc_dtype,
        # Terms are partial sums: in half precision a count above 65504 would already be infinite.
        result_dtype=options.dtype or (acc_dtype if common.return_terms else first.info.dtype),
        return_terms=common.return_terms,
        all_targets_valid=reads_target and _check_target_range(backend, target, classes, options),
        check_empty=(
            options.on_empty == "raise" and options.reduction == "mean" and _reads_values(first.info, options)
        ),
        sharding=split.existing(classes) if has_padding and split is not None else split,
    )
    return take_existing(backend, problem, classes) if has_padding else problem


def _one_of(names: list[str]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def _check_target(backend: Backend, target: Argument, positions: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """The kind of the target: "index" or "probability"."""
    dtype = target.info.dtype
    if dtype in INTEGERS:
        target_kind, expected = "index", positions
    elif dtype in FLOATS:
        target_kind, expected = "probability", shape
    else:
        raise DTypeError(f"target: expected class indices (integer) or probabilities (floating); got {dtype}")
    if target.info.shape != expected:
        raise ShapeError(
            f"target: expected class indices (integer) of shape {positions} or probabilities (floating) of shape "
            f"{shape}; got {dtype} of shape {target.info.shape}{_axis_hint(target.info.shape, target_kind, shape)}"
        )
    if target_kind not in backend.capabilities.targets:
        raise BackendError(f"target: the {backend.name} backend takes no {target_kind} targets")
    return target_kind


def _axis_hint(target: tuple[int, ...], target_kind: str, logits: tuple[int, ...]) -> str:
    """What to do where class indices fit another class axis of the logits than the one given."""
    axes = [axis for axis in range(len(logits)) if target == logits[:axis] + logits[axis + 1 :]]
    if target_kind != "index" or not axes:
        return ""
    axis = 1 if 1 in axes else axes[0]
    if axis == 1:
        return " (for logits of shape (N, C, ...) pass axis=1)"
    return f" (the shape fits logits with their classes along axis {axis}: pass axis={axis})"


def _check_target_range(backend: Backend, target: Argument, classes: int, options: LossOptions) -> bool:
    """Whether every index is a class that is not ignored; one that is neither a class nor ignored raises."""
    ignored = options.ignore_index
    # 0 is always a class: mostly nothing is out of range, and there is no more to ask.
    if not 0 <= ignored < classes and backend.first_invalid_target(target.array, classes, 0) is None:
        return True
    invalid = backend.first_invalid_target(target.array, classes, ignored)
    if invalid is not None:
        flat, value = invalid
        position = tuple(int(i) for i in np.unravel_index(flat, target.info.shape))
        raise TargetRangeError(
            f"target: expected class indices in [0, {classes}) or ignore_index={ignored}; "
            f"got {value} at position {position}"
        )
    return False


def _reads_values(info: ArrayInfo, options: LossOptions) -> bool:
    return options.validate != "off" and info.concrete and (info.readable or options.validate == "full")


def _checked_normalizer(value: Any, options: LossOptions) -> Any:
    """A normalizer as a float, or as the array that it is. It goes with a mean only."""
    if options.reduction != "mean":
        raise option_error("normalizer", f"None, since reduction is {options.reduction!r}", value)
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    if isinstance(value, (bool, np.bool_, np.timedelta64, str, list, tuple)):
        raise option_error("normalizer", _NORMALIZER, value)
    if not isinstance(value, (int, float, np.integer, np.floating)):
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    _check_normalizer_value(number, value)
    return number


_NORMALIZER = "a finite float >= 0 or a 0-d array"


def _check_normalizer_value(number: float, given: Any) -> None:
    if not (math.isfinite(number) and number >= 0):
        raise option_error("normalizer", _NORMALIZER, given)


def _expanded_mask(backend: Backend, mask: Argument, positions: tuple[int, ...]) -> Argument:
    """A mask of the shape of the positions, also from one with size 1 along the axes where it is the same for all."""
    name, array, info = mask
    pairs = zip(info.shape, positions, strict=False)
    if len(info.shape) == len(positions) and all(size in (1, full) for size, full in pairs):
        return Argument(name, backend.broadcast_to(array, positions), info._replace(shape=positions))
    return mask


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
) -> sharding.CallSignature:
    """What the processes of a split loss compare of their calls."""
    info, fields = scores.first.info, scores.form_fields
    given = [name for name in ("weight", "mask", "normalizer") if getattr(common, name) is not None]
    # Of a fused linear call also how wide its hidden states are and how they are cut into chunks.
    form = (info.shape[-1], fields["chunk"]) if "hidden" in fields else ()
    probabilities = arguments["target"].info.dtype in FLOATS

    def call() -> bytes:
        text = f"{options} {given} {common.return_terms} {info.dtype} {scores.acc_dtype} {form} {probabilities}"
        return text.encode()

    def positions() -> bytes:
        parts = [str(scores.positions).encode()]
        # In one dtype each: the processes may have theirs in any.
        for name, dtypes, dtype in (("target", INTEGERS, np.int64), ("mask", REALS, np.float32)):
            argument = arguments.get(name)
            if argument and argument.info.dtype in dtypes and _reads_values(argument.info, options):
                with np.errstate(all="ignore"):
                    parts.append(np.asarray(backend.to_numpy(argument.array)).astype(dtype).tobytes())
        return b"".join(parts)

    return sharding.CallSignature(call, positions, scores.num_local_classes)


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
