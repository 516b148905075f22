"""Two gloo processes: DistributedDataParallel and FSDP2 give the gradients of one process with the whole batch.

The loss is the model's or computed from its logits, which are computed only where they are read before.
"""

from __future__ import annotations

from pathlib import Path

from processes import run_two

SCRIPT = """
import copy
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import LlamaConfig, LlamaForCausalLM
from unixent_torch.transformers import DeferredLogits, compute_loss, use

sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
mesh = dist.init_device_mesh("cpu", (2,))

def wrap(model, wrapper):
    if wrapper == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if wrapper == "fsdp-head":
        fully_shard(model.lm_head, mesh=mesh)
    if wrapper == "fsdp-group":
        fully_shard([model.model.norm, model.lm_head], mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)

for case in arguments:
    wrapper, where, *tied = case.split()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=bool(tied)))
    tokens = torch.randint(1, 96, (4, 9))
    model(input_ids=tokens, labels=tokens).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    wrapped = wrap(use(model), wrapper)
    part = tokens[2 * rank : 2 * rank + 2]
    for step in range(2):
        model.zero_grad()
        if where == "model":
            output = wrapped(input_ids=part, labels=part)
            loss = output.loss
        else:
            output = wrapped(input_ids=part)
            loss = output.logits.sum() * 0 if where == "read" else 0
            loss = loss + compute_loss()(output, part)
        assert isinstance(output.logits, DeferredLogits), (case, type(output.logits))
        assert (output.logits.values is None) == (where != "read"), (case, output.logits.log.read_by)
        loss.backward()
        largest = max(float(grad.abs().max()) for grad in expected.values())
        for name, parameter in model.named_parameters():
            grad = parameter.grad if wrapper == "ddp" else parameter.grad.full_tensor()
            assert float((grad - expected[name]).abs().max()) <= 1e-4 * largest, (case, step, name)
        with torch.no_grad():
            assert torch.isfinite(wrapped(input_ids=part).logits).all(), case
        for unit in wrapped.modules():
            if isinstance(unit, FSDPModule):
                unit.reshard()  # what evaluation gathers stays, and zero_grad would miss the gradients of the parts
"""


def test_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    wrappers = ("ddp", "fsdp", "fsdp-head", "fsdp-group")
    cases = [f"{wrapper} {where}" for wrapper in wrappers for where in ("model", "trainer", "read")]
    run_two(tmp_path, SCRIPT, *cases, "ddp model tied", "fsdp model tied", "fsdp trainer tied")
