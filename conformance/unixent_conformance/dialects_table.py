"""The dialects: name, formula, and what changes in the oracle. In the formulas ℓ, d, v, w, q, s, C are those of the
definition, N is the number of positions, V = Σ v and m_n the row maximum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from unixent_conformance.cases.model import Call, Case
from unixent_conformance.oracle import Array, Rows, sum_of_others
from unixent_conformance.tolerance import Format


@dataclass(frozen=True)
class Dialect:
    """A convention other than ours.

    topic: what it is about; an answer follows one dialect of a topic at most. formula: what is computed instead.
    advice: what to do about it. hazard: a plausible number comes out of bad data, or digits are lost, so that it is a
    convention only in that it can be described. applies: whether a case can tell it from ours.
    """

    name: str
    topic: str
    formula: str
    advice: str
    applies: Callable[[Call, Case], bool]
    call: Callable[[Call], Call] = lambda call: call
    rows: Callable[[Rows, Call], Rows] = lambda rows, call: rows
    narrow: Callable[[Call, str], str] = lambda call, narrow: narrow
    result: Callable[[Call, str], str] = lambda call, result: result
    hazard: bool = False


def _index(call: Call) -> bool:
    return bool(np.asarray(call.target).dtype.kind in "iu")


def _mean(call: Call, case: Case) -> bool:
    return call.options.get("reduction", "mean") == "mean" and call.options.get("normalizer") is None


def _half(call: Call, case: Case) -> bool:
    return call.dtype in ("float16", "bfloat16")


def _smooth(call: Call, case: Case) -> bool:
    return bool(call.options.get("label_smoothing", 0.0)) and _index(call)


def _strays(call: Call, case: Case) -> bool:
    if not _index(call):
        return False
    y, classes = np.asarray(call.target), call.logits.shape[call.options.get("axis", -1)]
    return bool(((y < 0) | (y >= classes)).any())


def _ignores(call: Call, case: Case) -> bool:
    return _index(call) and bool((np.asarray(call.target) == call.options.get("ignore_index", -100)).any())


def _infinite(call: Call, case: Case) -> bool:
    if call.linear:  # infinities may come of the product
        return True
    return not bool(np.isfinite(np.asarray(call.logits).astype(np.float64)).all())


def _with(call: Call, **options: Any) -> Call:
    return replace(call, options={**call.options, **options})


def _indices(rows: Rows, call: Call) -> tuple[Array, Array, Array]:
    """Each position's class, whether it is ignored, whether it lies outside the classes."""
    y = np.asarray(call.target).reshape(-1)
    ignored = y == call.options.get("ignore_index", -100)
    return y, ignored, ~ignored & ((y < 0) | (y >= rows.classes))


def _coefficients(rows: Rows, t: Array) -> Rows:
    return replace(rows, coefficient=t, others=sum_of_others(t))


def _weights(rows: Rows, call: Call) -> Array:
    return np.ones(rows.classes) if call.weight is None else np.asarray(call.weight).astype(np.longdouble)


def _one_hot(rows: Rows, call: Call) -> Array:
    return np.asarray(np.arange(rows.classes) == np.asarray(call.target).reshape(-1, 1)).astype(np.longdouble)


def _over_others(rows: Rows, call: Call) -> Rows:
    s, hot = np.longdouble(call.options["label_smoothing"]), _one_hot(rows, call)
    return _coefficients(rows, _weights(rows, call) * ((1 - s) * hot + s / max(rows.classes - 1, 1) * (1 - hot)))


def _weight_of_target(rows: Rows, call: Call) -> Rows:
    s, hot = np.longdouble(call.options["label_smoothing"]), _one_hot(rows, call)
    own = (hot * _weights(rows, call)).sum(axis=1, keepdims=True)
    return _coefficients(rows, own * ((1 - s) * hot + s / rows.classes))


