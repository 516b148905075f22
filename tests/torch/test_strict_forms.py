"""Every form of the loss under torch's strict modes: the same values, no warning, no error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functionalize, grad, hessian, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import unixent
from unixent_torch import CrossEntropyLoss, LinearCrossEntropyLoss

N, D, C = 6, 4, 5
LOGITS = torch.linspace(-2, 2, N * C).view(N, C)
HIDDEN, CLASSIFIER = torch.linspace(-1, 1, N * D).view(N, D), torch.cos(torch.arange(1.0 * C * D)).view(C, D)
TARGETS = {"index": torch.tensor([0, 1, 2, -100, 4, 0]), "probability": LOGITS.flip(0).softmax(1)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5.0},
    "normalizer": {"normalizer": torch.tensor(1e-30, dtype=torch.float64)},
}

Loss = Callable[[Tensor], Tensor]


def reverse(loss: Loss, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    value = loss(x)
    value.sum().backward()
    assert x.grad is not None
    return value.detach(), x.grad


def twice(loss: Loss, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x).sum(), x, create_graph=True)
    return torch.autograd.grad(gradient.sin().sum(), x)


def retained(loss: Loss, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    value = 3 * loss(x).sum()
    return *torch.autograd.grad(value, x, retain_graph=True), *torch.autograd.grad(value, x)


def batched(loss: Loss, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    value = loss(x).sum()
    return torch.autograd.grad(value, x, torch.ones(2), is_grads_batched=True)


def compiled(loss: Loss, x: Tensor) -> tuple[Tensor, ...]:
    torch.compiler.reset()
    return reverse(torch.compile(loss, fullgraph=True, backend="aot_eager"), x)


def exported(loss: Loss, x: Tensor) -> tuple[Tensor, ...]:
    class Program(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return loss(x)

    return (torch.export.export(Program(), (x,)).module()(x),)


WAYS: dict[str, Callable[[Loss, Tensor], Any]] = {
    "value": lambda loss, x: loss(x),
    "reverse": reverse,
    "twice": twice,
    "retained": retained,
    "is_grads_batched": batched,
    "checkpoint": lambda loss, x: reverse(lambda x: checkpoint(loss, x, use_reentrant=False), x),
    "grad": lambda loss, x: grad(lambda x: loss(x).sum())(x),
    "vmap": lambda loss, x: vmap(loss)(torch.stack((x, 2 * x))),
    "vmap of grad": lambda loss, x: vmap(grad(lambda x: loss(x).sum()))(torch.stack((x, 2 * x))),
    "jacrev": lambda loss, x: jacrev(loss)(x),
    "hessian": lambda loss, x: hessian(lambda x: loss(x).sum())(x),
    "functionalize": lambda loss, x: functionalize(loss)(x),
    "compile": compiled,
    "export": exported,
}
FORMS: dict[str, Callable[[Tensor, dict[str, Any]], tuple[Loss, Tensor]]] = {
    "logits": lambda y, o: (lambda x: unixent.cross_entropy(x, y, **o), LOGITS),
    "half": lambda y, o: (lambda x: unixent.cross_entropy(x, y, **o), LOGITS.bfloat16()),
    "axis": lambda y, o: (
        lambda x: unixent.cross_entropy(x, y.movedim(-1, 0) if y.ndim == 2 else y, axis=0, **o),
        LOGITS.t(),
    ),
    "linear": lambda y, o: (lambda h: unixent.linear_cross_entropy(h, CLASSIFIER, y, chunk=2, **o), HIDDEN),
    "classifier": lambda y, o: (lambda w: unixent.linear_cross_entropy(HIDDEN, w, y, chunk=2, **o), CLASSIFIER),
    "gradient": lambda y, o: (lambda x: unixent.value_and_grad(x, y, **o)[1].sum(), LOGITS),
    "module": lambda y, o: (_module(CrossEntropyLoss, o, y), LOGITS),
    "linear module": lambda y, o: (_module(lambda **k: LinearCrossEntropyLoss(D, C, **k), o, y), HIDDEN),
}


def _module(make: Callable[..., nn.Module], options: dict[str, Any], y: Tensor) -> Loss:
    torch.manual_seed(0)
    given = dict(options)
    module, normalizer = make(**{k: v for k, v in given.items() if k != "normalizer"}), given.get("normalizer")
    return lambda x: module(x, y, None, normalizer)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def anomaly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        with torch.autograd.set_detect_anomaly(True):
            yield


@contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*torch.jit.*is deprecated", DeprecationWarning)  # torch's forward mode
        warnings.filterwarnings(
            "ignore", ".*should not be instantiated", DeprecationWarning
        )  # its compiler, of Functions
        yield


MODES = {"deterministic": deterministic, "anomaly": anomaly, "warnings": warnings_are_errors}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_a_strict_mode_changes_nothing(form: str, way: str) -> None:
    if form == "gradient" and way not in ("value", "vmap", "functionalize", "export"):
        pytest.skip("value_and_grad is not differentiated by autograd")
    slow = way in ("compile", "export")
    for target in TARGETS.values() if not slow else (TARGETS["index"],):
        for options in OPTIONS.values() if not slow else (OPTIONS["everything"],):
            loss, x = FORMS[form](target, options)
            due = WAYS[way](loss, x)
            for name, mode in MODES.items():
                if (name, way) == ("anomaly", "is_grads_batched"):
                    continue  # torch reads a value of the batch there, of every loss
                with mode():
                    got = WAYS[way](loss, x)
                torch.testing.assert_close(got, due, rtol=0, atol=0)
