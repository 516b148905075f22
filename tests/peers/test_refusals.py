"""A loss that is written as docs/kernels.md says: what it lacks it refuses, in every mode and form."""

from __future__ import annotations

from typing import Any

import pytest

from unixent_conformance import run
from unixent_conformance.results import Verdict

torch = pytest.importorskip("torch")

MODES = {"eager", "autograd", "compile", "forward", "vmap"}


def loss(logits: Any, target: Any, *, reduction: str = "mean", softcap: float | None = None) -> Any:
    if target.is_floating_point():
        raise NotImplementedError("class indices only")
    if softcap is not None:
        raise NotImplementedError(f"softcap {softcap}")
    if logits.dtype not in (torch.float32, torch.float64):
        raise NotImplementedError(f"logits of {logits.dtype}")
    nll = -torch.log_softmax(logits, -1).gather(-1, target.long().unsqueeze(-1)).squeeze(-1)
    return {"none": lambda: nll, "sum": nll.sum, "mean": nll.mean}[reduction]()


def linear(hidden: Any, classifier: Any, target: Any, *, reduction: str = "mean", softcap: float | None = None) -> Any:
    return loss(hidden @ classifier.T, target, reduction=reduction, softcap=softcap)


@pytest.mark.parametrize("tested", [loss, linear], ids=["logits", "linear"])
def test_what_a_loss_says_it_lacks_is_refused_in_every_mode(tested: Any) -> None:
    features = ["class indices", "class probabilities", "softcap"]
    report = run(tested, "torch", features=features, quick=True, linear=tested is linear, isolate=False)
    assert report.ok, [(r.id, r.mode, r.detail) for r in report.failures]
    refused = {r.mode for r in report.cases if r.verdict is Verdict.REFUSES and r.feature == "class probabilities"}
    assert refused == MODES
    assert {mode for mode, judged in report.judged.items() if judged} == MODES


class Saved(torch.autograd.Function):  # type: ignore[misc]
    """The gradient is formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Any, target: Any) -> Any:
        hot = torch.nn.functional.one_hot(target, logits.shape[-1])
        ctx.save_for_backward(torch.softmax(logits, -1) - hot, logits)
        return -(torch.log_softmax(logits, -1) * hot).sum(-1)

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> Any:
        gradient, logits = ctx.saved_tensors
        return Once.apply(gradient * upstream.unsqueeze(-1), logits), None


class Once(torch.autograd.Function):  # type: ignore[misc]
    """The identity of a gradient, which refuses to be differentiated with respect to what the gradient depends on."""

    @staticmethod
    def forward(ctx: Any, gradient: Any, *inputs: Any) -> Any:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("no second derivatives")


def once(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    if logits.ndim != 2 or target.is_floating_point():
        raise NotImplementedError("rows and class indices")
    nll = Saved.apply(logits, target)
    return {"none": lambda: nll, "sum": nll.sum, "mean": nll.mean}[reduction]()


def test_a_second_derivative_is_refused_as_the_page_says() -> None:
    report = run(once, "torch", features=["second derivatives"], quick=True, isolate=False)
    twice = [r for r in report.cases if r.id == "second-derivatives/class-indices"]
    assert [r.mode for r in twice] == ["autograd", "forward"]
    assert all(r.verdict is Verdict.REFUSES for r in twice), twice
    assert twice[0].detail == "NotImplementedError: no second derivatives"
