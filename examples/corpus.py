"""Text that every Python ships with, for the language models of the examples."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from importlib import import_module

# Their sources are mostly prose: docstrings and comments.
MODULES = ("argparse", "datetime", "decimal", "difflib", "doctest", "inspect", "logging", "pathlib", "pickletools",
           "random", "statistics", "subprocess", "tarfile", "threading", "typing", "zipfile")  # fmt: skip


def text(modules: Sequence[str] = MODULES) -> str:
    """The sources of some modules of the standard library."""
    return "\n".join(inspect.getsource(import_module(name)) for name in modules)


def chunk_indices(source: str, size: int) -> tuple[list[int], int]:
    """The text as chunk indices, and the size of the vocabulary: all characters, and frequent groups of them."""
    chunks = re.findall(r"\w{1,4}|\s+|.", source, re.DOTALL)
    characters = sorted(set(source))
    room = max(0, size - len(characters))
    frequent = [chunk for chunk, _ in Counter(chunk for chunk in chunks if len(chunk) > 1).most_common(room)]
    number = {chunk: i for i, chunk in enumerate([*characters, *frequent])}
    pieces = (piece for chunk in chunks for piece in ([chunk] if chunk in number else chunk))
    return [number[piece] for piece in pieces], len(number)
