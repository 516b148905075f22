"""Framework-free plans that the backends share."""

from __future__ import annotations

CHUNK_BYTES = 32 << 20
MIN_CHUNK = 64
MIN_DEVICE_CHUNK = 1024


def linear_chunk(
    positions: int, classes: int, width: int, itemsize: int, chunk: int | None, least: int = MIN_CHUNK
) -> int:
    """How many positions' logits the fused linear form holds at a time.

    Each chunk goes through the classifier and its gradient once, so that few rows make the matrix products wait for
    memory; many rows take memory. So: logits of about 32 MiB, or of a quarter of the classifier's gradient, which is
    there anyway, or ``least`` rows, whichever is the most, in multiples of 32 rows. An accelerator takes
    `MIN_DEVICE_CHUNK`: with less, adding to the classifier's gradient would wait for memory. Shapes alone decide, so
    that bits do not depend on what else fills a device.

    Example:
        >>> linear_chunk(4096, 32000, 512, 4, None), linear_chunk(4096, 128256, 4096, 4, None)
        (256, 1024)
        >>> linear_chunk(4096, 32000, 512, 4, 100), linear_chunk(10, 32000, 512, 4, 100)
        (100, 10)
    """
    if chunk is None:
        chunk = max(least, width // 4, CHUNK_BYTES // (classes * itemsize)) // 32 * 32
    return max(1, min(chunk, positions))
