"""TRL: the functions against TRL's own, and its SFT and GRPO trainers with and without `patch`."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from datasets import Dataset
from originals import parameters
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS
from trl.trainer import utils as original

from unixent_torch.trainers import trl as ours
from unixent_torch.transformers import compute_loss, use

FUNCTIONS = ["selective_log_softmax", "entropy_from_logits", "selective_log_softmax_and_entropy"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_those_of_trl(name):
    assert parameters(getattr(ours, name)) == parameters(getattr(original, name))


def test_the_signature_of_the_fused_head_is_that_of_trl():
    expected = parameters(original._ChunkedLogProbFunction.forward)
    del expected["ctx"]
    assert parameters(ours.ChunkedLogProbFunction.apply) == expected


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("masked", [False, True])
def test_log_probabilities_are_those_of_trl(rows, assert_same, temperature, masked):
    logits, index = rows
    options = {"temperature": temperature, "row_mask": index % 2 if masked else None}
    for name in FUNCTIONS[::2]:
        assert_same(
            lambda x, name=name: getattr(ours, name)(x, index, **options),
            lambda x, name=name: getattr(original, name)(x, index, **options),
            logits,
        )


def test_several_log_probabilities_of_a_position_are_those_of_trl(rows, assert_same):
    logits, index = rows
    several = torch.stack([index, (index + 3) % 11], -1)
    for mask in (None, several % 3):
        assert_same(
            lambda x, mask=mask: ours.selective_log_softmax(x, several, 0.5, mask),
            lambda x, mask=mask: original.selective_log_softmax(x, several, 0.5, mask),
            logits,
        )


def test_entropy_is_that_of_trl(rows, assert_same):
    assert_same(ours.entropy_from_logits, original.entropy_from_logits, rows[0])


def test_entropy_without_gradient_has_none(rows):
    _, entropy = ours.selective_log_softmax_and_entropy(rows[0].requires_grad_(), rows[1], entropy_requires_grad=False)
    assert not entropy.requires_grad


@pytest.mark.parametrize("outputs", [OPTIONAL_OUTPUTS, (), ("is_top1",)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_fused_head_is_that_of_trl(assert_same, outputs, bias):
    hidden, weight, offset = torch.randn(7, 6), torch.randn(11, 6), torch.randn(11)
    targets = torch.randint(11, (7,))
    arrays = (hidden, weight, offset) if bias else (hidden, weight)

    def head(function):
        return lambda x, w, b=None: function.apply(x, w, b, targets, 0.7, 4, 5.0, 0.5, outputs)

    assert_same(head(ours.ChunkedLogProbFunction), head(original._ChunkedLogProbFunction), *arrays, rtol=2e-6)


def test_the_fused_head_multiplies_in_the_dtype_of_autocast():
    hidden, weight = torch.randn(7, 64), torch.randn(11, 64)
    arguments = (None, torch.randint(11, (7,)), 1.0, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs = ours.ChunkedLogProbFunction.apply(hidden, weight, *arguments)[0]
    rounded = (hidden.bfloat16().double(), weight.bfloat16().double())
    expected = ours.ChunkedLogProbFunction.apply(*rounded, *arguments)[0]
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.double(), expected, rtol=1e-5, atol=0)


def test_a_confident_row_keeps_its_log_probability():
    logits, index = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
    assert original.selective_log_softmax(logits, index).item() == 0
    assert ours.selective_log_softmax(logits, index).item() == pytest.approx(-math.log1p(math.exp(-20)), rel=1e-6)


def test_a_class_of_probability_zero_leaves_the_entropy_finite():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    assert original.entropy_from_logits(logits).isnan()
    entropy = ours.entropy_from_logits(logits)
    entropy.backward()
    assert entropy.item() == pytest.approx(math.log(2))
    assert logits.grad.isfinite().all()


def test_log_probabilities_of_half_precision_are_not_rounded_to_it():
    logits, index = torch.randn(64, 1000).bfloat16() * 3, torch.randint(1000, (64,))
    exact = original.selective_log_softmax(logits.double(), index)
    assert ours.selective_log_softmax(logits, index).sub(exact).abs().max() < 1e-5
    assert original.selective_log_softmax(logits, index).sub(exact).abs().max() > 1e-2


def test_logits_of_half_precision_are_not_rounded_before_they_are_summed():
    hidden, weight = torch.randn(64, 32).bfloat16(), torch.randn(1000, 32).bfloat16()
    arguments = (None, torch.randint(1000, (64,)), 0.7, 256)
    exact = ours.ChunkedLogProbFunction.apply(hidden.double(), weight.double(), *arguments)[0]
    for function, small in ((ours.ChunkedLogProbFunction, True), (original._ChunkedLogProbFunction, False)):
        error = function.apply(hidden, weight, *arguments)[0].sub(exact).abs().max()
        assert error < 1e-4 if small else error > 1e-2


@pytest.fixture
def tokenizer():
    words = ["<pad>", "<eos>", "<unk>", *(f"w{index}" for index in range(29))]
    model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture
def model():
    """``model()``: a small Llama, the same at each call."""
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}

    def build():
        torch.manual_seed(1)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))

    return build


SETTINGS = {
    "max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2, "report_to": [],
    "use_cpu": True, "seed": 0, "save_strategy": "no", "disable_tqdm": True, "bf16": False,
}  # fmt: skip


def _history(trainer, *names):
    trainer.train()
    return [[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry]


def test_supervised_fine_tuning_has_the_same_curve(tmp_path, tokenizer, model, patched):
    texts = Dataset.from_dict({"text": [" ".join(f"w{(i * j) % 29}" for j in range(3 + i % 5)) for i in range(16)]})

    def train(a_model, **arguments):
        trainer = SFTTrainer(
            a_model, SFTConfig(str(tmp_path), gradient_accumulation_steps=2, **SETTINGS), train_dataset=texts,
            processing_class=tokenizer, **arguments,
        )  # fmt: skip
        return _history(trainer, "loss", "grad_norm", "entropy", "mean_token_accuracy")

    expected = train(model())
    patched("trl")
    assert original._ChunkedLogProbFunction is ours.ChunkedLogProbFunction
    for curve in (train(model()), train(use(model())), train(use(model()), compute_loss_func=compute_loss())):
        for entry, truth in zip(curve, expected, strict=True):
            assert entry == pytest.approx(truth, rel=1e-4)


def test_grpo_has_the_same_curve(tmp_path, tokenizer, model, patched):
    prompts = Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(16)]})

    def reward(completions, **kwargs):
        return [float(len(set(text.split()))) for text in completions]

    model().save_pretrained(tmp_path / "model")  # the reference of the penalty is loaded from there

    def train(prepare=lambda policy: policy):
        settings = GRPOConfig(
            str(tmp_path), num_generations=4, max_completion_length=6, temperature=0.7, beta=0.1, **SETTINGS
        )
        policy = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")
        trainer = GRPOTrainer(prepare(policy), reward, settings, train_dataset=prompts, processing_class=tokenizer)
        return _history(trainer, "loss", "grad_norm", "entropy", "kl", "reward")

    expected = train()
    patched("trl")
    for curve in (train(), train(use)):
        for entry, truth in zip(curve, expected, strict=True):
            assert entry == pytest.approx(truth, rel=1e-3, abs=1e-6)