def _denominators(each: Callable[[Rows, Call], Any]) -> Callable[[Rows, Call], Rows]:
    def change(rows: Rows, call: Call) -> Rows:
        return replace(rows, denominators=np.broadcast_to(each(rows, call), rows.counted.shape).astype(np.longdouble))

    return change


def _target_mass(rows: Rows, call: Call) -> Array:
    return np.asarray(rows.counted * rows.coefficient.sum(axis=1))


def _first_axis(rows: Rows, call: Call) -> Any:
    return np.longdouble(rows.positions[0] if rows.positions else 1) / max(len(rows.counted), 1)


def _unignored(call: Call) -> Call:
    return _with(call, ignore_index=-(2**62))


def _retarget(change: Callable[[Array, int], Array]) -> Callable[[Call], Call]:
    def changed(call: Call) -> Call:
        y, classes = np.asarray(call.target), call.logits.shape[call.options.get("axis", -1)]
        keep = y == call.options.get("ignore_index", -100)
        wide = y.astype(object)  # no dtype holds both signed and unsigned
        moved = np.where(keep, wide, change(wide, classes))
        return replace(call, target=np.clip(moved, -(2**63), 2**63 - 1).astype(np.int64))

    return changed


def _stray_silent(counted: bool) -> Callable[[Rows, Call], Rows]:
    def change(rows: Rows, call: Call) -> Rows:
        stray = rows.lost & np.isfinite(rows.spread) & (rows.counted != 0)
        return replace(
            rows,
            lost=rows.lost & ~stray,
            counted=np.where(stray, 0, rows.counted),
            denominators=np.where(stray, float(counted), rows.denominators),
        )

    return change


def _stray_no_target(rows: Rows, call: Call) -> Rows:
    """The one-hot row of a stray index is all zeros: what smoothing spreads is left, and the z-loss."""
    _, _, stray = _indices(rows, call)
    s = np.longdouble(call.options.get("label_smoothing", 0.0))
    spread = np.broadcast_to(_weights(rows, call) * s / rows.classes, rows.coefficient.shape)
    rows = _coefficients(rows, np.where(stray[:, None], spread, rows.coefficient))
    return replace(rows, lost=rows.lost & ~(stray & np.isfinite(rows.spread)))


