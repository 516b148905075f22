"""`patch`: what it replaces, and its errors."""

from __future__ import annotations

import pytest
from trl.trainer import utils

from unixent import OptionError
from unixent_torch.trainers import patch, trl


def test_patch_and_its_undoing():
    original = utils.selective_log_softmax
    undo = patch("trl")
    assert utils.selective_log_softmax is trl.selective_log_softmax
    undo()
    assert utils.selective_log_softmax is original


def test_an_unknown_library_is_named():
    with pytest.raises(OptionError, match=r"library: expected one of 'trl', 'verl', .*; got 'axolotl'"):
        patch("axolotl")


def test_a_version_without_the_function_is_named(monkeypatch):
    monkeypatch.delattr(utils, "entropy_from_logits")
    with pytest.raises(OptionError, match=r"a version of trl with trl\.trainer\.utils\.entropy_from_logits"):
        patch("trl")
