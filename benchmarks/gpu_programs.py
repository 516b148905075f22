"""What XLA makes of losses for an H200 that is not here: the bytes of arrays of the logits' size that are moved.

Needs no GPU; `pip install jax-cuda13-plugin` in the version of jax.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# Without a GPU and CUDA's libraries; tuning would time kernels.
jax.config.update("jax_platforms", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"

_ITEM_SIZES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
_ARRAY = re.compile(rf"\b({'|'.join(_ITEM_SIZES)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(,.*|)$")
_ELEMENTWISE = {"convert", "multiply", "divide", "tanh", "select", "compare", "bitcast", "slice", "abs"}
_NO_TRAFFIC = {"parameter", "get-tuple-element", "bitcast", "tuple", "constant"}


class Traffic(NamedTuple):
    """Bytes per logit, of what has the size of the logits; of temporaries, of any size."""

    read: float
    written: float
    temporaries: float


class Instruction(NamedTuple):
    name: str
    shapes: list[tuple[str, int]]  # of its results: dtype, number of elements
    opcode: str
    operands: list[str]
    attributes: str


def traffic(function: Callable[..., Any], logits: jax.ShapeDtypeStruct, *operands: jax.ShapeDtypeStruct) -> Traffic:
    """The bytes per element of ``logits`` of the function's program."""
    compiled = compiled_for_gpu(function, logits, *operands)
    read, written = _bytes(compiled.as_text(), logits.size)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return Traffic(read / logits.size, written / logits.size, temporaries / logits.size)


def compiled_for_gpu(function: Callable[..., Any], *operands: jax.ShapeDtypeStruct) -> Any:
    arrays = [jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=_sharding()) for array in operands]
    return jax.jit(function).lower(*arrays).compile()


def products(hlo: str) -> Iterator[tuple[str, ...]]:
    """The dtypes of operands and result of each matrix product in a program; a loop's are there once."""
    for _, computation in _computations(hlo):
        dtypes = {each.name: each.shapes[0][0] for each in computation if each.shapes}
        for each in computation:
            is_call = each.opcode == "custom-call" and re.search(r"gemm|matmul", each.attributes)
            if each.opcode == "dot" or is_call:
                yield (*(dtypes[name] for name in each.operands[:2]), each.shapes[0][0])


def widened(hlo: str, size: int) -> Iterator[str]:
    """The conversions of half arrays of ``size`` elements to float32 in a program."""
    for _, computation in _computations(hlo):
        shapes = {each.name: each.shapes for each in computation}
        for each in computation:
            is_wide = each.opcode == "convert" and each.shapes == [("f32", size)]
            if is_wide and shapes[each.operands[0]][0][0] in ("f16", "bf16"):
                yield each.name


@lru_cache(maxsize=1)
def _sharding() -> SingleDeviceSharding:
    description = Path(__file__).with_name("h200.txtpb").read_text()
    topology = topologies.get_topology_desc("", platform="cuda", target_config=description, topology="1x1x1")
    return SingleDeviceSharding(topology.devices[0])


def _bytes(hlo: str, size: int) -> tuple[int, int]:
    """The bytes of arrays of at least ``size`` elements that the kernels of a program read and write."""
    computations = dict(_computations(hlo))
    entry = computations[next(name for name in computations if name.startswith("ENTRY"))]
    shapes = {instruction.name: instruction.shapes for instruction in entry}
    read = written = 0
    for instruction in entry:
        if instruction.opcode in _NO_TRAFFIC:
            continue
        assert instruction.opcode != "while", "the bytes of a loop are those of its body, as often as it runs"
        written += _large(instruction.shapes, size)
        called = re.search(r"calls=%([\w.\-]+)", instruction.attributes)
        body = computations[called[1]] if called else [instruction]
        for place, operand in enumerate(instruction.operands):
            inside = next((i.name for i in body if i.opcode == "parameter" and i.operands == [str(place)]), operand)
            if not _is_only_gathered(body, inside):
                read += _large(shapes.get(operand, []), size)
    return read, written


def _large(shapes: list[tuple[str, int]], size: int) -> int:
    return sum(_ITEM_SIZES[dtype] * count for dtype, count in shapes if count >= size)


def _is_only_gathered(body: list[Instruction], name: str) -> bool:
    """Whether of an array that a kernel is given only some elements are read: one in a row.

    A fused kernel forms what a gather reads for the gathered elements alone.
    """
    uses = [instruction for instruction in body if name in instruction.operands]
    return bool(uses) and all(
        use.operands[0] == name
        if use.opcode == "gather"
        else use.opcode in _ELEMENTWISE and _is_only_gathered(body, use.name)
        for use in uses
    )


def _computations(hlo: str) -> Iterator[tuple[str, list[Instruction]]]:
    for block in hlo.split("\n}\n"):
        head, *lines = block.strip().splitlines() or [""]
        # The first block is behind the module's head.
        start = max((i for i, line in enumerate([head, *lines]) if line.endswith("{")), default=None)
        if start is not None:
            name = re.match(r"(ENTRY )?%?([\w.\-]+)", [head, *lines][start])
            assert name
            instructions = [_instruction(line) for line in lines[start:]]
            yield (name[1] or "") + name[2], [instruction for instruction in instructions if instruction]


def _instruction(line: str) -> Instruction | None:
    parsed = _INSTRUCTION.match(re.sub(r", (metadata|backend_config)=.*", "", line))
    if not parsed:
        return None
    name, results, opcode, operands, attributes = parsed.groups()
    counts = [(dtype, math.prod(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(results)]
    names = re.findall(r"%([\w.\-]+)", operands) or [operands]
    return Instruction(name, counts, opcode, names, attributes)


def main() -> None:
    import optax

    import unixent

    def optax_loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(x.astype(jnp.float32), y).mean()

    def ours(**options: Any) -> Callable[..., Any]:
        return lambda x, y: unixent.cross_entropy(x, y, **options)

    losses = {
        "unixent": jax.value_and_grad(ours()),
        "unixent, softcap": jax.value_and_grad(ours(softcap=30.0)),
        "unixent, the loss alone": ours(),
        "optax": jax.value_and_grad(optax_loss),
        "unixent, label_smoothing": jax.value_and_grad(ours(label_smoothing=0.1)),
        "unixent, probabilities": jax.value_and_grad(ours()),
    }
    print("bytes per logit at 8192 x 32000          dtype      read  written  temporaries")
    for name, loss in losses.items():
        for dtype in ("float32", "bfloat16"):
            logits = jax.ShapeDtypeStruct((8192, 32000), dtype)
            target = logits if "probabilities" in name else jax.ShapeDtypeStruct((8192,), "int32")
            read, written, temporaries = traffic(loss, logits, target)
            print(f"{name:40s} {dtype:9s} {read:5.0f} {written:8.0f} {temporaries:12.2f}")


if __name__ == "__main__":
    main()
