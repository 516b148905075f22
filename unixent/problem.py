"""The arguments of a call as a `Problem`: what must fit the scores, and each other.

Values are read in one place, `_check_target_range`, and only where reading does not stall.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from unixent.arguments import (
    FLOATS,
    INTEGERS,
    NUMBERS,
    REALS,
    Argument,
    CommonArguments,
    check_shape_dtype,
    not_constant,
)
from unixent.classes import take_existing
from unixent.errors import BackendError, DTypeError, OptionError, ShapeError, TargetRangeError, option_error
from unixent.logit_transform import LogitTransform
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions
from unixent.protocol import ArrayInfo, Backend, LossProblem, Sharding
from unixent.scores import Scores
from unixent.topk import TopK

_IDENTITY = LogitTransform()


def make_problem(
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
    classes = num_held if options.num_classes is None else _checked_num_classes(options.num_classes, num_held)
    transform = _IDENTITY  # mostly, and not worth two calls
    if options.softcap is not None or not options.scale == options.temperature == 1:
        transform = options.transform(acc_dtype)
    weight, mask = arguments.get("weight"), arguments.get("mask")
    topk = None
    if isinstance(common.target, TopK):
        topk = check_topk(backend, arguments, common.target, positions)
        _check_sparse(backend, topk.ids, classes, options, split)
        target, target_kind = topk.values, "sparse"
    else:
        target = arguments["target"]
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
    for constant in ("weight", "mask", "normalizer"):
        if constant in arguments and arguments[constant].info.requires_grad:
            raise not_constant(constant)
    normalizer = common.normalizer
    if normalizer is not None:
        normalizer = _normalizer_of_problem(normalizer, arguments.get("normalizer"), options)
    reads_target = target_kind == "index" and reads_values(target.info, options)
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
        ids=None if topk is None else topk.ids.array,
        teacher=None if topk is None else common.target.teacher,
        acc_dtype=acc_dtype,
        transform=transform,
        # Terms are partial sums: in half precision a count above 65504 would already be infinite.
        result_dtype=options.dtype or (acc_dtype if common.return_terms else first.info.dtype),
        return_terms=common.return_terms,
        all_targets_valid=reads_target and _check_target_range(backend, target, classes, options),
        check_empty=(options.on_empty == "raise" and options.reduction == "mean" and reads_values(first.info, options)),
        sharding=split.existing(classes) if has_padding and split is not None else split,
    )
    return take_existing(backend, problem, classes) if has_padding else problem


def _checked_num_classes(num_classes: int, num_held: int) -> int:
    if num_classes > num_held:
        raise option_error("num_classes", f"None or an int in [1, {num_held}]", num_classes)
    return num_classes


def _check_sparse(backend: Backend, ids: Argument, classes: int, options: LossOptions, split: Sharding | None) -> None:
    """That the backend splits a sparse target where the call is split, and that ids which can be read are classes."""
    if split is not None and "sparse" not in backend.capabilities.parallel_targets:
        raise BackendError(
            f"parallel: the {backend.name} backend does not split sparse targets over processes; expected degrees of 1"
        )
    if reads_values(ids.info, options):
        refuse_out_of_range(backend, ids, classes, options.ignore_index)


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
        hint = _target_hint(target.info.shape, target_kind, shape, positions)
        raise ShapeError(
            f"target: expected class indices (integer) of shape {positions} or probabilities (floating) of shape "
            f"{shape}; got {dtype} of shape {target.info.shape}{hint}"
        )
    if target_kind not in backend.capabilities.targets:
        raise BackendError(f"target: the {backend.name} backend takes no {target_kind} targets")
    return target_kind


class CheckedTopK(NamedTuple):
    """The arrays of a `TopK`, which fit the positions and each other."""

    ids: Argument
    values: Argument


def check_topk(backend: Backend, arguments: dict[str, Argument], topk: TopK, positions: tuple[int, ...]) -> CheckedTopK:
    ids, values = (arguments[name] for name in topk.arguments())
    shape = ids.info.shape
    fits = shape[:-1] == positions and len(shape) == len(positions) + 1 and shape[-1] > 0
    if ids.info.dtype not in INTEGERS or not fits:
        error = DTypeError if ids.info.dtype not in INTEGERS else ShapeError
        raise error(
            f"{ids.name}: expected class indices (integer) of shape {positions} + (K,), K >= 1; "
            f"got {ids.info.dtype} of shape {shape}"
        )
    check_shape_dtype(values, shape, FLOATS)
    if "sparse" not in backend.capabilities.targets:
        raise BackendError(f"target: the {backend.name} backend takes no sparse targets")
    return CheckedTopK(ids, values)


def _target_hint(target: tuple[int, ...], target_kind: str, logits: tuple[int, ...], positions: tuple[int, ...]) -> str:
    """What to do with a target in the form of another library, or for another class axis than the one given."""
    if target_kind == "probability":
        return " (class indices have an integer dtype)" if target == positions else ""
    if target == logits:
        return " (a one-hot target is one of probabilities: give it a floating dtype)"
    if any(n == 1 and target[:axis] + target[axis + 1 :] == positions for axis, n in enumerate(target)):
        return " (leave out its axis of size 1)"
    axes = [axis for axis in range(len(logits)) if target == logits[:axis] + logits[axis + 1 :]]
    if not axes:
        return ""
    if 1 in axes:
        return " (for logits of shape (N, C, ...) pass axis=1)"
    return f" (the shape fits logits with their classes along axis {axes[0]}: pass axis={axes[0]})"


def _check_target_range(backend: Backend, target: Argument, classes: int, options: LossOptions) -> bool:
    """Whether every index is a class that is not ignored; one that is neither a class nor ignored raises."""
    ignored = options.ignore_index
    # 0 is always a class: mostly nothing is out of range, and there is no more to ask.
    if not 0 <= ignored < classes and backend.first_invalid_target(target.array, classes, 0) is None:
        return True
    refuse_out_of_range(backend, target, classes, ignored)
    return False


def refuse_out_of_range(backend: Backend, indices: Argument, classes: int, ignored: int) -> None:
    """Raise for the first index that is neither a class nor ignored."""
    invalid = backend.first_invalid_target(indices.array, classes, ignored)
    if invalid is not None:
        flat, value = invalid
        position = tuple(int(i) for i in np.unravel_index(flat, indices.info.shape))
        raise TargetRangeError(
            f"{indices.name}: expected class indices in [0, {classes}) or ignore_index={ignored}; "
            f"got {value} at position {position}"
        )


def reads_values(info: ArrayInfo, options: LossOptions) -> bool:
    return options.validate != "off" and info.concrete and (info.readable or options.validate == "full")


def checked_normalizer(value: Any, options: LossOptions) -> Any:
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


def _normalizer_of_problem(given: Any, argument: Argument | None, options: LossOptions) -> Any:
    """A normalizer as the backend takes it: a float, or its own 0-d array."""
    if argument is None:
        return float(given)
    array = check_shape_dtype(argument, (), NUMBERS)
    if reads_values(argument.info, options):
        _check_normalizer_value(float(array), array)
    return array


_NORMALIZER = "a finite float >= 0 or a 0-d array"


def _check_normalizer_value(number: float, given: Any) -> None:
    if not 0 <= number < math.inf:  # comparisons, which torch's compiler makes of a symbolic number
        raise option_error("normalizer", _NORMALIZER, given)


def _expanded_mask(backend: Backend, mask: Argument, positions: tuple[int, ...]) -> Argument:
    """A mask of the shape of the positions, also from one with size 1 along the axes where it is the same for all."""
    name, array, info = mask
    pairs = zip(info.shape, positions, strict=False)
    if len(info.shape) == len(positions) and all(size in (1, full) for size, full in pairs):
        return Argument(name, backend.broadcast_to(array, positions), info._replace(shape=positions))
    return mask
