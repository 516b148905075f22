"""Statistics of all positions: logits a block of rows at a time, or hidden states a chunk of logits at a time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from unixent import row_statistics
from unixent.protocol import LinearProblem, LossProblem, PositionStats, Problem, StatsProblem
from unixent.row_statistics import INDICES, Along, Classes, settled
from unixent_numpy.collectives import all_reduce
from unixent_numpy.compat import Array, bfloat16
from unixent_numpy.kernel import RowLosses, row_losses
from unixent_numpy.kernel.blocks import RowBlocks, Rows, num_threads
from unixent_numpy.kernel.rows import apply_transform, through_transform
from unixent_numpy.linear import linear_chunks, with_fast_classifier
from unixent_numpy.logits.problem import Operands
from unixent_numpy.positions import native
from unixent_numpy.positions.rows import ALONG


class RowPass(NamedTuple):
    """How a block of rows is worked: whole, or by this process's share of the classes.

    Attributes:
        along: the arithmetic over classes.
        row_losses: the pass of the loss.
        group: the processes that share the classes, or None.
        block_rows: how many rows a block has, the same on all of them; None for what suits this process.
    """

    along: Along
    row_losses: RowLosses
    group: Any = None
    block_rows: int | None = None


WHOLE_ROWS = RowPass(ALONG, row_losses)


def solve_stats(
    problem: StatsProblem, grad_output: PositionStats, wrt: tuple[str, ...], row_pass: RowPass = WHOLE_ROWS
) -> tuple[PositionStats, tuple[Array, ...]]:
    """The statistics, and the gradients for ``wrt``."""
    upstream = {name: array for name, array in grad_output._asdict().items() if array is not None}
    stats, grads = columns_and_grads(problem, upstream, wrt, row_pass)
    dtype: Any = bfloat16() if problem.call.result_dtype == "bfloat16" else np.dtype(problem.call.result_dtype)
    with np.errstate(all="ignore"):
        rounded = {
            name: column if name in INDICES or name == "correct" else column.astype(dtype, copy=False)
            for name, column in stats.items()
        }
    return PositionStats(**rounded), grads


def columns_and_grads(
    problem: StatsProblem, upstream: dict[str, Array], wrt: tuple[str, ...], row_pass: RowPass = WHOLE_ROWS
) -> tuple[dict[str, Array], tuple[Array, ...]]:
    """The outputs in the accumulation dtype, those of sparse targets included, and the gradients."""
    with np.errstate(all="ignore"):
        call = problem.call
        if isinstance(call, Problem):
            return _of_logits(problem, call, upstream, wrt, row_pass)
        return _of_hidden(problem, call, upstream, wrt, row_pass)


def _of_logits(
    problem: StatsProblem, call: Problem, grad_output: dict[str, Array], wrt: tuple[str, ...], row_pass: RowPass
) -> tuple[dict[str, Array], tuple[Array, ...]]:
    x, target = np.moveaxis(np.asarray(call.logits), call.axis, -1), np.asarray(call.target)
    if call.target_kind == "probability":
        target = np.moveaxis(target, call.axis, -1)
    work = _Work(problem, x.shape[:-1], Operands.of(call, target), grad_output, bool(wrt), row_pass)
    source, grad = Rows(x), Rows(np.empty_like(x, subok=False)) if wrt else None
    if work.whole(x, None if grad is None else grad.array):
        return work.finished(), () if grad is None else (np.moveaxis(grad.array, -1, call.axis),)
    blocks = RowBlocks(work.count, source.num_classes, work.operands.spec.acc_dtype, row_pass.block_rows)

    def solve(rows: slice) -> None:
        with np.errstate(all="ignore"):
            block = blocks.scratch("logits", rows)
            source.read(rows, block)
            work.block(rows, block, blocks)
            if grad is not None:
                grad.write(rows, block)

    blocks.for_each(solve)
    return work.finished(), () if grad is None else (np.moveaxis(grad.array, -1, call.axis),)


def _of_hidden(
    problem: StatsProblem, call: LinearProblem, grad_output: dict[str, Array], wrt: tuple[str, ...], row_pass: RowPass
) -> tuple[dict[str, Array], tuple[Array, ...]]:
    call = with_fast_classifier(call)
    positions, num_classes = call.hidden.shape[:-1], len(call.classifier)
    target = np.asarray(call.target)
    operands = Operands.of(call, target.reshape(-1) if call.target_kind == "index" else _rows(target))
    work, dtype = _Work(problem, positions, operands, grad_output, bool(wrt), row_pass), operands.spec.acc_dtype
    grads: dict[str, Array] = {}
    for name in wrt:
        array = getattr(call, name)
        if name == "hidden":
            # Each process of a model group adds what its classes give.
            grads[name] = np.empty((work.count, array.shape[-1]), array.dtype if row_pass.group is None else dtype)
        else:
            grads[name] = np.zeros(array.shape, dtype)
    for start, logits in linear_chunks(call, work.position_weight, dtype, grads):
        blocks = RowBlocks(len(logits), num_classes, dtype, row_pass.block_rows)

        def solve(rows: slice, first: int = start.start, logits: Array = logits, blocks: RowBlocks = blocks) -> None:
            with np.errstate(all="ignore"):
                work.block(slice(first + rows.start, first + rows.stop), logits[rows], blocks)

        blocks.for_each(solve)
    if "hidden" in grads:
        grads["hidden"] = all_reduce(grads["hidden"], row_pass.group, "SUM")
    arrays = [(grads[name], getattr(call, name)) for name in wrt]
    results = [grad.astype(array.dtype, copy=False).reshape(array.shape) for grad, array in arrays]
    return work.finished(), tuple(results)


class _Work:
    """One call: its columns (one number, or K or k of them, for each position) and what is done with a block of rows.

    Attributes:
        count: the number of positions.
        operands: what the pass of the loss takes, too.
        position_weight: v of all positions, or None for ones.
    """

    def __init__(
        self,
        problem: StatsProblem,
        positions: tuple[int, ...],
        operands: Operands,
        grad_output: dict[str, Array],
        has_grads: bool,
        row_pass: RowPass,
    ) -> None:
        self.count, self.operands, self._problem = math.prod(positions), operands, problem
        self._positions, self._has_grads, self._pass = positions, has_grads, row_pass
        v = operands.position_weight
        self.position_weight = None if v is None else v.reshape(-1)
        dtype, is_index = operands.spec.acc_dtype, problem.call.target_kind == "index"
        self._target = operands.target.reshape((self.count, *(() if is_index else operands.target.shape[-1:])))
        self._index = self._target if is_index else np.zeros(self.count, np.intp)
        self._selected: Array | None = None
        self._selected_weight: Array | None = None
        if problem.selected is not None:
            selected = problem.selected.reshape(self.count, problem.selected.shape[-1])
            self._selected, padding, outside = safe_selection(selected, problem.call)
            if outside.any() or padding.any():
                self._selected_weight = np.where(padding, 0, np.where(outside, np.nan, 1)).astype(dtype)
        self._outputs = tuple(name for name in problem.outputs if name != "loss")
        self._columns: dict[str, Array] = {}
        for name in problem.outputs:
            column_dtype: Any = np.int64 if name in INDICES else np.bool_ if name == "correct" else dtype
            width = {"selected_log_prob": (0 if self._selected is None else self._selected.shape[1],)}
            width |= dict.fromkeys(("top_log_prob", "top_index"), (problem.k,))
            self._columns[name] = np.empty((self.count, *width.get(name, ())), column_dtype)
        self._upstream = {
            name: array.reshape(self._columns[name].shape).astype(dtype) for name, array in grad_output.items()
        }

    def whole(self, x: Array, out: Array | None) -> bool:
        """Fill all columns by one native pass, and ``out`` with the gradient; whether that could be done.

        Where the loss adds to the gradient, that is added up a block at a time, before it is rounded.
        """
        rows, v, of_loss = slice(0, self.count), self.position_weight, "loss" in self._upstream
        if of_loss or not self._outputs or not self._natively(rows, x, out, num_threads()):
            return False
        self._loss(rows, x, None if v is None else v.reshape(x.shape[:-1]), None)
        return True

    def _natively(self, rows: slice, x: Array, out: Array | None, threads: int) -> bool:
        if self._pass.group is not None:
            return False
        classes = self._classes(rows)
        return native.row_statistics(
            x,
            self._index[rows],
            classes.selected,
            classes.selected_weight,
            classes.smoothing,
            None if self.position_weight is None else self.position_weight[rows],
            {name: array[rows] for name, array in self._upstream.items() if name != "loss"},
            {name: self._columns[name][rows] for name in self._outputs},
            self._problem.k,
            self.operands.spec,
            threads,
            out,
        )

    def block(self, rows: slice, block: Array, blocks: RowBlocks) -> None:
        """Fill the columns' rows from a block of logits, which becomes their gradient where one is asked for."""
        spec, inner = self.operands.spec, slice(0, len(block))
        v = None if self.position_weight is None else self.position_weight[rows]
        upstream = {name: array[rows] for name, array in self._upstream.items()}
        loss_grad = self._loss(rows, block, v, upstream.pop("loss", None))
        if not self._outputs:
            if self._has_grads:
                block[...] = 0 if loss_grad is None else loss_grad
            return
        if self._natively(rows, block, block if self._has_grads else None, 1):
            if loss_grad is not None:
                block += loss_grad
            return
        softcap_grad = None
        if spec.transform.softcap is not None and self._has_grads:
            softcap_grad = blocks.scratch("softcap_grad", inner)
        apply_transform(block, spec.transform, softcap_grad)
        along, chosen = self._pass.along, self._classes(rows)
        has_classes = block.shape[1] > 0
        if not has_classes:  # of those that are split: see `unixent.share_statistics`
            block = np.full((len(block), 1), -np.inf, block.dtype)
        solved = row_statistics.solve(along, block)
        columns = row_statistics.values(along, solved, self._outputs, chosen, self._problem.k)
        undefined, inactive = np.isnan(solved.stats.loss), None
        if v is not None:
            inactive = (v == 0)[:, None]
            undefined = undefined | np.isnan(v)[:, None]
        for name, column in columns.items():
            due = settled(np, name, column, undefined, inactive, chosen.selected_weight)
            self._columns[name][rows] = due.reshape(self._columns[name][rows].shape)
        if not self._has_grads:
            return
        for name, array in upstream.items():
            upstream[name] = array.reshape(len(block), -1)
        grad = row_statistics.gradient(along, solved, upstream, chosen)
        if not has_classes:
            return
        block[...] = grad
        through_transform(block, spec.transform, softcap_grad)
        if loss_grad is not None:
            block += loss_grad
        block[undefined[:, 0]] = np.nan
        if inactive is not None:
            block[inactive[:, 0]] = 0

    def _classes(self, rows: slice) -> Classes:
        selected = weight = None
        if self._selected is not None:
            selected = self._selected[rows]
            weight = None if self._selected_weight is None else self._selected_weight[rows]
        spec, num_classes, smoothing = self.operands.spec, self._problem.call.num_classes, None
        if "regularizer" in self._outputs and spec.label_smoothing:
            ones: Any = np.ones(num_classes, spec.acc_dtype) if self.operands.weight is None else self.operands.weight
            smoothing = ones * (spec.label_smoothing / num_classes)
        return Classes(self._index[rows][:, None], selected, weight, smoothing=smoothing, z_loss=spec.z_loss)

    def _loss(self, rows: slice, block: Array, v: Array | None, upstream: Array | None) -> Array | None:
        """The losses, by the pass that there is for them, and their gradient where one is asked for."""
        if "loss" not in self._columns:
            return None
        operands, scale = self.operands, None
        if self._has_grads and upstream is not None:
            scale = upstream if v is None else v * upstream
        wrt = () if scale is None else ("logits",)
        target = self._target[rows]
        target = target.reshape((*block.shape[:-1], *target.shape[1:]))
        losses, grads = self._pass.row_losses(block, target, operands.weight, v, scale, operands.spec, wrt)
        self._columns["loss"][rows] = losses.reshape(-1)
        return grads[0] if grads else None

    def finished(self) -> dict[str, Array]:
        """The outputs of all positions."""
        return {name: each.reshape((*self._positions, *each.shape[1:])) for name, each in self._columns.items()}


def safe_selection(selected: Array, call: LossProblem) -> tuple[Array, Array, Array]:
    """Class indices in [0, C), where they are padding, and where they are no class."""
    padding = selected == call.options.ignore_index
    outside = (selected < 0) | (selected >= call.num_classes)
    return np.where(outside, 0, selected).astype(np.intp), padding, outside & ~padding


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1]) if array.size else array.reshape(0, array.shape[-1])
