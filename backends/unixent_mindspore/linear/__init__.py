"""The fused linear form."""
