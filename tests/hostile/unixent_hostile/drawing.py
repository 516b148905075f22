"""A hostile call from its seed and index alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any

import ml_dtypes
import numpy as np

import unixent
from unixent import LossOptions
from unixent_conformance.model import Call
from unixent_conformance.oracle.solution import ROW_OPTIONS
from unixent_hostile import values
from unixent_hostile.mistakes import Mistake, draw_mistake
from unixent_hostile.views import laid_out

Array = np.ndarray[Any, Any]
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
FLOATS: dict[str, Any] = {name: name for name in ("float16", "float32", "float64")} | {"bfloat16": ml_dtypes.bfloat16}
HAS_NUM_CLASSES = "num_classes" in ROW_OPTIONS and "num_classes" in {each.name for each in fields(LossOptions)}

LOGITS_FORMS = ("cross_entropy", "value_and_grad", "autograd", "loss_terms", "module", "terms_module", "native_module")
LINEAR_FORMS = ("linear_cross_entropy", "linear_value_and_grad", "linear_autograd")
STATS_FORMS = ("position_stats", "position_stats_and_grad", "position_stats_autograd")
LINEAR_STATS_FORMS = tuple(f"linear_{form}" for form in STATS_FORMS)
GRADED = ("log_prob", "entropy", "logsumexp", "selected_log_prob")
OUTPUTS = tuple(name for name in unixent.PositionStats._fields if name != "loss")
RANKED = {"prediction", "correct", "rank", "top_index"}
TAILS = ("drop", "renormalize", "bucket")


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


def weighted(r: Random, table: Mapping[Any, float]) -> Any:
    return r.choices(list(table), list(table.values()))[0]


def draw_positions(r: Random) -> tuple[int, ...]:
    case = weighted(r, {"scalar": 8, "vector": 38, "empty": 5, "matrix": 25, "axes": 16, "long": 8})
    if case == "scalar":
        return ()
    if case == "empty":
        return r.choice(((0,), (0, 3), (2, 0), (3, 0, 2)))
    if case == "vector":
        return (r.randint(1, 6),)
    if case == "long":
        return r.choice(((r.randint(20, 130),), (r.randint(5, 9), r.randint(5, 12))))
    return tuple(r.randint(1, 4) for _ in range(2 if case == "matrix" else r.randint(3, 6)))


def draw_classes(r: Random, positions: tuple[int, ...]) -> int:
    count = int(np.prod(positions))
    case = weighted(r, {1: 6, 2: 8, 9: 62, 70: 14, 400: 6, 6000: 4})
    if case > 70 and count > 4:
        case = 9
    if case > 9 and count > 40:
        case = 9
    return int(case if case <= 2 else r.randint(3, case))


def draw_ignore_index(r: Random, classes: int) -> int:
    where = weighted(r, {"default": 55, "inside": 22, "outside": 23})
    if where == "default":
        return -100
    if where == "inside":
        return r.randrange(classes)
    return int(r.choice((-1, classes, classes + 3, 255, 2**31, 2**40, -(2**63), 2**64 - 1)))


def draw_options(r: Random, positions: tuple[int, ...], classes: int, has_indices: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "label_smoothing": weighted(r, {0.0: 62, 0.1: 20, 0.5: 6, 1.0: 6, 1e-6: 6}),
        "z_loss": weighted(r, {0.0: 66, 1e-4: 14, 0.1: 10, 1.0: 6, 10.0: 4}),
        "softcap": weighted(r, {None: 66, 30.0: 10, 5.0: 8, 1.0: 6, 0.1: 4, 1e-3: 2, 1e300: 2, 1e-50: 2}),
        "scale": weighted(r, {1.0: 76, 0.5: 6, 0.125: 6, 2.0: 6, 30.0: 3, 1e-3: 3}),
        "temperature": weighted(r, {1.0: 76, 0.7: 10, 3.0: 6, 0.1: 4, 1e-2: 2, 1e3: 2}),
        "reduction": weighted(r, {"mean": 48, "sum": 16, "none": 36}),
        "on_empty": weighted(r, {"zero": 70, "nan": 15, "raise": 15}),
        "dtype": weighted(r, {None: 72, "float16": 6, "bfloat16": 6, "float32": 8, "float64": 8}),
        "validate": weighted(r, {"auto": 70, "full": 10, "off": 20}),
    }
    if has_indices:
        options["ignore_index"] = draw_ignore_index(r, classes)
    if options["reduction"] == "mean" and r.random() < 0.3:
        number = weighted(r, {0.0: 10, 1e-50: 4, 1e-30: 4, 0.5: 12, 7.0: 40, 1e6: 20, 1e30: 10})
        makes = (float, float, np.float32, lambda n: np.array(n, np.float64), lambda n: np.array(n, np.float32))
        options["normalizer"] = 3 if r.random() < 0.1 else r.choice(makes)(number)
    if HAS_NUM_CLASSES and r.random() < 0.15:
        options["num_classes"] = r.randint(1, classes)
    defaults = {each.name: each.default for each in fields(LossOptions)}
    return {name: value for name, value in options.items() if name not in defaults or value != defaults[name]}


def draw(seed: int, index: int, traits: Traits) -> Drawn:
    """Call number `index`. What shapes a compiled program, `s`, is drawn for several calls in a row."""
    s = Random((seed << 44) + (index // traits.per_structure << 1))
    r = Random((seed << 44) + (index << 1) + 1)
    rng = np.random.Generator(np.random.PCG64(r.getrandbits(64)))
    form = weighted(
        s,
        {
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
        },
    )
    is_stats, with_grads = "stats" in form, form.endswith(("_and_grad", "autograd"))
    linear = form.startswith("linear")
    positions = draw_positions(s)
    classes = draw_classes(s, positions)
    axis = len(positions) if linear else s.randint(0, len(positions))
    shape = (*positions[:axis], classes, *positions[axis:])
    target_kind = "index" if is_stats else weighted(s, {"index": 62, "probability": 20, "sparse": 18})
    has_indices = target_kind == "index"
    options = draw_options(s, positions, classes, target_kind != "probability")
    if is_stats:
        for name in ("reduction", "on_empty", "normalizer", "label_smoothing", "z_loss"):
            options.pop(name, None)
    if "terms" in form:
        for name in ("reduction", "on_empty", "normalizer"):
            options.pop(name, None)
    if not linear and (axis != len(positions) or s.random() < 0.1):
        options["axis"] = axis if s.random() < 0.5 else axis - len(shape)
    existing = options.get("num_classes", classes)
    floats = {FLOATS["float32"]: 40, FLOATS["float64"]: 26, FLOATS["float16"]: 17, FLOATS["bfloat16"]: 17}
    dtype = weighted(s, floats)
    arrays: dict[str, Array] = {}
    family = r.choices(values.LOGITS, values.WEIGHTS)[0]
    if linear:
        width = weighted(s, {0: 5, 1: 15, 3: 50, 8: 30})
        lesser = dtype if s.random() < 0.7 else weighted(s, floats)
        plain = family if family in ("normal", "small", "zero", "equal", "special") else "normal"
        family = plain
        arrays["hidden"] = values.logits(r, rng, (*positions, width), -1, dtype, "normal" if width == 0 else plain)
        if family == "special":  # no sum of infinities whose order decides
            hidden = arrays["hidden"]
            hidden[~np.isfinite(hidden) | (abs(hidden.astype(np.float64)) > 1e3)] = r.choice((np.nan, 0.0))
        arrays["classifier"] = values.logits(r, rng, (classes, width), -1, lesser, "normal")
        if s.random() < 0.5:
            arrays["bias"] = values.logits(r, rng, (classes,), 0, lesser, r.choice(("normal", "zero", "padded")))
    else:
        arrays["logits"] = values.logits(r, rng, shape, axis, dtype, family)
        if existing < classes:
            arrays["logits"][(slice(None),) * axis + (slice(existing, None),)] = r.choice((np.nan, np.inf, 5.0, 1e4))
    integers = {name: 35 if name == "int64" else 15 if name == "int32" else 8 for name in INTEGERS}

    def draw_indices(shape: tuple[int, ...]) -> Array:
        ignored, dtype = options.get("ignore_index", -100), weighted(s, integers)
        return values.indices(r, rng, shape, existing, ignored, dtype, bad=r.random() < 0.05)

    tail, log_probs = "", False
    if has_indices:
        arrays["target"] = draw_indices(positions)
    elif target_kind == "sparse":
        of_teacher = (*positions, s.randint(1, 6))
        arrays["ids"] = draw_indices(of_teacher)
        log_probs, tail = s.random() < 0.5, s.choice(TAILS)
        given_dtype = dtype if s.random() < 0.5 else weighted(s, floats)
        arrays["target"] = values.teacher(r, rng, of_teacher, given_dtype, log_probs)
    else:
        arrays["target"] = values.probabilities(r, rng, shape, axis, dtype if s.random() < 0.5 else weighted(s, floats))
        if existing < classes:
            arrays["target"][(slice(None),) * axis + (slice(existing, None),)] = r.choice((np.nan, 0.0, 3.0))
    if s.random() < 0.35:
        arrays["weight"] = values.weight(r, rng, existing, weighted(s, floats))
    if s.random() < 0.4:
        ones = s.random() < 0.15 and not form.endswith("module")
        mask_shape = tuple(1 if ones and s.random() < 0.5 else size for size in positions)
        arrays["mask"] = values.mask(r, rng, mask_shape, s.choice(("bool", *INTEGERS, *floats)))
    differentiable = ["hidden", "classifier", *(["bias"] if "bias" in arrays else [])] if linear else ["logits"]
    if target_kind != "index":
        differentiable.append("target")
    wrt: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    if is_stats:
        named = GRADED if with_grads else OUTPUTS
        outputs = tuple(s.sample(named, 1 if with_grads else s.randint(1, 5)))
        if RANKED & set(outputs):  # rounding x' makes and unmakes ties
            for name in ("softcap", "scale", "temperature"):
                options.pop(name, None)
            if family == "subnormal":  # which frameworks flush to 0
                arrays["logits"] = np.sign(arrays["logits"])
            for name in ("hidden", "classifier", "bias") if linear else ():
                if name in arrays:
                    arrays[name] = values.quarters(arrays[name])
        options |= {"k": s.randint(1, existing)} if {"top_log_prob", "top_index"} & set(outputs) else {}
        if "selected_log_prob" in outputs:
            arrays["selected"] = draw_indices((*positions, s.randint(1, 4)))
    if with_grads and is_stats:
        wrt = tuple(differentiable)
        above = arrays["selected"].shape if "selected" in arrays else positions
        arrays["grad_output"] = values.upstream(rng, above, s.choice(("float32", "float64")))
    elif with_grads:
        wrt = tuple(differentiable) if s.random() < 0.5 else tuple(s.sample(differentiable, 1))
        if s.random() < 0.6:
            above = positions if options.get("reduction", "mean") == "none" else ()
            kinds_above = ["float16", "float32", "float64"] if "autograd" in form else ["float32", "float64", "int32"]
            arrays["grad_output"] = values.upstream(rng, above, s.choice(kinds_above))
    given = {}
    for name in arrays:
        if traits.views and r.random() < 0.3:
            arrays[name] = laid_out(arrays[name], r)
        given[name] = "own" if "autograd" in form or s.random() < 0.85 else "numpy"
    compiled = s.random() < traits.compiled and not form.endswith("module")
    if compiled and is_stats:  # MindSpore's compiler fails at NumPy arrays beside several results
        given = dict.fromkeys(given, "own")
    if not compiled and "autograd" not in form and s.random() < 0.06:
        name = s.choice(sorted(set(arrays) - {"grad_output", "logits", "hidden"} - set(wrt)) or ["target"])
        if name not in wrt and arrays[name].size and arrays[name].dtype != np.uint64:
            given[name] = "list"
            wide = np.int64 if arrays[name].dtype.kind in "iu" and name not in ("weight", "mask") else np.float64
            arrays[name] = arrays[name].astype(wide if arrays[name].dtype != bool else bool)
    extra: dict[str, Any] = {"chunk": s.randint(1, 5)} if linear and s.random() < 0.3 else {}
    if outputs:
        extra["outputs"] = outputs
    mask = arrays.get("mask")
    call = Call(
        logits=arrays.get("logits"),
        target=arrays["target"],
        weight=arrays.get("weight"),
        mask=None if mask is None else np.broadcast_to(mask, positions),
        options=options,
        grad_output=arrays.get("grad_output"),
        hidden=arrays.get("hidden"),
        classifier=arrays.get("classifier"),
        bias=arrays.get("bias"),
        selected=arrays.get("selected"),
        ids=arrays.get("ids"),
        tail=tail,
        log_probs=log_probs,
    )
    may_be_wrong = not compiled and not is_stats
    mistake = draw_mistake(r, form, call) if may_be_wrong and r.random() < 0.12 else None
    strict = s.random() < 0.1
    return Drawn(index, form, call, wrt, arrays, given, extra, mistake, compiled, strict, family)
