"""The scores of a call, checked by themselves: logits, or the hidden states and the classifier they are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unixent.arguments import FLOATS, Argument, check_scores, check_shape_dtype
from unixent.errors import ShapeError, option_error
from unixent.options import LossOptions
from unixent.protocol import Backend


class Scores(NamedTuple):
    """What is known of a call's scores.

    Attributes:
        first: logits or hidden, whose device and dtype the other arguments follow.
        positions: P.
        shape: P with the classes that this process holds.
        num_local_classes: how many those are.
        acc_dtype: the accumulation dtype.
        form_fields: the fields of the problem that only this form has.
    """

    first: Argument
    positions: tuple[int, ...]
    shape: tuple[int, ...]
    num_local_classes: int
    acc_dtype: str
    form_fields: dict[str, Any]


def logits_scores(backend: Backend, options: LossOptions, arguments: dict[str, Argument]) -> Scores:
    logits = arguments["logits"]
    check_scores(backend, logits)
    shape, axis = logits.info.shape, options.axis
    if not -len(shape) <= axis < len(shape):
        raise option_error("axis", f"an int in [{-len(shape)}, {len(shape)}) for logits of shape {shape}", axis)
    axis %= len(shape)
    positions = shape[:axis] + shape[axis + 1 :]
    acc_dtype = "float64" if logits.info.dtype == "float64" else "float32"
    return Scores(logits, positions, shape, shape[axis], acc_dtype, {"logits": logits.array, "axis": axis})


def linear_scores(backend: Backend, chunk: Any, arguments: dict[str, Argument]) -> Scores:
    hidden, classifier, bias = arguments["hidden"], arguments["classifier"], arguments.get("bias")
    check_scores(backend, hidden)
    check_scores(backend, classifier)
    positions, width = hidden.info.shape[:-1], hidden.info.shape[-1]
    shape = classifier.info.shape
    if len(shape) != 2 or shape[1] != width:
        raise ShapeError(
            f"classifier: expected shape (C, {width}) for hidden of shape {hidden.info.shape}; got {shape}"
        )
    classes = shape[0]
    dtypes = [hidden.info.dtype, classifier.info.dtype]
    if bias is not None:
        check_scores(backend, bias)
        check_shape_dtype(bias, (classes,), FLOATS)
        dtypes.append(bias.info.dtype)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, (int, np.integer)) or chunk < 1):
        raise option_error("chunk", "None or an int >= 1", chunk)
    form_fields = {
        "hidden": hidden.array,
        "classifier": classifier.array,
        "bias": None if bias is None else bias.array,
        "chunk": None if chunk is None else int(chunk),
    }
    acc_dtype = "float64" if "float64" in dtypes else "float32"
    return Scores(hidden, positions, (*positions, classes), classes, acc_dtype, form_fields)
