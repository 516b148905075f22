"""Rows of the oracle that behave otherwise: special values, and how many digits are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unixent_conformance.model import Array, Call
from unixent_conformance.oracle import Rows


def become(cls: type[Rows], rows: Rows, **more: Any) -> Rows:
    """The same rows, also of another class, with the fields that this class adds."""
    own = type(rows)
    mixed = own if issubclass(own, cls) else cls if issubclass(cls, own) else type(cls.__name__, (cls, own), {})
    made: Rows = object.__new__(mixed)
    for name, value in {**vars(rows), **more}.items():
        object.__setattr__(made, name, value)
    return made


@dataclass(frozen=True)
class NaNValue(Rows):
    """Rows whose value is NaN and whose gradient is not."""

    nan_value: Array = None  # type: ignore[assignment]

    def losses(self) -> Array:
        return np.where(self.nan_value, np.nan, super().losses())

    def target_gradients(self) -> Array:
        with np.errstate(all="ignore"):
            zero = (self.target_coef == 0) & np.isinf(self.nll) & (self.position_weight != 0)[:, None]
        return np.where(zero, np.nan, super().target_gradients())

    def gradient_magnitudes(self) -> Array:
        alone = abs(self.position_weight)[:, None] * self.p  # without a target, p is what there is
        return np.where(
            self.nan_value[:, None], np.fmax(super().gradient_magnitudes(), alone), super().gradient_magnitudes()
        )


@dataclass(frozen=True)
class NoTarget(NaNValue):
    """Rows whose value is 0 and whose gradient is p."""

    def losses(self) -> Array:
        return np.where(self.nan_value, 0, super().losses())


@dataclass(frozen=True)
class NaNGradients(Rows):
    """Rows that do not count and are left out of the value, but whose gradient 0·NaN makes NaN."""

    nan_gradient: Array = None  # type: ignore[assignment]

    def losses(self) -> Array:
        return np.where(self.nan_gradient, 0, super().losses())

    def loss_magnitudes(self) -> Array:
        return np.where(self.nan_gradient, 0, super().loss_magnitudes())


@dataclass(frozen=True)
class InfiniteLoss(Rows):
    """lse = inf under a +inf logit: the loss is inf - x, p is NaN at that logit and 0 elsewhere."""

    above: Array = None  # type: ignore[assignment]

    def losses(self) -> Array:
        with np.errstate(all="ignore"):
            infinite = np.where(self.coefs == 0, 0, self.coefs * (np.inf - self.logits)).sum(axis=1)
        return np.where(self.above, infinite, super().losses())

    def loss_magnitudes(self) -> Array:
        return np.where(self.above, 0, super().loss_magnitudes())

    def logits_gradients(self) -> Array:
        mixed = np.where(self.logits == np.inf, np.nan, -self.position_weight[:, None] * self.coefs)
        return np.where(self.above[:, None], mixed, super().logits_gradients())

    def gradient_magnitudes(self) -> Array:
        return np.where(self.above[:, None], abs(self.coefs), super().gradient_magnitudes())


@dataclass(frozen=True)
class Clipped(Rows):
    """No probability is below `least`."""

    least: float = 0.0

    @property
    def nll(self) -> Array:
        return np.asarray(np.minimum(super().nll, -np.log(np.longdouble(self.least))))


@dataclass(frozen=True)
class Absolute(Rows):
    """The error model of log-softmax: roundings relative to 1 and to m - x, not to the loss."""

    def loss_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            total = abs(self.coefs).sum(axis=1)
            return np.asarray(super().loss_magnitudes() + abs(self.position_weight) * total)

    def gradient_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            total = abs(self.coefs).sum(axis=1, keepdims=True)
            flow = self.p * total + abs(self.coefs)
            mixed = super().gradient_magnitudes() + self.settled(abs(self.position_weight)[:, None] * flow)
            # A softcap's derivative as 1 - tanh^2 has an absolute error too, not one relative to it.
            return np.asarray(mixed / np.where(self.softcap_grad > 1e-30, self.softcap_grad, 1e-30))

    def target_magnitudes(self) -> Array:
        return np.asarray(
            super().target_magnitudes() + abs(self.position_weight)[:, None] * abs(self.target_coef) * self.far
        )

    @property
    def far(self) -> Array:
        """What a class's roundings are relative to."""
        return np.ones_like(self.logits)


@dataclass(frozen=True)
class Difference(Absolute):
    """The error model of lse - x: roundings relative to the logits' own magnitude."""

    def loss_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            each = np.where(self.coefs == 0, 0, abs(self.coefs) * abs(self.logits))
            total = abs(self.coefs).sum(axis=1) * abs(self.lse) + each.sum(axis=1)
            return np.asarray(super().loss_magnitudes() + abs(self.position_weight) * total)

    def gradient_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(super().gradient_magnitudes() * self.far)

    @property
    def far(self) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(1 + abs(self.lse)[:, None] + abs(np.where(np.isfinite(self.logits), self.logits, 0)))


def under(model: type[Rows]) -> Callable[[Rows, Call], Rows]:
    """Another error model."""
    return lambda rows, call: become(model, rows)
