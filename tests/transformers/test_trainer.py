"""transformers.Trainer with `use` and with `compute_loss`: the curve, metrics, and accumulated gradients."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from unixent_torch.transformers import compute_loss, use


def _rows(seed: int) -> Dataset:
    tokens = torch.randint(1, 96, (16, 12), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    for row, length in enumerate(range(0, 8)):  # labels that count differ between the parts of a step
        labels[row, :length] = -100
    return Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()})


def _train(model, tmp_path, accumulation=1, **arguments):
    settings = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=8 // accumulation, logging_steps=1,
        gradient_accumulation_steps=accumulation, learning_rate=1e-2, report_to=[], use_cpu=True, seed=0,
        save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=_rows(0), eval_dataset=_rows(1), **arguments)
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def build(llama):
    def seeded():
        torch.manual_seed(3)
        return llama(attention_dropout=0.0)

    return seeded


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_curve_is_that_of_the_model(build, tmp_path, accumulation):
    _, expected = _train(build(), tmp_path, accumulation)
    _, used = _train(use(build()), tmp_path, accumulation)
    _, passed = _train(build(), tmp_path, accumulation, compute_loss_func=compute_loss())
    _, both = _train(use(build()), tmp_path, accumulation, compute_loss_func=compute_loss())
    for curve in (used, passed, both):
        assert curve == pytest.approx(expected, rel=1e-4)


def test_accumulated_steps_are_those_of_a_whole_batch(build, tmp_path):
    _, whole = _train(use(build()), tmp_path)
    _, accumulated = _train(use(build()), tmp_path, 4)
    assert accumulated == pytest.approx(whole, rel=1e-4)


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
