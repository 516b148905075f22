"""Subclasses of tensors: one in a call serves as a tensor does; two that do not know each other are right or named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import unixent


class Named(Tensor):
    """With the default handler of torch, which refuses types that are not its own."""


class Other(Tensor):
    pass


class Wrapper(Tensor):
    """A tensor that holds another one and runs every operation on that, as those of torch's libraries do."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Wrapper:
        made: Wrapper = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, strides=held.stride())
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not all(issubclass(cls, each) for each in types):
            return NotImplemented
        args, kwargs = tree_map(lambda x: x.held if isinstance(x, cls) else x, (args, kwargs or {}))
        return tree_map(lambda x: cls(x) if isinstance(x, Tensor) else x, func(*args, **kwargs))


class OtherWrapper(Wrapper):
    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Wrapper in types:
            return NotImplemented
        return super().__torch_dispatch__(func, types, args, kwargs)


def plain(tensor: Tensor) -> Tensor:
    return plain(tensor.held) if isinstance(tensor, Wrapper) else tensor.as_subclass(Tensor)


Make = Callable[[Tensor], Tensor]
TYPES: dict[str, Make] = {
    "tensor": lambda tensor: tensor,
    "named": lambda tensor: tensor.as_subclass(Named),
    "wrapper": Wrapper,
}
STRANGERS: dict[str, Make] = {"named": lambda tensor: tensor.as_subclass(Other), "wrapper": OtherWrapper}
ROWS = [6, 5000]  # served at once, and by the general path


def inputs(rows: int, target_kind: str) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, rows * 5).view(rows, 5)
    return x, torch.arange(rows) % 5 if target_kind == "index" else x.flip(0).softmax(1)


def with_gradient(x: Tensor, y: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    x = x.requires_grad_()
    loss = unixent.cross_entropy(x, y, **arguments)
    loss.backward()
    assert x.grad is not None
    return plain(loss.detach()), plain(x.grad)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("target_kind", ["index", "probability"])
@pytest.mark.parametrize("of_target", TYPES)
@pytest.mark.parametrize("of_logits", TYPES)
def test_a_subclass_beside_tensors_gives_the_loss_of_tensors(
    of_logits: str, of_target: str, target_kind: str, rows: int
) -> None:
    if {of_logits, of_target} == {"named", "wrapper"}:
        pytest.skip("these do not know each other: the next test")
    x, y = inputs(rows, target_kind)
    expected = with_gradient(x.clone(), y, label_smoothing=0.1)
    got = with_gradient(TYPES[of_logits](x.clone()), TYPES[of_target](y), label_smoothing=0.1)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("target_kind", ["index", "probability"])
@pytest.mark.parametrize("side", ["target", "mask"])
@pytest.mark.parametrize("types", STRANGERS)
def test_types_that_do_not_know_each_other_are_right_or_refused_by_name(
    types: str, side: str, target_kind: str, rows: int
) -> None:
    x, y = inputs(rows, target_kind)
    arguments = {"target": y, "mask": torch.arange(rows) % 3}
    expected = with_gradient(x.clone(), arguments["target"], mask=arguments["mask"])
    arguments[side] = STRANGERS[types](arguments[side])
    refused = ""
    try:
        got = with_gradient(TYPES[types](x.clone()), arguments["target"], mask=arguments["mask"])
    except unixent.BackendError as error:
        refused = str(error)
    if refused:
        assert f"{side}, logits: expected tensors of types that torch can combine; got " in refused
    else:
        torch.testing.assert_close(got, expected)


# Of each form, what may be of a type that the scores do not know.
ARGUMENTS = {
    "value_and_grad": ("target", "weight", "mask", "grad_output"),
    "linear_cross_entropy": ("classifier", "target", "weight", "bias", "mask"),
    "linear_value_and_grad": ("classifier", "target", "bias", "grad_output"),
    "cross_entropy": ("target", "weight", "mask", "normalizer"),
    "loss_terms": ("target", "weight", "mask"),
}
VALUES = {
    "classifier": torch.eye(5),
    "target": torch.arange(6) % 5,
    "weight": torch.linspace(0.5, 2, 5),
    "mask": torch.arange(6.0) % 3,
    "bias": torch.arange(5.0),
    "normalizer": torch.tensor(2.5),
    "grad_output": torch.tensor(0.5),
}


@pytest.mark.parametrize(("form", "side"), [(form, side) for form, names in ARGUMENTS.items() for side in names])
@pytest.mark.parametrize("types", STRANGERS)
def test_they_are_right_or_refused_by_name_in_every_form(types: str, form: str, side: str) -> None:
    first = "hidden" if "linear" in form else "logits"
    names = {"target", side, *(("classifier",) if "linear" in form else ())}
    function, values = getattr(unixent, form), {name: VALUES[name] for name in names}
    values[first] = inputs(6, "index")[0]
    due = function(**values)
    for of_first, of_side in ((TYPES, STRANGERS), (STRANGERS, TYPES)):
        given = {**values, first: of_first[types](values[first]), side: of_side[types](values[side])}
        got, refused = due, None
        try:
            got = function(**given)
        except unixent.BackendError as error:
            refused = str(error)
        if refused is not None:
            named, _, expected = refused.partition(": expected ")
            assert expected.startswith("tensors of types that torch can combine")
            assert {side, first} <= set(named.split(", "))
        torch.testing.assert_close(tree_map(plain, got), due)
