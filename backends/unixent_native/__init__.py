"""The pass over N x C logits in host memory as native code: one library for all backends, loaded by ctypes.

`library` finds and loads it, where it was built; `call` packs a call of it, `statistics` one for statistics of
positions, and `cores` counts what its threads may use. None knows a framework: arrays are addresses, shapes and
strides. ``source/`` holds the C, which hatch_build.py compiles.
"""

from unixent_native.call import DTYPES, NUMBERS_PER_THREAD, Share, Strided, packed_call, row_losses
from unixent_native.cores import available_cores
from unixent_native.library import MAX_AXES, instruction_set, kernel_name, load
from unixent_native.statistics import KEPT, has_statistics, row_statistics

__all__ = [
    "DTYPES",
    "KEPT",
    "MAX_AXES",
    "NUMBERS_PER_THREAD",
    "Share",
    "Strided",
    "available_cores",
    "has_statistics",
    "instruction_set",
    "kernel_name",
    "load",
    "packed_call",
    "row_losses",
    "row_statistics",
]
