"""The dialects of infinities and NaN: what becomes of rows that hold them, and of rows that count nothing."""

from __future__ import annotations

from unixent_conformance.dialects import changes
from unixent_conformance.dialects.model import Dialect, beside_the_target, infinite, smooths, zero_beside_infinity
from unixent_conformance.dialects.rows import NaNValue, become
from unixent_conformance.oracle import Rows

DIALECTS = (
    Dialect(
        "0·∞ is NaN",
        "infinities",
        "Σ_c t_c·L_c with 0·∞ = NaN",
        "A class of probability 0 or weight 0 with a -inf logit makes the loss NaN: use a large finite number.",
        infinite,
        rows=changes.zero_times_infinity,
        probe=zero_beside_infinity,
    ),
    Dialect(
        "0·∞ at the target is NaN",
        "infinities",
        "w_y·L_y with 0·∞ = NaN",
        "A target of weight 0 with a -inf logit makes the loss NaN: use a large finite number.",
        lambda call, case: infinite(call, case) and call.has_indices and not smooths(call, case),
        rows=changes.zero_at_target_times_infinity,
        probe=zero_beside_infinity,
    ),
    Dialect(
        "0·∞ is NaN, gradient too",
        "infinities",
        "Σ_c t_c·L_c with 0·∞ = NaN, and its derivative",
        "A class of probability 0 or weight 0 with a -inf logit makes all NaN: use a large finite number.",
        infinite,
        rows=lambda rows, call: become(Rows, rows, nan_rows=rows.nan_rows | changes.zero_meets_infinity(rows)),
        probe=zero_beside_infinity,
    ),
    Dialect(
        "NaN gradient of uncounted rows",
        "infinities",
        "∂ℓₙ/∂x = vₙ·(p − onehot) with 0·NaN = NaN; the value leaves the row out",
        "Clean the logits of ignored positions: the loss looks fine and the weights turn NaN at the next step.",
        infinite,
        rows=changes.nan_gradients,
        hazard=True,
    ),
    Dialect(
        "NaN of a −∞ logit",
        "infinities",
        "x_c = −∞ → ℓₙ = NaN",
        "Mask logits with a large finite number, not with -inf.",
        infinite,
        rows=lambda rows, call: become(Rows, rows, nan_rows=rows.nan_rows | changes.below(rows)),
        probe=beside_the_target,
    ),
    Dialect(
        "NaN of a −∞ logit, value only",
        "infinities",
        "x_c = −∞ → ℓₙ = NaN, with the gradient that is due",
        "Mask logits with a large finite number, not with -inf.",
        infinite,
        rows=lambda rows, call: become(NaNValue, rows, nan_value=changes.below(rows)),
        probe=beside_the_target,
    ),
    Dialect(
        "+∞ is an infinite loss",
        "infinities",
        "lse = ∞ → ℓₙ = ∞ − x_y; p is NaN at the +∞ logit, 0 elsewhere",
        "Look for infinities as well as NaN: here a +∞ logit makes the value and the whole gradient row NaN.",
        infinite,
        rows=changes.infinite_loss,
    ),
    Dialect(
        "NaN of uncounted rows, value only",
        "infinities",
        "vₙ·ℓₙ with 0·NaN = NaN, gradient 0",
        "Masking multiplies: clean the logits of padded positions before the call.",
        infinite,
        rows=changes.nan_value_of_inactive,
    ),
    Dialect(
        "NaN of uncounted rows",
        "infinities",
        "vₙ·ℓₙ with 0·NaN = NaN",
        "Masking multiplies: clean the logits of padded positions before the call.",
        infinite,
        rows=changes.nan_of_inactive,
    ),
)
