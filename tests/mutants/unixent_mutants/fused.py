"""Wrong in what a fused linear form adds to the loss: chunks, products, gradients summed over positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.linear import Inputs, PlainLinear
from unixent_mutants.plain import mutant


@mutant("fused linear chunks")
class LastChunkDropped(PlainLinear):
    """Positions beyond a whole number of chunks are never seen."""

    def chunks(self, count: int, size: int) -> Iterator[slice]:
        return (rows for rows in super().chunks(count, size) if rows.stop - rows.start == size)


@mutant("fused linear chunks")
class LastChunkOverlaps(PlainLinear):
    """The last chunk is moved back to be whole, and its overlap enters the summed gradients twice."""

    def chunks(self, count: int, size: int) -> Iterator[slice]:
        for rows in super().chunks(count, size):
            yield slice(max(rows.stop - size, 0), rows.stop)


@mutant("fused linear chunks")
class MeanOverTheChunk(PlainLinear):
    """The gradient is divided by the chunk's own denominator."""

    def grad_scale(self, ups: Array, factor: Any, rows: slice, d: Array) -> Array:
        if self.options["reduction"] != "mean" or self.options["normalizer"] is not None:
            return super().grad_scale(ups, factor, rows, d)
        own = d[rows].sum()
        return super().grad_scale(ups, 1 / own if own else own, rows, d)


@mutant("fused linear chunks")
class MeanOfChunkMeans(PlainLinear):
    """The value is the mean of the chunks' means: right only where all chunks weigh the same."""

    def reduced(self, losses: Array, d: Array, given: Inputs) -> tuple[Any, Any]:
        value, factor = super().reduced(losses, d, given)
        if self.options["reduction"] == "mean" and self.options["normalizer"] is None and len(d) and d.sum():
            parts = [(losses[rows].sum(), d[rows].sum()) for rows in self.chunks(len(d), given.chunk)]
            value = np.mean([numerator / own for numerator, own in parts if own], dtype=losses.dtype)
        return value, factor


@mutant("fused linear chunks")
class UpstreamOfTheFirstChunk(PlainLinear):
    """Every chunk takes the upstream gradients of the first one's positions."""

    def grad_scale(self, ups: Array, factor: Any, rows: slice, d: Array) -> Array:
        return super().grad_scale(np.roll(ups, rows.start), factor, rows, d)


@mutant("fused linear chunks")
class ClassifierGradientOfTheLastChunk(PlainLinear):
    """Overwritten where it should be added to."""

    def classifier_gradient(self, total: Array, logits_grad: Array, states: Array, given: Inputs) -> Array:
        return super().classifier_gradient(np.zeros_like(total), logits_grad, states, given)


@mutant("fused linear chunks")
class BiasGradientOfTheLastChunk(PlainLinear):
    """The same for the bias."""

    def bias_gradient(self, total: Array, logits_grad: Array) -> Array:
        return super().bias_gradient(np.zeros_like(total), logits_grad)


@mutant("fused linear half precision")
class ClassifierGradientInHalf(PlainLinear):
    """The sum over chunks is kept in the classifier's own half precision."""

    def classifier_gradient(self, total: Array, logits_grad: Array, states: Array, given: Inputs) -> Array:
        own = super().classifier_gradient(total, logits_grad, states, given)
        return own.astype(given.classifier.dtype).astype(own.dtype)


