"""Launches the Triton programs: layouts as two axes of positions, scratch memory, the order of the launches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from unixent_torch.kernel.spec import KernelSpec
from unixent_torch.kernel.triton import configuration
from unixent_torch.kernel.triton.columns import RowColumns, num_columns
from unixent_torch.kernel.triton.gradient import gradient_tiles
from unixent_torch.kernel.triton.programs import combine_index, combine_mixed, index_tiles, mixed_tiles

# What was multiplied and added is rounded twice, here as on the host.
_OPTIONS = {"enable_fp_fusion": False}


class Layout(NamedTuple):
    """Positions as two axes that all tensors share.

    Attributes:
        outer, inner: their sizes.
        strides: of each tensor, those of outer, inner and the classes.
    """

    outer: int
    inner: int
    strides: tuple[tuple[int, int, int], ...]


def layout_of(*tensors: Tensor) -> Layout | None:
    """The axes of tensors of one shape P + (C,); None where P does not come to two axes in all of them."""
    axes: list[list[Any]] = []
    for axis, size in enumerate(tensors[0].shape[:-1]):
        strides = tuple([tensor.stride(axis) for tensor in tensors])
        if size == 1:
            continue
        if axes and axes[-1][1] == tuple([size * stride for stride in strides]):
            axes[-1] = [axes[-1][0] * size, strides]
        else:
            axes.append([size, strides])
    if len(axes) > 2:
        return None
    none = [1, (0,) * len(tensors)]
    outer, inner = [none] * (2 - len(axes)) + axes
    by_tensor = zip(outer[1], inner[1], [tensor.stride(-1) for tensor in tensors], strict=True)
    return Layout(outer[0], inner[0], tuple(by_tensor))


class IndexTiles(NamedTuple):
    """What `index_tiles` finds: of each tile [tiles, N], and the target's logit [N], 0 where it is no class here."""

    max_rest: Tensor
    sum_rest: Tensor
    pivot_logit: Tensor


class MixedTiles(NamedTuple):
    """What `mixed_tiles` finds: six numbers of each tile [6, tiles, N], and its pivot [tiles, N]."""

    numbers: Tensor
    pivot: Tensor


