"""The class of MindFormers that ours replaces, run as its wheel has it, and the formula of it that a page shows.

The package itself imports what needs an NPU: its file of the loss is run by itself, with what it imports stood in for.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from originals import load

from unixent_mindspore import CrossEntropyLoss

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrate.md"
RNG = np.random.default_rng(0)
LOGITS = ms.Tensor(RNG.standard_normal((6, 5)) * 3, ms.float32)
LABEL = ms.Tensor([4, 0, 2, 1, 3, 2], ms.int32)
MASK = ms.Tensor([1, 0, 1, 0.5, 1, 0], ms.float32)


def same(thing: Any) -> Any:
    return thing


@pytest.fixture(scope="module")
def original() -> Any:
    stand_ins = {
        "mindformers": {},
        "mindformers.core": {},
        "mindformers.core.context.build_context": {"Context": SimpleNamespace(is_exists=lambda: False)},
        "mindformers.tools.logger": {"_LogActionOnce": lambda **_: same},
        "mindformers.tools.register": {"MindFormerRegister": SimpleNamespace(register=lambda _: same)},
        "mindformers.tools.utils": {},
        "mindformers.modules.transformer.op_parallel_config": {
            "default_dpmp_config": SimpleNamespace(data_parallel=1, model_parallel=1)
        },
        "mindformers.parallel_core.training_graph.loss_func": {},
    }
    return load("mindformers", "mindformers/core/loss/loss.py", stand_ins).CrossEntropyLoss


def test_loss_and_gradient_are_the_originals(original: Any) -> None:
    for mask in (MASK, ms.ops.ones(6), ms.ops.zeros(6)):
        theirs, ours = (ms.value_and_grad(make()) for make in (original, CrossEntropyLoss))
        expected, expected_grad = theirs(LOGITS, LABEL, mask)
        loss, grad = ours(LOGITS, LABEL, mask)
        np.testing.assert_allclose(loss.asnumpy(), expected.asnumpy()[0], rtol=1e-6)
        np.testing.assert_allclose(grad.asnumpy(), expected_grad.asnumpy(), rtol=1e-5, atol=1e-7)


def test_terms_are_the_originals(original: Any) -> None:
    theirs, ours = (make(calculate_per_token_loss=True)(LOGITS, LABEL, MASK) for make in (original, CrossEntropyLoss))
    for actual, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(actual.asnumpy(), expected.asnumpy().squeeze(), rtol=1e-6)


def test_the_formula_on_the_page_is_the_original(original: Any) -> None:
    (block,) = re.findall(r"^```python mindspore\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    cases = [
        (LOGITS, LABEL, MASK),
        (LOGITS, LABEL, ms.ops.zeros(6)),
        (LOGITS[:2], ms.Tensor([0, -100], ms.int32), MASK[2:4]),
        (LOGITS[:1], LABEL[:1], ms.Tensor([1e-8], ms.float32)),
        (ms.Tensor([[20.0, 0.0]]), ms.Tensor([0], ms.int32), MASK[:1]),
    ]
    for case in cases:
        np.testing.assert_allclose(
            names["original"](*case).asnumpy(), original()(*case).asnumpy()[0], rtol=2e-6, atol=1e-12
        )


def test_what_the_page_says_of_the_original(original: Any) -> None:
    logits, label = ms.Tensor([[2.0, 0.5, -1.0], [0.0, 3.0, 0.0]]), ms.Tensor([0, 1], ms.int32)
    loss = original()

    def value(*arguments: Any) -> float:
        return round(float(loss(*arguments).asnumpy()[0]), 4)

    assert loss(logits, label, ms.ops.ones(2)).shape == (1,)
    assert value(logits, label, ms.Tensor([1e-8, 0])) == 0.1207
    assert value(logits, label, ms.Tensor([True, True])) == pytest.approx(2 * 0.1681, abs=1e-3)
    broken = ms.Tensor([[2.0, 0.5, -1.0], [np.nan, 3.0, 0.0]], ms.float32)
    assert np.isnan(value(broken, label, ms.Tensor([1.0, 0.0])))
    assert value(logits, ms.Tensor([0, -100], ms.int32), ms.ops.ones(2)) == 0.1207  # half of 0.2413
    grad = ms.grad(loss)(logits, ms.Tensor([0, -100], ms.int32), ms.ops.ones(2))
    assert np.abs(grad.asnumpy()[1]).max() > 0.1
    masked_class = ms.Tensor([[2.0, 0.5, -np.inf], [0.0, 3.0, 0.0]], ms.float32)
    assert np.isnan(value(masked_class, label, ms.ops.ones(2)))
    for option in ({"label_smoothing": 0.5}, {"weight": [1.0, 9.0, 1.0]}, {"reduction": "none"}, {"ignore_index": 1}):
        np.testing.assert_array_equal(
            original(**option)(logits, label, ms.ops.ones(2)).asnumpy(), loss(logits, label, ms.ops.ones(2)).asnumpy()
        )
