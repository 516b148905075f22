"""Derivatives of the fused linear form that plain operations make up, from the logits of one chunk at a time.

With x = h W^T + b the logits, tangents of (h, W, b) give those of the logits, u = dh W^T + h dW^T + db, and the
derivatives at the logits come from `Gradient` and `curvature`. The second derivative of ``sum(f * losses)`` is
symmetric in all of (h, W, b, q), so that the same products serve forward and reverse mode:

    hidden:  H W + g dW        classifier:  H^T h + g^T dh        bias:  sum_n H_n

where g is the gradient at the logits and H the second derivative there, applied to u and to the tangent of q.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from unixent_torch.linear.chunks import LinearOperands, LinearSpec
from unixent_torch.logits.gradient import Gradient, Operands, curvature

Tangents = dict[str, Tensor]


class _Chunk(NamedTuple):
    """A chunk's positions; which of them don't exist, as a column; its hidden states and their tangent; its logits and
    what goes with them; the tangents of those."""

    here: slice
    dead: Tensor | None
    states: Tensor
    moved: Tensor | None
    rows: Operands
    along: Tangents


def _flat(x: Tensor, axes: int) -> Tensor:
    """``x`` with its positions on one axis and ``axes`` more behind it."""
    return x.reshape(-1, *x.shape[x.ndim - axes :])


def _chunks(operands: LinearOperands, spec: LinearSpec, along: Tangents) -> Iterator[_Chunk]:
    hidden, classifier, bias, target, weight, v = operands
    kind = spec.rows.acc_dtype
    w, hidden = spec.widen(classifier), _flat(hidden, 1)
    target, v = _flat(target, int(target.is_floating_point())), None if v is None else _flat(v, 0)
    along = {name: tangent.to(kind) for name, tangent in along.items()}
    d_hidden = _flat(along["hidden"], 1) if "hidden" in along else None
    d_target = _flat(along["target"], 1) if "target" in along else None
    for here in spec.slices(operands):
        states = spec.widen(hidden[here])
        dead = None if v is None else (v[here] == 0).unsqueeze(1)
        states = _alive(states, dead)
        moved = None if d_hidden is None else _alive(d_hidden[here], dead)
        x = states @ w.t()
        u = None if moved is None else moved @ w.t()
        if "classifier" in along:
            more = states @ along["classifier"].t()
            u = more if u is None else u + more
        if "bias" in along:
            u = along["bias"].expand_as(x) if u is None else u + along["bias"]
        there = {} if u is None else {"logits": u}
        if d_target is not None:
            there["target"] = d_target[here]
        rows = (x if bias is None else x + bias.to(kind), target[here], weight, None if v is None else v[here])
        yield _Chunk(here, dead, states, moved, rows, there)


def _alive(x: Tensor, dead: Tensor | None) -> Tensor:
    """Nothing comes from a position that doesn't exist, not even 0 times a NaN."""
    return x if dead is None else torch.where(dead, 0, x)


def _gathered(
    parts: Iterator[dict[str, Tensor]], operands: LinearOperands, spec: LinearSpec, shapes: dict[str, torch.Size]
) -> tuple[Tensor, ...]:
    """Results of the given shapes from those of the chunks: sums over positions, or pieces to be joined."""
    pieces: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in part.items():
            if name in ("classifier", "bias") and name in pieces:
                pieces[name] = [pieces[name][0] + value]
            else:
                pieces.setdefault(name, []).append(value)
    zeros = operands.hidden.new_zeros
    return tuple(
        (torch.cat(pieces[name]) if name in pieces else zeros(shape, dtype=spec.rows.acc_dtype)).reshape(shape)
        for name, shape in shapes.items()
    )


def _shapes(operands: LinearOperands, wrt: tuple[str, ...]) -> dict[str, torch.Size]:
    return {name: getattr(operands, name).shape for name in wrt}


def directional(operands: LinearOperands, spec: LinearSpec, along: Tangents) -> Tensor:
    """The derivatives of the losses, of shape P, along the tangents."""

    def parts() -> Iterator[dict[str, Tensor]]:
        for _, _, _, _, rows, there in _chunks(operands, spec, along):
            grads = Gradient.apply(*rows, _ones(rows), spec.rows, tuple(there))
            products = [(grad * tangent).sum(-1) for grad, tangent in zip(grads, there.values(), strict=True)]
            yield {"losses": sum(products[1:], products[0])}

    return _gathered(parts(), operands, spec, {"losses": operands.hidden.shape[:-1]})[0]


def gradients(operands: LinearOperands, f: Tensor, spec: LinearSpec, wrt: tuple[str, ...]) -> tuple[Tensor, ...]:
    """The gradient of ``sum(f * losses)`` for each of ``wrt``, by operations that let ``f`` be batched in any way."""
    f, w = f.reshape(-1, 1), spec.widen(operands.classifier)
    names = tuple(name for name in ("logits", "target") if name == "logits" or name in wrt)

    def parts() -> Iterator[dict[str, Tensor]]:
        for here, dead, states, _, rows, _ in _chunks(operands, spec, {}):
            grads = Gradient.apply(*rows, _ones(rows), spec.rows, names)
            scaled = dict(zip(names, (grad * f[here] for grad in grads), strict=True))
            g = scaled.pop("logits")
            yield {"hidden": _alive(g @ w, dead), "classifier": g.t() @ states, "bias": g.sum(0), **scaled}

    return _gathered(parts(), operands, spec, _shapes(operands, wrt))


def second(
    operands: LinearOperands, f: Tensor, spec: LinearSpec, along: Tangents, wrt: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """The second derivative of ``sum(f * losses)`` applied to the tangents, for each of ``wrt``."""
    f, w = f.reshape(-1), spec.widen(operands.classifier)

    def parts() -> Iterator[dict[str, Tensor]]:
        for here, dead, states, moved, rows, there in _chunks(operands, spec, along):
            by_x, by_target = curvature(rows, f[here], spec.rows, there)
            found = {"bias": by_x.sum(0)} if "bias" in wrt else {}
            if "target" in wrt and by_target is not None:
                found["target"] = by_target
            g = None
            if ("hidden" in wrt and "classifier" in along) or ("classifier" in wrt and moved is not None):
                (g,) = Gradient.apply(*rows, f[here], spec.rows, ("logits",))
            if "hidden" in wrt:
                by_hidden = by_x @ w
                if g is not None and "classifier" in along:
                    by_hidden = by_hidden + g @ along["classifier"].to(g.dtype)
                found["hidden"] = _alive(by_hidden, dead)
            if "classifier" in wrt:
                found["classifier"] = by_x.t() @ states
                if g is not None and moved is not None:
                    found["classifier"] = found["classifier"] + g.t() @ moved
            yield found

    return _gathered(parts(), operands, spec, _shapes(operands, wrt))


def _ones(rows: Operands) -> Tensor:
    return torch.ones(rows[0].shape[:-1], dtype=rows[0].dtype, device=rows[0].device)
