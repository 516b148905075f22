"""A hostile call from its seed and index alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import ml_dtypes
import numpy as np

import unixent
from unixent_conformance.model import Call
from unixent_hostile import values
from unixent_hostile.mistakes import Mistake, draw_mistake
from unixent_hostile.options import draw_classes, draw_options, draw_positions, weighted
from unixent_hostile.views import laid_out

Array = np.ndarray[Any, Any]
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
FLOATS: dict[str, Any] = {name: name for name in ("float16", "float32", "float64")} | {"bfloat16": ml_dtypes.bfloat16}

LOGITS_FORMS = ("cross_entropy", "value_and_grad", "autograd", "loss_terms", "module", "terms_module", "native_module")
LINEAR_FORMS = ("linear_cross_entropy", "linear_value_and_grad", "linear_autograd")
STATS_FORMS = ("position_stats", "position_stats_and_grad", "position_stats_autograd")
LINEAR_STATS_FORMS = tuple(f"linear_{form}" for form in STATS_FORMS)
GRADED = ("log_prob", "entropy", "logsumexp", "selected_log_prob")
OUTPUTS = tuple(name for name in unixent.PositionStats._fields if name != "loss")
RANKED = {"prediction", "correct", "rank", "top_index"}
TAILS = ("drop", "renormalize", "bucket")
FLOAT_WEIGHTS = {FLOATS["float32"]: 40, FLOATS["float64"]: 26, FLOATS["float16"]: 17, FLOATS["bfloat16"]: 17}
INTEGER_WEIGHTS = {name: 35 if name == "int64" else 15 if name == "int32" else 8 for name in INTEGERS}


@dataclass(frozen=True)
class Traits:
    """What calls are drawn for: a backend that takes these dtypes, has or lacks automatic differentiation and modules,
    and may want so many calls in a row of one structure (shapes, dtypes, options), since it compiles each."""

    autodiff: bool = True
    native_module: bool = True
    views: bool = True
    per_structure: int = 1
    compiled: float = 0.0


@dataclass
class Drawn:
    """One call: what the oracle is asked (`call`), and how the backend is."""

    index: int
    form: str
    call: Call
    wrt: tuple[str, ...] = ()
    arrays: dict[str, Array] = field(default_factory=dict)  # as they are given: the mask may have axes of size 1
    given: dict[str, str] = field(default_factory=dict)  # own, numpy or list
    extra: dict[str, Any] = field(default_factory=dict)  # chunk
    mistake: Mistake | None = None
    compiled: bool = False
    strict: bool = False  # NumPy raises on floating-point exceptions
    family: str = ""

    @property
    def linear(self) -> bool:
        return self.form.startswith("linear")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The statistics asked for, in the order of their fields; none in a call of a loss."""
        return tuple(name for name in OUTPUTS if name in self.extra.get("outputs", ()))


def draw(seed: int, index: int, traits: Traits) -> Drawn:
    """Call number `index`. The order in which its parts are drawn belongs to what a seed means."""
    draft = _Draft(seed, index, traits)
    draft.draw_scores()
    draft.draw_target()
    draft.draw_weights()
    if draft.is_stats:
        draft.draw_outputs()
    if draft.with_grads:
        draft.draw_gradients()
    draft.draw_how_given()
    return draft.finished(index)


