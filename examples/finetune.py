"""Fine-tuning a language model of transformers with its Trainer, as it is and after `use`.

    python examples/finetune.py [--steps 40] [--model DIR] [--plot finetune.png]

Nothing is downloaded: the text is that of modules that ship with Python, and the tokenizer is trained on it. A small
Llama is trained on some modules and saved; both runs load it and see the same batches of other modules. What changes is
one line, ``use(model)``, after which the logits do not exist. ``--model`` fine-tunes a model of yours, from a folder
that has its tokenizer, too.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

import corpus
from comparison import Run, draw, report
from unixent_torch.transformers import use

LENGTH, BATCH, VOCABULARY, WIDTH = 128, 16, 8192, 128
BEFORE, TUNED = corpus.MODULES[:8], corpus.MODULES[8:]


class Meter(TrainerCallback):  # type: ignore[misc]
    """The losses, the duration of each step, and the memory that the last step needs at its peak."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.peak_bytes = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.before = _reset_peak()
        self.begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begun)
        self.peak_bytes = max(0, _peak() - self.before)

    def on_log(self, arguments: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def _reset_peak() -> int:
    """Forget the largest amount of memory so far; what is held now, in bytes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    if sys.platform != "linux":
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    """The largest amount of memory since: of the GPU, or of the process. 0 where the system does not say."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return _status("VmHWM") if sys.platform == "linux" else 0


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def new_tokenizer() -> Any:
    """Byte pairs of the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus.text().splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def new_model() -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def rows(tokenizer: Any, modules: tuple[str, ...]) -> list[dict[str, Any]]:
    """The text in pieces of one length. The labels are the tokens: the model shifts them."""
    tokens = tokenizer(corpus.text(modules), return_tensors="pt", verbose=False)["input_ids"][0]
    pieces = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def train(model: Any, data: list[dict[str, Any]], steps: int, rate: float) -> Run:
    settings = TrainingArguments(
        output_dir=tempfile.gettempdir(), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=rate,
        logging_steps=1, seed=0, save_strategy="no", report_to=[], disable_tqdm=True, log_level="error",
        dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    meter = Meter()
    trainer = Trainer(model, settings, train_dataset=data, callbacks=[meter])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return Run(meter.losses, meter.seconds, meter.peak_bytes)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fine-tuning with transformers' Trainer, with and without unixent.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--model", type=Path, help="folder with a causal language model and its tokenizer")
    parser.add_argument("--plot", type=Path, default=Path("finetune.png"), help="picture to write")
    chosen = parser.parse_args(arguments)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.model is None:
            chosen.model = Path(folder)
            tokenizer, model = new_tokenizer(), use(new_model())
            started = train(model, rows(tokenizer, BEFORE), chosen.steps, 3e-3)
            model.save_pretrained(chosen.model)
            tokenizer.save_pretrained(chosen.model)
            print(
                f"trained a model from {started.losses[0]:.4f} to {started.losses[-1]:.4f} nats a token, and saved it\n"
            )
        data = rows(AutoTokenizer.from_pretrained(chosen.model), TUNED)
        runs = {}
        for name in ("transformers", "unixent"):
            model = AutoModelForCausalLM.from_pretrained(chosen.model)
            if name == "unixent":
                use(model)
            runs[name] = train(model, data, chosen.steps, 1e-3)
    report(runs)
    draw(runs, chosen.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
