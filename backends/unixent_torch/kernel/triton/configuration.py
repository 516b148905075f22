"""How many rows and classes a program takes. Fixed by C and the layout: never tuned, never by the number of rows."""

from __future__ import annotations

from typing import NamedTuple


class Configuration(NamedTuple):
    """Of one program.

    Attributes:
        rows, tile: rows and classes of a tile, powers of two.
        num_warps: threads, by 32.
    """

    rows: int
    tile: int
    num_warps: int


# Statistics of indices keep little beside the logits, so that wide tiles stay in registers.
INDEX_TILE = 16384
MIXED_TILE = 4096
GRADIENT_TILE = 4096
# Elements of a program where rows are short, or where neighbours in memory are rows.
SHORT_ELEMENTS = 4096
STRIDED_ROWS = 32
# Rows of a program that combines tiles.
COMBINED_ROWS = 128


def configure(num_classes: int, classes_are_adjacent: bool, widest: int) -> Configuration:
    """That of rows of ``num_classes`` classes, in tiles of ``widest`` at most."""
    whole = max(16, 1 << (num_classes - 1).bit_length())
    if not classes_are_adjacent:
        tile = min(whole, max(1, SHORT_ELEMENTS // STRIDED_ROWS), widest)
        return Configuration(STRIDED_ROWS, tile, 4)
    tile = min(whole, widest)
    rows = max(1, min(64, SHORT_ELEMENTS // tile)) if tile <= 1024 else 1
    # 32 elements a thread at most.
    return Configuration(rows, tile, max(4, min(16, rows * tile // 512)))
