"""Rows of the oracle that behave otherwise: special values, and how many digits are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unixent_conformance.model import Array, Call
from unixent_conformance.oracle import Rows
from unixent_conformance.tolerance import Format


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
    """No probability is below `least`, and what is clipped has no gradient."""

    least: float = 0.0

    @property
    def nll(self) -> Array:
        return np.asarray(np.minimum(super().nll, -np.log(np.longdouble(self.least))))


@dataclass(frozen=True)
class SumToOne(Rows):
    """Targets are taken to sum to 1, in the gradient p - t and, if `in_value`, in the value lse - sum_c t_c x_c, in
    which the logits are those below the largest if `from_largest`."""

    in_value: bool = False
    from_largest: bool = False

    @property
    def excess(self) -> Array:
        return np.asarray(1 - self.coefs.sum(axis=1))

    def losses(self) -> Array:
        with np.errstate(all="ignore"):
            more = self.settled(self.position_weight * self.excess * self.value_lse) if self.in_value else 0
            return np.asarray(super().losses() + more)

    def loss_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            largest = 0 if self.from_largest else abs(self.shift)
            more = abs(self.position_weight * self.excess) * (largest + self.lse_minus_shift)
            return np.asarray(super().loss_magnitudes() + (self.settled(more) if self.in_value else 0))

    def logits_gradients(self) -> Array:
        return np.asarray(super().logits_gradients() + self.more_p * self.transform_grad * self.excess[:, None])

    def gradient_magnitudes(self) -> Array:
        return np.asarray(super().gradient_magnitudes() + abs(self.more_p * self.excess[:, None]))

    def target_gradients(self) -> Array:
        """Of the value lse - sum_c t_c x_c, that is -x_c."""
        if not self.in_value:
            return super().target_gradients()
        return np.asarray(super().target_gradients() - self.settled(self.target_lse))

    def target_magnitudes(self) -> Array:
        return np.asarray(abs(super().target_gradients()) + (abs(self.target_lse) if self.in_value else 0))

    @property
    def more_p(self) -> Array:
        return np.asarray(self.settled(self.position_weight[:, None] * self.p))

    @property
    def value_lse(self) -> Array:
        return np.asarray(self.lse_minus_shift if self.from_largest else self.lse)

    @property
    def target_lse(self) -> Array:
        return np.asarray(self.position_weight[:, None] * self.target_coef * self.value_lse[:, None])


@dataclass(frozen=True)
class Absolute(Rows):
    """The error model of log-softmax: roundings relative to 1 and to m - x, not to the loss."""

    def loss_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(super().loss_magnitudes() + abs(self.position_weight) * self.total_coefs())

    def gradient_roundings(self) -> Array:
        """Of p - t, which is a difference of the two, and of a softcap's derivative as 1 - tanh^2."""
        with np.errstate(all="ignore"):
            total = self.total_coefs()[:, None]
            if self.z_loss:
                total = total + 2 * abs(self.z_loss * self.lse)[:, None]
            flow = self.settled(abs(self.position_weight)[:, None] * (self.p_roundings * total + abs(self.coefs)))
            flow = flow * (self.transform_grad + self.cap_ratio.any() * self.inverse_temperature)
            return np.asarray(flow + super().gradient_roundings())

    def target_magnitudes(self) -> Array:
        return np.asarray(super().target_magnitudes() + self.target_terms(self.far))

    @property
    def p_roundings(self) -> Array:
        return self.p

    @property
    def far(self) -> Array:
        return np.ones_like(self.logits)


@dataclass(frozen=True)
class Difference(Absolute):
    """The error model of lse - x: roundings relative to the logits' own magnitude, in rows of logits that are no larger
    than `largest`; beyond that every answer would be near enough."""

    largest: float = 0.0

    def loss_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            total = np.where(self.coefs == 0, 0, abs(self.coefs) * (self.far - 1)).sum(axis=1)
            return np.asarray(super().loss_magnitudes() + abs(self.position_weight) * total)

    @property
    def p_roundings(self) -> Array:
        """p = exp(x - lse)."""
        with np.errstate(all="ignore"):
            return np.asarray(self.p * self.far)

    @property
    def far(self) -> Array:
        # A loss that is finite beside a logit that is not owes no digits to it.
        x = np.where(np.isfinite(self.logits), abs(self.logits), 0)
        with np.errstate(all="ignore"):
            far = 1 + abs(self.lse)[:, None] + x
            return np.where(x.max(axis=1, keepdims=True, initial=0) <= self.largest, far, 1)


def absolute(rows: Rows, call: Call) -> Rows:
    return become(Absolute, rows)


def differences(dtype: Callable[[Call], str]) -> Callable[[Rows, Call], Rows]:
    """Roundings of a dtype in lse - x."""
    return lambda rows, call: become(Difference, rows, largest=1 / (16 * Format.of(dtype(call)).roundoff))