def statistics_of_index_tiles(x: Tensor, index: Tensor, spec: KernelSpec) -> IndexTiles:
    """Of every tile of x, P + (C,), with the flat indices of the targets; -1 for one that is no class here."""
    count, num_classes = index.numel(), x.shape[-1]
    x, _, layout = _laid_out(x, index)
    config = configuration.configure(num_classes, _is_adjacent(layout, num_classes), configuration.INDEX_TILE)
    tiles = -(-num_classes // config.tile)
    scratch = x.new_empty((2 * tiles + 1, count), dtype=torch.float32)
    by_tile = IndexTiles(scratch[:tiles], scratch[tiles : 2 * tiles], scratch[2 * tiles])
    with torch.cuda.device(x.device):
        index_tiles[_grid(layout, config, tiles)](
            x, index, *by_tile, *layout.strides[0], layout.outer, layout.inner, num_classes, tiles, *_transform(spec),
            **_transform_flags(spec), ROWS=config.rows, TILE=config.tile, num_warps=config.num_warps, **_OPTIONS,
        )  # fmt: skip
    return by_tile


def statistics_of_mixed_tiles(
    x: Tensor, target: Tensor, index: Tensor, weight: Tensor | None, spec: KernelSpec, all_classes: int
) -> MixedTiles:
    """The same with a coefficient of every class, where ``all_classes`` share the smoothing."""
    count, num_classes = x.shape[:-1].numel(), x.shape[-1]
    x, target, layout = _laid_out(x, target)
    config = configuration.configure(num_classes, _is_adjacent(layout, num_classes), configuration.MIXED_TILE)
    tiles = -(-num_classes // config.tile)
    numbers = x.new_empty((6, tiles, count), dtype=torch.float32)
    pivot = x.new_empty((tiles, count), dtype=torch.int32)
    with torch.cuda.device(x.device):
        mixed_tiles[_grid(layout, config, tiles)](
            x, index, target, _or(weight, x), numbers, pivot, *layout.strides[0], *layout.strides[-1], layout.outer,
            layout.inner, num_classes, tiles, *_transform(spec), *_smoothing(spec, all_classes),
            PROBABILITIES=target.is_floating_point(), WEIGHTED=weight is not None, **_transform_flags(spec),
            ROWS=config.rows, TILE=config.tile, num_warps=config.num_warps, **_OPTIONS,
        )  # fmt: skip
    return MixedTiles(numbers, pivot)


def row_statistics(
    x: Tensor, target: Tensor, weight: Tensor | None, position_weight: Tensor | None, spec: KernelSpec
) -> tuple[Tensor, RowColumns]:
    """Losses P, and what `row_gradients` takes: one read of the logits."""
    shape, count = x.shape[:-1], x.shape[:-1].numel()
    quantities = num_columns(target, spec)
    mixed = quantities == 5
    losses = x.new_empty(shape, dtype=torch.float32)
    columns = x.new_empty((quantities, count), dtype=torch.float32)
    index = target if target.is_floating_point() else target.reshape(-1).contiguous()
    pivot = x.new_empty(count, dtype=torch.int64) if mixed else index
    if not count:
        return losses, RowColumns(columns, pivot)
    grid = (-(-count // configuration.COMBINED_ROWS),)
    v = None if position_weight is None else position_weight.reshape(-1).contiguous()
    weight = None if weight is None else weight.contiguous()
    flags: dict[str, Any] = {"POSITION_WEIGHT": v is not None, "Z_LOSS": spec.z_loss != 0, "num_warps": 4, **_OPTIONS}
    flags["ROWS"] = configuration.COMBINED_ROWS
    if mixed:
        of_tiles = statistics_of_mixed_tiles(x, target, index, weight, spec, x.shape[-1])
        tiles = len(of_tiles.pivot)
        with torch.cuda.device(x.device):
            combine_mixed[grid](*of_tiles, _or(v, x), losses, columns, pivot, count, tiles, float(spec.z_loss), **flags)
    else:
        by_tile = statistics_of_index_tiles(x, index, spec)
        tiles = len(by_tile.max_rest)
        with torch.cuda.device(x.device):
            combine_index[grid](
                *by_tile, index, _or(weight, x), _or(v, x), losses, columns, count, tiles, float(spec.z_loss),
                WEIGHTED=weight is not None, **flags,
            )  # fmt: skip
    return losses, RowColumns(columns, pivot)


def row_gradients(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor | float | None,
    spec: KernelSpec,
    rows: RowColumns,
    wrt: tuple[str, ...],
    out: tuple[Tensor, ...] | None = None,
    all_classes: int | None = None,
) -> tuple[Tensor, ...]:
    """The gradients of ``sum(grad_scale * losses)`` for each of ``wrt``: one more read of the logits, and the write.

    ``all_classes`` share the smoothing, where x holds only some of them.
    """
    sources = {"logits": x, "target": target}
    grads = tuple([torch.empty_like(sources[name]) for name in wrt]) if out is None else out
    shape, count, num_classes = x.shape[:-1], x.shape[:-1].numel(), x.shape[-1]
    if not count or not wrt:
        return grads
    index = target if target.is_floating_point() else target.reshape(-1).contiguous()
    x, target, layout = _laid_out(x, target, *grads)
    written = grads
    if len(layout.strides) == 1 + target.is_floating_point():  # no two axes serve the gradients as they are
        written = tuple([grad.new_empty(grad.shape) for grad in grads])
        x, target, layout = _laid_out(x.contiguous(), target.contiguous(), *written)
    by_name = dict(zip(wrt, written, strict=True))
    strides = dict(zip(wrt, layout.strides[-len(wrt) :], strict=True))
    config = configuration.configure(num_classes, _is_adjacent(layout, num_classes), configuration.GRADIENT_TILE)
    tiles = -(-num_classes // config.tile)
    scale = _scale_column(grad_scale, shape, x)
    probabilities = target.is_floating_point()
    with torch.cuda.device(x.device):
        gradient_tiles[_grid(layout, config, tiles)](
            x, rows.pivot, index, target, _or(weight, x), _or(position_weight, x), scale, rows.columns,
            by_name.get("logits", x), by_name.get("target", x), *layout.strides[0],
            *layout.strides[1 if probabilities else 0], *strides.get("logits", (0, 0, 0)),
            *strides.get("target", (0, 0, 0)), 1 if scale.ndim else 0, layout.outer, layout.inner, num_classes, tiles,
            *_transform(spec), *_smoothing(spec, all_classes or num_classes),
            MIXED=probabilities or spec.label_smoothing > 0, PROBABILITIES=probabilities,
            WEIGHTED=weight is not None, POSITION_WEIGHT=position_weight is not None,
            **_transform_flags(spec), FOR_LOGITS="logits" in wrt, FOR_TARGET="target" in wrt,
            ROWS=config.rows, TILE=config.tile, num_warps=config.num_warps, **_OPTIONS,
        )  # fmt: skip
    for grad, values in zip(grads, written, strict=True):
        if grad is not values:
            grad.copy_(values)
    return grads


def _grid(layout: Layout, config: configuration.Configuration, tiles: int) -> tuple[int]:
    return (layout.outer * -(-layout.inner // config.rows) * tiles,)


def _laid_out(x: Tensor, target: Tensor, *grads: Tensor) -> tuple[Tensor, Tensor, Layout]:
    """Logits, probabilities if any, and a layout of them and the gradients; without these where none serves all."""
    probabilities = (target,) if target.is_floating_point() else ()
    layout = layout_of(x, *probabilities, *grads)
    if layout is None:
        layout = layout_of(x, *probabilities)
    if layout is None:
        x, target = x.contiguous(), target.contiguous()
        layout = layout_of(x, *((target,) if probabilities else ()))
    assert layout is not None
    return x, target, layout


def _is_adjacent(layout: Layout, num_classes: int) -> bool:
    """Whether neighbours in the memory of the logits are classes of one row."""
    return layout.strides[0][2] == 1 or num_classes == 1 or layout.strides[0][1] != 1


def _scale_column(grad_scale: Tensor | float | None, shape: torch.Size, x: Tensor) -> Tensor:
    """float32 [N], or 0-d where it is one number; made on the device, since a copy would wait for the host."""
    if isinstance(grad_scale, Tensor):
        column = grad_scale.to(torch.float32)
        if not any(column.stride()):  # one number, expanded or not
            return column.as_strided((), ())
        return column.expand(shape).reshape(-1).contiguous()
    return torch.full((), 1.0 if grad_scale is None else grad_scale, dtype=torch.float32, device=x.device)


def _transform(spec: KernelSpec) -> tuple[float, float]:
    softcap, inverse_temperature = spec.transform
    return float(softcap or 1.0), float(inverse_temperature)


def _transform_flags(spec: KernelSpec) -> dict[str, bool]:
    return {"SOFTCAP": spec.transform.softcap is not None, "SCALED": spec.transform.inverse_temperature != 1}


def _smoothing(spec: KernelSpec, num_classes: int) -> tuple[float, float]:
    return 1.0 - spec.label_smoothing, spec.label_smoothing / num_classes


def _or(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """A pointer for the place of an argument that the program's flags leave unread."""
    return instead if tensor is None else tensor.reshape(-1).contiguous()
