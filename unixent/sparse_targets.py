"""The loss of sparse targets, as arithmetic on arrays of any framework, from statistics of the student's rows.

    l = sum_k a_k L_k + b L_rest + regularizer

with a_k = (1 - s) w_k q_k (over Q where the tail renormalizes) and b = (1 - s) max(0, 1 - Q) for a bucket. The
statistics are those of `unixent.row_statistics`: selected_log_prob, rest_log_prob and the regularizer, which has
smoothing and z-loss. The loss is linear in them, so their upstream gradients are known before they are. A row of which
nothing can be known is NaN also where its teacher says nothing: logsumexp tells, where there is no regularizer.

1 - Q is formed as (1 - q_j) - sum_{k != j} q_k with the largest q_j: from logarithms 1 - q_j = -expm1(log q_j), which
keeps what a confident teacher has left.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from unixent.protocol import Teacher
from unixent.row_statistics import Along

Array = Any


class Shares(NamedTuple):
    """What a teacher says of each position: q_k, P + (K,), and P + (1,) each, what they were divided by (None: 1), what
    is left for the other classes (None: nothing), and a factor.

    Of probabilities that are divided by Q, q_k has the derivative for a constant Q alone, and ``factor`` is Q / Q = 1
    with that for the divisor. It multiplies sums over k, which are finite where an infinite loss meets a share of 0.
    """

    q: Array
    total: Array | None
    rest: Array | None
    factor: Array | None = None

    @property
    def whole_q(self) -> Array:
        """q_k with its whole derivative."""
        return self.q if self.factor is None else self.q * self.factor


def outputs_of(teacher: Teacher, has_regularizer: bool) -> tuple[str, ...]:
    """The statistics that a loss is made of."""
    rest = ("rest_log_prob",) if teacher.tail == "bucket" else ()
    return ("selected_log_prob", *rest, "regularizer" if has_regularizer else "logsumexp")


def shares_of(along: Along, teacher: Teacher, values: Array, padding: Array) -> Shares:
    """The shares from probabilities or their logarithms, in the accumulation dtype, with 0 at the padding."""
    xp = along.xp
    values = xp.where(padding, -math.inf if teacher.is_log else 0, values)
    if teacher.is_log:
        if teacher.tail == "renormalize":
            top = along.constant(along.max(values))
            values = values - xp.where(top == -math.inf, 0, top)
        # What has no share has no derivative either, infinite losses or not.
        values = xp.where(xp.exp(values) == 0, -math.inf, values)
    if teacher.tail == "renormalize":
        values = xp.exp(values) if teacher.is_log else values
        total = along.sum(values)
        is_empty = total == 0
        total = xp.where(is_empty, 1, total)
        if teacher.is_log:
            return Shares(xp.where(values == 0, 0, values / total), total, None)
        fixed = along.constant(total)
        return Shares(xp.where(is_empty, 0, values / fixed), total, None, fixed / total)
    q = xp.exp(values) if teacher.is_log else values
    if teacher.tail == "drop":
        return Shares(q, None, None)
    top = along.argmax(values)
    largest = along.take(values, top)
    one_minus_largest = 1 - (xp.exp(largest) if teacher.is_log else largest)
    if teacher.is_log:  # only where it is more exact, since its derivative is formed as 1 + expm1
        is_near = largest > -0.7
        one_minus_largest = xp.where(is_near, 0 - xp.expm1(xp.where(is_near, largest, 0)), one_minus_largest)
    rest = one_minus_largest - along.sum(xp.where(along.classes(q) == top, 0, q))
    return Shares(q, None, xp.where(rest <= 0, 0, rest))


def losses(along: Along, shares: Shares, factor: Array, rest_factor: float, stats: dict[str, Array]) -> Array:
    """l of each position, P + (1,).

    Args:
        along: the array namespace.
        shares: the teacher's.
        factor: (1 - s) w_k, P + (K,), 0 at the padding.
        rest_factor: 1 - s.
        stats: the statistics of `outputs_of`, P + (K,) and P + (1,).
    """
    xp, terms = along.xp, along.product(factor, 0 - stats["selected_log_prob"])
    loss = along.sum(along.product(shares.q, terms))
    loss = loss if shares.factor is None else loss * shares.factor
    if shares.rest is not None:
        loss = loss + along.product(rest_factor * shares.rest, 0 - stats["rest_log_prob"])
    if "regularizer" in stats:
        return loss + stats["regularizer"]
    # A product, whose derivative is NaN as well.
    return loss * xp.where(xp.isnan(stats["logsumexp"]), math.nan, xp.ones_like(loss))


def upstream(
    shares: Shares, factor: Array, rest_factor: float, scale: Array, outputs: tuple[str, ...]
) -> dict[str, Array]:
    """The gradients of ``sum(scale * losses)`` for the statistics, with ``scale`` P + (1,)."""
    grads = {"selected_log_prob": 0 - scale * factor * shares.whole_q}
    if shares.rest is not None:
        grads["rest_log_prob"] = 0 - scale * rest_factor * shares.rest
    return grads | ({"regularizer": scale} if "regularizer" in outputs else {})


def values_gradient(
    along: Along,
    teacher: Teacher,
    shares: Shares,
    factor: Array,
    rest_factor: float,
    scale: Array,
    stats: dict[str, Array],
    padding: Array,
) -> Array:
    """The gradient of ``sum(scale * losses)`` for probabilities, or for their logarithms, 0 at the padding.

    drop  w_k L_k        renormalize  (w_k L_k - sum_j w_j q_j L_j) / Q        bucket  w_k L_k - [Q < 1] L_rest
    """
    xp = along.xp
    grad = along.product(scale * factor, 0 - stats["selected_log_prob"])
    if shares.total is not None:
        grad = grad - along.sum(along.product(shares.whole_q, grad))
        grad = grad if teacher.is_log else xp.where(along.sum(shares.q) == 0, 0, grad / shares.total)
    if shares.rest is not None:
        has_rest = xp.where(
            shares.rest == 0, 0, xp.ones_like(shares.rest)
        )  # of its dtype, which a number need not have
        left = along.product(scale * has_rest * rest_factor, 0 - stats["rest_log_prob"])
        grad = grad - left
    if teacher.is_log:  # 0 where q_k is, infinite losses of two classes or not
        grad = xp.where(shares.q == 0, 0, along.product(shares.q, grad))
    return xp.where(padding, 0, grad)


def entropy(along: Along, teacher: Teacher, values: Array, ids: Array, padding: Array) -> Array:
    """The entropy of each position's teacher, P + (1,): of its classes, repeated ids as one, and the bucket."""
    xp = along.xp
    shares = shares_of(along, teacher, values, padding)
    q = shares.whole_q
    # What each id's class has in all.
    total = along.sum(xp.where(ids[..., :, None] == ids[..., None, :], q[..., None, :], 0))[..., 0]
    if teacher.is_log and shares.total is None:
        is_zero = q == 0
        log = xp.where(is_zero, 0, values) + xp.log(xp.where(is_zero, 1, total / xp.where(is_zero, 1, q)))
        terms = q * log
    else:
        terms = times_log(xp, q, total)
    result = 0 - along.sum(terms)
    return result if shares.rest is None else result - times_log(xp, shares.rest, shares.rest)


def times_log(xp: Any, q: Array, total: Array) -> Array:
    """q log(total) with 0 log 0 = 0."""
    return q * xp.log(xp.where(q == 0, 1, total))
