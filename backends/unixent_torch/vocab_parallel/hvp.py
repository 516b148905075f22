"""The second derivative of a loss whose classes are split: one more all-reduce of sums over the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent_torch.collectives import LocalShard, all_reduce
from unixent_torch.kernel import KernelSpec
from unixent_torch.logits.gradient import Operands, transform_for_hvp
from unixent_torch.vocab_parallel.blocks import put_where
from unixent_torch.vocab_parallel.statistics import ShardStats


def shard_hvp(
    operands: Operands,
    grad_scale: Tensor,
    stats: ShardStats,
    spec: KernelSpec,
    shard: LocalShard,
    tangents: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """`unixent_torch.logits.gradient.hvp` at the local classes, by logits and by target, in their own dtypes.

    <p, u> and the sum of t' run over all classes, and are what is summed: 2 numbers a position.
    """
    x, target, weight, position_weight = operands
    shape, dtype = x.shape, spec.acc_dtype
    local = slice(shard.vocab_start, shard.vocab_start + shape[-1])
    weight = None if weight is None else weight[local]
    if shape[-1]:
        rows = x.reshape(-1, shape[-1]).to(dtype, copy=True)
    else:
        rows = x.new_zeros(shape[:-1].numel(), 0, dtype=dtype)
    scale = grad_scale.expand(shape[:-1]).reshape(-1, 1)
    inactive = None
    if position_weight is not None:
        inactive = position_weight.reshape(-1, 1) == 0
        scale = torch.where(inactive, 0, scale * position_weight.reshape(-1, 1))
    rows, transform_grad, tanh = transform_for_hvp(rows, spec.transform)
    p = torch.exp(rows - stats.shift) * stats.exp_scale
    if shape[-1]:
        put_where(p, stats.owns_pivot, stats.local_index, stats.p)
    one_minus_smoothing, smoothing = 1 - spec.label_smoothing, spec.label_smoothing / shard.num_classes
    k = torch.full(shape[-1:], one_minus_smoothing, dtype=dtype, device=x.device)
    if weight is not None:
        k = one_minus_smoothing * weight
    if target.is_floating_point():
        coefs = target.reshape(rows.shape).to(dtype) * k + smoothing * (1.0 if weight is None else weight)
    else:
        coefs = torch.full_like(rows, smoothing)
        if shape[-1]:
            put_where(coefs, stats.owns_pivot, stats.local_index, one_minus_smoothing + smoothing)
        coefs = coefs if weight is None else coefs * weight
    coef_sum = stats.coef_sum + 2 * spec.z_loss * stats.logsumexp
    if inactive is not None:
        p, coefs = torch.where(inactive, 0, p), torch.where(inactive, 0, coefs)
        coef_sum = torch.where(inactive, 0, coef_sum)
    u, r = torch.zeros_like(rows), torch.zeros_like(rows)
    if "logits" in tangents:
        u = transform_grad * tangents["logits"].reshape(rows.shape).to(dtype)
    if "target" in tangents:
        r = k * tangents["target"].reshape(rows.shape).to(dtype)
    local_sums = torch.stack([(p * u).sum(-1, keepdim=True), r.sum(-1, keepdim=True)])
    mean, r_sum = all_reduce(local_sums, shard.model_groups, "sum").unbind()
    for_x = transform_grad * (p * (coef_sum * (u - mean) + 2 * spec.z_loss * mean + r_sum) - r)
    if tanh is not None and spec.transform.softcap is not None:
        for_x = for_x - 2 / spec.transform.softcap * tanh * u * (coef_sum * p - coefs)
    for_x = (scale * for_x).view(shape).to(x.dtype)
    if target.is_floating_point():
        return for_x, (scale * (k * (mean - u))).view(shape).to(target.dtype)
    return for_x, u.new_zeros(())
