"""The JAX backend of unixent: one jitted program, every transform, no gather of sharded logits."""

from unixent_jax.backend import JaxBackend

backend = JaxBackend()

__all__ = ["JaxBackend", "backend"]
