"""What a loss says that it lacks is a refusal, and its own errors are not, in the forward pass and in the backward one,
called, differentiated or compiled."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from unixent_conformance.harnesses import load
from unixent_conformance.implementation import wrap
from unixent_mutants.judging import judge

ID = "label-smoothing/a-tenth/float32-mean/gradient"
UNEXPECTED = TypeError("kernel() got an unexpected keyword argument 'label_smoothing'")
# What is raised, whether the signature has the option, the verdict and the start of its text.
ERRORS = [
    (NotImplementedError("no smoothing"), True, "refuses", "NotImplementedError: no smoothing"),
    (NotImplementedError("no smoothing"), False, "refuses", "NotImplementedError: no smoothing"),
    (UNEXPECTED, False, "refuses", "has no option label_smoothing"),
    (UNEXPECTED, True, "crashed", "TypeError: kernel() got"),
    (TypeError("no smoothing"), False, "crashed", "TypeError: no smoothing"),
]


@pytest.mark.skipif(not find_spec("torch"), reason="needs torch")
@pytest.mark.parametrize("mode", ["eager", "autograd", "compile"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("error", "in_signature", "verdict", "text"), ERRORS)
def test_a_refusal_is_one_in_every_mode_of_torch(
    error: Exception, in_signature: bool, verdict: str, text: str, backward: bool, mode: str
) -> None:
    import torch

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Any) -> Any:
            if not backward:
                raise error
            return logits.sum()

        @staticmethod
        def backward(ctx: Any, up: Any) -> Any:
            raise error

    _judged(lambda logits: Loss.apply(logits), in_signature, "torch", mode, verdict, text)


@pytest.mark.skipif(not find_spec("jax"), reason="needs JAX")
@pytest.mark.parametrize("mode", ["eager", "grad", "jit"])
@pytest.mark.parametrize(("error", "in_signature", "verdict", "text"), ERRORS)
def test_a_refusal_is_one_in_every_mode_of_jax(
    error: Exception, in_signature: bool, verdict: str, text: str, mode: str
) -> None:
    import jax

    @jax.custom_vjp
    def loss(logits: Any) -> Any:
        return logits.sum()

    def backward(saved: Any, up: Any) -> Any:
        raise error

    loss.defvjp(lambda logits: (logits.sum(), None), backward)
    _judged(loss, in_signature, "jax", mode, verdict, text)


@pytest.mark.skipif(not find_spec("mindspore"), reason="needs MindSpore")
@pytest.mark.parametrize("mode", ["eager", "grad", "jit"])
@pytest.mark.parametrize(("error", "in_signature", "verdict", "text"), ERRORS)
def test_a_refusal_is_one_in_every_mode_of_mindspore(
    error: Exception, in_signature: bool, verdict: str, text: str, mode: str
) -> None:
    from mindspore import nn

    class Loss(nn.Cell):
        def construct(self, logits: Any) -> Any:
            return logits.sum()

        def bprop(self, logits: Any, value: Any, up: Any) -> Any:
            raise error

    _judged(lambda logits: Loss()(logits), in_signature, "mindspore", mode, verdict, text)


def _judged(function: Any, in_signature: bool, framework: str, mode: str, verdict: str, text: str) -> None:
    def declared(logits: Any, target: Any, *, label_smoothing: float = 0.0) -> Any:
        return function(logits)

    def undeclared(logits: Any, target: Any, **options: Any) -> Any:
        return function(logits)

    result = judge(wrap(declared if in_signature else undeclared), ID, mode, load(framework))
    assert (result.verdict.value, result.detail[: len(text)]) == (verdict, text)
