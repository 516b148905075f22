"""A plain fused linear cross-entropy that is right, chunk by chunk, and the ways to get a fused form wrong.

Each chunk's logits go through the steps of `Plain` under reduction "none", with the upstream gradient times the factor
of the mean as their upstream gradient; what comes back is carried to hidden, classifier and bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Array
from unixent_mutants.checks import DEFAULTS, check_upstream
from unixent_mutants.plain import Plain

CHUNK = 4


@dataclass
class Inputs:
    """The arguments as rows: hidden (N, D), target (N,) or (N, C), mask (N,), upstream gradient (N,)."""

    hidden: Array
    classifier: Array
    bias: Array | None
    target: Array
    weight: Array | None
    mask: Array | None
    positions: tuple[int, ...]
    chunk: int

    def part(self, rows: slice) -> Inputs:
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, hidden=self.hidden[rows], target=self.target[rows], mask=mask)


class PlainLinear(Plain):
    """The fused loss in overridable steps."""

    def accumulation_of(self, given: Inputs) -> np.dtype[Any]:
        arrays = (given.hidden, given.classifier, given.bias)
        wide = any(array is not None and array.dtype.itemsize == 8 for array in arrays)
        return np.dtype(np.float64 if wide else np.float32)

    def check_linear(self, hidden: Array, classifier: Array, bias: Array | None, target: Array, chunk: Any) -> None:
        if any(array is not None and array.dtype.kind in "biucO" for array in (hidden, classifier, bias)):
            raise TypeError("hidden, classifier, bias")
        if not hidden.ndim or classifier.ndim != 2 or classifier.shape[1] != hidden.shape[-1]:
            raise ValueError(f"classifier: {classifier.shape} for hidden {hidden.shape}")
        if bias is not None and bias.shape != (len(classifier),):
            raise ValueError("bias")
        if chunk is not None and (type(chunk) is not int or chunk < 1):
            raise ValueError("chunk")
        # The rest as for the logits that never exist; a broadcast array takes no room.
        logits = np.broadcast_to(np.float32(0), (*hidden.shape[:-1], len(classifier)))
        self.check(logits, target, self.options["weight"], self.options["mask"])

    # Steps of the arithmetic

    def chunks(self, count: int, size: int) -> Iterator[slice]:
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def states(self, hidden: Array, v: Array, acc: np.dtype[Any]) -> Array:
        return np.where((v == 0)[:, None], 0, hidden.astype(acc))

    def logits(self, states: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        product = states @ given.classifier.astype(acc).T
        return np.asarray(product if given.bias is None else product + given.bias.astype(acc))

    def counts(self, given: Inputs, acc: np.dtype[Any]) -> tuple[Array, Array]:
        """v and d of every position; an index out of range counts, for NaN to stay at its row."""
        n, classes = len(given.hidden), len(given.classifier)
        indices = given.target.ndim == 1
        y = given.target if indices else np.zeros(n, np.int64)
        ignored = self.ignored(y) if indices else np.zeros(n, bool)
        v = self.position_weight(self.mask(given.mask, n, acc), ignored)
        w = self.weight(given.weight, classes, acc)
        out_of_range = self.out_of_range(y, classes, ignored)
        self.check_range(out_of_range)
        q = self.one_hot(y, classes, acc) if indices else given.target.astype(acc)
        return v, np.where(out_of_range, v, self.denominators(v, w, q, indices))

    def finish_logits_grad(self, logits_grad: Array, given: Inputs) -> Array:
        """The gradient of a chunk's logits."""
        return logits_grad

    def hidden_gradient(self, logits_grad: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        return np.asarray(logits_grad @ given.classifier.astype(acc))

    def classifier_gradient(self, total: Array, logits_grad: Array, states: Array, given: Inputs) -> Array:
        return np.asarray(total + logits_grad.T @ states)

    def bias_gradient(self, total: Array, logits_grad: Array) -> Array:
        return np.asarray(total + logits_grad.sum(axis=0))

    def grad_scale(self, ups: Array, factor: Any, rows: slice, d: Array) -> Array:
        """What a chunk's losses are multiplied by on the way to the value."""
        return np.asarray(ups[rows] * factor)

    def reduced(self, losses: Array, d: Array, given: Inputs) -> tuple[Any, Any]:
        acc = losses.dtype.type
        if self.options["reduction"] == "none":
            return losses.reshape(given.positions), acc(1)
        if self.options["reduction"] == "sum":
            return self.sum_positions(losses), acc(1)
        return self.mean(self.sum_positions(losses), self.denominator(d))

    # The whole

    def solve_linear(self, given: Inputs, up: Any, wrt: tuple[str, ...]) -> tuple[Array, dict[str, Array]]:
        outer, acc = self.options, self.accumulation_of(given)
        v, d = self.counts(given, acc)
        n, classes = len(v), len(given.classifier)
        losses, ups = np.zeros(n, acc), self.upstream(up, n, acc)
        _, factor = self.reduced(losses, d, given)
        grads = {
            "hidden": np.zeros(given.hidden.shape, acc),
            "classifier": np.zeros(given.classifier.shape, acc),
            "bias": np.zeros(classes, acc),
            "target": np.zeros((n, classes), acc),
        }
        for rows in self.chunks(n, given.chunk):
            part = given.part(rows)
            states = self.states(part.hidden, v[rows], acc)
            logits = self.logits(states, part, acc)
            grad_scale = self.grad_scale(ups, factor, rows, d)
            # One chunk as a call of its own: no reduction, errors already raised, the accumulation dtype throughout.
            self.options = {**outer, "reduction": "none", "dtype": acc.name, "normalizer": None, "validate": "off"}
            target = part.target if part.target.ndim == 1 else part.target.astype(acc)
            losses[rows], logits_grad = self.solve(logits, target, part.weight, part.mask, grad_scale, "logits", False)
            logits_grad = self.finish_logits_grad(logits_grad, part)
            if "target" in wrt:
                _, grads["target"][rows] = self.solve(
                    logits, target, part.weight, part.mask, grad_scale, "target", False
                )
            self.options = outer
            own = self.hidden_gradient(logits_grad, part, acc)
            grads["hidden"][rows] = self.zero_inactive(own, v[rows])
            grads["classifier"] = self.classifier_gradient(grads["classifier"], logits_grad, states, part)
            grads["bias"] = self.bias_gradient(grads["bias"], logits_grad)
        value, _ = self.reduced(losses, d, given)
        return self.finish(value, outer["dtype"] or given.hidden.dtype), grads

    def linear(
        self, hidden: Any, classifier: Any, target: Any, up: Any, wrt: tuple[str, ...], options: dict[str, Any]
    ) -> tuple[Any, tuple[Array, ...]]:
        bias, chunk = options.pop("bias", None), options.pop("chunk", None)
        unknown = set(options) - set(DEFAULTS)
        if unknown:
            raise TypeError(f"unknown options {unknown}")
        self.options = {**DEFAULTS, **options}
        self.check_linear(hidden, classifier, bias, target, chunk)
        check_upstream(up, hidden.shape[:-1], self.options["reduction"])
        originals = {"hidden": hidden, "classifier": classifier, "bias": bias, "target": target}
        classifier, bias = self.take_classes(classifier, 0), None if bias is None else self.take_classes(bias, 0)
        target = target if target.dtype.kind in "iu" else self.take_classes(target, -1)
        self.options["num_classes"] = None
        classes, width = classifier.shape
        n = int(np.prod(hidden.shape[:-1], dtype=np.int64))
        mask = self.broadcast(self.options["mask"], hidden.shape[:-1])
        given = Inputs(
            hidden=hidden.reshape(n, width),
            classifier=classifier,
            bias=bias,
            target=target.reshape(n) if target.dtype.kind in "iu" else target.reshape(n, classes),
            weight=self.options["weight"],
            mask=None if mask is None else mask.reshape(n),
            positions=hidden.shape[:-1],
            chunk=chunk or CHUNK,
        )
        with np.errstate(all="ignore"):
            value, grads = self.solve_linear(given, up, wrt)
            return value, tuple(self.shaped(grads[k], originals[k], k).astype(originals[k].dtype) for k in wrt)

    def shaped(self, gradient: Array, like: Array, name: str) -> Array:
        """A gradient in the shape of its argument."""
        if name == "hidden":
            return np.asarray(gradient.reshape(like.shape))
        if name != "target":
            return self.pad_classes(gradient, like, 0)
        return self.pad_classes(gradient.reshape(*like.shape[:-1], gradient.shape[-1]), like, -1)

    def implementation(self, name: str = "") -> Implementation:
        def loss(hidden: Any, classifier: Any, target: Any, **options: Any) -> Any:
            return self.linear(hidden, classifier, target, None, (), options)[0]

        def value_and_grad(
            hidden: Any, classifier: Any, target: Any, *, grad_output: Any = None, wrt: Any = (), **options: Any
        ) -> Any:
            return self.linear(hidden, classifier, target, grad_output, tuple(wrt), options)

        unfused = Plain().implementation(name or type(self).__name__)
        return replace(unfused, linear=loss, linear_value_and_grad=value_and_grad)


plain_linear = PlainLinear().implementation()
