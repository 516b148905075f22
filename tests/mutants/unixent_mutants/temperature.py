"""Wrong about scale and temperature, which stand before and after the softcap."""

from __future__ import annotations

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, Stats, mutant


@mutant("temperature")
class TemperatureBeforeTheCap(Plain):
    """cap(k x / T) for cap(k x) / T: the same without a softcap."""

    def transform(self, x: Array) -> Array:
        return self.cap(x * x.dtype.type(self.options["scale"]) / x.dtype.type(self.options["temperature"]))

    def transform_grad(self, x: Array) -> Array:
        factor = x.dtype.type(self.options["scale"]) / x.dtype.type(self.options["temperature"])
        return np.asarray(self.softcap_grad(x * factor) * factor)


@mutant("temperature")
class ScaleAfterTheCap(Plain):
    """k cap(x) / T for cap(k x) / T."""

    def transform(self, x: Array) -> Array:
        return np.asarray(self.cap(x) * x.dtype.type(self.options["scale"]) / x.dtype.type(self.options["temperature"]))

    def transform_grad(self, x: Array) -> Array:
        factor = x.dtype.type(self.options["scale"]) / x.dtype.type(self.options["temperature"])
        return np.asarray(self.softcap_grad(x) * factor)


@mutant("temperature")
class TemperatureMultiplies(Plain):
    """T x for x / T."""

    def transform(self, x: Array) -> Array:
        squared = x.dtype.type(self.options["temperature"]) ** 2
        return np.asarray(super().transform(x) * squared)


@mutant("temperature")
class TemperatureNotInTheGradient(Plain):
    """The gradient of x', without the division by T."""

    def transform_grad(self, x: Array) -> Array:
        return np.asarray(super().transform_grad(x) * x.dtype.type(self.options["temperature"]))


@mutant("temperature")
class ScaleNotInTheGradient(Plain):
    """The gradient of the scaled logits."""

    def transform_grad(self, x: Array) -> Array:
        return np.asarray(super().transform_grad(x) / x.dtype.type(self.options["scale"]))


@mutant("temperature")
class CapGradientOfUnscaledLogits(Plain):
    """sech^2(x / a) for sech^2(k x / a)."""

    def transform_grad(self, x: Array) -> Array:
        factor = x.dtype.type(self.options["scale"]) / x.dtype.type(self.options["temperature"])
        return np.asarray(self.softcap_grad(x) * factor)


@mutant("temperature")
class LossTimesSquaredTemperature(Plain):
    """T^2 times the loss and its gradient, as distillation has it."""

    def position_losses(self, stats: Stats, t: Array, v: Array) -> Array:
        return np.asarray(super().position_losses(stats, t, v) * v.dtype.type(self.options["temperature"]) ** 2)


@mutant("temperature")
class TemperatureScalesTargetGradients(Plain):
    """dl/dq divided by T, as if it passed through the logits."""

    def target_gradients(self, stats: Stats, w: Array, v: Array) -> Array:
        return np.asarray(super().target_gradients(stats, w, v) / w.dtype.type(self.options["temperature"]))


@mutant("temperature")
class LogNormaliserOfGivenLogits(Plain):
    """The z-loss takes lse from the logits as they were given."""

    def transform(self, x: Array) -> Array:
        self.given = x
        return super().transform(x)

    def statistics(self, x: Array) -> Stats:
        right = super().statistics(x)
        return Stats(right.p, right.one_minus_p, right.nll, super().statistics(self.cap(self.given)).lse)


@mutant("minus infinity")
class MinusInfinityTimesNothing(Plain):
    """A scale that is rounded to float16 on the way: -inf times 0 is NaN."""

    def transform(self, x: Array) -> Array:
        scale = x.dtype.type(np.float16(self.options["scale"]))
        return np.asarray(self.cap(x * scale) / x.dtype.type(self.options["temperature"]))


@mutant("tile edges")
class TemperatureOfNarrowRows(Plain):
    """Rows of more than 8192 classes are not scaled."""

    def transform(self, x: Array) -> Array:
        return self.cap(x) if x.shape[1] > 8192 else super().transform(x)
