"""A case as an implementation can take it: sizes that its kernel runs on, no option that changes no answer.

A kernel with gates (so many features, so many classes) falls back on something else beside them, and a run would judge
the fall-back. `multiples` widen an input until the kernel takes it: rows are repeated, classes are added that are less
likely than the others, features are added to every dot product. What is expected is computed for the wider input.

A case of many options is asked with those that the implementation has, classes last where it has no axis: faults lie
where two options meet, and few kernels have them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from unixent_conformance.identity import narrowed
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Array, Call, Case

# Of the sizes of chunks that a case is asked with, the one that an implementation without chunks is asked instead.
CHUNK = 5

# What a case of many options can be asked without.
OPTIONAL = frozenset(
    {"axis", "weight", "mask", "label_smoothing", "z_loss", "scale", "softcap", "temperature", "normalizer", "dtype"}
)


def fitted(case: Case, implementation: Implementation) -> Case:
    """The case, of an input that suits the implementation; the same for one that it suits already."""
    if implementation.as_logits:
        case = narrowed(case)
    case = _of_known_options(case, implementation)
    if implementation.unknown(frozenset({"chunk"})) and not (case.raises and case.raises.argument == "chunk"):
        case = _without_chunk(case)
    sizes = implementation.multiples
    if not sizes or case.raises is not None or case.property is not None or case.stored is not None:
        return case
    return replace(case, build=lambda: widened(case.build(), sizes))


def _of_known_options(case: Case, implementation: Implementation) -> Case:
    """A case of many options without those that the implementation lacks: it is asked about the others together."""
    if not case.divisible:
        return case
    call = case.build()
    lacking = implementation.unknown(frozenset(call.options) | frozenset(call.arrays()))
    if not lacking or lacking - OPTIONAL:
        return case
    return replace(case, build=lambda: _without(case.build(), lacking), needs=_without(call, lacking).needs())


def _without(call: Call, lacking: frozenset[str]) -> Call:
    options = {name: value for name, value in call.options.items() if name not in lacking}
    dropped: dict[str, Any] = dict.fromkeys(lacking & {"weight", "mask"})
    if "dtype" in lacking and call.grad_output is not None:
        dropped["grad_output"] = call.grad_output.astype(call.logits.dtype)
    fewer = replace(call, **dropped, options=options)
    return _as_rows(fewer, call.options["axis"]) if "axis" in lacking else fewer


def _as_rows(call: Call, axis: int) -> Call:
    """The classes last and one axis of positions, which every loss takes."""

    def rows(array: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(array, axis, -1)).reshape(-1, call.logits.shape[axis])

    def flat(array: Any) -> Any:
        return array if array is None or not array.ndim else array.reshape(-1)

    target = flat(call.target) if call.has_indices else rows(call.target)
    upstream = flat(call.grad_output)
    return replace(call, logits=rows(call.logits), target=target, mask=flat(call.mask), grad_output=upstream)


def _without_chunk(case: Case) -> Case:
    call = case.build()
    if "chunk" not in call.options or (case.feature == "fused linear chunks" and call.options["chunk"] != CHUNK):
        return case
    options = {name: value for name, value in call.options.items() if name != "chunk"}
    return replace(case, build=lambda: replace(case.build(), options=options))


def widened(call: Call, multiples: Mapping[str, int]) -> Call:
    """A call whose sizes are multiples of these, if its positions, features and classes can be added to: not of sparse
    targets."""
    if call.tail:
        return call
    call = _more_positions(call, multiples.get("positions", 1))
    if call.linear:
        call = _more_features(call, multiples.get("hidden", 1))
    return _more_classes(call, multiples.get("classes", 1))


def _more_positions(call: Call, multiple: int) -> Call:
    """Positions repeated along their first axis."""
    axis = call.options.get("axis", -1) % np.asarray(call.logits).ndim if not call.linear else 0
    first = 1 if axis == 0 and not call.linear else 0  # the first axis of positions among those of the logits
    shape = call.hidden.shape[:-1] if call.linear else np.delete(np.array(call.logits.shape, int), axis)
    count = int(np.prod(shape, dtype=np.int64))
    if not len(shape) or not count:
        return call
    length = int(shape[0])
    while length * (count // int(shape[0])) % multiple:
        length += 1

    def longer(array: Any, axis: int = 0) -> Any:
        if array is None or array.ndim <= axis or array.shape[axis] != shape[0] or length == shape[0]:
            return array
        return np.take(array, np.arange(length) % array.shape[axis], axis=axis)

    scores = {"hidden": longer(call.hidden)} if call.linear else {"logits": longer(call.logits, first)}
    target = longer(call.target, 0 if call.linear or call.has_indices else first)
    mask = longer(call.mask) if call.mask is not None and call.mask.ndim == len(shape) else call.mask
    return replace(call, **scores, target=target, mask=mask, grad_output=longer(call.grad_output))


def _more_features(call: Call, multiple: int) -> Call:
    """Features of all sizes, small enough to leave the logits about what they are."""
    more = -call.hidden.shape[-1] % multiple
    rng = np.random.default_rng(more)

    def wider(array: Array) -> Array:
        new = rng.uniform(-1, 1, (*array.shape[:-1], more)) / (4 * np.sqrt(max(more, 1)))
        return np.concatenate([array, new.astype(array.dtype)], axis=-1)

    return replace(call, hidden=wider(call.hidden), classifier=wider(call.classifier)) if more else call


def _more_classes(call: Call, multiple: int) -> Call:
    """Classes as likely as the least likely, or, of a linear form, with half the logits of others; what is beyond
    `num_classes` stays beyond it."""
    axis = -1 if call.linear else call.options.get("axis", -1)
    classes = len(call.classifier) if call.linear else call.logits.shape[axis]
    more, known = -classes % multiple, call.options.get("num_classes")
    y = np.asarray(call.target)
    out_of_range = call.has_indices and ((y < 0) | (y >= classes)) & (y != call.options.get("ignore_index", -100))
    if not more or not classes or np.any(out_of_range):
        return call
    source = np.arange(more) % classes if known is None else np.full(more, classes - 1)

    def wider(array: Any, new: Any, axis: int = 0) -> Any:
        return None if array is None else np.concatenate([array, np.asarray(new).astype(array.dtype)], axis=axis)

    target = call.target
    if not call.has_indices:
        target = wider(target, np.zeros_like(np.take(target, source, axis=axis)), axis)
    weight = call.weight if known is not None or call.weight is None else wider(call.weight, call.weight[source])
    if call.linear:
        half = 1 if known is not None else 0.5
        bias = None if call.bias is None else wider(call.bias, call.bias[source] * call.bias.dtype.type(half))
        rows = call.classifier[source] * call.classifier.dtype.type(half)
        return replace(call, classifier=wider(call.classifier, rows), bias=bias, target=target, weight=weight)
    least = call.logits.min(axis=axis, keepdims=True) if known is None else np.take(call.logits, [-1], axis=axis)
    logits = wider(call.logits, np.repeat(least, more, axis=axis), axis)
    return replace(call, logits=logits, target=target, weight=weight)
