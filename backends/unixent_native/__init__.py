"""The pass over N x C logits in host memory as native code: one library for all backends, loaded by ctypes.

`library` finds and loads it, where it was built, and `call` packs a call of it. Neither knows a framework: arrays are
addresses, shapes and strides. ``source/`` holds the C, which hatch_build.py compiles.
"""

from unixent_native.call import DTYPES, Strided, row_losses
from unixent_native.library import MAX_AXES, instruction_set, load

__all__ = ["DTYPES", "MAX_AXES", "Strided", "instruction_set", "load", "row_losses"]
