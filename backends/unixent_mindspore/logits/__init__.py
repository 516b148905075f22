"""The loss of logits."""
