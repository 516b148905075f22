"""What a backend is asked, with every array its own and every option normalised, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from unixent.logit_transform import LogitTransform
from unixent.options import LossOptions
from unixent.protocol.description import Array


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the arrays of this process fit into the whole.

    Attributes:
        model_group: the processes that share the classes, or None where they are all here.
        token_group: the processes that share the positions, or None.
        classes_per_rank: how many classes each process of the model group holds, in the order of their ranks.
        mesh: None, or the framework's own mesh of devices over which the arrays of the problem are still whole; the
            adapter splits them then.
        context_parallel: how many parts of the token group, the last of its axes, are parts of the sequence.
    """

    model_group: Any | None
    token_group: Any | None
    classes_per_rank: tuple[int, ...]
    mesh: Any | None = None
    context_parallel: int = 1

    @property
    def num_classes(self) -> int:
        """How many classes the arrays of all processes hold together; `LossProblem.num_classes` of them exist."""
        return sum(self.classes_per_rank)

    def vocab_start(self, rank: int) -> int:
        """Index of the first class that the process ``rank`` of the model group holds."""
        return sum(self.classes_per_rank[:rank])

    def existing(self, num_classes: int) -> Sharding:
        """The same of the first ``num_classes`` classes alone: (4, 4, 4) for 5 of them is (4, 1, 0)."""
        rest = [max(0, num_classes - self.vocab_start(rank)) for rank in range(len(self.classes_per_rank))]
        return replace(self, classes_per_rank=tuple(map(min, self.classes_per_rank, rest)))


class Teacher(NamedTuple):
    """What is static about a sparse target: what becomes of the classes beyond its K ("drop", "renormalize", "bucket"),
    and whether its numbers are logarithms."""

    tail: str
    is_log: bool


@dataclass(slots=True, kw_only=True)
class LossProblem:
    """What a logits-level and a fused linear problem share; every array belongs to the backend.

    Attributes:
        target: class indices of shape P, probabilities of the shape of logits, or a `unixent.TopK`'s probabilities or
            log-probabilities, P + (K,).
        weight: class weights (C,), or None.
        mask: position weights P (bool, integer or floating), or None.
        normalizer: replaces the denominator of "mean": a Python float, a 0-d array, or None.
        options: the validated options.
        num_classes: C, how many classes exist, of the whole vocabulary where that is split. The arrays hold as many,
            but where they are split over a model group: there ``sharding.num_classes`` may be larger, and what lies
            beyond C is padding of probability 0 and gradient 0 (see `unixent.classes`).
        target_kind: "index", "probability" or "sparse".
        ids: the classes of a sparse target, P + (K,), ``ignore_index`` where they are padding; or None.
        teacher: what is static about a sparse target, or None.
        acc_dtype: "float32" or "float64": the dtype of every exp, log and sum.
        transform: what scale, softcap and temperature make of the logits first.
        result_dtype: dtype that the finished result is rounded to.
        return_terms: return `LossTerms` instead of the reduced loss.
        all_targets_valid: the class indices have been read, and each is a class other than ignore_index, so that a
            backend need not look again; False where that is not known.
        check_empty: raise `unixent.validation.empty_mean` when the mean's denominator reads 0.
        sharding: how the problem is split over processes, or None. Logits and probabilities then hold this process's
            classes and positions, while class indices and weight are those of the whole vocabulary.
    """

    target: Array
    weight: Array | None = None
    mask: Array | None = None
    normalizer: Array | float | None = None
    options: LossOptions
    num_classes: int
    target_kind: str
    ids: Array | None = None
    teacher: Teacher | None = None
    acc_dtype: str
    transform: LogitTransform
    result_dtype: str
    return_terms: bool = False
    all_targets_valid: bool = False
    check_empty: bool = False
    sharding: Sharding | None = None


@dataclass(slots=True, kw_only=True)
class Problem(LossProblem):
    """One call of `unixent.cross_entropy`: ``logits`` with the classes along ``axis`` (normalised, >= 0)."""

    logits: Array
    axis: int


@dataclass(slots=True, kw_only=True)
class LinearProblem(LossProblem):
    """One call of `unixent.linear_cross_entropy`.

    ``hidden`` is P + (D,), ``classifier`` (C, D), ``bias`` (C,) or None; ``chunk`` is the number of positions whose
    logits may exist at a time, or None for the backend's choice.
    """

    hidden: Array
    classifier: Array
    bias: Array | None = None
    chunk: int | None = None


@dataclass(slots=True, kw_only=True)
class StatsProblem:
    """One call of `unixent.position_stats` or `unixent.linear_position_stats`.

    Attributes:
        call: the positions, as the problem of their unreduced loss. Its target holds zeros where none was given, and
            nothing was asked that needs one.
        outputs: which fields of `PositionStats` are asked for.
        selected: class indices P + (K,) for ``selected_log_prob``, or None. Where one is ``ignore_index`` the result
            is 0; where it is no other class, NaN.
        k: how many classes ``top_log_prob`` and ``top_index`` have.
    """

    call: Problem | LinearProblem
    outputs: tuple[str, ...]
    selected: Array | None = None
    k: int = 0


class LossTerms(NamedTuple):
    """The two sums behind a mean: what gradient accumulation and data parallelism add up.

    ``numerator`` is the sum of the positions' losses in nats and ``denominator`` the sum of their weights, both 0-d
    arrays of the backend; the mean is ``numerator / denominator``.
    """

    numerator: Array
    denominator: Array


class PositionStats(NamedTuple):
    """What is known of each position, of shape P unless said; None for what was not asked.

    With x' the transformed logits, p = softmax(x') and L_c = -log p_c, over the classes that exist:

    Attributes:
        loss: the unreduced loss, with all of its options.
        log_prob: -L_y, of the target.
        entropy: sum_c p_c L_c, in nats.
        logsumexp: log sum_c exp x'_c.
        selected_log_prob: P + (K,), -L_c of the classes ``selected``.
        log_sum_sq: log sum_c p_c^2.
        max_prob: the largest p_c.
        prediction: its class, int64; the lowest of equal ones.
        correct: bool, whether that is the target.
        rank: int64, how many classes come before the target: those of larger x', and equal ones of lower index.
        top_log_prob, top_index: P + (k,), the k largest -L_c in order, and their classes, int64.
        mean_logit: the mean of x'_c.

    The first five are differentiable.
    """

    loss: Array = None
    log_prob: Array = None
    entropy: Array = None
    logsumexp: Array = None
    selected_log_prob: Array = None
    log_sum_sq: Array = None
    max_prob: Array = None
    prediction: Array = None
    correct: Array = None
    rank: Array = None
    top_log_prob: Array = None
    top_index: Array = None
    mean_logit: Array = None
