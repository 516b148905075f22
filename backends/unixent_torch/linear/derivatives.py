"""Derivatives of the fused linear form that plain operations make up, from the logits of one chunk at a time.

With x = h W^T + b the logits, tangents of (h, W, b) give those of the logits, u = dh W^T + h dW^T + db, and the
derivatives at the logits come from `RowGradient` and `logits.gradient.hvp`. The second derivative of
``sum(grad_scale * losses)`` is symmetric in all of (h, W, b, q), so that the same products serve forward and reverse
mode:

    hidden:  H W + g dW        classifier:  H^T h + g^T dh        bias:  sum_n H_n

where g is the gradient at the logits and H the second derivative there, applied to u and to the tangent of q.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from unixent_torch.linear.chunks import LinearOperands, LinearSpec, without_autocast
from unixent_torch.logits.gradient import Operands, RowGradient, hvp, inner, scaled

Tangents = dict[str, Tensor]


class _Chunk(NamedTuple):
    """A chunk of positions.

    Attributes:
        rows: which they are.
        inactive: those of weight 0, as a column, or None.
        states, states_tangent: their hidden states, and the tangent of those.
        operands: their logits and what goes with them.
        tangents: those of ``operands``.
    """

    rows: slice
    inactive: Tensor | None
    states: Tensor
    states_tangent: Tensor | None
    operands: Operands
    tangents: Tangents


def _flat(x: Tensor, axes: int) -> Tensor:
    """``x`` with its positions on one axis and ``axes`` more behind it."""
    return x.reshape(-1, *x.shape[x.ndim - axes :])


def _chunks(operands: LinearOperands, spec: LinearSpec, tangents: Tangents) -> Iterator[_Chunk]:
    hidden, classifier, bias, target, weight, position_weight = operands
    acc_dtype = spec.loss.kernel.acc_dtype
    w, hidden = spec.widen(classifier), _flat(hidden, 1)
    target = _flat(target, int(target.is_floating_point()))
    v = None if position_weight is None else _flat(position_weight, 0)
    tangents = {name: tangent.to(acc_dtype) for name, tangent in tangents.items()}
    d_hidden = _flat(tangents["hidden"], 1) if "hidden" in tangents else None
    d_target = _flat(tangents["target"], 1) if "target" in tangents else None
    for rows in spec.chunks(operands):
        states = spec.widen(hidden[rows])
        inactive = None if v is None else (v[rows] == 0).unsqueeze(1)
        states = _without_inactive(states, inactive)
        d_states = None if d_hidden is None else _without_inactive(d_hidden[rows], inactive)
        x = states @ w.t()
        u = None if d_states is None else d_states @ w.t()
        if "classifier" in tangents:
            more = states @ tangents["classifier"].t()
            u = more if u is None else u + more
        if "bias" in tangents:
            u = tangents["bias"].expand_as(x) if u is None else u + tangents["bias"]
        of_logits = {} if u is None else {"logits": u}
        if d_target is not None:
            of_logits["target"] = d_target[rows]
        x = x if bias is None else x + bias.to(acc_dtype)
        at_logits = (x, target[rows], weight, None if v is None else v[rows])
        yield _Chunk(rows, inactive, states, d_states, at_logits, of_logits)


def _without_inactive(x: Tensor, inactive: Tensor | None) -> Tensor:
    """Inactive positions contribute nothing, not even 0 times a NaN."""
    return x if inactive is None else torch.where(inactive, 0, x)


def _gathered(
    chunks: Iterator[dict[str, Tensor]], operands: LinearOperands, spec: LinearSpec, shapes: dict[str, torch.Size]
) -> tuple[Tensor, ...]:
    """Results of the given shapes from those of the chunks: sums over positions, or pieces to be joined."""
    pieces: dict[str, list[Tensor]] = {}
    with without_autocast(operands.hidden.device):  # the products are formed as they are asked for
        for chunk in chunks:
            for name, value in chunk.items():
                if name in ("classifier", "bias") and name in pieces:
                    pieces[name] = [pieces[name][0] + value]
                else:
                    pieces.setdefault(name, []).append(value)
    zeros, acc_dtype = operands.hidden.new_zeros, spec.loss.kernel.acc_dtype
    return tuple(
        (torch.cat(pieces[name]) if name in pieces else zeros(shape, dtype=acc_dtype)).reshape(shape)
        for name, shape in shapes.items()
    )


def _shapes(operands: LinearOperands, wrt: tuple[str, ...]) -> dict[str, torch.Size]:
    return {name: getattr(operands, name).shape for name in wrt}


def directional(operands: LinearOperands, spec: LinearSpec, tangents: Tangents) -> Tensor:
    """The derivatives of the losses, of shape P, along the tangents."""

    def chunks() -> Iterator[dict[str, Tensor]]:
        for chunk in _chunks(operands, spec, tangents):
            at, along = chunk.operands, chunk.tangents
            grads = RowGradient.apply(*at, _ones(at), spec.loss.kernel, tuple(along))
            yield {"losses": inner(grads, along, grads[0].dtype)}

    return _gathered(chunks(), operands, spec, {"losses": operands.hidden.shape[:-1]})[0]


def gradients(
    operands: LinearOperands, grad_scale: Tensor, spec: LinearSpec, wrt: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """The gradients for ``wrt`` by operations that let ``grad_scale`` be batched in any way."""
    scale, w = grad_scale.reshape(-1, 1), spec.widen(operands.classifier)
    names: tuple[str, ...] = ("logits", "target") if "target" in wrt else ("logits",)

    def chunks() -> Iterator[dict[str, Tensor]]:
        for chunk in _chunks(operands, spec, {}):
            at = chunk.operands
            grads = RowGradient.apply(*at, _ones(at), spec.loss.kernel, names)
            factor = scale[chunk.rows]
            products = {name: scaled(name, grad, factor) for name, grad in zip(names, grads, strict=True)}
            g = products.pop("logits")
            for_hidden = _without_inactive(g @ w, chunk.inactive)
            yield {"hidden": for_hidden, "classifier": g.t() @ chunk.states, "bias": g.sum(0), **products}

    return _gathered(chunks(), operands, spec, _shapes(operands, wrt))


def linear_hvp(
    operands: LinearOperands, grad_scale: Tensor, spec: LinearSpec, tangents: Tangents, wrt: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """The second derivative of ``sum(grad_scale * losses)`` times the tangents, for each of ``wrt``."""
    scale, w, kernel = grad_scale.reshape(-1), spec.widen(operands.classifier), spec.loss.kernel

    def chunks() -> Iterator[dict[str, Tensor]]:
        for rows, inactive, states, d_states, at, along in _chunks(operands, spec, tangents):
            for_x, for_target = hvp(at, scale[rows], kernel, along)
            products = {"bias": for_x.sum(0)} if "bias" in wrt else {}
            if "target" in wrt and for_target is not None:
                products["target"] = for_target
            g = None
            if ("hidden" in wrt and "classifier" in tangents) or ("classifier" in wrt and d_states is not None):
                (g,) = RowGradient.apply(*at, scale[rows], kernel, ("logits",))
            if "hidden" in wrt:
                for_hidden = for_x @ w
                if g is not None and "classifier" in tangents:
                    for_hidden = for_hidden + g @ tangents["classifier"].to(g.dtype)
                products["hidden"] = _without_inactive(for_hidden, inactive)
            if "classifier" in wrt:
                products["classifier"] = for_x.t() @ states
                if g is not None and d_states is not None:
                    products["classifier"] = products["classifier"] + g.t() @ d_states
            yield products

    return _gathered(chunks(), operands, spec, _shapes(operands, wrt))


def _ones(operands: Operands) -> Tensor:
    x = operands[0]
    return torch.ones(x.shape[:-1], dtype=x.dtype, device=x.device)
