"""What tests of transformers' models share: a seed for each, and losses with the gradients of every parameter."""

from __future__ import annotations

import pytest
import torch
import transformers


@pytest.fixture(autouse=True)
def _seed() -> None:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)


@pytest.fixture
def llama():
    """``llama(**config)``: a small Llama, in evaluation mode."""

    def build(**config):
        sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **config)).eval()

    return build


@pytest.fixture
def loss_and_grads():
    """``loss_and_grads(model, **inputs)``: the loss, and the gradients by the names of parameters."""

    def compute(model, **inputs):
        model.zero_grad()
        torch.manual_seed(0)
        output = model(**inputs)
        output.loss.backward()
        return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    return compute


@pytest.fixture
def assert_same():
    """Losses within 1e-5, gradients within 1e-3 of the largest entry of each parameter's.

    Some gradients are zero but for rounding (the bias of a key): entries count from 1e-4 of the largest of all.
    """

    def check(actual, expected):
        (output, grads), (expected_output, expected_grads) = actual, expected
        torch.testing.assert_close(output.loss, expected_output.loss, rtol=1e-5, atol=0)
        assert grads.keys() == expected_grads.keys()
        largest = max(float(grad.abs().max()) for grad in expected_grads.values())
        for name, grad in expected_grads.items():
            scale = max(float(grad.abs().max()), 1e-4 * largest)
            assert float((grads[name] - grad).abs().max()) <= 1e-3 * scale, name

    return check
