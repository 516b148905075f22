"""From a call's arguments to a `Problem`: what must fit together, checked once for all backends.

Only what ``Backend.describe`` says of an array is looked at, so that the same code runs eagerly, under a trace and
on an accelerator. Values are read in one place, `_check_target_range`, and only where reading does not stall.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np

from unixent import sharding
from unixent.arguments import FLOATS, INTEGERS, NUMBERS, REALS, Argument, adopt, constant, expect, scores
from unixent.errors import BackendError, DTypeError, EmptyMeanError, OptionError, ShapeError, TargetRangeError
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions, ParallelConfig
from unixent.protocol import ArrayInfo, Backend, LinearProblem, ParallelBackend, Problem, Sharding


def _normalizer(backend: Backend, value: Any, options: LossOptions, lead: Argument) -> Any:
    if value is None:
        return None
    if options.reduction != "mean":
        raise OptionError(f"normalizer: expected None, since reduction is {options.reduction!r}; got {value!r}")
    expected = "normalizer: expected a finite float >= 0 or a 0-d array"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) and value >= 0):
            raise OptionError(f"{expected}; got {value!r}")
        return float(value)
    if isinstance(value, (bool, str, list, tuple)):
        raise OptionError(f"{expected}; got {value!r}")
    return expect(constant(adopt(backend, "normalizer", value, lead)), (), NUMBERS)


def _target_kind(backend: Backend, found: Argument, positions: tuple[int, ...], full: tuple[int, ...]) -> str:
    dtype, shape = found.info.dtype, found.info.shape
    if dtype in INTEGERS:
        kind, expected = "index", positions
    elif dtype in FLOATS:
        kind, expected = "probability", full
    else:
        raise DTypeError(f"target: expected class indices (integer) or probabilities (floating); got {dtype}")
    if shape != expected:
        raise ShapeError(
            f"target: expected class indices (integer) of shape {positions} or probabilities (floating) of shape "
            f"{full}; got {dtype} of shape {shape}"
        )
    if kind not in backend.capabilities.targets:
        raise BackendError(f"target: the {backend.name} backend takes no {kind} targets")
    return kind


def _check_target_range(backend: Backend, found: Argument, classes: int, options: LossOptions) -> bool:
    """Whether every index is a class that is not ignored; one that is neither a class nor ignored raises."""
    ignored = options.ignore_index
    # 0 is always a class: mostly nothing is outside, and there is no more to ask.
    if not 0 <= ignored < classes and backend.first_invalid_target(found.array, classes, 0) is None:
        return True
    invalid = backend.first_invalid_target(found.array, classes, options.ignore_index)
    if invalid is not None:
        flat, value = invalid
        position = tuple(int(i) for i in np.unravel_index(flat, found.info.shape))
        raise TargetRangeError(
            f"target: expected class indices in [0, {classes}) or ignore_index={options.ignore_index}; "
            f"got {value} at position {position}"
        )
    return False


def _reads_values(info: ArrayInfo, options: LossOptions) -> bool:
    if options.validate == "off" or not info.concrete:
        return False
    return info.readable or options.validate == "full"


def _parallel(backend: Backend, value: Any) -> ParallelConfig | None:
    if value is None:
        return None
    config = ParallelConfig.of(value)
    capable = backend.capabilities.parallel
    # A group of one process is still its framework's: under jax, what it was summed over must be seen to be.
    grouped = capable and (config.model_group is not None or config.token_group is not None)
    if config.degree == 1 and not grouped:
        return None
    if not capable:
        raise BackendError(
            f"parallel: the {backend.name} backend does not split a loss over processes; expected degrees of 1, got "
            f"data_parallel={config.data_parallel}, model_parallel={config.model_parallel}, "
            f"context_parallel={config.context_parallel}"
        )
    return config


class Sides(NamedTuple):
    """The arguments that the logits form and the fused linear form have in common."""

    target: Any
    weight: Any
    mask: Any
    normalizer: Any
    parallel: Any
    terms: bool


class Scores(NamedTuple):
    """The scores of a call, checked by themselves: logits, or the hidden states that they are made of.

    ``rest`` holds the fields that are the form's own; ``classes`` counts those that this process holds.
    """

    lead: Argument
    positions: tuple[int, ...]
    full: tuple[int, ...]
    classes: int
    acc_dtype: str
    rest: dict[str, Any]


def _logits(backend: Backend, logits: Any, options: LossOptions) -> Scores:
    lead = scores(backend, "logits", logits, 1)
    shape = lead.info.shape
    axis = options.axis
    if not -len(shape) <= axis < len(shape):
        raise OptionError(
            f"axis: expected an int in [{-len(shape)}, {len(shape)}) for logits of shape {shape}; got {axis}"
        )
    axis %= len(shape)
    positions = shape[:axis] + shape[axis + 1 :]
    acc_dtype = "float64" if lead.info.dtype == "float64" else "float32"
    return Scores(lead, positions, shape, shape[axis], acc_dtype, {"logits": lead.array, "axis": axis})


def _linear(backend: Backend, hidden: Any, classifier: Any, bias: Any, chunk: Any) -> Scores:
    lead = scores(backend, "hidden", hidden, 1)
    weights = scores(backend, "classifier", classifier, 1, lead)
    positions, width = lead.info.shape[:-1], lead.info.shape[-1]
    if len(weights.info.shape) != 2 or weights.info.shape[1] != width:
        raise ShapeError(
            f"classifier: expected shape (C, {width}) for hidden of shape {lead.info.shape}; got {weights.info.shape}"
        )
    classes = weights.info.shape[0]
    dtypes = {lead.info.dtype, weights.info.dtype}
    if bias is not None:
        offset = scores(backend, "bias", bias, 1, lead)
        bias = expect(offset, (classes,), FLOATS)
        dtypes.add(offset.info.dtype)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, (int, np.integer)) or chunk < 1):
        raise OptionError(f"chunk: expected None or an int >= 1; got {chunk!r}")
    acc_dtype = "float64" if "float64" in dtypes else "float32"
    rest = {
        "hidden": lead.array,
        "classifier": weights.array,
        "bias": bias,
        "chunk": None if chunk is None else int(chunk),
    }
    return Scores(lead, positions, (*positions, classes), classes, acc_dtype, rest)


def _facts(backend: Backend, found: Scores, sides: Sides, options: LossOptions) -> sharding.Facts:
    dtype = adopt(backend, "target", sides.target, found.lead).info.dtype
    given = [name for name in ("weight", "mask", "normalizer") if getattr(sides, name) is not None]
    # Of a fused linear call also how wide its hidden states are and how they are cut into chunks.
    form = (found.lead.info.shape[-1], found.rest["chunk"]) if "hidden" in found.rest else ()

    def call() -> str:
        return f"{options} {given} {sides.terms} {found.lead.info.dtype} {found.acc_dtype} {form} {dtype in FLOATS}"

    return sharding.Facts(call, found.positions, found.classes)


def _fields(
    backend: Backend, found: Scores, sides: Sides, options: LossOptions, split: Sharding | None
) -> dict[str, Any]:
    """The fields of a problem, all of them checked."""
    lead, positions, _, classes, acc_dtype, rest = found
    if split is not None:
        classes = split.num_classes
    elif classes < 1:
        raise ShapeError(
            f"{'classifier' if 'hidden' in rest else 'logits'}: expected at least 1 class; got shape {found.full}"
        )
    target = adopt(backend, "target", sides.target, lead)
    kind = _target_kind(backend, target, positions, found.full)
    if kind == "probability" and options.ignore_index != DEFAULT_IGNORE_INDEX:
        raise OptionError(
            f"ignore_index: expected the default {DEFAULT_IGNORE_INDEX} with probability targets, which have no index "
            f"to ignore (use mask); got {options.ignore_index}"
        )
    weight, mask = sides.weight, sides.mask
    if weight is not None:
        weight = expect(constant(adopt(backend, "weight", weight, lead)), (classes,), FLOATS)
    if mask is not None:
        mask = expect(constant(adopt(backend, "mask", mask, lead)), positions, REALS)
    read = kind == "index" and _reads_values(target.info, options)
    counted = read and _check_target_range(backend, target, classes, options)
    return {
        **rest,
        "target": target.array,
        "weight": weight,
        "mask": mask,
        "normalizer": _normalizer(backend, sides.normalizer, options, lead),
        "options": options,
        "num_classes": classes,
        "target_kind": kind,
        "acc_dtype": acc_dtype,
        # Terms are partial sums: in half precision a count above 65504 would already be infinite.
        "result_dtype": options.dtype or (acc_dtype if sides.terms else lead.info.dtype),
        "return_terms": sides.terms,
        "all_targets_valid": counted,
        "check_empty": (
            options.on_empty == "raise" and options.reduction == "mean" and _reads_values(lead.info, options)
        ),
        "sharding": split,
    }


def _together(
    backend: Backend, config: ParallelConfig, lead: Any, sides: Sides, options: LossOptions, read: Callable[[], Scores]
) -> tuple[dict[str, Any], Argument]:
    """The fields of a problem that is split over processes, checked on all of them or refused by all of them."""
    peers = cast(ParallelBackend, backend)
    if peers.is_global(lead, config):
        found = read()
        groups, sequence = (config.model_group, config.token_group), config.context_parallel
        split = Sharding(*groups, (found.classes,), config.mesh, sequence)
        return _fields(backend, found, sides, options, split), found.lead
    split = sharding.agree(peers, config, lambda: _facts(backend, read(), sides, options))
    fields = sharding.conclude(peers, config, lambda: _fields(backend, read(), sides, options, split))
    return fields, read().lead


def logits_problem(backend: Backend, logits: Any, sides: Sides, options: LossOptions) -> tuple[Problem, Argument]:
    """The checked problem of a logits-level call, and its logits."""
    config = _parallel(backend, sides.parallel)
    if config is None:
        found = _logits(backend, logits, options)
        return Problem(**_fields(backend, found, sides, options, None)), found.lead
    fields, lead = _together(backend, config, logits, sides, options, lambda: _logits(backend, logits, options))
    return Problem(**fields), lead


def linear_problem(
    backend: Backend, hidden: Any, classifier: Any, bias: Any, chunk: Any, sides: Sides, options: LossOptions
) -> tuple[LinearProblem, Argument]:
    """The checked problem of a fused linear call, and its hidden states."""
    if not backend.capabilities.linear:
        raise BackendError(f"linear_cross_entropy: the {backend.name} backend does not provide the fused linear form")
    config = _parallel(backend, sides.parallel)
    if config is None:
        found = _linear(backend, hidden, classifier, bias, chunk)
        return LinearProblem(**_fields(backend, found, sides, options, None)), found.lead
    fields, lead = _together(
        backend, config, hidden, sides, options, lambda: _linear(backend, hidden, classifier, bias, chunk)
    )
    return LinearProblem(**fields), lead


def upstream(backend: Backend, value: Any, lead: Argument, positions: tuple[int, ...], options: LossOptions) -> Any:
    """The checked upstream gradient of `value_and_grad`: of the shape of the loss."""
    if value is None:
        return None
    shape = positions if options.reduction == "none" else ()
    return expect(adopt(backend, "grad_output", value, lead), shape, NUMBERS)


def wanted(wrt: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """What to differentiate with respect to, as a tuple of names."""
    names = (wrt,) if isinstance(wrt, str) else wrt
    if not isinstance(names, (tuple, list)) or not names or any(name not in allowed for name in names):
        raise OptionError(f"wrt: expected one or several of {', '.join(map(repr, allowed))}; got {wrt!r}")
    return tuple(names)


def empty_mean() -> EmptyMeanError:
    """The error for a mean whose denominator is 0 under ``on_empty="raise"``; for backends."""
    return EmptyMeanError(
        "on_empty: expected a mean with a denominator other than 0; got 0, since every position is masked, ignored "
        "or of weight 0"
    )