class _Draft:
    """A call that is being drawn: what shapes a compiled program from `s`, which is the same for several calls in a
    row, and the rest from `r` and `rng`."""

    def __init__(self, seed: int, index: int, traits: Traits) -> None:
        """The form, the shape and the options."""
        self.traits = traits
        self.s = s = Random((seed << 44) + (index // traits.per_structure << 1))
        self.r = Random((seed << 44) + (index << 1) + 1)
        self.rng = np.random.Generator(np.random.PCG64(self.r.getrandbits(64)))
        self.arrays: dict[str, Array] = {}
        self.given: dict[str, str] = {}
        self.wrt: tuple[str, ...] = ()
        self.outputs: tuple[str, ...] = ()
        self.tail, self.log_probs, self.compiled = "", False, False
        self.form = form = weighted(s, _form_weights(traits))
        self.is_stats, self.with_grads = "stats" in form, form.endswith(("_and_grad", "autograd"))
        self.linear = linear = form.startswith("linear")
        self.positions = positions = draw_positions(s)
        self.classes = classes = draw_classes(s, positions)
        self.axis = axis = len(positions) if linear else s.randint(0, len(positions))
        self.shape = (*positions[:axis], classes, *positions[axis:])
        weights = {"index": 62, "probability": 20, "sparse": 18}
        self.target_kind = "index" if self.is_stats else weighted(s, weights)
        self.options = options = draw_options(s, positions, classes, self.target_kind != "probability")
        without = ("reduction", "on_empty", "normalizer") if "terms" in form or self.is_stats else ()
        for name in (*without, *(("label_smoothing", "z_loss") if self.is_stats else ())):
            options.pop(name, None)
        if not linear and (axis != len(positions) or s.random() < 0.1):
            options["axis"] = axis if s.random() < 0.5 else axis - len(self.shape)
        self.existing = options.get("num_classes", classes)
        self.dtype = weighted(s, FLOAT_WEIGHTS)

    def own_or_other_dtype(self, own: float) -> Any:
        return self.dtype if self.s.random() < own else weighted(self.s, FLOAT_WEIGHTS)

    def beyond_existing(self) -> tuple[slice, ...]:
        """Where an array of the shape of the logits has padding."""
        return (*(slice(None),) * self.axis, slice(self.existing, None))

    def draw_scores(self) -> None:
        r, rng, arrays = self.r, self.rng, self.arrays
        self.family = r.choices(values.LOGITS, values.WEIGHTS)[0]
        if self.linear:
            self.draw_linear_scores()
            return
        arrays["logits"] = values.logits(r, rng, self.shape, self.axis, self.dtype, self.family)
        if self.existing < self.classes:
            arrays["logits"][self.beyond_existing()] = r.choice((np.nan, np.inf, 5.0, 1e4))

    def draw_linear_scores(self) -> None:
        s, r, rng, arrays = self.s, self.r, self.rng, self.arrays
        width = weighted(s, {0: 5, 1: 15, 3: 50, 8: 30})
        lesser = self.own_or_other_dtype(0.7)
        if self.family not in ("normal", "small", "zero", "equal", "special"):
            self.family = "normal"
        family = "normal" if width == 0 else self.family
        arrays["hidden"] = hidden = values.logits(r, rng, (*self.positions, width), -1, self.dtype, family)
        if self.family == "special":  # no sum of infinities whose order decides
            hidden[~np.isfinite(hidden) | (abs(hidden.astype(np.float64)) > 1e3)] = r.choice((np.nan, 0.0))
        arrays["classifier"] = values.logits(r, rng, (self.classes, width), -1, lesser, "normal")
        if s.random() < 0.5:
            family = r.choice(("normal", "zero", "padded"))
            arrays["bias"] = values.logits(r, rng, (self.classes,), 0, lesser, family)

    def draw_indices(self, shape: tuple[int, ...]) -> Array:
        ignored, dtype = self.options.get("ignore_index", -100), weighted(self.s, INTEGER_WEIGHTS)
        return values.indices(self.r, self.rng, shape, self.existing, ignored, dtype, bad=self.r.random() < 0.05)

    def draw_target(self) -> None:
        s, r, rng, arrays = self.s, self.r, self.rng, self.arrays
        if self.target_kind == "index":
            arrays["target"] = self.draw_indices(self.positions)
        elif self.target_kind == "sparse":
            of_teacher = (*self.positions, s.randint(1, 6))
            arrays["ids"] = self.draw_indices(of_teacher)
            self.log_probs, self.tail = s.random() < 0.5, s.choice(TAILS)
            arrays["target"] = values.teacher(r, rng, of_teacher, self.own_or_other_dtype(0.5), self.log_probs)
        else:
            arrays["target"] = values.probabilities(r, rng, self.shape, self.axis, self.own_or_other_dtype(0.5))
            if self.existing < self.classes:
                arrays["target"][self.beyond_existing()] = r.choice((np.nan, 0.0, 3.0))

    def draw_weights(self) -> None:
        """Of classes, and of positions: the mask."""
        s, r, rng = self.s, self.r, self.rng
        if s.random() < 0.35:
            self.arrays["weight"] = values.weight(r, rng, self.existing, weighted(s, FLOAT_WEIGHTS))
        if s.random() < 0.4:
            ones = s.random() < 0.15 and not self.form.endswith("module")
            shape = tuple(1 if ones and s.random() < 0.5 else size for size in self.positions)
            self.arrays["mask"] = values.mask(r, rng, shape, s.choice(("bool", *INTEGERS, *FLOAT_WEIGHTS)))

    def draw_outputs(self) -> None:
        """Statistics, and the arguments that go with them."""
        s, arrays, options = self.s, self.arrays, self.options
        named = GRADED if self.with_grads else OUTPUTS
        self.outputs = tuple(s.sample(named, 1 if self.with_grads else s.randint(1, 5)))
        if RANKED & set(self.outputs):  # rounding x' makes and unmakes ties
            for name in ("softcap", "scale", "temperature"):
                options.pop(name, None)
            if self.family == "subnormal":  # which frameworks flush to 0
                arrays["logits"] = np.sign(arrays["logits"])
            for name in ("hidden", "classifier", "bias") if self.linear else ():
                if name in arrays:
                    arrays[name] = values.quarters(arrays[name])
        if {"top_log_prob", "top_index"} & set(self.outputs):
            options["k"] = s.randint(1, self.existing)
        if "selected_log_prob" in self.outputs:
            arrays["selected"] = self.draw_indices((*self.positions, s.randint(1, 4)))

    def draw_gradients(self) -> None:
        """What to differentiate with respect to, and the upstream gradient."""
        s, rng, arrays = self.s, self.rng, self.arrays
        names: list[str] = [name for name in ("logits", "hidden", "classifier", "bias") if name in arrays]
        if self.target_kind != "index":
            names.append("target")
        if self.is_stats:
            self.wrt = tuple(names)
            above = arrays["selected"].shape if "selected" in arrays else self.positions
            arrays["grad_output"] = values.upstream(rng, above, s.choice(("float32", "float64")))
            return
        self.wrt = tuple(names) if s.random() < 0.5 else tuple(s.sample(names, 1))
        if s.random() < 0.6:
            above = self.positions if self.options.get("reduction", "mean") == "none" else ()
            dtypes = ["float16", "float32", "float64"] if "autograd" in self.form else ["float32", "float64", "int32"]
            arrays["grad_output"] = values.upstream(rng, above, s.choice(dtypes))

    def draw_how_given(self) -> None:
        """Memory layouts; the framework's arrays, NumPy's or lists; and whether the call is compiled."""
        s, r, arrays, given = self.s, self.r, self.arrays, self.given
        for name in arrays:
            if self.traits.views and r.random() < 0.3:
                arrays[name] = laid_out(arrays[name], r)
            given[name] = "own" if "autograd" in self.form or s.random() < 0.85 else "numpy"
        self.compiled = s.random() < self.traits.compiled and not self.form.endswith("module")
        if self.compiled and self.is_stats:  # MindSpore's compiler fails at NumPy arrays beside several results
            given.update(dict.fromkeys(given, "own"))
        if self.compiled or "autograd" in self.form or s.random() >= 0.06:
            return
        name = s.choice(sorted(set(arrays) - {"grad_output", "logits", "hidden"} - set(self.wrt)) or ["target"])
        if name not in self.wrt and arrays[name].size and arrays[name].dtype != np.uint64:
            given[name] = "list"
            wide = np.int64 if arrays[name].dtype.kind in "iu" and name not in ("weight", "mask") else np.float64
            arrays[name] = arrays[name].astype(wide if arrays[name].dtype != bool else bool)

    def finished(self, index: int) -> Drawn:
        s, r, arrays = self.s, self.r, self.arrays
        extra: dict[str, Any] = {"chunk": s.randint(1, 5)} if self.linear and s.random() < 0.3 else {}
        if self.outputs:
            extra["outputs"] = self.outputs
        mask = arrays.get("mask")
        call = Call(
            logits=arrays.get("logits"),
            target=arrays["target"],
            weight=arrays.get("weight"),
            mask=None if mask is None else np.broadcast_to(mask, self.positions),
            options=self.options,
            grad_output=arrays.get("grad_output"),
            hidden=arrays.get("hidden"),
            classifier=arrays.get("classifier"),
            bias=arrays.get("bias"),
            selected=arrays.get("selected"),
            ids=arrays.get("ids"),
            tail=self.tail,
            log_probs=self.log_probs,
        )
        may_be_wrong = not self.compiled and not self.is_stats
        mistake = draw_mistake(r, self.form, call) if may_be_wrong and r.random() < 0.12 else None
        strict = s.random() < 0.1
        return Drawn(
            index, self.form, call, self.wrt, arrays, self.given, extra, mistake, self.compiled, strict, self.family
        )


def _form_weights(traits: Traits) -> dict[str, int]:
    """How often each form is drawn."""
    return {
        "cross_entropy": 24,
        "value_and_grad": 28,
        "autograd": 12 if traits.autodiff else 0,
        "loss_terms": 7,
        "module": 6,
        "terms_module": 2,
        "native_module": 5 if traits.native_module else 0,
        "linear_cross_entropy": 7,
        "linear_value_and_grad": 9,
        "linear_autograd": 4 if traits.autodiff else 0,
        "position_stats": 9,
        "position_stats_and_grad": 6,
        "position_stats_autograd": 4 if traits.autodiff else 0,
        "linear_position_stats": 4,
        "linear_position_stats_and_grad": 3,
        "linear_position_stats_autograd": 2 if traits.autodiff else 0,
    }
