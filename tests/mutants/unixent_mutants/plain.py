"""A plain NumPy cross-entropy that is right, in steps small enough for each mutant to get one of them wrong.

Rows are shifted by the largest logit of the classes other than the maximum k, so that 1 - p_k keeps its relative
accuracy where p_k is almost 1: with D = max_{c != k} x_c - x_k, kept as an unevaluated sum hi + lo (Knuth's TwoSum),
R = sum_{c != k} exp(x_c - max_{c != k} x_c) and t = R exp(D),

    L_c = (x_k - x_c) + log1p(t)      p_k = 1/(1 + t)      1 - p_k = t/(1 + t)      p_c = exp(x_c - ...) exp(D)/(1 + t)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Array
from unixent_mutants.checks import DEFAULTS, check, check_upstream

BLOCK = 64

REGISTRY: dict[str, type[Plain]] = {}


def mutant(*features: str) -> Callable[[type[Plain]], type[Plain]]:
    """Registers a wrong implementation with the features that should name its fault."""

    def register(cls: type[Plain]) -> type[Plain]:
        cls.features = features
        REGISTRY[cls.__name__] = cls
        return cls

    return register


@dataclass
class Stats:
    """What the logits alone decide, per row."""

    p: Array
    one_minus_p: Array
    nll: Array  # L
    lse: Array


class Plain:
    """The loss in overridable steps; `options` holds every option of the call with its default."""

    options: dict[str, Any]
    features: tuple[str, ...] = ()  # of a mutant: where its fault should show

    # Steps before the arithmetic

    def acc_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.float32) if dtype.itemsize == 2 else dtype

    def check(self, x: Array, target: Array, weight: Array | None, mask: Array | None) -> None:
        check(x, target, weight, mask, self.options)

    def take_classes(self, array: Array, axis: int) -> Array:
        """Those that exist."""
        known = self.options["num_classes"]
        return array if known is None else np.take(array, range(known), axis)

    def pad_classes(self, gradient: Array, like: Array, axis: int) -> Array:
        """The gradient of all classes from that of those that exist."""
        whole = np.zeros(like.shape, gradient.dtype)
        whole[(slice(None),) * (axis % like.ndim) + (slice(gradient.shape[axis]),)] = gradient
        return whole

    def rows(self, x: Array, axis: int) -> Array:
        return np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])

    def unrows(self, rows: Array, shape: tuple[int, ...], axis: int) -> Array:
        moved = [*np.delete(np.array(shape, int), axis), shape[axis]]
        return np.moveaxis(rows.reshape(moved), -1, axis)

    def ignored(self, y: Array) -> Array:
        return np.asarray(y == self.options["ignore_index"])

    def out_of_range(self, y: Array, classes: int, ignored: Array) -> Array:
        return np.asarray(~ignored & ((y < 0) | (y >= classes)))

    def check_range(self, out_of_range: Array) -> None:
        if out_of_range.any() and self.options["validate"] != "off":
            raise IndexError(f"target: out of range at position {int(np.argmax(out_of_range))}")

    def broadcast(self, mask: Array | None, positions: tuple[int, ...]) -> Array | None:
        return None if mask is None else np.broadcast_to(mask, positions)

    def mask(self, mask: Array | None, n: int, acc: np.dtype[Any]) -> Array:
        return np.ones(n, acc) if mask is None else mask.reshape(-1).astype(acc)

    def position_weight(self, v: Array, ignored: Array) -> Array:
        return np.where(ignored, 0, v).astype(v.dtype)

    def weight(self, weight: Array | None, classes: int, acc: np.dtype[Any]) -> Array:
        return np.ones(classes, acc) if weight is None else weight.astype(acc)

    def one_hot(self, y: Array, classes: int, acc: np.dtype[Any]) -> Array:
        return np.asarray(np.arange(classes) == y[:, None], dtype=acc)

    def target_coefs(self, q: Array, w: Array, indices: bool) -> Array:
        s = q.dtype.type(self.options["label_smoothing"])
        return np.asarray(w * ((1 - s) * q + s / q.dtype.type(q.shape[1])))

    def denominators(self, v: Array, w: Array, q: Array, indices: bool) -> Array:
        # A class that does not exist has weight 1.
        return v * np.where(q.any(axis=1), q @ w, 1) if indices else v

    # Steps of the arithmetic

    def transform(self, x: Array) -> Array:
        capped = self.cap(x * x.dtype.type(self.options["scale"]))
        return np.asarray(capped / x.dtype.type(self.options["temperature"]))

    def transform_grad(self, x: Array) -> Array:
        scale, temperature = (x.dtype.type(self.options[name]) for name in ("scale", "temperature"))
        return np.asarray(self.softcap_grad(x * scale) * scale / temperature)

    def cap(self, x: Array) -> Array:
        a = self.options["softcap"]
        if a is None:
            return x
        a = self.representable(a, x.dtype)
        return np.where(np.isinf(x), x, a * np.tanh(x / a)).astype(x.dtype)

    def representable(self, a: float, dtype: np.dtype[Any]) -> Any:
        """A softcap that the dtype can hold, with the same answers: beyond its largest number nothing is capped."""
        info = np.finfo(dtype)
        return dtype.type(np.clip(a, info.tiny, np.sqrt(info.max)))

    def softcap_grad(self, x: Array) -> Array:
        a = self.options["softcap"]
        if a is None:
            return np.ones_like(x)
        decay = np.exp(-2 * abs(x / self.representable(a, x.dtype)))
        return np.asarray(4 * decay / (1 + decay) ** 2)

    def statistics(self, x: Array) -> Stats:
        is_max = np.arange(x.shape[1]) == np.argmax(x, axis=1)[:, None]
        top = x[is_max]
        others = np.where(is_max, -np.inf, x)
        peak = others.max(axis=1)
        shift = np.where(peak > -np.inf, peak, 0).astype(x.dtype)
        e = np.exp(others - shift[:, None])
        r = self.sum_classes(e)
        hi = shift - top
        back = hi + top
        lo = np.where(np.isfinite(hi), (shift - back) + ((back - hi) - top), 0).astype(x.dtype)
        decay = np.exp(hi) * (1 + lo)
        t = r * decay
        t = np.where(np.isfinite(top) | np.isnan(t), t, np.nan).astype(x.dtype)
        p = np.where(is_max, 1, e * decay[:, None]) / (1 + t)[:, None]
        one_minus_p = np.where(is_max, (t / (1 + t))[:, None], 1 - p)
        return Stats(p, one_minus_p, (top[:, None] - x) + np.log1p(t)[:, None], top + np.log1p(t))

    def sum_classes(self, e: Array) -> Array:
        return np.asarray(e.sum(axis=1))

    def times(self, t: Array, nll: Array) -> Array:
        """t L with 0 inf = 0."""
        return np.asarray(np.where(t == 0, 0, t * np.where(t == 0, 0, nll)).astype(t.dtype))

    def penalty(self, lse: Array) -> Array:
        z = self.options["z_loss"]
        return np.asarray(lse.dtype.type(z) * lse**2 if z else np.zeros_like(lse))

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        rows = v * (self.times(t, stats.nll).sum(axis=1) + self.penalty(stats.lse))
        rows = np.where(np.isnan(stats.lse), np.nan, rows)
        return self.zero_inactive(rows, v)

    def zero_inactive(self, rows: Array, v: Array) -> Array:
        return np.where((v == 0).reshape(-1, *[1] * (rows.ndim - 1)), 0, rows).astype(rows.dtype)

    def others(self, t: Array) -> Array:
        """sum_{j != c} t_j without subtracting the largest from its own sum."""
        largest = np.arange(t.shape[1]) == np.argmax(t, axis=1)[:, None]
        small = np.where(largest, 0, t)
        rest = small.sum(axis=1, keepdims=True)
        return np.asarray(np.where(largest, rest, t.max(axis=1, keepdims=True) + (rest - small)))

    def position_gradients(self, stats: Stats, t: Array, v: Array) -> Array:
        logits_grad = stats.p * self.others(t) - t * stats.one_minus_p
        if self.options["z_loss"]:
            logits_grad = logits_grad + self.penalty_gradient(stats)
        return np.asarray(v[:, None] * logits_grad)

    def penalty_gradient(self, stats: Stats) -> Array:
        z = stats.lse.dtype.type(2 * self.options["z_loss"])
        return np.asarray((z * stats.lse)[:, None] * stats.p)

    def target_gradients(self, stats: Stats, w: Array, v: Array) -> Array:
        s = w.dtype.type(1 - self.options["label_smoothing"])
        factor = np.broadcast_to(w * s, stats.p.shape)
        return np.asarray(v[:, None] * self.times(factor, stats.nll))

    # Steps after the arithmetic

    def blocks(self, n: int) -> Iterator[slice]:
        for start in range(0, n, BLOCK):
            yield slice(start, start + BLOCK)

    def sum_positions(self, rows: Array) -> Any:
        return rows.sum()

    def denominator(self, d: Array) -> Any:
        normalizer = self.options["normalizer"]
        return self.sum_positions(d) if normalizer is None else np.float64(normalizer)

    def mean(self, numerator: Any, denominator: Any) -> tuple[Any, Any]:
        """The value and the factor of every row of the gradient."""
        if denominator != 0:
            return numerator / denominator, 1 / denominator
        if self.options["on_empty"] == "raise":
            raise ZeroDivisionError("mean over nothing")
        nothing = denominator.dtype.type(0 if self.options["on_empty"] == "zero" else np.nan)
        return numerator if np.isnan(numerator) else nothing, nothing

    def mean_of(self, losses: Array, denominator: Any) -> tuple[Any, Any]:
        """The same, where the sum of the losses may be beyond the largest number."""
        total = self.sum_positions(losses)
        if not np.isinf(total) or np.isinf(losses).any():
            return self.mean(total, denominator)
        value, factor = self.mean(self.sum_positions(losses / 1024), denominator)
        return value * 1024, factor

    def upstream(self, up: Any, n: int, acc: np.dtype[Any]) -> Array:
        return np.broadcast_to(np.asarray(1 if up is None else up).astype(acc).reshape(-1), (n,))

    def scale(self, gradients: Array, up: Array, factor: Any, v: Array) -> Array:
        return self.zero_inactive((up * factor)[:, None] * gradients, v)

    def finish(self, value: Any, dtype: Any) -> Array:
        return np.asarray(value).astype(self.dtype(dtype))

    def gradient_dtype(self, x: Array) -> Any:
        return x.dtype

    def dtype(self, name: Any) -> np.dtype[Any]:
        from unixent_conformance.cases.inputs import dtype_of

        return dtype_of(str(np.dtype(name)) if not isinstance(name, str) else name)

    # The whole

    def solve(
        self, x: Array, target: Array, weight: Any, mask: Any, up: Any, wrt: str | None, terms: bool
    ) -> tuple[Any, Any]:
        o = self.options
        self.check(x, target, weight, mask)
        given = x if wrt == "logits" else target
        acc, axis, indices = self.acc_dtype(x.dtype), o["axis"] % x.ndim, target.dtype.kind in "iu"
        x, target = self.take_classes(x, axis), target if indices else self.take_classes(target, axis)
        raw = self.rows(x, axis)
        n, classes = raw.shape
        mask = self.broadcast(mask, np.moveaxis(x, axis, -1).shape[:-1])
        y = target.reshape(-1) if indices else np.zeros(n, np.int64)
        ignored = self.ignored(y) if indices else np.zeros(n, bool)
        out_of_range = self.out_of_range(y, classes, ignored)
        self.check_range(out_of_range)
        v = self.position_weight(self.mask(mask, n, acc), ignored)
        w = self.weight(weight, classes, acc)
        q = self.one_hot(y, classes, acc) if indices else self.rows(target, o["axis"]).astype(acc)
        t = self.target_coefs(q, w, indices)
        d = self.denominators(v, w, q, indices)
        losses, gradients = np.zeros(n, acc), np.zeros((n, classes), acc)
        for block in self.blocks(n):
            wide = raw[block].astype(acc)
            stats = self.statistics(self.transform(wide))
            losses[block] = np.where(out_of_range[block], np.nan, self.position_losses(stats, t[block], v[block]))
            if wrt == "logits":
                logits_grad = self.position_gradients(stats, t[block], v[block]) * self.transform_grad(wide)
                gradients[block] = np.where(out_of_range[block, None], np.nan, logits_grad)
            elif wrt == "target":
                gradients[block] = self.target_gradients(stats, w, v[block])
        if terms:
            dtype = o["dtype"] or acc
            return self.finish(self.sum_positions(losses), dtype), self.finish(self.sum_positions(d), dtype)
        factor: Any = acc.type(1)
        value: Any = losses.reshape(np.moveaxis(x, axis, -1).shape[:-1])
        if o["reduction"] == "sum":
            value = self.sum_positions(losses)
        if o["reduction"] == "mean":
            value, factor = self.mean_of(losses, self.denominator(d))
        value = self.finish(value, o["dtype"] or x.dtype)
        if wrt is None:
            return value, None
        if wrt == "target" and indices:
            raise ValueError("wrt")
        check_upstream(up, np.moveaxis(x, axis, -1).shape[:-1], o["reduction"])
        row_weight = np.where(out_of_range, 1, v)  # NaN stays at a row of weight 0
        scaled = self.scale(gradients, self.upstream(up, n, acc), factor, row_weight)
        dtype = self.gradient_dtype(x) if wrt == "logits" else target.dtype
        return value, self.finish(self.pad_classes(self.unrows(scaled, x.shape, axis), given, axis), dtype)

    def implementation(self, name: str = "") -> Implementation:
        """The public face."""

        def run(wrt: str | None, terms: bool, logits: Any, target: Any, up: Any, options: dict[str, Any]) -> Any:
            self.options = {**DEFAULTS, **options}
            unknown = set(options) - set(DEFAULTS)
            if unknown:
                raise TypeError(f"unknown options {unknown}")
            weight, mask = (np.asarray(options[k]) if options.get(k) is not None else None for k in ("weight", "mask"))
            with np.errstate(all="ignore"):
                return self.solve(np.asarray(logits), np.asarray(target), weight, mask, up, wrt, terms)

        def loss(logits: Any, target: Any, **options: Any) -> Any:
            return run(None, False, logits, target, None, options)[0]

        def terms(logits: Any, target: Any, **options: Any) -> Any:
            return run(None, True, logits, target, None, options)

        def value_and_grad(
            logits: Any, target: Any, *, grad_output: Any = None, wrt: Any = "logits", **options: Any
        ) -> Any:
            if isinstance(wrt, str):
                return run(wrt, False, logits, target, grad_output, options)
            runs = [run(name, False, logits, target, grad_output, options) for name in wrt]
            return runs[0][0], tuple(gradient for _, gradient in runs)

        return Implementation(name or type(self).__name__, loss, terms, value_and_grad)


plain = Plain().implementation()
