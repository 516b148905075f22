"""Which cases of the catalogue become vectors, and why: the quick ones, every dtype of every feature, nothing large."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from unixent_conformance.cases import catalogue
from unixent_conformance.model import Call, Case, Tier
from unixent_conformance.vectors.files import CODES

# The mistake that each feature's vectors are there to find.
REASONS = {
    "class indices": "The plain loss and its gradient, at several widths.",
    "class probabilities": "Targets are distributions, need not sum to 1, and have a gradient of their own.",
    "class weights": "A weighted mean is divided by the sum of the targets' weights for indices, by the positions for "
    "probabilities.",
    "ignore_index": "Ignored positions leave numerator, denominator and gradient, also where the index is a class.",
    "mask": "A mask weighs positions, fractions included, in the denominator too.",
    "label smoothing": "The smoothed share is spread over all C classes, each with its own weight.",
    "z-loss": "The square of the log-normaliser is masked and averaged with the loss, and flows into the gradient.",
    "softcap": "The cap comes before everything, and its derivative keeps its relative accuracy where it saturates.",
    "temperature": "Logits are scaled, capped and divided by the temperature, in that order, and so is the gradient.",
    "axis and shape": "The class axis may be any; positions may have any number of axes, or none.",
    "normalizer": "A given denominator replaces the counted one, in value and gradient.",
    "target dtypes": "Every integer dtype holds an index, signed or not, and ignore_index is compared by value.",
    "out-of-range targets": "An index that is no class is an error or NaN, never a plausible number.",
    "empty mean": "A mean over nothing is what on_empty says, with a gradient of exactly 0 or NaN.",
    "no positions": "No positions at all is legal.",
    "result dtype": "Only the finished result is rounded, to the dtype asked for.",
    "minus infinity": "-inf is probability 0: finite loss and gradient unless the target itself is impossible.",
    "plus infinity": "+inf has no log-normaliser: NaN, not a number that looks right.",
    "NaN": "NaN at a counted position reaches the loss, even at a class of weight 0.",
    "uncounted rows": "What is masked or ignored adds exactly nothing, whatever it holds.",
    "ends of the number line": "The largest, smallest and subnormal logits neither overflow nor cancel.",
    "confident rows": "A loss far below the roundoff of 1 keeps its relative accuracy, and so does its gradient.",
    "large inputs": "Sums over many classes or positions do not stall or overflow in half precision.",
    "tile edges": "Sizes beside a block of classes, and whole blocks of -inf, lose no class and make no NaN.",
    "fused linear tile edges": "The same of features and biases: a bias enters once, however many blocks there are.",
    "upstream gradient": "The gradient is scaled by what arrives from above, position by position.",
    "combinations": "Options together, so that every pair of their levels occurs.",
    "bad input": "A call that cannot mean anything is refused, with an error that names the argument.",
    "minus infinity padding": "Logits of -inf are classes of probability 0 under every option, a softcap included.",
    "num_classes": "What lies beyond the classes that exist is as if it were not there, whatever it holds.",
    "confident softcap": "A capped logit must have the same bits wherever it enters, or a small loss is lost.",
    "extreme options": "What the accumulation dtype cannot hold, of an option or of a sum, is not taken for 0 or NaN.",
    "empty mean of NaN": "A mean over nothing hides no NaN.",
    "broadcast mask": "A mask with 1 where it is the same for all counts as if it were written out.",
    "fused linear broadcast mask": "The same of a fused form, whose chunks each take their part of such a mask.",
    "fused linear padding": "Padding of the vocabulary, by -inf or beyond num_classes, through hidden and classifier.",
    "fused linear": "Loss and gradients through hidden, classifier and bias, without the logits.",
    "fused linear chunks": "The answer does not depend on how positions are cut into chunks.",
    "fused linear half precision": "Half inputs are accumulated in float32 over features, classes and chunks.",
    "fused linear special values": "Infinities and NaN through hidden and bias; uncounted positions add nothing.",
    "statistics": "Each output of a position by itself: what is small keeps its digits, equal logits have an order.",
    "fused linear statistics": "The same through hidden, classifier and bias, a chunk of logits at a time.",
    "sparse targets": "A teacher's best classes, and what becomes of the rest: a bucket is a sum, never 1 - p.",
    "fused linear sparse targets": "The same through hidden, classifier and bias, without the logits.",
    "fused linear bad input": "Shapes, dtypes and chunks that cannot mean anything are refused.",
}

# About several calls of one implementation, about strides or about a framework's differentiation: nothing that one
# vector could hold.
NO_VECTOR = frozenset(
    {
        "memory layout",
        "invariances",
        "inputs unmutated",
        "batch invariance",
        "second derivatives",
        "two backward passes",
        "fused linear frozen arguments",
    }
)

# Bytes of input arrays. A feature that has nothing as small (many classes, many positions) is shown by its smallest.
SMALL = 16 << 10


def selected(features: Sequence[str] = ()) -> list[Case]:
    """The chosen cases in the catalogue's order."""
    known = [case for case in catalogue(features=features) if case.feature not in NO_VECTOR and not case.property]
    chosen: dict[str, None] = {}
    for case in known:
        if case.within(Tier.QUICK) and _fits(case.build()):
            chosen[case.id] = None
    seen = {key for case in known if case.id in chosen for key in _shown(case)}
    for case in known:
        if not seen.issuperset(_shown(case)) and _fits(case.build()):
            chosen[case.id] = None
            seen.update(_shown(case))
    for feature in {case.feature for case in known} - {case.feature for case in known if case.id in chosen}:
        storable = [case for case in known if case.feature == feature and case.quantity == "loss"]
        smallest = min(storable, key=lambda case: _size(case.build()))
        chosen[smallest.id] = None
    return [case for case in known if case.id in chosen]


def _shown(case: Case) -> Iterator[tuple[str, ...]]:
    """What a feature should be shown in: each dtype of the logits, and each question."""
    call = case.build()
    yield (case.feature, call.dtype, "raises" if case.raises else case.quantity, call.statistic, call.tail)


def _fits(call: Call) -> bool:
    return _size(call) <= SMALL and _storable(call)


def _size(call: Call) -> int:
    return sum(np.asarray(array).nbytes for array in call.arrays().values())


def _storable(call: Call) -> bool:
    """Whether files can hold it: no complex array, and options that JSON has."""
    arrays = call.all_arrays().values()
    return all(np.asarray(array).dtype.name in CODES for array in arrays) and all(map(_plain, call.static().values()))


def _plain(value: Any) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return value is None or (isinstance(value, (bool, int, str, float)) and finite)
