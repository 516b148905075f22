"""Private names of MindSpore that another release may lack, and NumPy 2."""

from __future__ import annotations

import warnings

import mindspore as ms
import numpy as np
import pytest

import unixent
from unixent_mindspore import compat


def test_numpy_2_is_warned_of(monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.warns(RuntimeWarning, match=r"not compiled for NumPy 2\.1\.0.*pip install"):
        compat.warn_of_numpy_2()


def test_numpy_1_is_not_warned_of(monkeypatch):
    monkeypatch.setattr(np, "__version__", "1.26.4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.warn_of_numpy_2()


def test_without_the_executor_every_call_is_taken_to_be_recorded(monkeypatch):
    logits, target = np.array([[1.0, 2.0], [0.5, -1.0]]), np.array([0, 1], np.int32)
    expected = unixent.value_and_grad(logits, target)
    monkeypatch.setattr(compat, "_EXECUTOR", None)
    loss, grad = unixent.value_and_grad(ms.Tensor(logits), ms.Tensor(target))
    np.testing.assert_array_equal(loss.asnumpy(), expected[0])
    np.testing.assert_allclose(grad.asnumpy(), expected[1], rtol=1e-15)


def test_without_the_parsers_table_nothing_is_compiled_in_another_place(monkeypatch):
    monkeypatch.setattr(compat, "_COMPILED_IN_PLACE_OF", None)
    compat.compile_in_place_of(len, sum)


def test_a_private_name_is_looked_for_in_every_module():
    assert compat._private("sqrt", "no_such_module", "json", "math")(4) == 2
    assert compat._private("no_such_name", "math") is None
