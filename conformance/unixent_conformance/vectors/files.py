"""A set of vectors on disk: arrays by the bits in safetensors, everything else in JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from unixent_conformance.cases.inputs import dtype_of
from unixent_conformance.model import Array

FORMAT = "unixent-vectors"
# Major: what a field or the loss means. Minor: which vectors there are. docs/vectors.md has the log.
VERSION = "1.2"

MANIFEST, ARRAYS, SCHEMA = "manifest.json", "arrays.safetensors", "schema.json"

# The names that safetensors gives to dtypes.
CODES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
NAMES = {code: name for name, code in CODES.items()}

# safetensors.numpy.load knows no bfloat16; the stub of this one says no types.
deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize


class Malformed(ValueError):
    """A directory that is no set of vectors, or one of another major version."""


class Store:
    """Arrays by content: the same bits are kept once, under the first half of their digest."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def add(self, array: Array) -> str:
        """The name of an array, kept in C order."""
        flat = np.require(array, requirements="C")  # unlike ascontiguousarray, keeps a 0-d array 0-d
        digest = hashlib.sha256(f"{flat.dtype.name}{flat.shape}".encode() + flat.tobytes()).hexdigest()[:32]
        self._arrays[digest] = flat
        return digest

    def serialized(self) -> bytes:
        """The safetensors file, the same bytes for the same arrays."""
        return bytes(save(dict(sorted(self._arrays.items()))))


def write(folder: Path, manifest: Mapping[str, Any], arrays: bytes) -> None:
    """The three files of a set; the directory is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ARRAYS).write_bytes(arrays)
    (folder / SCHEMA).write_text(schema(), encoding="utf-8")
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def schema() -> str:
    """The JSON schema of a manifest, as it ships."""
    return files(__package__).joinpath(SCHEMA).read_text(encoding="utf-8")


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The manifest and the arrays by name; `Malformed` says what is wrong with a directory that is no set."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        raw = (folder / ARRAYS).read_bytes()
    except (OSError, ValueError) as error:
        raise Malformed(f"{folder}: expected a set of vectors; {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Malformed(f"{folder / MANIFEST}: expected format {FORMAT!r}")
    version = str(manifest.get("version"))
    if version.partition(".")[0] != VERSION.partition(".")[0]:
        raise Malformed(f"{folder}: expected version {VERSION.partition('.')[0]}.x; got {version}")
    if hashlib.sha256(raw).hexdigest() != manifest["arrays"]["sha256"]:
        raise Malformed(f"{folder / ARRAYS}: the bytes are not those that the manifest was written with")
    return manifest, dict(map(_array, deserialize(raw)))


def _array(named: tuple[str, Mapping[str, Any]]) -> tuple[str, Array]:
    name, stored = named
    dtype = dtype_of(NAMES[stored["dtype"]])
    little = dtype.newbyteorder("<") if dtype.kind in "iuf" else dtype
    return name, np.frombuffer(bytes(stored["data"]), little).astype(dtype).reshape(stored["shape"])
