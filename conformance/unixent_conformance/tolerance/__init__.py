"""The error model: an estimate of every array of an answer, its exact value with a bound for each entry.

`bounds` derives those of logits, `sparse` what sparse targets add, `statistics` those of statistics of positions,
`linear` what the dot products of the fused form add to them, `second` those of second derivatives; `formats` compares
an answer with its estimate.
"""

from unixent_conformance.oracle import Solution
from unixent_conformance.oracle.sparse import SparseRows
from unixent_conformance.tolerance import bounds, linear, second, sparse, statistics
from unixent_conformance.tolerance.formats import FORMATS, Comparison, Estimate, Format, compare, rounding

__all__ = [
    "FORMATS",
    "Comparison",
    "Estimate",
    "Format",
    "compare",
    "estimates",
    "rounding",
    "second_derivatives",
    "statistics",
]


def terms(s: Solution) -> dict[str, Estimate]:
    """The numerator and the denominator."""
    return {"numerator": bounds.numerator(s), "denominator": bounds.denominator(s)}


def estimates(s: Solution, wrt: tuple[str, ...]) -> dict[str, Estimate]:
    """The loss, and the gradient of each argument named in `wrt`."""
    if s.linear is not None:
        return linear.estimates(s, s.linear, wrt)
    of_target = sparse.target_gradient if isinstance(s.rows, SparseRows) else bounds.target_gradient
    gradients = {"logits": bounds.logits_gradient, "target": of_target}
    return {"loss": bounds.loss(s), **{name: gradients[name](s) for name in wrt}}


def second_derivatives(s: Solution) -> dict[str, Estimate]:
    """The change of each gradient along `call.directions()`."""
    return second.of_logits(s) if s.linear is None else second.of_linear(s, s.linear)
