"""The fused linear form: the loss of ``hidden @ classifier.T + bias``, a chunk of positions at a time."""
