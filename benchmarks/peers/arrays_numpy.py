"""NumPy's arrays, called eagerly: the peers have no modes."""

from __future__ import annotations

from unixent_conformance.harnesses.numpy import harness

__all__ = ["harness"]
