"""Generated calls for statistics of positions, each compared with NumPy's operators in float64.

python tests/native/position_calls.py 1000000 [seed]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from calls import WIDE, near, random_call, strided

from unixent import row_statistics
from unixent.row_statistics import Classes
from unixent_native import has_statistics
from unixent_native.library import Library, load
from unixent_numpy.kernel import KernelSpec
from unixent_numpy.kernel.rows import apply_transform, through_transform
from unixent_numpy.positions import native
from unixent_numpy.positions.rows import ALONG

GRADED = ("log_prob", "entropy", "logsumexp", "selected_log_prob", "rest_log_prob", "regularizer")
EXACT = ("prediction", "correct", "rank", "top_index")
OUTPUTS = (*GRADED, "log_sum_sq", "max_prob", *EXACT, "top_log_prob", "mean_logit")


class Call(NamedTuple):
    """Operands of `unixent_numpy.positions.native.row_statistics`."""

    x: Any
    target: Any
    selected: Any
    selected_weight: Any
    smoothing: Any
    position_weight: Any
    upstream: dict[str, Any]
    outputs: tuple[str, ...]
    k: int
    spec: KernelSpec

    def empty(self) -> dict[str, Any]:
        """Arrays for the outputs."""
        widths = {"top_log_prob": (self.k,), "top_index": (self.k,)}
        if self.selected is not None:
            widths["selected_log_prob"] = self.selected.shape[1:]
        dtypes = {**dict.fromkeys(EXACT, np.dtype("i8")), "correct": np.dtype(bool)}
        shapes = {name: (len(self.target), *widths.get(name, ())) for name in self.outputs}
        return {name: np.empty(shapes[name], dtypes.get(name, self.spec.acc_dtype)) for name in self.outputs}


def natively(library: Library, call: Call, out: Any = None, threads: int = 3) -> dict[str, Any]:
    """What the library computes."""
    outputs, (*operands, _, k, spec) = call.empty(), call
    assert native.row_statistics(*operands, outputs, k, spec, threads, out, library)
    return outputs


def composed(call: Call, dtype: Any) -> tuple[dict[str, Any], Any]:
    """What NumPy's operators compute in a dtype, and the gradient."""

    def cast(array: Any) -> Any:
        return None if array is None else np.asarray(array).astype(dtype)

    x = cast(call.x).reshape(len(call.target), call.x.shape[-1])
    softcap_grad = np.empty_like(x) if call.spec.transform.softcap else None
    classes = Classes(call.target[:, None], call.selected, cast(call.selected_weight), None, cast(call.smoothing))
    classes, v = classes._replace(z_loss=call.spec.z_loss), cast(call.position_weight)
    with np.errstate(all="ignore"):
        apply_transform(x, call.spec.transform, softcap_grad)
        solved = row_statistics.solve(ALONG, x)
        outputs = call._replace(spec=call.spec._replace(acc_dtype=dtype)).empty()
        undefined, inactive = np.isnan(solved.stats.loss), None
        if v is not None:
            undefined, inactive = undefined | np.isnan(v)[:, None], (v == 0)[:, None]
        for name, values in row_statistics.values(ALONG, solved, call.outputs, classes, call.k).items():
            due = row_statistics.settled(np, name, values, undefined, inactive, classes.selected_weight)
            outputs[name][...] = due.reshape(outputs[name].shape)
        upstream = {name: cast(each).reshape(len(x), -1) for name, each in call.upstream.items()}
        grad = row_statistics.gradient(ALONG, solved, upstream, classes)
        through_transform(grad, call.spec.transform, softcap_grad)
        grad = np.where(undefined, np.nan, grad)
        grad = grad if inactive is None else np.where(inactive, 0, grad)
    return outputs, grad.reshape(call.x.shape)


def random_position_call(rng: np.random.Generator) -> Call:
    """A call that asks for any of the statistics, and for the gradient of some of them."""
    x, _, _, position_weight, _, kernel = random_call(rng)
    *positions, num_classes = x.shape
    count, acc = int(np.prod(positions, dtype=int)), kernel.acc_dtype
    if rng.random() < 0.3:  # ties
        x = strided(rng, np.round(x.astype("f8")).astype(x.dtype))
    selected = weight = smoothing = None
    outputs = tuple(name for name in OUTPUTS if rng.random() < rng.choice([0.2, 0.9]))
    if rng.random() < 0.5:
        outputs = tuple(name for name in outputs if name != "entropy")
    if "entropy" in outputs or rng.random() < 0.3:
        outputs = tuple(name for name in outputs if name != "rest_log_prob")
    if "regularizer" in outputs and rng.random() < 0.7:
        smoothing = (rng.random(num_classes) * rng.choice([0, 1, 1, 1, 50], num_classes)).astype(acc)
    if "selected_log_prob" in outputs or "rest_log_prob" in outputs:
        selected = rng.integers(num_classes, size=(count, int(rng.integers(1, 5))))
        if rng.random() < 0.5:
            weight = rng.choice([0, 1, 1, 1, np.nan], selected.shape, p=[0.2, 0.3, 0.3, 0.19, 0.01]).astype(acc)
    k = int(rng.integers(1, min(num_classes, 64) + 1)) if "top_log_prob" in outputs or "top_index" in outputs else 0
    v = None if position_weight is None else position_weight.reshape(-1)
    target, upstream = rng.integers(num_classes, size=count), {}
    for name in outputs:
        if name in GRADED and rng.random() < 0.7:
            shape = count if name != "selected_log_prob" or selected is None else selected.shape
            upstream[name] = rng.normal(size=shape).astype(acc)
    return Call(x, target, selected, weight, smoothing, v, upstream, outputs, k, kernel)


