"""The one way of a call, whatever called it: a function, a module, in either form of the loss.

1. `select_backend`: the backend named, or the one whose arrays are given.
2. `unixent.validation`: the arguments fit together and become a `Problem`.
3. the backend computes.

The options have been validated by then, once, on construction of their `LossOptions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from unixent.arguments import PYTHON_TYPES, CommonArguments, LinearArguments
from unixent.errors import BackendError, OptionError
from unixent.options import LossOptions
from unixent.protocol import Array, Backend, FastPathBackend, LossProblem, LossTerms
from unixent.registry import backend_of, find_backend, get_backend
from unixent.scores import Scores
from unixent.validation import check_grad_output, check_wrt, linear_problem, logits_problem

Wrt = str | tuple[str, ...]
_ANY_BACKENDS = (np.ndarray, np.generic, *PYTHON_TYPES)  # taken beside any framework's arrays


def select_backend(common: CommonArguments, scores: tuple[str, ...], *arrays: Any) -> Backend:
    """The backend of a call: the one named, or that of the one framework other than NumPy among the array arguments.

    NumPy arrays, Python numbers and lists are taken beside any framework's arrays; alone, they are NumPy's.
    """
    name = common.backend
    if name is not None:
        if not isinstance(name, str):
            raise OptionError(f"backend: expected None or a name; got {name!r}")
        return get_backend(name)
    selected: tuple[str, Any, Backend] | None = None
    names = (*scores, "target", "weight", "mask", "normalizer")
    for argument, array in zip(names, (*arrays, *common[:4]), strict=True):
        if array is None or isinstance(array, _ANY_BACKENDS):
            continue
        if selected is not None and type(array) is type(selected[1]):
            continue
        if selected is None:
            # What belongs to no backend is refused here as logits, and by the checks as anything else.
            backend = backend_of(array, argument) if argument == scores[0] else find_backend(type(array))
            selected = None if backend is None else (argument, array, backend)
        elif find_backend(type(array)) not in (None, selected[2]):
            raise BackendError(
                f"{argument}: expected an array of {selected[2].name}, as {selected[0]} is, or a NumPy array; "
                f"got {type(array).__module__}.{type(array).__qualname__}"
            )
    return get_backend("numpy") if selected is None else selected[2]


def logits_loss(logits: Any, common: CommonArguments, options: LossOptions) -> Any:
    """The loss of logits, or its `LossTerms` where ``common`` asks for them."""
    backend = select_backend(common, ("logits",), logits)
    target, weight, mask, normalizer, parallel, return_terms, _ = common
    alone = weight is None and mask is None and normalizer is None and parallel is None and not return_terms
    if alone and backend.capabilities.fast_path:
        loss = cast(FastPathBackend, backend).try_fast_cross_entropy(logits, target, options)
        if loss is not None:
            return loss
    problem, _ = logits_problem(backend, logits, common, options)
    return backend.cross_entropy(problem)


def linear_loss(linear: LinearArguments, common: CommonArguments, options: LossOptions) -> Any:
    """The loss of the fused linear form."""
    backend = select_backend(common, ("hidden", "classifier", "bias"), *linear[:3])
    problem, _ = linear_problem(backend, linear, common, options)
    return backend.linear_cross_entropy(problem)


def logits_value_and_grad(
    logits: Any, common: CommonArguments, options: LossOptions, grad_output: Any, wrt: Wrt
) -> tuple[Array, Any]:
    """The loss of logits, and the gradient for ``wrt`` or the tuple of them."""
    backend = select_backend(common, ("logits",), logits)
    names = check_wrt(wrt, ("logits", "target"))
    problem, scores = logits_problem(backend, logits, common, options)
    return _value_and_grad(backend, backend.value_and_grad, problem, scores, grad_output, wrt, names)


def linear_value_and_grad(
    linear: LinearArguments, common: CommonArguments, options: LossOptions, grad_output: Any, wrt: Wrt | None
) -> tuple[Array, Any]:
    """The loss of the fused linear form, and the gradient for ``wrt`` or the tuple of them."""
    backend = select_backend(common, ("hidden", "classifier", "bias"), *linear[:3])
    learned = ("hidden", "classifier") if linear.bias is None else ("hidden", "classifier", "bias")
    names = check_wrt(learned if wrt is None else wrt, (*learned, "target"))
    problem, scores = linear_problem(backend, linear, common, options)
    return _value_and_grad(backend, backend.linear_value_and_grad, problem, scores, grad_output, wrt, names)


def _value_and_grad(
    backend: Backend,
    compute: Callable[[Any, Any, tuple[str, ...]], tuple[Array, tuple[Array, ...]]],
    problem: LossProblem,
    scores: Scores,
    grad_output: Any,
    wrt: Wrt | None,
    names: tuple[str, ...],
) -> tuple[Array, Any]:
    if "target" in names and problem.target_kind == "index":
        scored = "'logits'" if scores.first.name == "logits" else "'hidden', 'classifier' or 'bias'"
        raise OptionError(f"wrt: expected {scored}, since class indices have no gradient; got 'target'")
    grad_output = check_grad_output(backend, grad_output, scores, problem.options)
    loss, grads = compute(problem, grad_output, names)
    return loss, grads[0] if isinstance(wrt, str) else grads


__all__ = [
    "CommonArguments",
    "LinearArguments",
    "LossTerms",
    "linear_loss",
    "linear_value_and_grad",
    "logits_loss",
    "logits_value_and_grad",
    "select_backend",
]
