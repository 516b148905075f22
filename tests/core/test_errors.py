"""Bad input: the class of every error, and that its text names the argument, the expectation and what came."""

from __future__ import annotations

import numpy as np
import pytest

import unixent

X = np.zeros((4, 7), np.float32)
Y = np.zeros(4, np.int64)
Q = np.full((4, 7), 1 / 7, np.float32)


class Foreign:
    """An array of a framework that nobody has registered."""

    dtype, shape = "float32", (4,)


CASES = [
    (unixent.ShapeError, "logits: expected at least 1 axis", (np.float32(1), 0), {}),
    (unixent.ShapeError, r"logits: expected at least 1 class; got shape \(4, 0\)", (X[:, :0], Y), {}),
    (unixent.DTypeError, "logits: expected a floating array .* got int64", (X.astype(int), Y), {}),
    (unixent.DTypeError, "logits: .* got complex64", (X.astype(np.complex64), Y), {}),
    (
        unixent.UnknownBackendError,
        "logits: expected an array of one of the backends .* got builtins.str",
        ("no", Y),
        {},
    ),
    (unixent.ShapeError, r"logits: expected a rectangular nested list", ([[1.0, 2.0], [1.0]], [0, 0]), {}),
    (unixent.ShapeError, r"target: .* of shape \(4,\) .* of shape \(4, 7\); got int64 of shape \(3,\)", (X, Y[:3]), {}),
    (unixent.ShapeError, r"target: .* got float32 of shape \(4, 8\)", (X, np.ones((4, 8), np.float32)), {}),
    (unixent.ShapeError, r"target: .* got float64 of shape \(4,\)", (X, Y.astype(float)), {}),
    (unixent.DTypeError, "target: expected class indices .* got bool", (X, Y > 0), {}),
    (unixent.DTypeError, "target: expected a NumPy array.* got builtins.str", (X, "abcd"), {}),
    (unixent.BackendError, "target: expected a NumPy array, since the call runs on the numpy", (X, Foreign()), {}),
    (unixent.TargetRangeError, r"target: .* \[0, 7\) .* got 7 at position \(2,\)", (X, [0, 1, 7, 9]), {}),
    (unixent.TargetRangeError, r"target: .* got -1 at position \(0,\)", (X, [-1, 1, 7, 9]), {}),
    (unixent.TargetRangeError, r"got -100 at position \(1,\)", (X, [0, -100, 1, 1]), {"ignore_index": 0}),
    (unixent.TargetRangeError, "got 255", (X, np.full(4, 255, np.uint8)), {"ignore_index": -1}),
    (unixent.ShapeError, r"weight: expected a floating array of shape \(7,\)", (X, Y), {"weight": np.ones(6)}),
    (unixent.DTypeError, "weight: expected a floating array", (X, Y), {"weight": np.ones(7, int)}),
    (unixent.ShapeError, r"mask: .* of shape \(4,\); got float64 of shape \(4, 1\)", (X, Y), {"mask": np.ones((4, 1))}),
    (unixent.DTypeError, "mask: expected a bool, integer or floating array", (X, Y), {"mask": np.ones(4, complex)}),
    (unixent.OptionError, "ignore_index: .* probability", (X, Q), {"ignore_index": 3}),
    (unixent.OptionError, r"axis: expected an int in \[-2, 2\)", (X, Y), {"axis": 2}),
    (unixent.OptionError, "axis: expected an int", (X, Y), {"axis": 1.0}),
    (unixent.OptionError, "reduction: expected one of 'none', 'mean', 'sum'; got 'avg'", (X, Y), {"reduction": "avg"}),
    (unixent.OptionError, "ignore_index: expected an int; got 1.5", (X, Y), {"ignore_index": 1.5}),
    (unixent.OptionError, r"label_smoothing: expected a float in \[0, 1\]; got 1.1", (X, Y), {"label_smoothing": 1.1}),
    (unixent.OptionError, "label_smoothing: .* got nan", (X, Y), {"label_smoothing": float("nan")}),
    (unixent.OptionError, "label_smoothing: .* got True", (X, Y), {"label_smoothing": True}),
    (unixent.OptionError, "z_loss: expected a finite float >= 0; got -1", (X, Y), {"z_loss": -1}),
    (unixent.OptionError, "softcap: expected None or a finite float > 0; got 0", (X, Y), {"softcap": 0}),
    (unixent.OptionError, "softcap: .* got inf", (X, Y), {"softcap": float("inf")}),
    (unixent.OptionError, "scale: expected a finite float > 0; got 0", (X, Y), {"scale": 0}),
    (unixent.OptionError, "temperature: expected a finite float > 0; got -1", (X, Y), {"temperature": -1}),
    (
        unixent.OptionError,
        r"temperature: expected scale / temperature in \[1.18e-38, 3.4e\+38\], to compute in float32; got 2e\+50",
        (X.astype(np.float32), Y),
        {"scale": 2.0, "temperature": 1e-50},
    ),
    (unixent.OptionError, "scale: .* got 1e-310", (X, Y), {"scale": 1e-310}),
    (
        unixent.OptionError,
        "normalizer: expected None, since reduction is 'sum'",
        (X, Y),
        {"normalizer": 2.0, "reduction": "sum"},
    ),
    (
        unixent.OptionError,
        "normalizer: expected a finite float >= 0 or a 0-d array; got -1",
        (X, Y),
        {"normalizer": -1},
    ),
    (unixent.ShapeError, r"normalizer: .* of shape \(\)", (X, Y), {"normalizer": np.ones(1)}),
    (unixent.OptionError, "on_empty: expected one of 'zero', 'nan', 'raise'", (X, Y), {"on_empty": "skip"}),
    (unixent.OptionError, "dtype: expected None or one of .* got 'int8'", (X, Y), {"dtype": "int8"}),
    (unixent.OptionError, "validate: expected one of 'auto', 'full', 'off'", (X, Y), {"validate": "yes"}),
    (unixent.OptionError, "parallel: expected a ParallelConfig", (X, Y), {"parallel": 2}),
    (
        unixent.BackendError,
        "token_group: expected a group of 2 processes",
        (X, Y),
        {"parallel": unixent.ParallelConfig(2)},
    ),
    (unixent.OptionError, "backend: expected None or a name; got 3", (X, Y), {"backend": 3}),
    (unixent.UnknownBackendError, "backend: expected one of .*'numpy'.*; got 'nunpy'", (X, Y), {"backend": "nunpy"}),
    (unixent.EmptyMeanError, "on_empty: ", (X, Y), {"mask": np.zeros(4), "on_empty": "raise"}),
]


