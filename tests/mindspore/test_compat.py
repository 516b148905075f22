from __future__ import annotations

import warnings

import numpy as np
import pytest

from unixent_mindspore import compat


def test_numpy_2_is_warned_of(monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.warns(RuntimeWarning, match=r"not compiled for NumPy 2\.1\.0.*pip install"):
        compat.warn_of_numpy_2()


def test_numpy_1_is_not(monkeypatch):
    monkeypatch.setattr(np, "__version__", "1.26.4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.warn_of_numpy_2()
