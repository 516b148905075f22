"""JAX's arrays with 64 bits enabled, called eagerly, differentiated by `jax.vjp`."""

from __future__ import annotations

from unixent_conformance.harness import EAGER
from unixent_conformance.harnesses.jax import JaxHarness


class EagerJax(JaxHarness):
    modes = (EAGER,)


harness = EagerJax()
