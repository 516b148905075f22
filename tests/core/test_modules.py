"""`unixent.CrossEntropyLoss` and the frameworks' modules: the same parameters, but for the documented defaults."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

import unixent

# The table "Defaults of the modules" of docs/semantics.md: what a module has besides, what it lacks, its own defaults.
MODULES: dict[tuple[str, str], tuple[set[str], set[str], dict[str, Any]]] = {
    ("mindspore", "CrossEntropyLoss"): (set(), {"backend"}, {}),
    ("torch", "CrossEntropyLoss"): (
        {"size_average", "reduce"},
        {"backend", "check_for_nan_in_loss_and_grad", "calculate_per_token_loss"},
        {"axis": None, "on_empty": "nan"},
    ),
    ("torch", "LinearCrossEntropyLoss"): (
        {"in_features", "bias", "device", "classifier", "chunk"},
        {"backend", "check_for_nan_in_loss_and_grad", "calculate_per_token_loss", "axis"},
        {"num_classes": inspect.Parameter.empty, "on_empty": "nan", "ignore_index": None},
    ),
}


def defaults(module: Any) -> dict[str, Any]:
    parameters = inspect.signature(module).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD}


def test_the_configured_loss_takes_every_option() -> None:
    expected = {field.name: field.default for field in fields(unixent.LossOptions)}
    actual = defaults(unixent.CrossEntropyLoss)
    assert {name: actual[name] for name in expected} == expected


@pytest.mark.parametrize(("framework", "name"), MODULES)
def test_a_module_has_the_parameters_of_the_configured_loss(framework: str, name: str) -> None:
    if not find_spec(framework):
        pytest.skip(f"{framework} is not installed")
    besides, lacks, changed = MODULES[framework, name]
    expected = {key: value for key, value in defaults(unixent.CrossEntropyLoss).items() if key not in lacks}
    actual = defaults(getattr(import_module(f"unixent_{framework}"), name))
    assert set(actual) - set(expected) == besides
    assert {key: actual[key] for key in expected} == {**expected, **changed}
