"""The exact answers: the loss and its gradients from the formulas, in extended precision.

`rows` solves every position of logits, `solution` a whole call: its reduction, its upstream gradient, and for the fused
linear form what its logits are made of. No code is shared with any backend or with the core.
"""

from unixent_conformance.oracle.rows import UNIT_ROUNDOFF, Rows, product, sum_of_rest
from unixent_conformance.oracle.solution import Linear, Reduced, Solution, reduce, rows_of, solve

__all__ = [
    "UNIT_ROUNDOFF",
    "Linear",
    "Reduced",
    "Rows",
    "Solution",
    "product",
    "reduce",
    "rows_of",
    "solve",
    "sum_of_rest",
]
