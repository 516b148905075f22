"""Sparse targets: a teacher's K best classes of each position, and the teacher's own entropy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from unixent.errors import DTypeError, option_error
from unixent.protocol import Teacher
from unixent.registry import find_backend

Tail = Literal["drop", "renormalize", "bucket"]
_TAILS: tuple[str, ...] = get_args(Tail)


@dataclass(frozen=True, eq=False)
class TopK:
    r"""Sparse targets of a loss: the K best classes of a teacher at each position, as ``target`` of any loss.

    With q_k the teacher's probabilities, Q their sum, w the class weights and L_c = -log p_c of the student, the
    teacher's part of a position's loss is

    .. code-block:: text

        "drop"         sum_k w_k q_k L_k                      what the teacher gave other classes is left out
        "renormalize"  (sum_k w_k q_k L_k) / Q                the K classes are all that there is; 0 where Q is 0
        "bucket"       sum_k w_k q_k L_k + max(0, 1 - Q) L_rest
                       with L_rest = -log sum_{c not in ids} p_c: all other classes are one more class

    in the place of sum_c w_c q_c L_c of class probabilities; label smoothing, z-loss, mask and denominator are as there
    (see `unixent.cross_entropy`). Less the teacher's own `entropy_of` it is a Kullback-Leibler divergence. Nothing of
    the size of the logits is made of the target, and L_rest is a sum over the other classes, never 1 - sum_k p_k.

    Ids equal to the call's ``ignore_index`` are padding, whatever their probability. Repeated ids add up. A position
    with nothing but padding keeps its place in the denominator, and its teacher's part is 0 under every tail. Where the
    ids are all the classes there is no bucket.

    Args:
        ids: class indices of shape P + (K,), K >= 1, any integer dtype.
        probs: the teacher's probabilities of these classes, floating, of the shape of ids; any scale.
        log_probs: their natural logarithms, in the place of probs. "bucket" keeps the 1 - Q of a confident teacher
            then, which probabilities round away.
        tail: "drop", "renormalize" or "bucket".

    The derivative for probs (or log_probs) is that of the formula; max(0, 1 - Q) has the derivative 0 where it is 0.

    Raises:
        OptionError: an unknown tail.
        DTypeError: not exactly one of probs and log_probs.

    Example:
        >>> import numpy as np, unixent
        >>> teacher = unixent.TopK(np.array([[0, 2]]), probs=np.array([[0.5, 0.25]]), tail="bucket")
        >>> logits = np.array([[2.0, 0.0, 1.0, 0.0]])
        >>> loss, gradient = unixent.value_and_grad(logits, teacher)
        >>> print(loss.round(6), gradient.round(6))
        1.070525 [[ 0.110296 -0.042405 -0.025485 -0.042405]]
    """

    ids: Any
    probs: Any = field(default=None, kw_only=True)
    log_probs: Any = field(default=None, kw_only=True)
    tail: Tail = field(default="drop", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.tail, str) or self.tail not in _TAILS:
            raise option_error("tail", f"one of {', '.join(map(repr, _TAILS))}", self.tail)
        if (self.probs is None) == (self.log_probs is None):
            came = "neither" if self.probs is None else "both"
            raise DTypeError(f"probs: expected either probs or log_probs; got {came}")
        # A backend may have to tell its framework what this is, before one of its transforms meets it.
        for array in (self.ids, self.values):
            find_backend(type(array))

    @property
    def values(self) -> Any:
        """probs, or log_probs where those were given."""
        return self.probs if self.log_probs is None else self.log_probs

    @property
    def teacher(self) -> Teacher:
        return Teacher(self.tail, self.log_probs is not None)

    def arguments(self) -> dict[str, Any]:
        """The arrays, as errors name them."""
        return {"target.ids": self.ids, "target.probs" if self.log_probs is None else "target.log_probs": self.values}
