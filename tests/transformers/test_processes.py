"""Two gloo processes: DistributedDataParallel and FSDP2 give the gradients of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_two

SCRIPT = """
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM
from unixent_torch.transformers import DeferredLogits, compute_loss, use

wrapper, where = arguments
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=2, **heads)
torch.manual_seed(0)
model = LlamaForCausalLM(config)
tokens = torch.randint(1, 96, (4, 9))
model(input_ids=tokens, labels=tokens).loss.backward()
expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
model.zero_grad()
use(model)
if wrapper == "ddp":
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
else:
    mesh = dist.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if wrapper == "fsdp-head":
        fully_shard(model.lm_head, mesh=mesh)
    wrapped = fully_shard(model, mesh=mesh)
part = tokens[2 * rank : 2 * rank + 2]
if where == "model":
    output = wrapped(input_ids=part, labels=part)
    loss = output.loss
else:
    output = wrapped(input_ids=part)
    loss = compute_loss()(output, part)
assert isinstance(output.logits, DeferredLogits) == (wrapper != "fsdp-head"), type(output.logits)
if wrapper == "ddp":
    assert output.logits.values is None, output.logits.read_by
loss.backward()
largest = max(float(grad.abs().max()) for grad in expected.values())
for name, parameter in model.named_parameters():
    grad = parameter.grad if wrapper == "ddp" else parameter.grad.full_tensor()
    assert float((grad - expected[name]).abs().max()) <= 1e-4 * largest, name
"""


_OTHERS = [("ddp", "trainer"), ("fsdp", "model"), ("fsdp-head", "model"), ("fsdp-head", "trainer")]


@pytest.mark.parametrize(
    ("wrapper", "where"),
    [("ddp", "model"), ("fsdp", "trainer"), *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in _OTHERS)],
)
def test_gradients_are_those_of_the_whole_batch(tmp_path: Path, wrapper: str, where: str) -> None:
    run_two(tmp_path, SCRIPT, wrapper, where)