@mutant("fused linear half precision")
class LogitsInHalf(PlainLinear):
    """A matrix product of half inputs is left in half precision, as frameworks return it."""

    def logits(self, states: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        return super().logits(states, given, acc).astype(given.hidden.dtype).astype(acc)


@mutant("fused linear half precision")
class LogitsWithinHalf(PlainLinear):
    """Logits beyond the largest number of float16 are that number, as after a product that saturates."""

    def logits(self, states: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        largest = 65_504 if given.hidden.dtype == np.float16 else np.inf
        return super().logits(states, given, acc).clip(-largest, largest).astype(acc)


@mutant("fused linear half precision")
class LogitsGradientInHalf(PlainLinear):
    """Rounded to half precision before the two products: small entries of a mean over many positions vanish."""

    def finish_logits_grad(self, logits_grad: Array, given: Inputs) -> Array:
        return logits_grad.astype(given.hidden.dtype).astype(logits_grad.dtype)


@mutant("fused linear")
class HiddenGradientInHalf(PlainLinear):
    """The sum over tiles of classes is kept in the half precision of hidden."""

    def hidden_gradient(self, logits_grad: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        total = np.zeros(given.hidden.shape, given.hidden.dtype)
        for first in range(0, len(given.classifier), 4):
            tile = slice(first, first + 4)
            total = (total.astype(acc) + logits_grad[:, tile] @ given.classifier[tile].astype(acc)).astype(total.dtype)
        return total.astype(acc)


@mutant("fused linear")
class BiasForgotten(PlainLinear):
    """The logits are the product alone."""

    def logits(self, states: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        return np.asarray(states @ given.classifier.astype(acc).T)


@mutant("fused linear")
class BiasGradientMissing(PlainLinear):
    """The bias never learns."""

    def bias_gradient(self, total: Array, logits_grad: Array) -> Array:
        return total


@mutant("fused linear")
class BiasInsideTheProduct(PlainLinear):
    """The bias scales the rows of the classifier."""

    def hidden_gradient(self, logits_grad: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        own = logits_grad if given.bias is None else logits_grad * given.bias.astype(acc)
        return super().hidden_gradient(np.asarray(own), given, acc)


@mutant("fused linear")
class ClassifierRoundedToHidden(PlainLinear):
    """A wider classifier is cast to the dtype of hidden."""

    def logits(self, states: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        narrow = given.classifier.astype(given.hidden.dtype).astype(acc)
        product = states @ narrow.T
        return np.asarray(product if given.bias is None else product + given.bias.astype(acc))


@mutant("fused linear special values")
class InactiveStatesReachTheClassifier(PlainLinear):
    """0 times what an inactive hidden state holds: NaN from where nothing should come."""

    def states(self, hidden: Array, v: Array, acc: np.dtype[Any]) -> Array:
        return hidden.astype(acc)


@mutant("fused linear tile edges")
class BiasOncePerBlock(PlainLinear):
    """The bias is added with each block of 256 features."""

    def logits(self, states: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        logits = super().logits(states, given, acc)
        more = (states.shape[1] - 1) // 256
        return logits if given.bias is None else np.asarray(logits + acc.type(more) * given.bias.astype(acc))


@mutant("fused linear tile edges")
class FeaturesOfTheLastBlock(PlainLinear):
    """Features beyond a whole number of blocks of 256 are never seen."""

    def states(self, hidden: Array, v: Array, acc: np.dtype[Any]) -> Array:
        states, width = super().states(hidden, v, acc), hidden.shape[1]
        return np.where((width > 256) & (np.arange(width) >= width // 256 * 256), 0, states).astype(acc)


@mutant("fused linear tile edges")
class BiasOfMinusInfinityInTheFirstBlock(PlainLinear):
    """Biases of -inf in all of the first 128 classes count as 0."""

    def logits(self, states: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        bias = given.bias
        if bias is not None and len(bias) > 128 and np.isneginf(bias[:128]).all():
            given = replace(given, bias=np.where(np.arange(len(bias)) < 128, 0, bias).astype(bias.dtype))
        return super().logits(states, given, acc)


@mutant("fused linear special values")
class BiasMadeFinite(PlainLinear):
    """-inf in the bias becomes the lowest number."""

    def logits(self, states: Array, given: Inputs, acc: np.dtype[Any]) -> Array:
        logits = super().logits(states, given, acc)
        return np.where(np.isneginf(logits), np.finfo(acc).min, logits).astype(acc)


@mutant("fused linear special values")
class OutOfRangeLeavesTheClassifierAlone(PlainLinear):
    """An unread index out of range makes the value NaN, and adds nothing to the gradients."""

    def finish_logits_grad(self, logits_grad: Array, given: Inputs) -> Array:
        return np.asarray(np.where(np.isnan(logits_grad).all(axis=1, keepdims=True), 0, logits_grad))


@mutant("fused linear bad input")
class AnyChunk(PlainLinear):
    """A chunk of 0 or less means the default."""

    def check_linear(self, hidden: Array, classifier: Array, bias: Array | None, target: Array, chunk: Any) -> None:
        super().check_linear(hidden, classifier, bias, target, None)


@mutant("fused linear frozen arguments")
class FrozenClassifierFreezesHidden(PlainLinear):
    """A classifier that is not trained, under adapters say, passes no gradient on."""

    def linear(
        self, hidden: Any, classifier: Any, target: Any, up: Any, wrt: tuple[str, ...], options: dict[str, Any]
    ) -> tuple[Any, tuple[Array, ...]]:
        value, grads = super().linear(hidden, classifier, target, up, wrt, options)
        asked = "classifier" in wrt
        return value, tuple(
            grad if asked or name != "hidden" else grad * 0 for name, grad in zip(wrt, grads, strict=True)
        )
