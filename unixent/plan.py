"""Framework-free plans that the backends share."""

from __future__ import annotations

CHUNK_BYTES = 32 << 20
MIN_CHUNK = 64


def linear_chunk(positions: int, classes: int, itemsize: int, chunk: int | None) -> int:
    """How many positions' logits the fused linear form holds at a time.

    Enough rows for the matrix products to run at full speed (each chunk reads the classifier once), and no more: logits
    of about 32 MiB, or 64 rows where the classes are so many that these are larger.

    Example:
        >>> linear_chunk(2048, 32000, 4, None), linear_chunk(2048, 32000, 4, 100), linear_chunk(10, 32000, 4, 100)
        (262, 100, 10)
    """
    if chunk is None:
        chunk = max(MIN_CHUNK, CHUNK_BYTES // (classes * itemsize))
    return max(1, min(chunk, positions))
