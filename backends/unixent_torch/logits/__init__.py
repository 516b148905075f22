"""The loss of logits: what a call comes to, its derivatives in autograd's sense, and the reduction."""
