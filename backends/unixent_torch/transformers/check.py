"""Compares the loss that a model is about to get with its own, on a few tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unixent.errors import OptionError, UnixentError
from unixent_torch.transformers.causal_loss import CausalLMLoss
from unixent_torch.transformers.deferred import DeferredLogits

# Largest relative difference of two losses that are computed from the same hidden states.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


class _Watched(CausalLMLoss):
    """A loss that keeps the logits it is called with."""

    logits: Tensor | None = None

    def __call__(self, logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.logits = logits
        return super().__call__(logits, labels, *args, **kwargs)


def check_model(
    model: Any,
    loss: CausalLMLoss,
    defer: Callable[[], None],
    restore: Callable[[], Any],
    inputs: Mapping[str, Tensor] | None,
    *,
    linears: Sequence[nn.Module],
    has_options: bool,
) -> None:
    """Raises OptionError, with the reason, where the model's own loss is not that of ``loss``. Leaves it as it was."""
    name = type(model).__name__
    inputs = _few_tokens(model) if inputs is None else inputs
    watched = _Watched(**loss.options)
    head_outputs: list[Tensor] = []
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = _loss_of(model, inputs, name)
            model.loss_function = watched
            defer()
            # Before other hooks see what the head's layers return.
            keep = partial(_append, head_outputs)
            hooks = [linear.register_forward_hook(keep, prepend=True) for linear in linears]
            try:
                actual = _loss_of(model, inputs, name)
            finally:
                restore()
                for hook in hooks:
                    hook.remove()
    finally:
        model.train(training)
    logs = [output.log for output in head_outputs if isinstance(output, DeferredLogits)]
    reader = next((f" by {log.read_by}" for log in logs if log.read_by), "")
    own = watched.logits is None and any(log.has_loss for log in logs)
    if watched.logits is None and not own:
        raise OptionError(
            f"model: expected a model that calls its loss_function; got {name}, whose loss is its own{reader}"
        )
    if own and has_options:
        raise OptionError(f"options: expected none for {name}, which calls cross_entropy itself: pass compute_loss")
    if reader:
        raise OptionError(f"fused: {name} reads its logits before the loss{reader}: use fused=False")
    if linears and not logs:
        head = type(model.get_output_embeddings()).__name__
        raise OptionError(f"fused: expected a head that calls a torch.nn.Linear; {head} does not: use fused=False")
    dtype = model.get_input_embeddings().weight.dtype
    tolerance = _TOLERANCE.get(dtype, 1e-2)
    if not abs(actual - expected) <= tolerance * abs(expected):
        raise OptionError(f"model: the loss of {name} is another one: {expected:.7g}, and this loss {actual:.7g}")


def _append(outputs: list[Tensor], module: nn.Module, args: Any, output: Tensor) -> None:
    outputs.append(output)


def _few_tokens(model: Any) -> dict[str, Tensor]:
    count = model.get_input_embeddings().weight.shape[0]
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if isinstance(weight, Tensor):
        count = min(count, weight.shape[0])
    tokens = torch.randint(count, (2, 8), generator=torch.Generator().manual_seed(0)).to(model.device)
    return {"input_ids": tokens, "labels": tokens.clone()}


def _loss_of(model: Any, inputs: Mapping[str, Tensor], name: str) -> float:
    try:
        return float(model(**inputs).loss)
    except UnixentError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise OptionError(f"check: expected {name} to run on {sorted(inputs)}; got {reason}: pass inputs") from error
