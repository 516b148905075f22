"""`use` on one model: options, heads, generation, compilation, wrappers, saved weights, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

import unixent
from unixent_torch.transformers import CausalLMLoss, DeferredLinear, DeferredLogits, restore, use

TOKENS = torch.randint(1, 96, (2, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": TOKENS, "labels": TOKENS}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"weight": torch.rand(96)}, {"temperature": 2.0}], ids=str
)
def test_options_are_those_of_the_loss(llama, fused, options):
    model = llama()
    logits = model(TOKENS).logits[:, :-1]
    expected = unixent.cross_entropy(logits, TOKENS[:, 1:], **options)
    torch.testing.assert_close(use(model, fused=fused, **options)(**INPUTS).loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [4, torch.tensor(4)])
def test_num_items_in_batch_is_the_denominator(llama, count):
    model = llama()
    expected = model(**INPUTS, num_items_in_batch=count).loss
    torch.testing.assert_close(use(model)(**INPUTS, num_items_in_batch=count).loss, expected, rtol=1e-5, atol=0)


def test_ignored_and_shifted_labels_are_those_of_transformers(llama):
    model = llama()
    labels = TOKENS.clone()
    labels[0, :6] = -100
    inputs = {"input_ids": TOKENS, "labels": labels, "shift_labels": labels.roll(-2, 1)}
    expected = model(**inputs).loss
    torch.testing.assert_close(use(model)(**inputs).loss, expected, rtol=1e-5, atol=0)


def test_logits_are_computed_when_read_and_have_gradients(llama):
    model = llama()
    expected = model(TOKENS).logits
    logits = use(model)(TOKENS).logits
    assert logits.shape == expected.shape
    assert logits.dtype == expected.dtype
    assert logits.values is None
    torch.testing.assert_close(logits[0, 1], expected[0, 1])
    assert logits.log.read_by == "__getitem__"
    assert torch.autograd.grad(logits.sum(), model.lm_head.weight)[0].abs().sum() > 0


def test_logits_read_without_gradients_keep_those_of_the_loss(llama):
    model = use(llama())
    output = model(TOKENS)
    with torch.no_grad():
        output.logits.argmax(-1)
    loss = CausalLMLoss()(output.logits, TOKENS)
    assert torch.autograd.grad(loss, model.lm_head.weight)[0].abs().sum() > 0
    with torch.no_grad():
        logits = model(TOKENS).logits
    assert not logits.requires_grad
    assert not CausalLMLoss()(logits, TOKENS).requires_grad
    assert not logits.sum().requires_grad


def test_chunk_is_of_the_fused_loss_alone(llama):
    model = llama()
    expected = model(**INPUTS).loss
    logits = use(model, chunk=4)(TOKENS).logits
    logits.sum()
    torch.testing.assert_close(model.loss_function(logits, TOKENS), expected, rtol=1e-5, atol=0)
    with pytest.raises(unixent.OptionError, match="chunk: expected fused=True"):
        use(model, fused=False, chunk=4)


def test_views_share_their_values(llama):
    model = use(llama())
    logits = model(TOKENS).logits
    shifted, rows, scaled = logits.float()[:, :-1], logits.view(-1, 96), logits * 2
    before = logits.head.hidden @ model.lm_head.weight.T
    shifted[..., 0] = 50.0
    torch.testing.assert_close(scaled + 0, 2 * before, rtol=1e-5, atol=1e-6)
    assert (rows.unflatten(0, TOKENS.shape)[:, :-1, 0] == 50.0).all()
    assert logits[0, 0, 0] == 50.0
    expected = functional.cross_entropy(logits.values[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(CausalLMLoss()(logits, TOKENS), expected, rtol=1e-5, atol=0)


VIEWS = {
    "flat": lambda logits: logits.view(-1, 96),
    "reshaped": lambda logits: logits.reshape((2, 3, 3, 96)),
    "flattened": lambda logits: logits.flatten(0, 1),
    "shifted": lambda logits: logits[..., :-1, :].contiguous(),
    "classes": lambda logits: logits[..., :64],
    "backwards": lambda logits: logits[1:, ::2, 3:50],
    "scaled": lambda logits: (logits.float() / 2 * 3).reshape(-1, 96)[2:],
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_recorded(llama, view):
    model = llama()
    expected = VIEWS[view](model(TOKENS).logits)
    deferred = VIEWS[view](use(model)(TOKENS).logits)
    assert deferred.values is None
    assert deferred.shape == expected.shape
    target = torch.randint(expected.shape[-1], expected.shape[:-1])
    loss = CausalLMLoss()(deferred, None, shift_labels=target)
    assert deferred.values is None
    due = functional.cross_entropy(expected.flatten(0, -2), target.flatten())
    torch.testing.assert_close(loss, due, rtol=1e-5, atol=0)
    torch.testing.assert_close(deferred + 0, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"weight": torch.rand(96)}, {"label_smoothing": 0.1}, {"ignore_index": 5}, {"reduction": "none"}],
    ids=str,
)
def test_cross_entropy_of_deferred_logits_is_computed_without_them(llama, options):
    model = llama()
    logits, target = model(TOKENS).logits.view(-1, 96), TOKENS.flatten()
    expected = functional.cross_entropy(logits, target, **options)
    deferred = use(model)(TOKENS).logits.view(-1, 96)
    loss = nn.CrossEntropyLoss(**options)(deferred, target)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert deferred.values is None
    if options.get("reduction") != "none":
        ignored = torch.full_like(target, options.get("ignore_index", -100))
        assert functional.cross_entropy(deferred, ignored, **options).isnan()


def test_changes_in_place_reach_the_loss(llama):
    logits = use(llama())(TOKENS).logits
    logits[..., 0] = 50.0
    expected = functional.cross_entropy(logits.values[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(CausalLMLoss()(logits, TOKENS), expected, rtol=1e-5, atol=0)


def test_generation_is_the_same(llama):
    model = llama()
    arguments = {"attention_mask": torch.ones_like(TOKENS), "max_new_tokens": 5, "do_sample": False}
    expected = model.generate(TOKENS, **arguments)
    assert torch.equal(use(model).generate(TOKENS, **arguments), expected)


def test_tied_embeddings_stay_tied(llama, loss_and_grads, assert_same):
    model = llama(tie_word_embeddings=True)
    expected = loss_and_grads(model, **INPUTS)
    assert_same(loss_and_grads(use(model), **INPUTS), expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_the_head_in_half_precision(llama, dtype):
    model = llama()
    with torch.autocast("cpu", dtype):
        expected = model(**INPUTS).loss
        output = use(model)(**INPUTS)
    assert output.logits.dtype == dtype
    assert output.logits.values is None
    torch.testing.assert_close(output.loss, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_dtypes_are_served(llama, dtype):
    model = llama().to(dtype)
    expected = model(**INPUTS).loss
    torch.testing.assert_close(use(model)(**INPUTS).loss.float(), expected.float(), rtol=1e-2, atol=0)


def largest_allocation(call):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    return max(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_models_have_the_same_loss_and_no_logits_but_in_one_graph(
    llama, loss_and_grads, assert_same, fullgraph
):
    torch.compiler.reset()  # a program of the other case would serve this one
    model = llama()
    model.resize_token_embeddings(2048)
    inputs = dict.fromkeys(("input_ids", "labels"), torch.randint(1, 2048, (4, 64)))
    expected = loss_and_grads(model, **inputs)
    compiled = torch.compile(use(model, chunk=16), backend="aot_eager", fullgraph=fullgraph)
    output, grads = loss_and_grads(compiled, **inputs)
    assert_same((output, {name.removeprefix("_orig_mod."): grad for name, grad in grads.items()}), expected)
    # Outputs of a whole graph are values; otherwise the graph breaks at the head.
    assert isinstance(output.logits, DeferredLogits) != fullgraph
    logits = inputs["labels"].numel() * 2048 * 4
    allocated = largest_allocation(lambda: compiled(**inputs).loss.backward())
    assert (allocated >= logits) if fullgraph else (allocated <= logits / 4)


def test_saved_weights_load_into_a_model_without_the_loss(llama, tmp_path):
    model = use(llama())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.lm_head) is nn.Linear
    torch.testing.assert_close(loaded(**INPUTS).loss, model(**INPUTS).loss, rtol=1e-5, atol=0)


def test_copies_keep_the_loss_and_restore_gives_the_own_one_back(llama):
    model = llama()
    own = model.loss_function
    copied = copy.deepcopy(use(model))
    assert type(copied.lm_head) is DeferredLinear
    assert isinstance(copied.loss_function, CausalLMLoss)
    assert restore(model).loss_function is own
    assert not isinstance(model(TOKENS).logits, DeferredLogits)


def test_other_models_keep_their_loss(llama):
    other = llama()
    own = other.loss_function
    use(llama())
    assert other.loss_function is own


def test_a_loss_that_is_another_one_is_refused(llama):
    model = llama()
    own = model.loss_function
    model.loss_function = lambda logits, labels, **kwargs: own(logits=logits, labels=labels, **kwargs) * 2
    with pytest.raises(unixent.OptionError, match="is another one"):
        use(model)


def test_a_model_that_reads_its_logits_is_refused_with_the_reader(llama):
    model = llama()
    model.lm_head.register_forward_hook(lambda module, inputs, output: output.relu())
    with pytest.raises(unixent.OptionError, match="reads its logits before the loss by relu"):
        use(model)


def test_a_sharded_head_is_refused(llama):
    model = use(llama())
    model.lm_head.weight.ds_id = 0
    with pytest.raises(unixent.BackendError, match="sharded"):
        model(**INPUTS)


def test_reading_logits_after_their_head_is_gone_raises(llama):
    model = use(llama())
    logits = model(TOKENS).logits
    logits.head.weight.untyped_storage().resize_(0)
    with pytest.raises(unixent.BackendError, match="sharded again"):
        logits.sum()
