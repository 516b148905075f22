"""Puts the loss in the place of a model's own: `use`, `restore`, and `compute_loss` for Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from unixent.errors import OptionError
from unixent_torch.transformers.causal_loss import CausalLMLoss
from unixent_torch.transformers.check import check_model
from unixent_torch.transformers.deferred import DeferredLinear
from unixent_torch.transformers.head import is_fsdp_unit


def use(
    model: nn.Module,
    *,
    fused: bool = True,
    check: bool = True,
    inputs: Mapping[str, Tensor] | None = None,
    weight: Tensor | None = None,
    **options: Any,
) -> Any:
    """Gives a causal language model of transformers this loss; with ``fused``, without logits.

    ``model.loss_function`` is set, on this model alone. With ``fused`` the head (``model.get_output_embeddings()``)
    becomes a `DeferredLinear`: it has the same parameters and state dict, and its logits are computed only if somebody
    reads them, as generation and metrics do. A scale or softcap that the model applies to its logits goes to the loss.

    Args:
        model: a model of ``AutoModelForCausalLM``, or a PEFT, DistributedDataParallel or torch.compile wrapper of one.
        fused: compute the loss from hidden states and the head's weight. Otherwise logits exist as usual.
        check: compare the loss with the model's own on a few tokens, once, in evaluation mode without gradients.
        inputs: the arguments of the model for the check, with labels; by default a few tokens as ``input_ids``.
        weight: class weights (C,).
        options: label_smoothing, z_loss, temperature, on_empty, validate and chunk (with ``fused`` only), as in
            `unixent.linear_cross_entropy`.

    Returns:
        ``model``.

    Raises:
        OptionError: the head computes its logits otherwise than by a plain `torch.nn.Linear`, the model does not call
            ``loss_function`` or reads its logits before the loss, its own loss is another one, or it calls
            ``torch.nn.functional.cross_entropy`` itself and options are given. The message tells which; the model is
            as before.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from unixent_torch.transformers import use
        >>> config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, num_key_value_heads=2)
        >>> model = use(LlamaForCausalLM(config), label_smoothing=0.1)
        >>> model.loss_function
        CausalLMLoss(label_smoothing=0.1)
    """
    if weight is not None:
        options["weight"] = weight
    causal = unwrap(model)
    restore(causal)
    linears = _linears_of(causal.get_output_embeddings()) if fused else []
    if fused and not linears:
        head = causal.get_output_embeddings()
        advice = (
            "call use before fully_shard" if isinstance(head, nn.Module) and is_fsdp_unit(head) else "use fused=False"
        )
        raise OptionError(
            f"fused: expected a model whose head is a torch.nn.Linear; got {type(head).__name__}: {advice}"
        )
    if not fused and "chunk" in options:
        raise OptionError("chunk: expected fused=True: the loss of logits takes them as they are")
    defer = partial(_set_class, linears, DeferredLinear)
    if check:
        undo = partial(restore, causal)
        check_model(causal, CausalLMLoss(), defer, undo, inputs, linears=linears, has_options=bool(options))
    causal.loss_function = CausalLMLoss(**options)
    defer()
    return model


def restore(model: nn.Module) -> Any:
    """Gives a model its own loss and head back. Returns ``model``."""
    causal = unwrap(model)
    if isinstance(vars(causal).get("_loss_function"), CausalLMLoss):
        del causal._loss_function
    head = causal.get_output_embeddings()
    _set_class([] if head is None else [m for m in head.modules() if type(m) is DeferredLinear], nn.Linear)
    return model


def _linears_of(head: Any) -> list[nn.Module]:
    """The layers of a head that return logits: itself, or those inside a wrapper or an adapter of PEFT."""
    if not isinstance(getattr(head, "weight", None), Tensor):
        return []
    classes = head.weight.shape[0]
    return [m for m in head.modules() if type(m) is nn.Linear and m.out_features == classes]


def _set_class(linears: list[nn.Module], layer: type[nn.Linear]) -> None:
    for linear in linears:
        linear.__class__ = layer


def compute_loss(**options: Any) -> Callable[..., Tensor]:
    """A loss for ``transformers.Trainer(compute_loss_func=...)``: the call (outputs, labels, num_items_in_batch).

    The labels are shifted as by the model. After `use` on the model, its logits do not exist here either; without it
    they do. A model's auxiliary loss (of routed experts, say) is not in it: set the loss by `use` alone to keep that.

    Args:
        options: label_smoothing, z_loss, weight, temperature, on_empty and validate, as in `unixent.cross_entropy`.

    Example:
        >>> import torch
        >>> from unixent_torch.transformers import compute_loss
        >>> loss = compute_loss(label_smoothing=0.1)
        >>> loss({"logits": torch.zeros(1, 3, 4)}, torch.tensor([[0, 1, 2]]), num_items_in_batch=2)
        tensor(1.3863)
    """
    causal_loss = CausalLMLoss(**options)

    def compute(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | float | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        return causal_loss(logits, labels, num_items_in_batch=num_items_in_batch)

    return compute


def unwrap(model: Any) -> Any:
    """The model of transformers inside wrappers of PEFT, DistributedDataParallel and torch.compile."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model
