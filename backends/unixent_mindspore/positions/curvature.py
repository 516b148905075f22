"""The derivatives of statistics in MindSpore primitives, down to the second: see `unixent.row_statistics`.

Log-probabilities under upstream gradients g_j are a loss whose target coefficients are -g_j, so that their part of the
gradient is that of a loss. With D_c = L_c - H, the gaps less their mean, the entropy's gradient is p_c D_c, and the
derivative of that along a

    p_c [(a_c - <p, a>) (D_c - 1) - <p D, a>].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, int64
from mindspore.ops import operations as P

from unixent_mindspore.kernel import DTYPES
from unixent_mindspore.kernel.composed import Rows
from unixent_mindspore.logits.curvature import TwiceDifferentiated
from unixent_mindspore.logits.reduction import Reduction, as_int64
from unixent_mindspore.positions.problem import StatsSpec


class _Derivatives(Reduction, Rows):
    """What gradient and curvature share."""

    def __init__(self, spec: StatsSpec, dtype: str) -> None:
        super().__init__(spec, dtype)
        self.has_z_loss = False  # of the loss, which has passes of its own
        columns = {column.name: column for column in spec.graded}
        self.width = spec.columns[0]
        self.loss_column, self.log_prob, self.entropy, self.logsumexp = (
            columns[name].start if name in columns else -1 for name in ("loss", "log_prob", "entropy", "logsumexp")
        )
        chosen = columns.get("selected_log_prob")
        self.selected = () if chosen is None else tuple(range(chosen.start, chosen.stop))
        limits = None if spec.dtypes[8] is None else np.iinfo(spec.dtypes[8])
        self.pads = limits is not None and bool(limits.min <= spec.options.ignore_index <= limits.max)
        self.padding = Tensor(as_int64(spec.options.ignore_index) if self.pads else 0, int64)
        self.slice, self.concat = P.StridedSlice(), P.Concat(-1)

    def column(self, packed: Tensor, i: int) -> Tensor:
        """One column P + (M,) -> P, with the axis of the classes put in."""
        positions, ndim = packed.shape[:-1], packed.ndim
        part = self.slice(packed, (0,) * (ndim - 1) + (i,), positions + (i + 1,), (1,) * ndim)
        return self.expand(self.reshape(part, positions), self.axis)

    def upstream(self, grad_output: Tensor, i: int) -> Tensor:
        return self.cast(self.column(grad_output, i), self.dtype)

    def solve(self, x: Tensor) -> Any:
        """Per row: where the pivot is, its scalars, p, D and the p and D of all other classes."""
        is_pivot = self.is_class(self.expand(self.argmax(x), self.axis), x)
        stats = self.statistics(x, is_pivot)
        p = self.where(is_pivot, stats[2], stats[4])
        gaps = self.where(self.equal(p, self.zero), self.zero, self.logit_gaps(x, is_pivot))
        return is_pivot, stats, p, gaps - self.sum(p * gaps)

    def classes(self, target: Tensor, selected: Tensor, like: Tensor) -> Any:
        """Of each log-probability asked for: its column, where its class is, and its weight."""
        classes: Any = ()
        if self.log_prob >= 0:
            classes = ((self.log_prob, self.is_class(target, like), self.one),)
        for j in range(len(self.selected)):
            index = self.cast(self.column(selected, j), int64)
            too_large = self.logical_not(self.less(index, self.end_of_classes))
            weight = self.where(self.logical_or(self.less(index, self.class_zero), too_large), self.nan, self.one)
            if self.pads:
                weight = self.where(self.equal(index, self.padding), self.zero, weight)
            classes = classes + ((self.selected[j], self.is_class(index, like), weight),)
        return classes

    def grads(self, solved: Any, classes: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative for x', and the sum of the coefficients of p in it."""
        is_pivot, stats, p, centred = solved
        coefs = self.zeros(p)
        for i, is_class, weight in classes:
            grad = self.where(self.equal(weight, self.zero), self.zero, weight * self.upstream(grad_output, i))
            coefs = coefs - self.where(is_class, grad, self.zero)
        p_coef = self.sum(coefs)
        grads = self.transformed_logit_grads(is_pivot, coefs, p_coef, stats)
        if self.logsumexp >= 0:
            grad = self.upstream(grad_output, self.logsumexp)
            grads, p_coef = grads + grad * p, p_coef + grad
        if self.entropy >= 0:
            grads = grads + self.upstream(grad_output, self.entropy) * (p * centred)
        return grads, p_coef


