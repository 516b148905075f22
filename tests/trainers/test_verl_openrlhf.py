"""verl and OpenRLHF: the functions against the libraries' own, whose files are loaded without their packages."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from originals import load, parameters

from unixent_torch.trainers import openrlhf, verl


@pytest.fixture(scope="module")
def of_verl():
    return load("verl", "verl/utils/torch_functional.py", ("tensordict", "verl", "verl.utils", "verl.utils.device"))


@pytest.fixture(scope="module")
def fused_of_verl():
    return load("verl", "verl/utils/experimental/torch_functional.py").FusedLinearForPPO


@pytest.fixture(scope="module")
def of_openrlhf():
    return load("openrlhf", "openrlhf/models/utils.py", ("deepspeed",))


def test_signatures_are_those_of_verl(of_verl, fused_of_verl):
    for name in ("logprobs_from_logits", "entropy_from_logits", "entropy_from_logits_with_chunking"):
        assert parameters(getattr(verl, name)) == parameters(getattr(of_verl, name))
    assert parameters(verl.FusedLinearForPPO) == parameters(fused_of_verl)
    assert parameters(verl.FusedLinearForPPO.forward) == parameters(fused_of_verl.forward)


def test_log_probabilities_and_entropy_are_those_of_verl(rows, assert_same, of_verl):
    logits, labels = rows
    assert_same(
        lambda x: verl.logprobs_from_logits(x, labels), lambda x: of_verl.logprobs_from_logits(x, labels), logits
    )
    assert_same(verl.entropy_from_logits, of_verl.entropy_from_logits, logits)
    rowwise = (verl.entropy_from_logits_with_chunking, of_verl.entropy_from_logits_with_chunking)
    assert_same(*rowwise, logits.flatten(0, 1), rtol=1e-5)  # verl computes it in float32


@pytest.mark.parametrize("shape", [(7,), (2, 4)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_fused_head_is_that_of_verl(assert_same, fused_of_verl, shape, temperature):
    hidden, weight, labels = torch.randn(*shape, 6), torch.randn(11, 6), torch.randint(11, shape)

    def head(module_class):
        module = module_class(chunk_size=3)
        return lambda x, w: module(x, w, labels, temperature=temperature)

    assert_same(head(verl.FusedLinearForPPO), head(fused_of_verl), hidden, weight, rtol=2e-6)


def test_a_class_of_probability_zero_leaves_the_entropy_finite(of_verl, of_openrlhf):
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert of_verl.entropy_from_logits(logits).isnan()
    assert of_openrlhf.compute_entropy.__wrapped__(logits).isnan()
    assert verl.entropy_from_logits(logits).item() == pytest.approx(math.log(2))
    assert openrlhf.compute_entropy(logits).item() == pytest.approx(math.log(2))


def test_logits_of_half_precision_are_not_divided_in_it(fused_of_verl):
    hidden, weight = torch.randn(64, 32).bfloat16(), torch.randn(1000, 32).bfloat16()
    labels = torch.randint(1000, (64,))
    exact = verl.FusedLinearForPPO()(hidden.double(), weight.double(), labels, 0.7)[0]
    for module_class, small in ((verl.FusedLinearForPPO, True), (fused_of_verl, False)):
        error = module_class()(hidden, weight, labels, 0.7)[0].sub(exact).abs().max()
        assert error < 1e-4 if small else error > 1e-2


def test_the_fused_head_keeps_small_gradients_that_half_precision_sums_lose(fused_of_verl):
    """The gradient of the weight is a sum over all chunks, which verl adds up in the dtype of the weight."""
    hidden, weight = torch.ones(2048, 1).bfloat16(), torch.tensor([[0.0], [0.0]]).bfloat16()
    labels = torch.zeros(2048, dtype=torch.int64)

    def gradient(module_class):
        leaf = weight.clone().requires_grad_()
        module_class(chunk_size=1)(hidden, leaf, labels)[0].sum().backward()
        return leaf.grad[0].item()

    assert gradient(verl.FusedLinearForPPO) == 1024
    assert gradient(fused_of_verl) < 300


def test_signatures_are_those_of_openrlhf(of_openrlhf):
    assert parameters(openrlhf.log_probs_from_logits) == parameters(of_openrlhf.log_probs_from_logits)
    assert parameters(openrlhf.compute_entropy) == parameters(of_openrlhf.compute_entropy)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_openrlhf(rows, assert_same, of_openrlhf, temperature):
    logits, labels = rows
    assert_same(
        lambda x: openrlhf.log_probs_from_logits(x, labels, temperature),
        lambda x: of_openrlhf.log_probs_from_logits(x.clone(), labels, temperature),
        logits,
    )


def test_entropy_is_that_of_openrlhf(rows, assert_same, of_openrlhf):
    assert_same(openrlhf.compute_entropy, of_openrlhf.compute_entropy.__wrapped__, rows[0])


def test_logits_are_not_written_to(rows, of_openrlhf):
    logits, labels = rows
    before = logits.clone()
    openrlhf.log_probs_from_logits(logits, labels, 0.6)
    assert torch.equal(logits, before)
    of_openrlhf.log_probs_from_logits(logits, labels, 0.6)
    assert torch.equal(logits, before / 0.6)


def test_confident_rows_keep_their_log_probability(of_verl, of_openrlhf):
    logits, labels = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
    for ours, theirs in (
        (verl.logprobs_from_logits, of_verl.logprobs_from_logits),
        (openrlhf.log_probs_from_logits, of_openrlhf.log_probs_from_logits),
    ):
        assert theirs(logits, labels).item() == 0
        assert ours(logits, labels).item() == pytest.approx(-math.log1p(math.exp(-20)), rel=1e-6)


def test_patch_replaces_the_functions(of_verl, fused_of_verl, of_openrlhf, monkeypatch, patched):
    """The packages themselves need ray and flash_attn; the files of the functions stand where `patch` finds them."""
    fused = SimpleNamespace(FusedLinearForPPO=fused_of_verl)
    homes = {
        "verl.utils.torch_functional": of_verl,
        "verl.utils.experimental.torch_functional": fused,
        "openrlhf.models.utils": of_openrlhf,
    }
    for name, module in homes.items():
        monkeypatch.setitem(sys.modules, name, module)
    patched("verl")
    patched("openrlhf")
    assert of_verl.logprobs_from_logits is verl.logprobs_from_logits
    assert fused.FusedLinearForPPO is verl.FusedLinearForPPO
    assert of_openrlhf.compute_entropy is openrlhf.compute_entropy
