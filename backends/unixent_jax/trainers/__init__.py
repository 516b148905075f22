"""This loss with the signatures of JAX libraries: `optax`, `maxtext` and `tunix`. None of them is imported."""
