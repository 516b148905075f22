"""Dialects of accuracy: what is computed is the definition, with fewer digits than it could have.

Each bound is of what the dialect names: of the value what roundings relative to 1 or to the logits do to it, of the
gradient what they do to p and to p - t. In a row where such roundings leave no digits they explain nothing.
"""

from __future__ import annotations

from unixent_conformance.dialects.model import LOSSES, SPARSE, STATISTICS, Dialect, is_half
from unixent_conformance.dialects.rows import absolute, differences
from unixent_conformance.dialects.sparse import complement

# How many digits are kept; tried after, and on top of, what is computed. The order is from the mildest on.
ACCURACY = (
    Dialect(
        "absolute accuracy",
        "accuracy",
        "|error| ≤ (8 + 2·log₂C)·u·(ℓ + 1), p − onehot and 1 − tanh² likewise",
        "Losses and gradients of confident rows round to 0 or to noise; training near convergence stalls there.",
        lambda call, case: True,
        rows=absolute,
        hazard=True,
        about=LOSSES | SPARSE | STATISTICS,
    ),
    Dialect(
        "accuracy of the logits",
        "accuracy",
        "|error| ≤ (8 + 2·log₂C)·u·(|lse| + |x|)",
        "lse − x cancels: subtract a common offset from the logits before the call.",
        lambda call, case: True,
        rows=differences(lambda call: call.acc_dtype),
        hazard=True,
        about=LOSSES | SPARSE | STATISTICS,
    ),
    Dialect(
        "computed in float32",
        "accuracy",
        "as above with u = 2⁻²⁴, for float64 logits too",
        "float64 in does not mean float64 arithmetic: ask the library for it where it can be asked.",
        lambda call, case: call.dtype == "float64",
        rows=differences(lambda call: "float32"),
        acc_dtype=lambda call, dtype: "float32",
        hazard=True,
        about=LOSSES | SPARSE | STATISTICS,
    ),
    Dialect(
        "computed in half precision",
        "accuracy",
        "as above with u of the logits' own float16 or bfloat16",
        "Cast the logits to float32 before the call.",
        lambda call, case: is_half(call),
        rows=differences(lambda call: call.dtype),
        acc_dtype=lambda call, dtype: call.dtype,
        hazard=True,
        about=LOSSES | SPARSE | STATISTICS,
    ),
    Dialect(
        "bucket by 1 − Σp",
        "accuracy",
        "as absolute accuracy, and L_rest = −log(1 − Σ p_k): |error| ≤ (8 + 2·log₂C)·u·Σ p_k / (1 − Σ p_k)",
        "A confident student loses the bucket's digits, and then its gradient: sum the other classes by themselves.",
        lambda call, case: call.tail == "bucket",
        rows=complement,
        hazard=True,
        about=SPARSE,
    ),
)