@pytest.mark.parametrize(("error", "text", "args", "options"), CASES, ids=lambda value: str(value)[:40])
def test_errors_have_the_documented_class_and_text(error, text, args, options):
    with pytest.raises(error, match=text) as caught:
        unixent.cross_entropy(*args, **options)
    assert isinstance(caught.value, unixent.UnixentError)


def test_every_error_is_also_a_builtin():
    pairs = {
        unixent.ShapeError: ValueError,
        unixent.DTypeError: TypeError,
        unixent.OptionError: ValueError,
        unixent.TargetRangeError: IndexError,
        unixent.NonFiniteError: FloatingPointError,
        unixent.EmptyMeanError: ZeroDivisionError,
        unixent.BackendError: RuntimeError,
        unixent.UnknownBackendError: LookupError,
        unixent.BackendUnavailableError: ImportError,
    }
    assert all(issubclass(error, (unixent.UnixentError)) and issubclass(error, base) for error, base in pairs.items())


@pytest.mark.parametrize(
    ("wrt", "grad_output", "error", "text"),
    [
        ("weight", None, unixent.OptionError, "wrt: expected one or several of 'logits', 'target'; got 'weight'"),
        ((), None, unixent.OptionError, "wrt: "),
        ("target", None, unixent.OptionError, "class indices have no gradient"),
        ("logits", np.ones(4), unixent.ShapeError, r"grad_output: .* of shape \(\)"),
    ],
)
def test_value_and_grad_checks_its_own_arguments(wrt, grad_output, error, text):
    with pytest.raises(error, match=text):
        unixent.value_and_grad(X, Y, wrt=wrt, grad_output=grad_output)


def test_unread_out_of_range_targets_give_nan():
    target = np.array([0, 7, -1, 3])
    loss = unixent.cross_entropy(X, target, reduction="none", validate="off")
    assert np.isnan(loss).tolist() == [False, True, True, False]
    mean, grad = unixent.value_and_grad(X, target, validate="off")
    assert np.isnan(mean)
    assert np.isnan(grad).all(axis=1).tolist() == [False, True, True, False]
    assert np.isfinite(grad[[0, 3]]).all()


def test_an_invalid_target_is_an_error_even_where_it_is_masked():
    with pytest.raises(unixent.TargetRangeError):
        unixent.cross_entropy(X, [0, 9, 0, 0], mask=[1, 0, 1, 1])
