"""transformers.Trainer with `use` and with `compute_loss`: the curve, metrics, and accumulated gradients."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from unixent_torch.transformers import compute_loss, use


def _rows(seed: int) -> Dataset:
    tokens = torch.randint(1, 96, (16, 12), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    for row, length in enumerate(range(0, 8)):  # labels that count differ between the parts of a step
        labels[row, :length] = -100
    return Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()})


def _train(model, tmp_path, accumulation=1, settings=None, **arguments):
    settings = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=8 // accumulation, logging_steps=1,
        gradient_accumulation_steps=accumulation, learning_rate=1e-2, report_to=[], use_cpu=True, seed=0,
        save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", **(settings or {}),
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=_rows(0), eval_dataset=_rows(1), **arguments)
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def build(llama):
    def seeded(**config):
        torch.manual_seed(3)
        return llama(attention_dropout=0.0, **config)

    return seeded


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_curve_is_that_of_the_model(build, tmp_path, accumulation):
    _, expected = _train(build(), tmp_path, accumulation)
    _, used = _train(use(build()), tmp_path, accumulation)
    _, passed = _train(build(), tmp_path, accumulation, compute_loss_func=compute_loss())
    _, both = _train(use(build()), tmp_path, accumulation, compute_loss_func=compute_loss())
    for curve in (used, passed, both):
        assert curve == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("passed", [False, True], ids=["model", "compute_loss"])
def test_accumulated_steps_are_those_of_a_whole_batch(build, tmp_path, passed):
    runs = []
    for accumulation in (1, 4):
        arguments = {"compute_loss_func": compute_loss(label_smoothing=0.1)} if passed else {}
        # Not Adam, whose first steps forget the size of a gradient.
        settings = {"optim": "sgd", "max_grad_norm": 0.0}
        trainer, curve = _train(use(build()), tmp_path, accumulation, settings, **arguments)
        runs.append((curve, dict(trainer.model.named_parameters())))
    (whole, expected), (accumulated, actual) = runs
    assert accumulated == pytest.approx(whole, rel=1e-5)
    for name, parameter in expected.items():
        torch.testing.assert_close(actual[name], parameter, rtol=1e-4, atol=1e-6)


SETTINGS = {
    "tied embeddings": ({}, {"tie_word_embeddings": True}),
    "label smoothing": ({"label_smoothing_factor": 0.1}, {}),
    "bfloat16": ({"bf16": True}, {}),
    "gradient checkpointing": ({"gradient_checkpointing": True}, {}),
    "compiled": ({"torch_compile": True, "torch_compile_backend": "aot_eager"}, {}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.exhaustive) if n == "compiled" else n for n in SETTINGS]
)
def test_the_curve_of_other_settings_is_that_of_the_model(build, tmp_path, name):
    settings, config = SETTINGS[name]
    _, expected = _train(build(**config), tmp_path, 2, settings)
    trainer, actual = _train(use(build(**config)), tmp_path, 2, settings)
    assert actual == pytest.approx(expected, rel=1e-3 if "bf16" in settings else 1e-4)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    _, outputs = trainer.compute_loss(trainer.model_wrapped, batch, return_outputs=True)
    # Trainer's own label smoothing is computed from logits.
    assert (outputs["logits"].values is None) == ("label_smoothing_factor" not in settings)
    if name == "tied embeddings":
        assert trainer.model.lm_head.weight is trainer.model.model.embed_tokens.weight


def test_label_smoothing_of_use_is_that_of_the_trainer(build, tmp_path):
    _, expected = _train(build(), tmp_path, 2, {"label_smoothing_factor": 0.1})
    _, actual = _train(use(build(), label_smoothing=0.1), tmp_path, 2)
    assert actual == pytest.approx(expected, rel=1e-4)


def test_a_trained_model_is_saved_and_generates_as_it_was(build, tmp_path):
    trainer, _ = _train(use(build()), tmp_path)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(loaded.lm_head) is torch.nn.Linear
    batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
    torch.testing.assert_close(loaded(**batch).loss, trainer.model(**batch).loss, rtol=1e-5, atol=0)
    arguments = {"attention_mask": torch.ones(2, 3, dtype=torch.long), "max_new_tokens": 5, "do_sample": False}
    prompt = batch["input_ids"][:2, :3]
    assert torch.equal(trainer.model.generate(prompt, **arguments), loaded.generate(prompt, **arguments))
    resumed, _ = _train(use(loaded), tmp_path)
    assert resumed.state.global_step == 4


def test_metrics_are_computed_from_logits(build, tmp_path):
    def accuracy(prediction):
        guesses = prediction.predictions[:, :-1].argmax(-1)
        labels = prediction.label_ids[:, 1:]
        return {"accuracy": float((guesses == labels)[labels != -100].mean())}

    expected, actual = (
        _train(model, tmp_path, compute_metrics=accuracy)[0].evaluate() for model in (build(), use(build()))
    )
    assert actual["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-4)
    assert actual["eval_accuracy"] == expected["eval_accuracy"]
