"""Every argument in every layout that NumPy knows, under its strict modes: right, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import unixent

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(3)
TARGET, MASK = RNG.integers(5, size=(4, 3)), RNG.random((4, 3))
PROBABILITIES = RNG.random((4, 3, 5))
COMMON = {"weight": RNG.random(5), "mask": MASK, "normalizer": np.array(3.5), "grad_output": np.array(2.0)}
# 1e30 and 1e-30 overflow and underflow what is made of them; infinities and NaN are what strict modes look for.
LOGITS = RNG.normal(size=(4, 3, 5))
LOGITS[0] *= 1e30
LOGITS[1] *= 1e-30
LOGITS[2, 0, 1], LOGITS[2, 1] = -np.inf, [np.nan, np.inf, -np.inf, 0, 1]
FORMS: dict[str, tuple[Callable[..., Any], dict[str, Array]]] = {
    "logits": (unixent.value_and_grad, {"logits": LOGITS, "target": TARGET, **COMMON}),
    "probabilities": (unixent.value_and_grad, {"logits": LOGITS, "target": PROBABILITIES, **COMMON}),
    "linear": (
        unixent.linear_value_and_grad,
        {
            "hidden": RNG.normal(size=(4, 3, 2)) * 1e20,
            "classifier": RNG.normal(size=(5, 2)),
            "bias": RNG.normal(size=5),
            "target": TARGET,
            **COMMON,
        },
    ),
}
OPTIONS = [{}, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0}, {"softcap": 1e300}, {"softcap": 1e-50}]


def misaligned(array: Array) -> Array:
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


def field_of_records(array: Array) -> Array:
    records = np.zeros(array.shape, [("flag", "i1"), ("value", array.dtype)])
    records["value"] = array
    return records["value"]


def reversed_strides(array: Array) -> Array:
    return np.flip(np.flip(array).copy())


LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "foreign byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "negative strides": reversed_strides,
    "read-only": read_only,
    "misaligned": misaligned,
    "field of records": field_of_records,
    "Fortran order": lambda array: array.copy(order="F"),
    "memory map, as a subclass": lambda array: array.view(np.memmap),
}
REFUSED: dict[str, Callable[[Array], Any]] = {
    "masked": lambda array: np.ma.masked_array(array, mask=np.zeros(array.shape, bool)),
    "objects": lambda array: array.astype(object),
    "records": lambda array: np.zeros(array.shape, "f4,i4"),
    "strings": lambda array: array.astype(str),
    "complex": lambda array: array.astype(complex),
    "long double": lambda array: array.astype(np.longdouble),
    "durations": lambda array: np.zeros(array.shape, "m8[s]"),
}
ARGUMENTS = [(form, name) for form, (_, arguments) in FORMS.items() for name in arguments]


@contextmanager
def strict() -> Iterator[None]:
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def flat(result: Any) -> list[Array]:
    loss, grads = result
    return [loss, *(grads if isinstance(grads, tuple) else (grads,))]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_strict_modes_change_nothing_and_raise_nothing(form: str, dtype: str, options: dict[str, Any]) -> None:
    call, arguments = FORMS[form]
    with np.errstate(all="ignore"):
        given = {name: value if value.dtype.kind == "i" else value.astype(dtype) for name, value in arguments.items()}
    expected = flat(call(**given, **options))
    with strict():
        actual = flat(call(**given, **options))
    for value, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("form", "name"), ARGUMENTS)
def test_every_layout_gives_the_bits_of_a_copy(form: str, name: str, layout: str) -> None:
    call, arguments = FORMS[form]
    given = {**arguments, name: LAYOUTS[layout](arguments[name])}
    before = np.array(given[name])
    with strict():
        actual = flat(call(**given))
    for value, other in zip(actual, flat(call(**arguments)), strict=True):
        np.testing.assert_array_equal(value, other)
    np.testing.assert_array_equal(np.array(given[name]), before)


@pytest.mark.parametrize("layout", REFUSED)
@pytest.mark.parametrize(("form", "name"), ARGUMENTS)
def test_what_holds_no_real_numbers_is_refused_by_name(form: str, name: str, layout: str) -> None:
    call, arguments = FORMS[form]
    if name == "normalizer" and layout in ("masked", "long double", "objects"):
        pytest.skip("a 0-d array of one real number is that number")
    with np.errstate(all="ignore"):
        given = {**arguments, name: REFUSED[layout](arguments[name])}
    with strict(), pytest.raises(unixent.UnixentError, match=f"^{name}: expected"):
        call(**given)
