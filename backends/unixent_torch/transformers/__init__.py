"""Causal language models of transformers with this loss: `use`, and `compute_loss` for its Trainer.

Nothing here imports transformers: a model brings it.
"""

from unixent_torch.transformers.causal_loss import CausalLMLoss
from unixent_torch.transformers.deferred import DeferredLinear, DeferredLogits
from unixent_torch.transformers.install import compute_loss, restore, use

__all__ = ["CausalLMLoss", "DeferredLinear", "DeferredLogits", "compute_loss", "restore", "use"]
