"""The fused linear form: logits exist a chunk of positions at a time, in a scan, and never all at once."""
