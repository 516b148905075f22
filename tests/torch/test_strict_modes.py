"""torch's strict modes, and tensors where numbers are meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unixent
from unixent_torch import CrossEntropyLoss, LinearCrossEntropyLoss

N, D, C = 6, 4, 5
LOGITS = torch.linspace(-2, 2, N * C).view(N, C)
HIDDEN, CLASSIFIER = torch.linspace(-1, 1, N * D).view(N, D), torch.cos(torch.arange(1.0 * C * D)).view(C, D)
INDEX = torch.tensor([0, 1, 2, -100, 4, 0])
PROBABILITIES = LOGITS.flip(0).softmax(1)
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5.0, "weight": torch.linspace(0.5, 2, C)}


def logits_form(target: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
    x = LOGITS.clone().requires_grad_()
    loss = unixent.cross_entropy(x, target, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), x)


def linear_form(target: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
    operands = HIDDEN.clone().requires_grad_(), CLASSIFIER.clone().requires_grad_()
    loss = unixent.linear_cross_entropy(*operands, target, chunk=2, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), operands)


def second_derivatives(target: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
    x = LOGITS.clone().requires_grad_()
    (grad,) = torch.autograd.grad(unixent.cross_entropy(x, target, **options).sum(), x, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), x)


FORMS: dict[str, Callable[[Tensor, dict[str, Any]], tuple[Tensor, ...]]] = {
    "logits": logits_form,
    "linear": linear_form,
    "second": second_derivatives,
}


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"reduction": "none"}], ids=["plain", "everything", "none"])
@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["index", "probability"])
@pytest.mark.parametrize("form", FORMS)
class TestModes:
    def test_deterministic_algorithms_give_the_same_bits(
        self, form: str, target: Tensor, options: dict[str, Any], deterministic: None
    ) -> None:
        due = FORMS[form](target, options)
        torch.use_deterministic_algorithms(False)
        for got, expected in zip(FORMS[form](target, options), due, strict=True):
            assert torch.equal(got, expected)

    @pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
    def test_anomaly_detection_finds_none(self, form: str, target: Tensor, options: dict[str, Any]) -> None:
        with torch.autograd.detect_anomaly(check_nan=True):
            FORMS[form](target, options)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_anomaly_detection_finds_none_beside_infinite_logits() -> None:
    x = LOGITS.clone()
    x[:, 3] = -torch.inf
    x.requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        (grad,) = torch.autograd.grad(unixent.cross_entropy(x, INDEX, softcap=5.0), x, create_graph=True)
        grad.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_imaginary_part_of_a_conjugate_has_its_sign() -> None:
    imaginary = torch.complex(LOGITS, LOGITS).conj().imag
    assert imaginary.is_neg()
    for call in (unixent.cross_entropy, lambda x, y: unixent.linear_cross_entropy(x, torch.eye(C), y)):
        torch.testing.assert_close(call(imaginary, INDEX), call(-LOGITS, INDEX), rtol=0, atol=0)
    torch.testing.assert_close(
        unixent.cross_entropy(LOGITS, torch.complex(LOGITS, -PROBABILITIES).conj().imag),
        unixent.cross_entropy(LOGITS, PROBABILITIES),
    )


def test_complex_tensors_are_refused_by_name() -> None:
    conjugate = torch.complex(LOGITS, LOGITS).conj()
    with pytest.raises(unixent.DTypeError, match=r"logits: expected a floating array .*; got complex64"):
        unixent.cross_entropy(conjugate, INDEX)
    with pytest.raises(unixent.DTypeError, match=r"target: expected .*; got complex64"):
        unixent.cross_entropy(LOGITS, conjugate)


@pytest.mark.parametrize("name", ["softcap", "z_loss", "label_smoothing"])
@pytest.mark.parametrize("value", [torch.tensor(0.5), nn.Parameter(torch.tensor(0.5)), 10**400], ids=["t", "p", "int"])
def test_an_option_that_is_no_finite_number_is_refused_by_name(name: str, value: Any) -> None:
    refusal = pytest.raises(unixent.OptionError, match=f"{name}: expected .*; got")
    with refusal:
        unixent.cross_entropy(LOGITS, INDEX, **{name: value})
    with refusal:
        unixent.linear_cross_entropy(HIDDEN, CLASSIFIER, INDEX, **{name: value})
    with refusal:
        CrossEntropyLoss(**{name: value})
    with refusal:
        LinearCrossEntropyLoss(D, C, **{name: value})


def test_a_normalizer_beyond_every_float_is_refused_by_name() -> None:
    with pytest.raises(unixent.OptionError, match="normalizer: expected a finite float"):
        unixent.cross_entropy(LOGITS, INDEX, normalizer=10**400)


@pytest.mark.filterwarnings("ignore:.*(prototype|beta).*:UserWarning")
def test_a_masked_tensor_of_indices_is_refused_by_name() -> None:
    index = INDEX.clamp(0)
    masked = torch.masked.masked_tensor(index, index > 0)
    refusal = pytest.raises(unixent.BackendError, match="target: expected a dense array; got one of layout masked")
    for call in (
        lambda: unixent.cross_entropy(LOGITS, masked),
        lambda: unixent.value_and_grad(LOGITS, masked),
        lambda: unixent.linear_cross_entropy(HIDDEN, CLASSIFIER, masked),
        lambda: CrossEntropyLoss()(LOGITS, masked),
        lambda: LinearCrossEntropyLoss(D, C)(HIDDEN, masked),
    ):
        with refusal:
            call()
