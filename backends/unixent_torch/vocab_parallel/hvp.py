"""The second derivative of the split loss: one more round of sums over the classes of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent_torch.collectives import Parts, all_reduce
from unixent_torch.kernel.spec import Spec
from unixent_torch.logits.gradient import Operands
from unixent_torch.vocab_parallel.blocks import put
from unixent_torch.vocab_parallel.statistics import Found


def split_curvature(
    operands: Operands, f: Tensor, found: Found, spec: Spec, parts: Parts, along: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """`logits.gradient.curvature` at this process's classes: by logits and by target, in their own dtypes.

    <p, u> and the sum of t' run over all classes, and are what goes round: 2 numbers a position.
    """
    x, target, weight, v = operands
    shape, kind = x.shape, spec.acc_dtype
    local = slice(parts.first_class, parts.first_class + shape[-1])
    weight = None if weight is None else weight[local]
    rows = x.reshape(-1, shape[-1]).to(kind, copy=True) if shape[-1] else x.new_zeros(shape[:-1].numel(), 0, dtype=kind)
    scale = f.expand(shape[:-1]).reshape(-1, 1)
    dead = None
    if v is not None:
        dead = v.reshape(-1, 1) == 0
        scale = torch.where(dead, 0, scale * v.reshape(-1, 1))
    bent: Tensor | None = None
    slope: Tensor | float = 1.0
    if spec.softcap is not None:
        bent = torch.tanh(rows / spec.softcap)
        slope, rows = 1 - bent * bent, spec.softcap * bent
    p = torch.exp(rows - found.shift) * found.scale
    if shape[-1]:
        put(p, found.at, found.mine, found.p)
    share, base = 1 - spec.smoothing, spec.smoothing / parts.classes
    k = torch.full(shape[-1:], share, dtype=kind, device=x.device) if weight is None else share * weight
    if target.is_floating_point():
        t = target.reshape(rows.shape).to(kind) * k + base * (1.0 if weight is None else weight)
    else:
        t = torch.full_like(rows, base)
        if shape[-1]:
            put(t, found.at, found.mine, share + base)
        t = t if weight is None else t * weight
    if dead is not None:
        p, t = torch.where(dead, 0, p), torch.where(dead, 0, t)
    mass = found.mass + 2 * spec.z_loss * found.lse
    mass = mass if dead is None else torch.where(dead, 0, mass)
    u = slope * along["logits"].reshape(rows.shape).to(kind) if "logits" in along else torch.zeros_like(rows)
    r = k * along["target"].reshape(rows.shape).to(kind) if "target" in along else torch.zeros_like(rows)
    sums = all_reduce(torch.stack([(p * u).sum(-1, keepdim=True), r.sum(-1, keepdim=True)]), parts.model, "sum")
    mean, moved = sums[0], sums[1]
    by_x = slope * (p * (mass * (u - mean) + 2 * spec.z_loss * mean + moved) - r)
    if bent is not None and spec.softcap is not None:
        by_x = by_x - 2 / spec.softcap * bent * u * (mass * p - t)
    by_target = k * (mean - u) if target.is_floating_point() else u.new_zeros(())
    by_x = (scale * by_x).view(shape).to(x.dtype)
    return by_x, (scale * by_target).view(shape).to(target.dtype) if target.is_floating_point() else by_target
