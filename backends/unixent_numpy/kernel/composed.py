"""The pass over the logits by NumPy's own operators: a block of rows at a time, gradients where the logits were."""

from __future__ import annotations

import numpy as np

from unixent_numpy.compat import Array
from unixent_numpy.kernel.blocks import RowBlocks, Rows
from unixent_numpy.kernel.rows import ClassCoefs, apply_transform, index_rows, mixed_rows, through_transform
from unixent_numpy.kernel.spec import KernelSpec


def row_losses(
    x: Array,
    target: Array,
    weight: Array | None,
    position_weight: Array | None,
    grad_scale: Array | None,
    spec: KernelSpec,
    wrt: tuple[str, ...] = (),
    out: tuple[Array, ...] | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Implements the contract of `unixent_numpy.kernel`."""
    work = _BlockWork(x, target, weight, position_weight, spec)
    if wrt:
        assert grad_scale is not None
        out = empty_grads(x, target, wrt) if out is None else out
        work.ask_gradients(np.broadcast_to(grad_scale, x.shape[:-1]).reshape(-1), dict(zip(wrt, out, strict=True)))
    work.blocks.for_each(work)
    return work.losses.reshape(x.shape[:-1]), out or ()


def empty_grads(x: Array, target: Array, wrt: tuple[str, ...]) -> tuple[Array, ...]:
    """Memory for the gradients, in the layout of what they are taken with respect to."""
    return tuple([np.empty_like(x if name == "logits" else target, subok=False) for name in wrt])


class _BlockWork:
    """One call's columns (one number for each position) and scratch memory, and what is done with a block of its rows.

    Attributes:
        losses: the losses of all positions, once every block has been worked.
        blocks: the blocks.
    """

    def __init__(
        self,
        x: Array,
        target: Array,
        weight: Array | None,
        position_weight: Array | None,
        spec: KernelSpec,
    ) -> None:
        self._spec, self._weight, self._logits = spec, weight, Rows(x)
        count, num_classes = self._logits.count, self._logits.num_classes
        self._index = target.reshape(-1) if target.dtype.kind == "i" else None
        self._probabilities = Rows(target) if self._index is None else None
        mixed = self._index is None or spec.label_smoothing > 0
        self._coefs = ClassCoefs.of(weight, num_classes, spec) if mixed else None
        self._position_weight = self._inactive = None
        if position_weight is not None:
            self._position_weight = position_weight.reshape(-1)
            self._inactive = self._position_weight == 0
        # Without gradients these stay None. A block that is its own gradient's memory need not be written.
        self._grad_scale: Array | None = None
        self._logits_grad: Rows | None = None
        self._in_place: Array | None = None
        self._reads_logits = True
        self._target_grad: Rows | None = None
        self.losses = np.empty(count, spec.acc_dtype)
        self.blocks = RowBlocks(count, num_classes, spec.acc_dtype)

    def ask_gradients(self, grad_scale: Array, out: dict[str, Array]) -> None:
        """Have the gradients written to ``out`` as well, one of which may be the logits' own memory."""
        self._grad_scale = grad_scale
        if "logits" in out:
            self._logits_grad = Rows(out["logits"])
            self._in_place = self._logits_grad.as_scratch(self._spec.acc_dtype)
            self._reads_logits = self._in_place is None or out["logits"] is not self._logits.array
        if "target" in out:
            self._target_grad = Rows(out["target"])

    def __call__(self, rows: slice) -> None:
        scratch, spec = self.blocks.scratch, self._spec
        # Infinities and NaN are part of the semantics, not accidents to warn of; the state is a thread's own.
        with np.errstate(all="ignore"):
            block = scratch("logits", rows) if self._in_place is None else self._in_place[rows]
            if self._reads_logits:
                self._logits.read(rows, block)
            softcap_grad = target_grad = None
            if spec.transform.softcap is not None and self._logits_grad is not None:
                softcap_grad = scratch("softcap_grad", rows)
            apply_transform(block, spec.transform, softcap_grad)
            index = None if self._index is None else self._index[rows]
            grad_scale = None if self._grad_scale is None else self._grad_scale[rows]
            if self._coefs is None:
                assert index is not None
                loss = index_rows(block, index, self._weight, spec, grad_scale)
            else:
                target_coefs = None
                if self._probabilities is not None:
                    target_coefs = scratch("target_coefs", rows)
                    self._probabilities.read(rows, target_coefs)
                if self._target_grad is not None:
                    target_grad = scratch("target_grad", rows)
                gaps = scratch("logit_gaps", rows)
                loss = mixed_rows(block, gaps, index, target_coefs, self._coefs, spec, grad_scale, target_grad)
            if self._logits_grad is not None:
                through_transform(block, spec.transform, softcap_grad)
            self._store(rows, loss, block, target_grad)

    def _store(self, rows: slice, loss: Array, block: Array, target_grad: Array | None) -> None:
        """Put the block's losses and gradients where they belong, those of inactive positions as zeros."""
        if self._position_weight is not None and self._inactive is not None:
            loss = loss * self._position_weight[rows]
            inactive = self._inactive[rows]
            loss[inactive] = 0
            if self._logits_grad is not None:
                block[inactive] = 0
            if target_grad is not None:
                target_grad[inactive] = 0
        self.losses[rows] = loss
        if self._logits_grad is not None and self._in_place is None:
            self._logits_grad.write(rows, block)
        if self._target_grad is not None and target_grad is not None:
            self._target_grad.write(rows, target_grad)
