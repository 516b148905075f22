"""Megatron: on two gloo processes, [s, b, v/tp], against Megatron's own and against the whole vocabulary."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from processes import run_two

from unixent_torch.trainers import megatron

original = pytest.importorskip(
    "megatron.core.tensor_parallel.cross_entropy", reason="needs megatron-core: pip install --no-deps megatron-core"
)

SCRIPT = """
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy as theirs
from unixent_torch.trainers.megatron import fused_vocab_parallel_cross_entropy, vocab_parallel_cross_entropy

parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
torch.manual_seed(0)
logits, target, upstream = 4 * torch.randn(5, 3, 8), torch.randint(8, (5, 3)), torch.rand(5, 3)
classes = slice(4 * rank, 4 * rank + 4)

def loss_and_grad(function, logits):
    leaf = logits.clone().requires_grad_()
    loss = function(leaf)
    (loss * upstream).sum().backward()
    return loss.detach(), leaf.grad

def smoothed(smoothing):  # the formula in Megatron's docstring, over the whole vocabulary
    def loss(logits):
        nll = -logits.log_softmax(-1)
        own = nll.gather(-1, target[..., None])[..., 0]
        return (1 - smoothing) * own + smoothing / 7 * (nll.sum(-1) - own)
    return loss

def same(actual, expected):
    torch.testing.assert_close(actual[0], expected[0].float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual[1], expected[1].float(), rtol=1e-5, atol=1e-6)

local = logits[..., classes]
group = parallel_state.get_tensor_model_parallel_group()
ours = loss_and_grad(lambda x: vocab_parallel_cross_entropy(x, target), local)
# .clone(): Megatron subtracts the maximum from float32 logits in place
same(ours, loss_and_grad(lambda x: theirs(x.clone(), target), local))
for other in (
    lambda x: vocab_parallel_cross_entropy(x, target, tp_group=group),
    lambda x: fused_vocab_parallel_cross_entropy(x, target, group),
):
    again = loss_and_grad(other, local)
    assert torch.equal(again[0], ours[0]) and torch.equal(again[1], ours[1])

whole, gradient = loss_and_grad(smoothed(0.1), logits.double())
expected = whole, gradient[..., classes]
same(loss_and_grad(lambda x: vocab_parallel_cross_entropy(x, target, 0.1), local), expected)
wrong = loss_and_grad(lambda x: theirs(x.clone(), target, 0.1), local)
assert (wrong[0] - whole).abs().max() > 0.01
of_all = [torch.empty_like(wrong[0]) for _ in range(2)]
dist.all_gather(of_all, wrong[0])
assert not torch.allclose(*of_all)  # nor do the processes have the same loss

with torch.no_grad():
    written = local.clone()
    vocab_parallel_cross_entropy(written, target)
    assert torch.equal(written, local)
    theirs(written, target)
    assert not torch.equal(written, local)

    beyond = target.clone()
    beyond[0, 0] = 8
    assert theirs(local.clone(), beyond)[0, 0].isfinite()
    try:
        vocab_parallel_cross_entropy(local, beyond)
    except IndexError as error:
        assert "8 at position (0, 0)" in str(error), error
    else:
        raise AssertionError
"""


def test_two_processes_have_the_loss_of_the_whole_vocabulary(tmp_path: Path) -> None:
    run_two(tmp_path, SCRIPT)


def test_the_signature_is_that_of_megatron() -> None:
    """``tp_group`` came later than the version that Python 3.11 can install."""
    names = list(inspect.signature(original.vocab_parallel_cross_entropy).parameters)
    ours = list(inspect.signature(megatron.vocab_parallel_cross_entropy).parameters)
    assert ours == ["vocab_parallel_logits", "target", "label_smoothing", "tp_group"]
    assert names == ours[: len(names)]


def test_patch_replaces_what_other_modules_have_imported(patched) -> None:
    import megatron.core.tensor_parallel as parallel

    before = parallel.vocab_parallel_cross_entropy
    assert before is original.vocab_parallel_cross_entropy
    patched("megatron")
    assert parallel.vocab_parallel_cross_entropy is megatron.vocab_parallel_cross_entropy