def check(library: Library, call: Call) -> None:
    """The native results are those of NumPy in float64, NaN and infinities included; classes are exact."""
    x, spec, upstream = call.x, call.spec, call.upstream
    assert has_statistics(call.outputs, call.k)
    grad, before = np.empty_like(x), x.copy()
    done, alone = natively(library, call, grad), natively(library, call._replace(upstream={}))
    assert x.tobytes() == before.tobytes()
    without_outputs = np.empty_like(x)
    natively(library, call._replace(outputs=()), without_outputs)
    (due, due_grad), (same, _) = composed(call, WIDE), composed(call, spec.acc_dtype)
    transform = spec.transform
    u, logs = float(np.finfo(spec.acc_dtype).eps) / 2, 2 * np.log2(x.shape[-1])
    tiny = float(np.finfo(spec.acc_dtype).tiny) * (1 + x.shape[-1])
    finite = (
        np.where(np.isfinite(x.astype(WIDE)), x.astype(WIDE), 0).reshape(len(call.target), -1)
        * transform.inverse_temperature
    )
    largest, span = np.abs(finite).max(-1), finite.max(-1) - finite.min(-1)
    # What rounding x' moves: by its own size, in the transforms.
    moved = 0 if transform == (None, 1.0) else 12 * u * largest * (1 + span)
    floor = moved + tiny + 0 * largest
    for name in call.outputs:
        assert done[name].tobytes() == alone[name].tobytes(), name
        if name in EXACT:
            if transform.softcap is None:
                np.testing.assert_array_equal(done[name], same[name], err_msg=name)
            continue
        size = np.abs(due[name])
        column = (slice(None),) + (None,) * (size.ndim - 1)
        size = size * (1 + span) if name in ("entropy", "log_sum_sq") else size
        size = size + largest if name in ("logsumexp", "mean_logit") else size
        size = np.where(np.isfinite(size), size, 0)
        if name == "regularizer":  # z lse^2, with lse = x_k + log_norm
            size = size + 2 * spec.z_loss * np.sqrt(size / (spec.z_loss or 1)) * largest
        with np.errstate(all="ignore"):
            near(done[name], due[name], (24 + 3 * logs) * u * size + floor[column])
    size = np.abs(np.where(np.isfinite(due_grad), due_grad, 0)).reshape(len(call.target), -1)
    scale = sum(
        (np.nansum(np.abs(each.reshape(len(each), -1)), axis=1) for each in upstream.values()), start=0 * largest
    )
    rounding = float(np.finfo("f4").eps if x.dtype.itemsize > 2 else 2.0**-7) if x.dtype != WIDE else u
    bound = ((24 + logs + 8 * span[:, None]) * u + rounding) * (size + size.max(-1, keepdims=True))
    if "regularizer" in upstream:  # p_c B - b_c + 2 z lse p_c
        coefs = 0 if call.smoothing is None else float(call.smoothing.sum())
        coefs = coefs + 2 * spec.z_loss * (1 + largest)
        bound = bound + (4 * u * coefs * np.abs(upstream["regularizer"]))[:, None]
    bound = bound + (moved + u * 24 * (1 + span) * span * scale)[:, None] * (1 + scale[:, None])
    tiny = 6e-8 if x.dtype == np.dtype("f2") else 1e-37 if spec.acc_dtype == np.dtype("f4") else 1e-307
    with np.errstate(all="ignore"):
        for each in (grad, without_outputs):
            near(each, due_grad, (bound + tiny).reshape(x.shape), overflows=x.dtype == np.dtype("f2"))


def main(count: int, seed: int = 0) -> int:
    loaded = load()
    assert loaded is not None, "the native kernel is not there"
    for i in range(seed, seed + count):
        call = random_position_call(np.random.default_rng(i))
        try:
            check(loaded, call)
        except AssertionError as error:
            print(
                f"seed {i}: {call.x.dtype} {call.x.shape} {call.outputs} {sorted(call.upstream)} {call.spec}: {error}"
            )
            return 1
    print(f"{count} calls as they should be, on {loaded.isas[loaded.isa]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
