"""The conventions of other libraries for sparse targets: each is named where its formula gives value and gradients, and
what is near to it is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import unixent
from unixent import TopK
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Array
from unixent_mutants.judging import named
from unixent_mutants.sparse import RightSparse, is_plain, padding_of, probabilities
from unixent_mutants.statistics import softmax

WRONG = "silently wrong"


class Teachers(RightSparse):
    """Losses of sparse targets whose value and gradients change."""

    def losses(self, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        """Of each position."""
        raise NotImplementedError

    def gradient(self, wrt: str, grad: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        return grad

    def change(self, value: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        return self.losses(logits, target, options) if is_plain(logits, target, options) else value

    def implementation(self, name: str = "") -> Implementation:
        plain = super().implementation(name)
        assert plain.value_and_grad is not None
        given = plain.value_and_grad

        def value_and_grad(logits: Array, target: TopK, wrt: str = "logits", **rest: Any) -> tuple[Array, Array]:
            value, grad = given(logits, target, wrt=wrt, **rest)
            options = {name: each for name, each in rest.items() if name != "grad_output"}
            if not is_plain(logits, target, options):
                return value, grad
            up = np.asarray(1.0 if rest.get("grad_output") is None else rest["grad_output"], np.float64)
            with np.errstate(all="ignore"):
                changed = self.gradient(wrt, grad, logits, target, {**options, "up": up})
            return value, np.asarray(changed, grad.dtype)

        return replace(plain, value_and_grad=value_and_grad)


class Divergence(Teachers):
    """Kullback-Leibler, as TRL's and Megatron's distillation has it."""

    def losses(self, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        loss = unixent.cross_entropy(logits, target, **options)
        return np.asarray(loss - unixent.entropy_of(target), logits.dtype)

    def gradient(self, wrt: str, grad: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        if wrt == "logits":
            return grad
        q = probabilities(target, options)
        each = np.log(q) + 1
        if target.tail == "renormalize":
            total = q.sum(axis=-1, keepdims=True)
            each = (np.log(q / total) - (q / total * np.log(q / total)).sum(axis=-1, keepdims=True)) / total
        if target.tail == "bucket":
            each = each - np.log(1 - q.sum(axis=-1, keepdims=True)) - 1
        each = each if target.log_probs is None else q * each
        return np.asarray(grad + np.where(padding_of(target, options), 0, options["up"][..., None] * each))


class DivergenceInTheValue(Divergence):
    """A divergence whose teacher's gradient is that of the cross-entropy."""

    def gradient(self, wrt: str, grad: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        return grad


class HalfTheEntropy(Divergence):
    """Less half of the teacher's entropy."""

    def losses(self, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        loss = unixent.cross_entropy(logits, target, **options)
        return np.asarray(loss - unixent.entropy_of(target) / 2, logits.dtype)


ALL = ("value", "gradient", "target-gradient")


@pytest.mark.parametrize("name", ["plain", "log-probabilities"])
@pytest.mark.parametrize("tail", ["drop", "renormalize", "bucket"])
def test_a_divergence_is_named(tail: str, name: str) -> None:
    stem = f"sparse-targets/{tail}-{name}/float32"
    assert named(Divergence, stem, ALL) == {"divergence from the teacher"}
    assert named(HalfTheEntropy, stem, ("value",)) == {WRONG}
    assert WRONG in named(DivergenceInTheValue, stem, ("target-gradient",))


class SelectedAlone(Teachers):
    """Teacher and student are both divided by what they give the K classes, as top-k distillation often has it."""

    def shares(self, logits: Array, target: TopK) -> tuple[Array, Array]:
        x = np.take_along_axis(logits.astype(np.float64), target.ids, axis=-1)
        q = probabilities(target, {})
        lse = x.max(axis=-1, keepdims=True) + np.log(
            np.exp(x - x.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)
        )
        return q / q.sum(axis=-1, keepdims=True), x - lse

    def losses(self, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        if target.tail != "renormalize":
            return np.asarray(unixent.cross_entropy(logits, target, **options))
        q, log_p = self.shares(logits, target)
        return np.asarray(-(q * log_p).sum(axis=-1), logits.dtype)

    def gradient(self, wrt: str, grad: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        if target.tail != "renormalize" or wrt != "logits":
            return grad
        q, log_p = self.shares(logits, target)
        changed = np.zeros(logits.shape)
        np.put_along_axis(changed, target.ids, options["up"][:, None] * (np.exp(log_p) - q), axis=-1)
        return changed


class SelectedAloneInTheValue(SelectedAlone):
    """The gradient is that of the student over all classes."""

    def gradient(self, wrt: str, grad: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        return grad


def test_a_student_of_the_selected_classes_alone_is_named() -> None:
    stem = "sparse-targets/renormalize-plain/float32"
    assert named(SelectedAlone, stem) == {"student over the selected classes"}
    assert WRONG in named(SelectedAloneInTheValue, stem)


class ByComplement(Teachers):
    """log(1 - sum p) in the dtype of the logits, with the gradient that automatic differentiation makes of it."""

    def selected(self, logits: Array, target: TopK) -> tuple[Array, Array]:
        p = softmax(logits)
        chosen = np.zeros(p.shape, bool)
        np.put_along_axis(chosen, target.ids, True, axis=-1)
        return p, chosen

    def losses(self, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        p, chosen = self.selected(logits, target)
        q = probabilities(target, options)
        own = -(q * np.take_along_axis(np.log(p), target.ids, axis=-1)).sum(axis=-1)
        left = np.maximum(0, 1 - q.sum(axis=-1)) if target.tail == "bucket" else 0
        with np.errstate(all="ignore"):
            rest = 1 - np.where(chosen, p, 0).sum(axis=-1, dtype=p.dtype)
            return np.asarray(own - (left * np.log(rest) if target.tail == "bucket" else 0), logits.dtype)

    def gradient(self, wrt: str, grad: Array, logits: Array, target: TopK, options: dict[str, Any]) -> Array:
        if wrt != "logits" or target.tail != "bucket":
            return grad
        p, chosen = self.selected(logits, target)
        q = probabilities(target, options)
        coefs = np.zeros(p.shape)
        np.put_along_axis(coefs, target.ids, q, axis=-1)
        inside = np.where(chosen, p, 0).sum(axis=-1, keepdims=True, dtype=p.dtype)
        of_rest = np.where(chosen, p * (1 - inside), -p * inside) / (1 - inside)
        left = np.maximum(0, 1 - q.sum(axis=-1, keepdims=True))
        return np.asarray(options["up"][:, None] * (p * q.sum(axis=-1, keepdims=True) - coefs + left * of_rest))


def test_a_bucket_by_subtraction_is_named_while_it_has_digits() -> None:
    assert named(ByComplement, "sparse-targets/bucket-plain/float32") <= {"absolute accuracy", "bucket by 1 − Σp"}
    assert named(ByComplement, "sparse-targets/bucket-barely-ahead/float32") <= {
        "absolute accuracy",
        "bucket by 1 − Σp",
    }
    for name in ("gap-of-20", "confident-student-20", "confident-student-25"):
        assert WRONG in named(ByComplement, f"sparse-targets/bucket-{name}/float32"), name
