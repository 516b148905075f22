"""Arguments at the edge of what is meant: each is taken for what it says, or refused by name."""

from __future__ import annotations

import decimal
import fractions
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import unixent

FRAMEWORKS = [name for name in ("torch", "jax", "mindspore") if find_spec(name)]
needs_framework = pytest.mark.parametrize(
    "framework", FRAMEWORKS or [pytest.param("", marks=pytest.mark.skip("no framework here"))]
)
LOGITS = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
INDEX = np.array([[0, 1, 2], [3, 2, 1]])


def own(framework: str, array: Any) -> Any:
    return unixent.get_backend(framework).asarray(np.asarray(array, np.float32), None)


NUMBERS = ("label_smoothing", "z_loss", "scale", "softcap", "temperature")


@pytest.mark.parametrize("option", NUMBERS)
@pytest.mark.parametrize(
    "value", [10**400, -(10**400), True, np.True_, "0.5", b"1", np.timedelta64(1), decimal.Decimal("0.5"), [0.5], 1j]
)
def test_options_that_are_no_finite_real_numbers_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(unixent.OptionError, match=f"{option}: expected"):
        unixent.cross_entropy(LOGITS, INDEX, **{option: value})


@pytest.mark.parametrize("value", [1, np.float16(0.5), np.int8(1), fractions.Fraction(1, 2), np.array(0.5)])
def test_options_may_be_any_real_number(value: Any) -> None:
    options = unixent.LossOptions(**dict.fromkeys(NUMBERS, value))
    assert options == unixent.LossOptions(**dict.fromkeys(NUMBERS, float(value)))


OPTIONS = (
    *(*NUMBERS, "axis", "ignore_index", "num_classes", "normalizer", "chunk", "wrt"),
    *("reduction", "on_empty", "validate", "dtype", "backend"),
)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_python_cannot_print_is_refused_by_name(option: str) -> None:
    call: Any = unixent.linear_value_and_grad if option == "chunk" else unixent.value_and_grad
    classifier = [np.eye(4)] if option == "chunk" else []
    with pytest.raises(unixent.OptionError, match=f"{option}: expected .*; got an unprintable int"):
        call(LOGITS, *classifier, INDEX, **{option: -(10**5000)})


@pytest.mark.parametrize("ignore_index", [2**63, 2**64 - 1, -(2**63)])
def test_an_ignore_index_that_the_targets_cannot_hold_marks_no_position(ignore_index: int) -> None:
    loss = unixent.cross_entropy(LOGITS, INDEX.astype(np.int8), ignore_index=ignore_index)
    assert loss == unixent.cross_entropy(LOGITS, INDEX)


@pytest.mark.parametrize("ignore_index", [2**64, -(2**63) - 1, 10**400])
def test_an_ignore_index_that_no_dtype_holds_is_refused(ignore_index: int) -> None:
    with pytest.raises(unixent.OptionError, match="ignore_index: expected an int of 64 bits; got"):
        unixent.cross_entropy(LOGITS, INDEX, ignore_index=ignore_index)


@pytest.mark.parametrize("name", ["logits", "target", "hidden", "classifier"])
def test_an_array_that_must_be_given_is_not_none(name: str) -> None:
    arguments = {"logits": LOGITS, "target": INDEX}
    if name in ("hidden", "classifier"):
        arguments = {"hidden": LOGITS, "classifier": np.eye(4), "target": INDEX}
    call: Any = unixent.cross_entropy if len(arguments) == 2 else unixent.linear_cross_entropy
    with pytest.raises(unixent.DTypeError, match=f"{name}: expected an array; got None"):
        call(**{**arguments, name: None})


@needs_framework
def test_an_option_given_as_a_frameworks_array_is_refused(framework: str) -> None:
    for option in NUMBERS:
        with pytest.raises(unixent.OptionError, match=f"{option}: expected .* static under a trace"):
            unixent.cross_entropy(LOGITS, INDEX, **{option: own(framework, 0.5)})


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf, 10**400])
@pytest.mark.parametrize("given_as", [lambda value: value, np.array, np.float64])
def test_a_normalizer_that_cannot_be_divided_by_is_refused_however_it_is_given(value: Any, given_as: Any) -> None:
    if value == 10**400 and given_as is np.float64:
        pytest.skip("no float64 holds it")
    with pytest.raises(unixent.UnixentError, match="normalizer: expected"):
        unixent.cross_entropy(LOGITS, INDEX, normalizer=given_as(value))


@needs_framework
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_a_bad_normalizer_that_can_be_read_is_refused_as_a_frameworks_array(value: float, framework: str) -> None:
    with pytest.raises(unixent.OptionError, match="normalizer: expected"):
        unixent.cross_entropy(LOGITS, INDEX, normalizer=own(framework, value))


