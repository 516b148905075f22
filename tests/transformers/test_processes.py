"""Two gloo processes: DistributedDataParallel, FSDP2 and FSDP1 give the gradients of one process with the whole batch.

The loss is the model's or computed from its logits, which are computed only where they are read before.
"""

from __future__ import annotations

from pathlib import Path

from processes import run_two

SCRIPT = """
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from transformers import LlamaConfig, LlamaForCausalLM
from unixent import UnixentError
from unixent_torch.transformers import DeferredLogits, compute_loss, use

sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
mesh = dist.init_device_mesh("cpu", (2,))
flat = {"device_id": torch.device("cpu")}

def wrap(model, wrapper):
    if wrapper == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if wrapper == "tensor parallel head":
        return parallelize_module(model, mesh, {"lm_head": ColwiseParallel()})
    if wrapper == "fsdp1 head":
        model.lm_head = FullyShardedDataParallel(model.lm_head, **flat)
    if wrapper.startswith("fsdp1"):
        return FullyShardedDataParallel(model, use_orig_params=wrapper == "fsdp1 parameters", **flat)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if wrapper == "fsdp2 head":
        fully_shard(model.lm_head, mesh=mesh)
    if wrapper == "fsdp2 group":
        fully_shard([model.model.norm, model.lm_head], mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)

def build(tied=False):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied))

def check(wrapped, wrapper, expected):
    if wrapper.startswith("fsdp1"):  # of flat parameters, which have no names: the norm of all
        norm = torch.stack([grad.norm() for grad in expected.values()]).norm()
        torch.testing.assert_close(wrapped.clip_grad_norm_(1e9), norm, rtol=1e-5, atol=0)
        return
    largest = max(float(grad.abs().max()) for grad in expected.values())
    for name, parameter in wrapped.named_parameters():
        grad = parameter.grad if wrapper == "ddp" else parameter.grad.full_tensor()
        difference = float((grad - expected[name.removeprefix("module.")]).abs().max())
        assert difference <= 1e-4 * largest, (wrapper, name, difference)

torch.manual_seed(1)
tokens = torch.randint(1, 96, (4, 9))
part = tokens[2 * rank : 2 * rank + 2]
for case in arguments:
    wrapper, where = case.split(": ")
    model = build("tied" in where)
    model(input_ids=tokens, labels=tokens).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    wrapped = wrap(use(model), wrapper)
    for step in range(2):
        wrapped.zero_grad()
        if "model" in where:
            output = wrapped(input_ids=part, labels=part)
            loss = output.loss
        else:
            output = wrapped(input_ids=part)
            loss = output.logits.sum() * 0 if "read" in where else 0
            loss = loss + compute_loss()(output, part)
        assert isinstance(output.logits, DeferredLogits), (case, type(output.logits))
        assert (output.logits.values is None) == ("read" not in where), (case, output.logits.log.read_by)
        loss.backward()
        check(wrapped, wrapper, expected)
        with torch.no_grad():
            assert torch.isfinite(wrapped(input_ids=part).logits).all(), case
        for unit in wrapped.modules():
            if isinstance(unit, FSDPModule):
                unit.reshard()  # what evaluation gathers stays, and zero_grad would miss the gradients of the parts

def refused(reason, call):
    try:
        call()
    except UnixentError as error:
        assert reason in str(error), error
    else:
        raise AssertionError("not refused: " + reason)

for wrapper, reason in (
    ("fsdp1 head", "whole until its loss; got one that was offloaded or sharded again: use fused=False"),
    ("tensor parallel head", "whose weight is whole; got one that is sharded: use fused=False"),
):
    wrapped = wrap(use(build()), wrapper)
    refused(reason, lambda: wrapped(input_ids=part, labels=part))
refused("got FSDPLinear: call use before fully_shard", lambda: use(wrap(build(), "fsdp2 head")))
assert use(wrap(build(), "fsdp2"))(input_ids=part, labels=part).logits.values is None
"""


def test_gradients_are_those_of_the_whole_batch_and_split_heads_are_refused(tmp_path: Path) -> None:
    wrappers = ("ddp", "fsdp2", "fsdp2 head", "fsdp2 group", "fsdp1 parameters", "fsdp1 flat")
    cases = [f"{wrapper}: {where}" for wrapper in wrappers for where in ("model", "trainer", "read")]
    run_two(tmp_path, SCRIPT, *cases, "ddp: model tied", "fsdp2: model tied", "fsdp2: trainer tied")
