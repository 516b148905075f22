"""The kernel's calls, made by a library for another processor in an emulator: memory goes there and back."""

from __future__ import annotations

import ctypes
import math
import struct
import subprocess
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from unixent_native.library import ADDRESSES, CALL, MAX_AXES, STATISTICS

ITEMSIZES = (2, 2, 4, 8)  # of the dtypes' codes
ARRAY = 3 + MAX_AXES  # fields: address, dtype, strides

Range = tuple[int, int]  # the first address and the one behind the last


class Emulator:
    """A process that makes the calls of `unixent_native.library.Library`."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.isa = self.output.readline().decode().strip()

    @property
    def output(self) -> BinaryIO:
        assert self.process.stdout is not None
        return self.process.stdout  # type: ignore[return-value]

    def rows(self, addresses: bytes, rest: bytes, isa: int) -> int:
        return self._call(addresses, rest, b"", ranges_of(addresses, rest))

    def statistics(self, addresses: bytes, rest: bytes, asked: bytes, isa: int) -> int:
        ranges = chain(ranges_of(addresses, rest), statistics_of(asked, rest))
        return self._call(addresses, rest, asked, ranges)

    def _call(self, addresses: bytes, rest: bytes, asked: bytes, ranges: Iterable[Range]) -> int:
        memory = merged(ranges)
        message = [struct.pack("2q", bool(asked), len(memory))]
        for first, end in memory:
            message += [struct.pack("2q", first, end - first), ctypes.string_at(first, end - first)]
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join([*message, addresses, rest, asked]))
        self.process.stdin.flush()
        (status,) = struct.unpack("q", self.output.read(8))
        for first, end in memory:
            ctypes.memmove(first, self.output.read(end - first), end - first)
        return int(status)

    def close(self) -> None:
        self.process.communicate(timeout=60)


def ranges_of(addresses: bytes, rest: bytes) -> Iterator[Range]:
    """The memory that a call reads and writes."""
    *at_arrays, index, weight, position_weight, grad_scale, losses, columns = ADDRESSES.unpack(addresses)
    fields = iter(CALL.unpack(rest))
    arrays = [list(islice(fields, ARRAY)) for _ in range(4)]
    *_, step, dtype, num_classes, num_axes = islice(fields, 10)
    shape = list(islice(fields, MAX_AXES))[:num_axes]
    count = math.prod(shape)
    for address, (_, array_dtype, class_stride, *strides) in zip(at_arrays, arrays, strict=True):
        spans = [(size - 1) * stride for size, stride in zip((num_classes, *shape), (class_stride, *strides))]  # noqa: B905
        if address:
            yield (
                address + sum(span for span in spans if span < 0),
                address + sum(span for span in spans if span > 0) + ITEMSIZES[array_dtype],
            )
    size, num_columns = ITEMSIZES[dtype], 5 if any(at_arrays[2:]) else 7
    flat = [(index, 8 * count), (weight, size * num_classes), (position_weight, size * count)]
    flat += [(grad_scale, size * (count if step else 1)), (losses, size * count), (columns, 8 * num_columns * count)]
    yield from ((address, address + length) for address, length in flat if address)


def statistics_of(asked: bytes, rest: bytes) -> Iterator[Range]:
    """The memory besides, of a call for statistics of positions."""
    *places, num_selected, k = STATISTICS.unpack(asked)
    fields = CALL.unpack(rest)
    size, count = ITEMSIZES[fields[4 * ARRAY + 7]], fields[4 * ARRAY + 10 + MAX_AXES]
    num_classes = fields[4 * ARRAY + 8]
    lengths = [size * count] * 23
    lengths[3], lengths[9] = size * count * num_selected, size * count * k  # selected_log_prob, top_log_prob
    lengths[6:9], lengths[10] = (8 * count, count, 8 * count), 8 * count * k  # prediction, correct, rank; top_index
    lengths[17], lengths[20] = (
        size * count * num_selected,
        8 * count * num_selected,
    )  # the gradient of selected; selected
    lengths[21:] = size * count * num_selected, size * num_classes  # weights of selected; smoothing
    for address, length in zip(places, lengths, strict=True):
        if address:
            yield address, address + length


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same memory in ranges that do not overlap."""
    disjoint: list[Range] = []
    for first, end in sorted(ranges):
        if disjoint and first < disjoint[-1][1]:
            disjoint[-1] = (disjoint[-1][0], max(end, disjoint[-1][1]))
        else:
            disjoint.append((first, end))
    return disjoint


def build(folder: Path, source: Path, compiler: list[str], flags: list[str]) -> Path:
    """The library and what makes its calls, as one program without shared libraries."""
    program = folder / "emulated"
    sources = [str(source / f"{name}.c") for name in ("library", "rows", "positions")]
    sources.append(str(Path(__file__).with_name("emulated.c")))
    options = [*flags, "-DISA=plain", f"-I{source}", "-static", "-pthread", "-o", str(program)]
    subprocess.run([*compiler, *options, *sources, "-lm"], check=True)
    return program
