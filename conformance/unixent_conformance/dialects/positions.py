"""The dialects of statistics and of sparse targets, as in `table`; q_k, Q and L_rest are those of sparse targets."""

from __future__ import annotations

import numpy as np

from unixent_conformance.dialects import changes, sparse
from unixent_conformance.dialects.model import SPARSE, STATISTICS, Dialect, has_bad_index, ignores
from unixent_conformance.dialects.rows import become
from unixent_conformance.model import Call, Case


def leaves_out(call: Call, case: Case) -> bool:
    """Whether a position does not count, or its target is no class."""
    masked = call.mask is not None and bool((np.asarray(call.mask) == 0).any())
    return masked or ignores(call, case) or has_bad_index(call)


DIALECTS = (
    Dialect(
        "statistics of every row",
        "ignore_index",
        "vₙ = 1: entropy and the others that need no target of every row, the others of every row with a target",
        "Mask the statistics after the call: here an ignored or masked position gives 0, a bad target NaN.",
        leaves_out,
        rows=changes.every_row,
        about=STATISTICS,
    ),
    Dialect(
        "entropy with 0·∞ = NaN",
        "infinities",
        "lse − Σ_c p_c·x_c, or −Σ_c p_c·log p_c, with 0·∞ = NaN, and its derivative",
        "A class that is ruled out by -inf makes the entropy NaN: use a large finite number.",
        lambda call, case: call.statistic == "entropy",
        rows=lambda rows, call: become(type(rows), rows, nan_rows=rows.nan_rows | changes.below(rows)),
        about=STATISTICS,
    ),
    Dialect(
        "divergence from the teacher",
        "divergence",
        "ℓ = Σ_k q_k·log(q_k / p_k), and (1−Q)·log((1−Q) / Σ p of the others): less the teacher's entropy",
        "Add unixent.entropy_of(target): the gradient of the student is the same, that of the teacher is not.",
        sparse.is_bare,
        rows=lambda rows, call: become(sparse.Divergence, rows),
        about=SPARSE,
    ),
    Dialect(
        "student over the selected classes",
        "tail",
        "L_k = log Σ_j exp x_j − x_k with j over the K classes, the teacher divided by Q",
        "What the student gives other classes costs nothing: pass logits with -inf there for the same loss here.",
        lambda call, case: call.tail == "renormalize" and sparse.is_bare(call, case) and not call.linear,
        call=sparse.over_selected,
        about=SPARSE,
    ),
)
