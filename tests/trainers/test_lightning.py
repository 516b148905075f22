"""Lightning: a step of several batches has the gradient of one batch with all their tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unixent
from unixent_torch.trainers.lightning import ExactAccumulation

lightning = pytest.importorskip("lightning", reason="needs lightning")

# Tokens of each batch: unequal, and a last step of fewer batches.
LENGTHS = (3, 9, 1, 5, 4)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 4, generator=draw), torch.randint(6, (n,), generator=draw).index_fill(0, torch.tensor(0), -100))
        if n > 1
        else (torch.randn(1, 4, generator=draw), torch.tensor([2]))
        for n in LENGTHS
    ]


class Plain(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(4, 6)

    def training_step(self, batch, batch_index):
        return unixent.cross_entropy(self.head(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


class Exact(ExactAccumulation, Plain):
    def training_step(self, batch, batch_index):
        return self.accumulate(unixent.loss_terms(self.head(batch[0]), batch[1]))


def train(model: torch.nn.Module, data: list | None, accumulate: int, folder: Path, **options) -> torch.Tensor:
    loader = None if data is None else torch.utils.data.DataLoader(data, batch_size=None)
    lightning.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=accumulate, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=str(folder), **{"devices": 1, **options},
    ).fit(model, loader)  # fmt: skip
    return model.head.weight.detach()


@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_step_of_several_batches_is_that_of_one(tmp_path, clip):
    parts = batches()
    whole = [tuple(map(torch.cat, zip(*parts[:3], strict=True))), tuple(map(torch.cat, zip(*parts[3:], strict=True)))]
    expected = train(Plain(), whole, 1, tmp_path, gradient_clip_val=clip)
    actual = train(Exact(), parts, 3, tmp_path, gradient_clip_val=clip)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    if clip is None:
        assert (train(Plain(), parts, 3, tmp_path) - expected).abs().max() > 0.01  # Lightning's own division


def test_a_step_without_any_token_leaves_the_parameters(tmp_path):
    model = Exact()
    before = model.head.weight.detach().clone()
    ignored = (torch.randn(2, 4), torch.tensor([-100, -100]))
    assert torch.equal(train(model, [ignored, ignored], 2, tmp_path), before)


SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_lightning import Exact, batches, train

# One step of two batches on each of two processes.
parts = batches()
class OfProcess(Exact):
    def train_dataloader(self):
        data = [parts[0], parts[1]] if self.trainer.global_rank == 0 else [parts[3], parts[2]]
        return torch.utils.data.DataLoader(data, batch_size=None)

weight = train(OfProcess(), None, 2, Path(sys.argv[2]), strategy="ddp", devices=2, use_distributed_sampler=False)
torch.save(weight, Path(sys.argv[2]) / "weight.pt")
"""


def test_processes_of_data_parallelism_count_their_tokens_together(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = tuple(map(torch.cat, zip(*batches()[:4], strict=True)))
    expected = train(Plain(), [whole], 1, tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "weight.pt"), expected, rtol=1e-5, atol=1e-6)