def test_normalizers_of_any_real_type_are_one_number() -> None:
    expected = unixent.cross_entropy(LOGITS, INDEX, normalizer=4.0)
    for value in (4, np.int8(4), np.float16(4), np.array(4), np.array(4.0, np.float32)):
        assert unixent.cross_entropy(LOGITS, INDEX, normalizer=value) == expected


@needs_framework
@pytest.mark.parametrize("argument", ["logits", "target", "weight", "mask"])
@pytest.mark.parametrize("holder", [list, tuple])
def test_a_list_that_holds_a_frameworks_arrays_is_refused(framework: str, argument: str, holder: Any) -> None:
    """Through NumPy they would lose their derivative without a word."""
    arguments: dict[str, Any] = {"logits": LOGITS, "target": LOGITS, "weight": np.ones(4), "mask": np.ones((2, 3))}
    rows = [own(framework, row) for row in arguments[argument]]
    for value in (holder(rows), holder([holder(rows)])):
        with pytest.raises(unixent.DTypeError, match=f"{argument}: .* got a list that holds a .* stack"):
            unixent.cross_entropy(**{**arguments, argument: value})


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (1, 1)])
@pytest.mark.parametrize("backend", ["numpy", *FRAMEWORKS])
@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_a_mask_may_have_size_1_where_it_is_the_same_for_all(shape: tuple[int, int], backend: str, dtype: Any) -> None:
    mask = (np.arange(np.prod(shape)).reshape(shape) % 2 == 0).astype(dtype)
    full = np.broadcast_to(mask, (2, 3)).copy()
    for reduction in ("mean", "none"):
        got = unixent.cross_entropy(LOGITS, INDEX, mask=mask, reduction=reduction, backend=backend)
        expected = unixent.cross_entropy(LOGITS, INDEX, mask=full, reduction=reduction, backend=backend)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


@pytest.mark.parametrize("shape", [(3,), (), (2, 3, 1), (2, 2)])
def test_masks_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(unixent.ShapeError, match=r"mask: expected .* of shape \(2, 3\)"):
        unixent.cross_entropy(LOGITS, INDEX, mask=np.ones(shape))


def test_a_target_that_fits_another_class_axis_raises_how_to_pass_it() -> None:
    images, labels = np.zeros((2, 5, 7, 6), np.float32), np.zeros((2, 7, 6), int)
    with pytest.raises(unixent.ShapeError, match=r"for logits of shape \(N, C, \.\.\.\) pass axis=1"):
        unixent.cross_entropy(images, labels)
    with pytest.raises(unixent.ShapeError, match="pass axis=0"):
        unixent.cross_entropy(images, np.zeros((5, 7, 6), int))
    with pytest.raises(unixent.ShapeError) as caught:
        unixent.cross_entropy(images, np.zeros((3, 3), int))
    assert "pass axis" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        (INDEX[..., None], r"\(leave out its axis of size 1\)"),
        (INDEX[:, None], r"\(leave out its axis of size 1\)"),
        (np.eye(4, dtype=int)[INDEX], r"\(a one-hot target is one of probabilities: give it a floating dtype\)"),
        (INDEX.astype(np.float32), r"\(class indices have an integer dtype\)"),
        (np.zeros((2, 3, 5)), r"got float64 of shape \(2, 3, 5\)$"),
        (np.zeros((2, 3, 5), int), r"got int64 of shape \(2, 3, 5\)$"),
    ],
)
def test_a_target_as_another_library_takes_it_raises_what_to_change(target: Any, hint: str) -> None:
    with pytest.raises(unixent.ShapeError, match=hint):
        unixent.cross_entropy(LOGITS, target)


@pytest.mark.parametrize("dtype", ["int2", "int4", "uint2", "uint4"])
def test_integers_of_less_than_a_byte_are_integers(dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    narrow = np.dtype(getattr(ml_dtypes, dtype))
    y, ids = np.array([1, 0, 1, 1]), np.array([[0, 1], [1, 0], [1, 1], [0, 1]])
    logits, mask, probs = np.eye(4, 2), np.array([1, 0, 1, 1]), np.full((4, 2), 0.25)
    assert unixent.cross_entropy(logits, y.astype(narrow)) == unixent.cross_entropy(logits, y)
    masked = unixent.cross_entropy(logits, y, mask=mask.astype(narrow))
    assert masked == unixent.cross_entropy(logits, y, mask=mask)
    sparse = unixent.TopK(ids.astype(narrow), probs=probs, tail="drop")
    assert unixent.cross_entropy(logits, sparse) == unixent.cross_entropy(
        logits, unixent.TopK(ids, probs=probs, tail="drop")
    )
    stats = unixent.position_stats(logits, selected=ids.astype(narrow), outputs=("selected_log_prob",))
    expected = unixent.position_stats(logits, selected=ids, outputs=("selected_log_prob",))
    np.testing.assert_array_equal(stats.selected_log_prob, expected.selected_log_prob)