class StatsGradient(_Derivatives):
    """The backward pass: `INPUTS` and the upstream gradients -> the gradients of the first four."""

    def __init__(self, spec: StatsSpec, dtype: str, loss_gradient: Any) -> None:
        super().__init__(spec, dtype)
        self.loss_gradient = loss_gradient

    def construct(self, *inputs: Tensor) -> Any:
        logits, classifier, bias, target, weight, mask, _, _, selected, grad_output = inputs
        x, transform_grad = self.transform(logits)
        safe_target, position_weight, _ = self.positions(logits, target, weight, mask)
        grads, _ = self.grads(self.solve(x), self.classes(safe_target, selected, x), grad_output)
        grads = self.at_positions(grads * transform_grad, position_weight)
        target_grad = self.zeros(target)
        if self.loss_column >= 0:
            loss_upstream = self.reshape(self.column(grad_output, self.loss_column), grad_output.shape[:-1])
            of_loss = self.loss_gradient(*inputs[:9], loss_upstream)
            grads, target_grad = grads + self.cast(of_loss[0], self.dtype), of_loss[3]
        return self.cast(grads, logits.dtype), self.zeros(classifier), self.zeros(bias), target_grad


class StatsCurvature(_Derivatives):
    """The derivative of ``<a, d/d logits> + <b, d/d target>`` for logits, target and the upstream gradients."""

    def __init__(self, spec: StatsSpec, dtype: str, loss_curvature: Any) -> None:
        super().__init__(spec, dtype)
        self.loss_curvature, self.last = loss_curvature, TwiceDifferentiated()
        self.logits_dtype = DTYPES[str(spec.dtypes[0])]

    def construct(self, a: Tensor, b: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, _, _, target, weight, mask, _, _, selected, grad_output = inputs
        x, transform_grad = self.transform(logits)
        safe_target, position_weight, _ = self.positions(logits, target, weight, mask)
        solved = self.solve(x)
        is_pivot, stats, p, centred = solved
        classes = self.classes(safe_target, selected, x)
        grads, p_coef = self.grads(solved, classes, grad_output)
        moved = self.cast(a, self.dtype) * transform_grad
        mean, of_rest = self.sum(p * moved), self.sum(stats[4] * moved)
        hvp = p_coef * p * (moved - mean)
        entropy_tangent = self.sum(p * centred * moved)
        if self.entropy >= 0:
            own = p * ((moved - mean) * (centred - self.one) - entropy_tangent)
            hvp = hvp + self.upstream(grad_output, self.entropy) * own
        hvp = self.through_transform(hvp * transform_grad, x, moved, grads)
        hvp = self.at_positions(hvp, position_weight)

        loss_tangent, target_hvp = mean, self.zeros(target)
        if self.loss_column >= 0:
            loss_upstream = self.reshape(self.column(grad_output, self.loss_column), grad_output.shape[:-1])
            of_loss = self.loss_curvature(a, b, *inputs[:9], loss_upstream)
            hvp, target_hvp = hvp + self.cast(of_loss[0], self.dtype), of_loss[1]
            loss_tangent = self.expand(of_loss[2], self.axis)
        tangents: Any = ()
        for i in range(self.width):
            tangent = self.zeros(mean)
            if i == self.loss_column:
                tangent = loss_tangent
            if i == self.logsumexp:
                tangent = mean
            if i == self.entropy:
                tangent = entropy_tangent
            for j, is_class, class_weight in classes:
                if i == j:
                    at_class = self.sum(self.where(is_class, moved, self.zero))
                    is_pivots = self.sum(self.where(is_class, self.cast(is_pivot, self.dtype), self.zero))
                    at_pivot = stats[3] * at_class - of_rest
                    tangent = self.where(self.equal(is_pivots, self.one), at_pivot, at_class - mean)
                    tangent = self.where(self.equal(class_weight, self.zero), self.zero, class_weight * tangent)
            tangent = self.cast(self.at_positions(tangent, position_weight), grad_output.dtype)
            tangents = tangents + (self.reshape(tangent, grad_output.shape[:-1] + (1,)),)
        return (
            self.last(self.cast(hvp, self.logits_dtype)),
            self.last(target_hvp),
            self.last(self.concat(tangents)),
        )
