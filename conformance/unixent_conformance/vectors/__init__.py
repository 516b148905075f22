"""Golden vectors: the catalogue's inputs and answers as files that any language reads.

A set is a directory of `manifest.json`, which says what each vector is and why it exists, `arrays.safetensors`, which
holds every array by the bits, and `schema.json`, which says what a manifest may be. `unixent vectors export DIR` writes
one, `unixent vectors check DIR --backend NAME` holds an implementation to one; docs/vectors.md has the format, a reader
in plain Python, and what each version changed.

>>> import tempfile
>>> from unixent_conformance import vectors
>>> with tempfile.TemporaryDirectory() as folder:
...     _ = vectors.export(folder, features=["mask"])
...     report = vectors.check(folder, "numpy")
>>> report.ok, {result.feature for result in report.cases}
(True, {'mask'})
"""

from unixent_conformance.vectors.checking import check
from unixent_conformance.vectors.files import VERSION, Malformed, read
from unixent_conformance.vectors.writing import export

__all__ = ["VERSION", "Malformed", "check", "export", "read"]
