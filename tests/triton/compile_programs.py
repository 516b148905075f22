"""Compiles the Triton programs for GPUs that need not be there, and prints what became of each as JSON.

    python compile_programs.py 90 80

A process of its own, since the interpreter takes the place of the compiler in that of the tests.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from unixent_torch.kernel.triton import configuration, gradient, position_programs, programs

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
FLOATS = (
    "softcap", "inverse_temperature", "one_minus_smoothing", "smoothing", "z_loss", "denominator", "scale",
    "inverse_scale",
)  # fmt: skip
COUNTED = {
    "vector_loads": r"ld\.global[.\w:]*\.v[248]", "vector_stores": r"st\.global[.\w:]*\.v[248]",
    "atomics": r"\b(?:atom|red)\.", "approximate_logarithms": r"lg2\.approx", "rough_divisions": r"div\.full",
}  # fmt: skip


def variants(dtype: str) -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """Name, program, types of its pointers, flags, warps, stride of the classes."""
    logits, off = {"x_ptr": f"*{dtype}", "q_ptr": f"*{dtype}"}, {"SOFTCAP": False, "SCALED": False}
    on = {"SOFTCAP": True, "SCALED": True}
    index = {"index_ptr": "*i64"}
    for classes, stride in ((512, 1), (4096, 1), (151936, 1), (512, 512)):
        for transform in (off, on):
            rows, tile, warps = configuration.configure(classes, stride == 1, configuration.INDEX_TILE)
            flags = {**transform, "ROWS": rows, "TILE": tile}
            name = f"{classes} classes, stride {stride}{', transformed' if transform is on else ''}"
            yield f"index_tiles, {name}", programs.index_tiles, {**logits, **index}, flags, warps, stride
            rows, tile, warps = configuration.configure(classes, stride == 1, configuration.MIXED_TILE)
            for probabilities in (False, True):
                flags = {**transform, "PROBABILITIES": probabilities, "WEIGHTED": True, "ROWS": rows, "TILE": tile}
                types = {**logits, **index, "pivot_ptr": "*i32"}
                target_kind = "probabilities" if probabilities else "smoothing"
                yield f"mixed_tiles, {target_kind}, {name}", programs.mixed_tiles, types, flags, warps, stride
            rows, tile, warps = configuration.configure(classes, stride == 1, configuration.GRADIENT_TILE)
            for mixed, probabilities in ((False, False), (True, False), (True, True)):
                flags = {"MIXED": mixed, "PROBABILITIES": probabilities, "WEIGHTED": mixed, "POSITION_WEIGHT": True}
                flags |= {**transform, "FOR_LOGITS": True, "FOR_TARGET": probabilities, "ROWS": rows, "TILE": tile}
                types = {**logits, **index, "pivot_ptr": "*i64", "grad_ptr": f"*{dtype}"}
                types["target_grad_ptr"] = f"*{dtype}"
                target_kind = "probabilities" if probabilities else "smoothing" if mixed else "indices"
                yield f"gradient_tiles, {target_kind}, {name}", gradient.gradient_tiles, types, flags, warps, stride
    combined = {"ROWS": configuration.COMBINED_ROWS, "POSITION_WEIGHT": True, "Z_LOSS": True}
    yield "combine_index", programs.combine_index, index, {**combined, "WEIGHTED": True}, 4, 1
    types = {"tile_pivot_ptr": "*i32", "pivot_ptr": "*i64"}
    yield "combine_mixed", programs.combine_mixed, types, combined, 4, 1
    for target in ("u8", "i64"):
        types, flags = {"target_ptr": f"*{target}", "index_ptr": "*i64", "mask_ptr": "*i1"}, {"IGNORES": True}
        flags |= {"MASKED": True, "WEIGHTED": True, "ROWS": 1024}
        yield f"position_columns, {target}", position_programs.position_columns, types, flags, 4, 1
    yield "sums_of_blocks", position_programs.sums_of_blocks, {}, {"ROWS": 4096}, 8, 1
    flags = {"ON_DEVICE": True, "EMPTY_IS_NAN": False, "ROWS": 1024}
    yield "mean_of_blocks", position_programs.mean_of_blocks, {}, flags, 4, 1


def compiled(program: Any, types: dict[str, str], flags: dict[str, Any], warps: int, stride: int, arch: int) -> Any:
    """Compiled as for a contiguous [N, C] of a C that is a multiple of 16, whose memory is aligned."""
    signature, constants, attributes = {}, dict(flags), {}
    for position, name in enumerate(program.arg_names):
        if name in flags:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = types.get(name, "*fp32")
        elif name in FLOATS:
            signature[name] = "fp32"
        elif name.endswith("_class" if stride == 1 else "_inner"):
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32"
        aligned = name.endswith(("_ptr", "_outer", "_inner", "_class")) or name == "num_classes"
        if aligned and signature[name] != "constexpr":
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=program, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "enable_fp_fusion": False}
    )


def report(kernel: Any) -> dict[str, int]:
    """Registers and stack of a thread, shared memory, and how often each of COUNTED occurs."""
    counts = {name: len(re.findall(pattern, kernel.asm["ptx"])) for name, pattern in COUNTED.items()}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {**counts, **{key.lower(): used[key] for key in ("REG", "STACK", "LOCAL")}}


if __name__ == "__main__":
    results = {}
    for arch in map(int, sys.argv[1:]):
        for dtype in ("bf16", "fp32") if arch == 90 else ("bf16",):
            for name, *variant in variants(dtype):
                results[f"sm_{arch}, {dtype}, {name}"] = report(compiled(*variant, arch))
    print(json.dumps(results))
