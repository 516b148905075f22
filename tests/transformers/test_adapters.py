"""`use` on models with adapters of PEFT, in the body and on the head."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import unixent
from unixent_torch.transformers import use

TOKENS = torch.randint(1, 96, (2, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": TOKENS, "labels": TOKENS}


ADAPTERS = {
    "body": {"target_modules": ["q_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "head with dropout": {"target_modules": ["lm_head"], "lora_dropout": 0.5},
    "head with a bias": {"target_modules": ["lm_head"], "lora_bias": True},
    "trained head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("order", ["before", "after", "both"])
def test_adapters_of_a_fused_model_are_trained_without_logits(llama, loss_and_grads, assert_same, adapter, order):
    model = llama()
    models = []
    for base in (copy.deepcopy(model), model):
        if base is model and order != "after":
            use(base)
        torch.manual_seed(2)
        config = LoraConfig(r=2, init_lora_weights=False, **ADAPTERS[adapter])
        models.append(get_peft_model(base, config).train())
    if order != "before":
        use(model)
    expected, actual = (loss_and_grads(adapted, **INPUTS) for adapted in models)
    assert_same(actual, expected)
    # An adapter that came to the head after `use` is a plain layer, which returns values.
    assert (actual[0].logits.values is None) == (order != "before" or not adapter.startswith("head"))
    expected, actual = (adapted.eval()(TOKENS).logits for adapted in models)
    torch.testing.assert_close(actual[:, -1], expected[:, -1], rtol=1e-5, atol=1e-5)


def test_adapters_of_a_half_precision_head_are_added_in_float32(llama, loss_and_grads):
    model = llama().bfloat16()
    torch.manual_seed(2)
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["lm_head"])
    adapted = get_peft_model(model, config)
    expected, expected_grads = loss_and_grads(adapted, **INPUTS)
    output, grads = loss_and_grads(use(adapted), **INPUTS)
    assert output.logits.values is None
    assert output.logits.dtype == torch.bfloat16
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-2, atol=0)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=0.05, atol=0.02 * float(grad.abs().max()))


def test_several_adapters_of_a_head_and_merged_ones_are_served(llama, loss_and_grads, assert_same):
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["lm_head"])
    adapted = get_peft_model(llama(), config)
    adapted.add_adapter("second", config)
    adapted.base_model.set_adapter(["default", "second"])
    expected = loss_and_grads(adapted, **INPUTS)
    actual = loss_and_grads(use(adapted), **INPUTS)
    assert_same(actual, expected)
    assert actual[0].logits.values is None
    merged = adapted.merge_and_unload()
    output = merged(**INPUTS)
    torch.testing.assert_close(output.loss, expected[0].loss, rtol=1e-5, atol=0)
    assert output.logits.values is None


def test_adapters_that_scale_the_logits_of_the_head_read_them(llama, loss_and_grads, assert_same):
    torch.manual_seed(2)
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["lm_head"], use_dora=True)
    adapted = get_peft_model(llama(), config).eval()
    expected = loss_and_grads(adapted, **INPUTS)
    with pytest.raises(unixent.OptionError, match="reads its logits before the loss"):
        use(adapted)
    assert_same(loss_and_grads(use(adapted, fused=False), **INPUTS), expected)
    assert_same(loss_and_grads(use(adapted, check=False), **INPUTS), expected)


def test_disabled_adapters_leave_the_head_alone(llama):
    model = llama()
    expected = model(**INPUTS).loss
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "lm_head"])
    adapted = use(get_peft_model(model, config))
    with adapted.disable_adapter():
        output = adapted(**INPUTS)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)
    assert output.logits.values is None


def test_heads_that_compute_their_logits_themselves_are_refused(llama, loss_and_grads, assert_same):
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"lm_head": [1, 2]})
    adapted = get_peft_model(llama(), config)
    expected = loss_and_grads(adapted, **INPUTS)
    with pytest.raises(unixent.OptionError, match=r"head that calls a torch\.nn\.Linear; TrainableTokens\w+ does not"):
        use(adapted)
    assert_same(loss_and_grads(use(adapted, fused=False), **INPUTS), expected)
