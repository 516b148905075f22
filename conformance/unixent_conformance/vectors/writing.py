"""From cases to files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unixent_conformance.expected import Part, expected
from unixent_conformance.model import Array, Call, Case
from unixent_conformance.tolerance import FORMATS, Format
from unixent_conformance.vectors import files
from unixent_conformance.vectors.selection import REASONS, selected

DEFAULTS = {
    "axis": -1,
    "reduction": "mean",
    "ignore_index": -100,
    "label_smoothing": 0.0,
    "z_loss": 0.0,
    "scale": 1.0,
    "softcap": None,
    "temperature": 1.0,
    "num_classes": None,
    "normalizer": None,
    "on_empty": "zero",
    "dtype": None,
    "validate": "auto",
    "k": 0,
    "chunk": None,
}


def export(folder: str | Path, features: Sequence[str] = ()) -> dict[str, Any]:
    """Write a set and return its manifest. The same catalogue gives the same bytes.

    features: only these; by default every feature of the catalogue that single calls can show.
    """
    store = files.Store()
    vectors = [vector for case in selected(features) if (vector := _vector(case, store)) is not None]
    arrays = store.serialized()
    manifest = {
        "format": files.FORMAT,
        "version": files.VERSION,
        "about": "Values and gradients of unixent.cross_entropy, position_stats and their kin, in nats. "
        "|result - value| <= bound entry by entry; where value is NaN or infinite, so is the result.",
        "arrays": {"file": files.ARRAYS, "sha256": hashlib.sha256(arrays).hexdigest()},
        "defaults": DEFAULTS,
        "reasons": {name: REASONS[name] for name in dict.fromkeys(vector["feature"] for vector in vectors)},
        "vectors": vectors,
    }
    files.write(Path(folder), manifest, arrays)
    return manifest


def _vector(case: Case, store: files.Store) -> dict[str, Any] | None:
    """One entry of the manifest; None where an answer may round to an infinity or not, which no bound can say."""
    call = case.build()
    # Where an error is due only if values can be read, there is an answer for when they cannot: NaN.
    parts = [] if case.raises and not case.raises.about_values else expected(call, case.quantity)
    if any(_may_overflow(part) for part in parts):
        return None
    vector: dict[str, Any] = {"id": case.id, "feature": case.feature, "reason": reason(case), "asks": case.quantity}
    vector["function"] = _function(case, call)
    if call.statistic:
        vector["output"] = call.statistic
    if call.tail:
        vector["topk"] = {"values": "log_probs" if call.log_probs else "probs", "tail": call.tail}
    vector["inputs"] = {name: store.add(np.asarray(array)) for name, array in call.all_arrays().items()}
    vector["options"] = call.static()
    vector["needs"] = sorted(case.needs)
    vector["expected"] = [_expected(part, store) for part in parts]
    vector["flags"] = _flags(case, parts)
    if case.raises:
        vector["raises"] = {"error": case.raises.error, "argument": case.raises.argument}
    return vector


def reason(case: Case) -> str:
    """Why the vector exists: what its feature is about, and what this one is."""
    variant = case.id.split("/", 1)[1].rsplit("/", 1)[0].replace("/", ", ").replace("-", " ")
    return f"{REASONS[case.feature]} Here: {case.note or variant}."


def _function(case: Case, call: Call) -> str:
    if case.quantity == "terms":
        return "loss_terms"
    value, both = (
        ("position_stats", "position_stats_and_grad") if call.statistic else ("cross_entropy", "value_and_grad")
    )
    return ("linear_" if call.linear else "") + (value if case.quantity == "loss" else both)


def _expected(part: Part, store: files.Store) -> dict[str, Any]:
    value, bound = total_bound(part)
    return {"name": part.name, "dtype": part.dtype, "value": store.add(value), "bound": store.add(bound)}


def total_bound(part: Part) -> tuple[Array, Array]:
    """The exact value rounded to float64, and a bound of everything: the error model's, the rounding to the dtype of
    the result, and that of the value itself. 0 where the answer is exact or no number."""
    exact = np.asarray(part.estimate.value, np.longdouble)
    if part.dtype not in FORMATS:  # an index, or whether something holds
        return exact.astype(np.float64), np.zeros(exact.shape)
    form = Format.of(part.dtype)
    own = np.broadcast_to(np.asarray(part.estimate.bound, np.longdouble), exact.shape)
    with np.errstate(all="ignore"):
        value = exact.astype(np.float64)
        last = np.maximum(form.roundoff * (abs(exact) + own), form.smallest / 2)
        bound = np.nextafter((own + last + abs(exact - value)).astype(np.float64), np.inf)
        sure = ~np.isfinite(value) | ((exact == 0) & (own == 0))
    return value, np.where(sure, 0.0, bound)


def _may_overflow(part: Part) -> bool:
    """A finite value so near the end of its dtype that a result within the bound may be infinite."""
    if part.dtype not in FORMATS:
        return False
    largest = Format.of(part.dtype).largest
    with np.errstate(all="ignore"):
        reach = abs(part.estimate.value) + part.estimate.bound
        return bool((np.isfinite(part.estimate.value) & ~(reach < largest)).any())


def _flags(case: Case, parts: Sequence[Part]) -> list[str]:
    """What a reader should be ready for."""
    values = [part.estimate.value for part in parts]
    bounds = [total_bound(part)[1] for part in parts]
    traits = {
        "raises": case.raises is not None,
        "nan": any(np.isnan(value).any() for value in values),
        "infinite": any(np.isinf(value).any() for value in values),
        "exact zero": any(((value == 0) & (bound == 0)).any() for value, bound in zip(values, bounds, strict=True)),
        "no positions": any(value.size == 0 for value in values),
        "half precision": any(need in ("dtype:float16", "dtype:bfloat16") for need in case.needs),
    }
    return [name for name, holds in traits.items() if holds]