def _zero_times_infinity(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        poisoned = ((rows.coefficient == 0) & np.isinf(rows.surprise)).any(axis=1) & (rows.counted != 0)
    return _Poisoned(**{**_fields(rows), "poisoned": poisoned})


def _stray_nan_value(rows: Rows, call: Call) -> Rows:
    """The value is NaN, the gradient that of lse alone."""
    _, _, stray = _indices(rows, call)
    others = np.where(stray[:, None], 1, rows.others)
    rows = replace(rows, coefficient=np.where(stray[:, None], 0, rows.coefficient), others=others)
    return _Poisoned(**{**_fields(replace(rows, lost=rows.lost & ~stray)), "poisoned": stray})


def _stray_costs_nothing(rows: Rows, call: Call) -> Rows:
    """The value is 0, the gradient that of lse alone."""
    return _NoTarget(**_fields(_stray_nan_value(rows, call)))


def _nan_value_of_uncounted(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        terms = np.where(rows.coefficient == 0, 0, rows.surprise).sum(axis=1)
        return _Poisoned(**{**_fields(rows), "poisoned": (rows.counted == 0) & ~np.isfinite(rows.lse + terms)})


def _infinite_loss(rows: Rows, call: Call) -> Rows:
    above = (rows.logits == np.inf).any(axis=1) & ~np.isnan(rows.logits).any(axis=1) & (rows.counted != 0)
    return _InfiniteLoss(**{**_fields(replace(rows, lost=rows.lost & ~above)), "above": above})


def _below(rows: Rows) -> Array:
    return np.asarray((rows.logits == -np.inf).any(axis=1) & (rows.counted != 0))


def _poisoned_by_uncounted(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        bad = (rows.counted == 0) & ~np.isfinite(rows.lse + rows.surprise.sum(axis=1))
    return replace(rows, lost=rows.lost | bad, counted=np.where(bad, 1, rows.counted))


def _nan_gradients(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        spoiled = (rows.counted == 0) & ~np.isfinite(rows.lse)
    return _NaNGradients(**{**_fields(rows), "lost": rows.lost | spoiled, "spoiled": spoiled})


def _fields(rows: Rows) -> dict[str, Any]:
    return {field.name: getattr(rows, field.name) for field in fields(rows)}


@dataclass(frozen=True)
class _Poisoned(Rows):
    """Rows whose value is NaN and whose gradient is not."""

    poisoned: Array = None  # type: ignore[assignment]

    def losses(self) -> Array:
        return np.where(self.poisoned, np.nan, super().losses())

    def target_gradients(self) -> Array:
        with np.errstate(all="ignore"):
            zero = (self.target_factor == 0) & np.isinf(self.surprise) & (self.counted != 0)[:, None]
        return np.where(zero, np.nan, super().target_gradients())

    def gradient_magnitudes(self) -> Array:
        alone = abs(self.counted)[:, None] * self.probability  # without a target, p is what there is
        return np.where(
            self.poisoned[:, None], np.fmax(super().gradient_magnitudes(), alone), super().gradient_magnitudes()
        )


@dataclass(frozen=True)
class _NoTarget(_Poisoned):
    """Rows whose value is 0 and whose gradient is p."""

    def losses(self) -> Array:
        return np.where(self.poisoned, 0, super().losses())


@dataclass(frozen=True)
class _NaNGradients(Rows):
    """Rows that do not count and are left out of the value, but whose gradient 0·NaN makes NaN."""

    spoiled: Array = None  # type: ignore[assignment]

    def losses(self) -> Array:
        return np.where(self.spoiled, 0, super().losses())

    def loss_magnitudes(self) -> Array:
        return np.where(self.spoiled, 0, super().loss_magnitudes())


@dataclass(frozen=True)
class _InfiniteLoss(Rows):
    """lse = inf under a +inf logit: the loss is inf - x, p is NaN at that logit and 0 elsewhere."""

    above: Array = None  # type: ignore[assignment]

    def losses(self) -> Array:
        with np.errstate(all="ignore"):
            infinite = np.where(self.coefficient == 0, 0, self.coefficient * (np.inf - self.logits)).sum(axis=1)
        return np.where(self.above, infinite, super().losses())

    def loss_magnitudes(self) -> Array:
        return np.where(self.above, 0, super().loss_magnitudes())

    def logits_gradients(self) -> Array:
        mixed = np.where(self.logits == np.inf, np.nan, -self.counted[:, None] * self.coefficient)
        return np.where(self.above[:, None], mixed, super().logits_gradients())

    def gradient_magnitudes(self) -> Array:
        return np.where(self.above[:, None], abs(self.coefficient), super().gradient_magnitudes())


@dataclass(frozen=True)
class _Clipped(Rows):
    """No probability is below `least`."""

    least: float = 0.0

    @property
    def surprise(self) -> Array:
        return np.asarray(np.minimum(super().surprise, -np.log(np.longdouble(self.least))))


@dataclass(frozen=True)
class _Absolute(Rows):
    """The error model of log-softmax: roundings relative to 1 and to m - x, not to the loss."""

    def loss_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            total = abs(self.coefficient).sum(axis=1)
            return np.asarray(super().loss_magnitudes() + abs(self.counted) * total)

    def gradient_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            total = abs(self.coefficient).sum(axis=1, keepdims=True)
            flow = self.probability * total + abs(self.coefficient)
            return np.asarray(super().gradient_magnitudes() + self._settle(abs(self.counted)[:, None] * flow))

    def target_magnitudes(self) -> Array:
        return np.asarray(super().target_magnitudes() + abs(self.counted)[:, None] * abs(self.target_factor) * self.far)

    @property
    def far(self) -> Array:
        """What a class's roundings are relative to."""
        return np.ones_like(self.logits)


@dataclass(frozen=True)
class _Difference(_Absolute):
    """The error model of lse - x: roundings relative to the logits' own magnitude."""

    def loss_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            each = np.where(self.coefficient == 0, 0, abs(self.coefficient) * abs(self.logits))
            total = abs(self.coefficient).sum(axis=1) * abs(self.lse) + each.sum(axis=1)
            return np.asarray(super().loss_magnitudes() + abs(self.counted) * total)

    def gradient_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(super().gradient_magnitudes() * self.far)

    @property
    def far(self) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(1 + abs(self.lse)[:, None] + abs(np.where(np.isfinite(self.logits), self.logits, 0)))


def _as(kind: type[Rows]) -> Callable[[Rows, Call], Rows]:
    """The same rows under another error model, whatever they are already."""

    def change(rows: Rows, call: Call) -> Rows:
        mixed = kind if type(rows) is Rows else type(kind.__name__, (kind, type(rows)), {})
        made: Rows = object.__new__(mixed)
        for name, value in vars(rows).items():
            object.__setattr__(made, name, value)
        return made

    return change


DIALECTS = (
    Dialect(
        "mean over all positions",
        "denominator",
        "mean = Σ ℓₙ / N",
        "Weights, masks and ignored positions do not enter the denominator: divide a sum by Σ vₙ·w_y yourself.",
        _mean,
        rows=_denominators(lambda rows, call: 1.0),
    ),
    Dialect(
        "mean over counted positions",
        "denominator",
        "mean = Σ ℓₙ / #{n : vₙ ≠ 0}",
        "Class weights and fractional masks do not enter the denominator: divide a sum by Σ vₙ·w_y yourself.",
        _mean,
        rows=_denominators(lambda rows, call: rows.counted != 0),
    ),
    Dialect(
        "mean over the target's mass",
        "denominator",
        "mean = Σ ℓₙ / Σₙ Σ_c vₙ·w_c·q_nc",
        "Probability targets are weighed by their sum: ask for the sum and divide by the number of positions.",
        _mean,
        rows=_denominators(_target_mass),
    ),
    Dialect(
        "mean over the first axis",
        "denominator",
        "mean = Σ ℓₙ / (length of the first position axis)",
        "Sequences are summed and only the batch is averaged: divide by the sequence length.",
        lambda call, case: _mean(call, case) and np.asarray(call.target).ndim > 1,
        rows=_denominators(_first_axis),
    ),
    Dialect(
        "empty mean is NaN",
        "empty mean",
        "Σ dₙ = 0 → NaN (0/0)",
        "Guard the last, all-padded batch, or use on_empty='zero' here; on_empty='nan' keeps the old behaviour.",
        lambda call, case: _mean(call, case) or call.options.get("normalizer") is not None,
        call=lambda call: _with(call, on_empty="nan"),
    ),
    Dialect(
        "smoothing over the other classes",
        "label smoothing",
        "q' = (1−s)·onehot + s/(C−1)·(1−onehot)",
        "The same s smooths C/(C−1) times as much: pass s·C/(C−1) when you move here, s·(C−1)/C when you move there.",
        _smooth,
        rows=_over_others,
    ),
    Dialect(
        "smoothing weighed by the target's class",
        "label smoothing",
        "ℓ = w_y·Σ_c ((1−s)·onehot + s/C)_c · L_c",
        "The weight of the target scales the whole position; here each smoothed class keeps its own weight.",
        lambda call, case: _smooth(call, case) and call.weight is not None,
        rows=_weight_of_target,
    ),
    Dialect(
        "no ignored index",
        "ignore_index",
        "vₙ = mₙ, whatever yₙ is",
        "-100 is an index like any other, out of range: pass a mask, or replace it before the call.",
        _ignores,
        call=_unignored,
    ),
    Dialect(
        "index out of range: NaN",
        "out of range",
        "y ∉ [0, C) → ℓₙ = NaN, no error",
        "Look for NaN after the call; here an eager call raises TargetRangeError.",
        lambda call, case: _strays(call, case) and case.raises is not None,
    ),
    Dialect(
        "index out of range: NaN, finite gradient",
        "out of range",
        "y ∉ [0, C) → ℓₙ = NaN, ∂ℓₙ/∂x = p",
        "Look at the loss, not at the gradient: a step still moves the weights.",
        _strays,
        rows=_stray_nan_value,
        hazard=True,
    ),
    Dialect(
        "index out of range: clamped",
        "out of range",
        "y → min(max(y, 0), C−1)",
        "Bad labels train the first or the last class: check them before the call.",
        _strays,
        call=_retarget(lambda y, classes: np.clip(y, 0, classes - 1)),
        hazard=True,
    ),
    Dialect(
        "index out of range: counted from the end",
        "out of range",
        "y ∈ [−C, −1] → y + C; beyond, NaN",
        "Labels of -1 train the last class: check them, or mask them, before the call.",
        _strays,
        call=_retarget(lambda y, classes: np.where((y < 0) & (y >= -classes), y + classes, y)),
        hazard=True,
    ),
    Dialect(
        "index out of range: no target",
        "out of range",
        "y ∉ [0, C) → a one-hot row of zeros: ℓₙ = 0, yet counted in the mean",
        "Bad labels vanish without a word and dilute the mean: check them before the call.",
        _strays,
        rows=_stray_no_target,
        hazard=True,
    ),
    Dialect(
        "index out of range: no target, gradient p",
        "out of range",
        "y ∉ [0, C) → ℓₙ = 0, ∂ℓₙ/∂x = p",
        "Bad labels cost nothing and yet push every logit down: check them before the call.",
        _strays,
        rows=_stray_costs_nothing,
        hazard=True,
    ),
    Dialect(
        "index out of range: ignored",
        "out of range",
        "y ∉ [0, C) → vₙ = 0",
        "Bad labels vanish without a word: check them before the call.",
        _strays,
        rows=_stray_silent(False),
        hazard=True,
    ),
    Dialect(
        "result in float32",
        "result dtype",
        "dtype = float32, whatever the dtype of the logits",
        "Here the result has the dtype of the logits; ask for dtype='float32' to keep this.",
        lambda call, case: call.result_dtype != "float32",
        result=lambda call, result: "float32",
    ),
    Dialect(
        "result in float64",
        "result dtype",
        "dtype = float64, always",
        "Here the result has the dtype of the logits; ask for dtype='float64' to keep this.",
        lambda call, case: call.result_dtype != "float64",
        result=lambda call, result: "float64",
    ),
    Dialect(
        "clipped probabilities",
        "clipping",
        "L_c = min(L_c, −log ε), ε the spacing of the dtype at 1",
        "A hard example counts no more than -log(eps) (15.9 in float32): not a loss to train on.",
        lambda call, case: case.asks == "loss" and not call.linear,
        rows=lambda rows, call: _Clipped(**{**_fields(rows), "least": 2 * Format.of(call.dtype).roundoff}),
        hazard=True,
    ),
    Dialect(
        "0·∞ is NaN",
        "infinities",
        "Σ_c t_c·L_c with 0·∞ = NaN",
        "A class of probability 0 or weight 0 with a -inf logit makes the loss NaN: use a large finite number.",
        _infinite,
        rows=_zero_times_infinity,
    ),
    Dialect(
        "0·∞ is NaN, gradient too",
        "infinities",
        "Σ_c t_c·L_c with 0·∞ = NaN, and its derivative",
        "A class of probability 0 or weight 0 with a -inf logit makes all NaN: use a large finite number.",
        _infinite,
        rows=lambda rows, call: replace(rows, lost=rows.lost | _zero_times_infinity(rows, call).poisoned),  # type: ignore[attr-defined]
    ),
    Dialect(
        "NaN gradient of uncounted rows",
        "infinities",
        "∂ℓₙ/∂x = vₙ·(p − onehot) with 0·NaN = NaN; the value leaves the row out",
        "Clean the logits of ignored positions: the loss looks fine and the weights turn NaN at the next step.",
        _infinite,
        rows=_nan_gradients,
        hazard=True,
    ),
    Dialect(
        "NaN of a −∞ logit",
        "infinities",
        "x_c = −∞ → ℓₙ = NaN",
        "Mask logits with a large finite number, not with -inf.",
        _infinite,
        rows=lambda rows, call: replace(rows, lost=rows.lost | _below(rows)),
    ),
    Dialect(
        "NaN of a −∞ logit, value only",
        "infinities",
        "x_c = −∞ → ℓₙ = NaN, with the gradient that is due",
        "Mask logits with a large finite number, not with -inf.",
        _infinite,
        rows=lambda rows, call: _Poisoned(**{**_fields(rows), "poisoned": _below(rows)}),
    ),
    Dialect(
        "+∞ is an infinite loss",
        "infinities",
        "lse = ∞ → ℓₙ = ∞ − x_y; p is NaN at the +∞ logit, 0 elsewhere",
        "Look for infinities as well as NaN: here a +∞ logit makes the value and the whole gradient row NaN.",
        _infinite,
        rows=_infinite_loss,
    ),
    Dialect(
        "NaN of uncounted rows, value only",
        "infinities",
        "vₙ·ℓₙ with 0·NaN = NaN, gradient 0",
        "Masking multiplies: clean the logits of padded positions before the call.",
        _infinite,
        rows=_nan_value_of_uncounted,
    ),
    Dialect(
        "NaN of uncounted rows",
        "infinities",
        "vₙ·ℓₙ with 0·NaN = NaN",
        "Masking multiplies: clean the logits of padded positions before the call.",
        _infinite,
        rows=_poisoned_by_uncounted,
    ),
)

# Known from the absence of an error alone, where one is due.
UNCHECKED = Dialect(
    "bad argument accepted",
    "checks",
    "no error: a wrong shape is broadcast, a wrong dtype converted, a value out of its range used as it is",
    "Check shapes, dtypes and options before the call: a mistake there becomes a number.",
    lambda call, case: False,
    hazard=True,
)

# How many digits are kept; tried after, and on top of, what is computed. The order is from the mildest on.
ACCURACY = (
    Dialect(
        "absolute accuracy",
        "accuracy",
        "|error| ≤ (8 + 2·log₂C)·u·(ℓ + 1), p − onehot likewise",
        "Losses and gradients of confident rows round to 0 or to noise; training near convergence stalls there.",
        lambda call, case: True,
        rows=_as(_Absolute),
        hazard=True,
    ),
    Dialect(
        "accuracy of the logits",
        "accuracy",
        "|error| ≤ (8 + 2·log₂C)·u·(|lse| + |x|)",
        "lse − x cancels: subtract a common offset from the logits before the call.",
        lambda call, case: True,
        rows=_as(_Difference),
        hazard=True,
    ),
    Dialect(
        "computed in float32",
        "accuracy",
        "as above with u = 2⁻²⁴, for float64 logits too",
        "float64 in does not mean float64 arithmetic: ask the library for it where it can be asked.",
        lambda call, case: call.dtype == "float64",
        rows=_as(_Difference),
        narrow=lambda call, narrow: "float32",
        hazard=True,
    ),
    Dialect(
        "computed in half precision",
        "accuracy",
        "as above with u of the logits' own float16 or bfloat16",
        "Cast the logits to float32 before the call.",
        _half,
        rows=_as(_Difference),
        narrow=lambda call, narrow: call.dtype,
        hazard=True,
    ),
)
