"""The public functions of the fused linear form: the loss of ``hidden @ classifier.T + bias`` without those logits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from unixent import dispatch
from unixent.keywords import ArrayT, ReductionOptions, shows_keywords
from unixent.protocol import Array

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def linear_cross_entropy(
    hidden: np.ndarray[Any, Any] | Sequence[Any],
    classifier: object,
    target: object,
    *,
    bias: object = None,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    chunk: int | None = None,
    backend: str,
    **options: Unpack[ReductionOptions],
) -> Any: ...
@overload
def linear_cross_entropy(
    hidden: ArrayT,
    classifier: object,
    target: object,
    *,
    bias: object = None,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    chunk: int | None = None,
    backend: str | None = None,
    **options: Unpack[ReductionOptions],
) -> ArrayT: ...
@shows_keywords(ReductionOptions)
def linear_cross_entropy(
    hidden: Any,
    classifier: Any,
    target: Any,
    *,
    bias: Any = None,
    weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    parallel: Any = None,
    chunk: int | None = None,
    backend: str | None = None,
    **options: Unpack[ReductionOptions],
) -> Any:
    """Cross-entropy of ``hidden @ classifier.T + bias``, computed a chunk of positions at a time.

    Value and gradients are those of `cross_entropy` on the logits, accumulated in float32 for half inputs, without a
    P x C array ever existing: peak extra memory is one chunk of logits plus the gradients themselves.

    Args:
        hidden: P + (D,), floating.
        classifier: (C, D), floating.
        target: class indices of shape P, probabilities of shape P + (C,), or a `TopK`.
        bias: (C,), floating, or None.
        weight, mask, reduction, ignore_index, label_smoothing, z_loss, scale, softcap, temperature, num_classes,
        normalizer, on_empty, dtype, validate, parallel, backend: as in `cross_entropy`; ``dtype=None`` means the dtype
        of hidden, and beyond ``num_classes`` the rows of classifier are padding.
        chunk: number of positions whose logits may exist at a time; None chooses from shapes and dtype.

    Returns:
        The loss in nats: shape P for "none", 0-d otherwise.

    Raises:
        UnixentError: as `cross_entropy`; `BackendError` where the backend's capabilities lack the form.

    Example:
        >>> import numpy as np, unixent
        >>> rng = np.random.default_rng(0)
        >>> hidden, classifier, target = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)), rng.integers(5, size=6)
        >>> fused = unixent.linear_cross_entropy(hidden, classifier, target, chunk=2)
        >>> bool(np.isclose(fused, unixent.cross_entropy(hidden @ classifier.T, target), rtol=1e-14))
        True

    References:
        Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024; Hsu et al., Liger Kernel, 2024.
    """
    common = dispatch.CommonArguments(target, weight, mask, normalizer, parallel, False, backend)
    linear = dispatch.LinearArguments(hidden, classifier, bias, chunk)
    checked = dispatch.make_options(common, (hidden, classifier, bias), axis=-1, **options)
    return dispatch.linear_loss(linear, common, checked)


@overload
def linear_value_and_grad(
    hidden: np.ndarray[Any, Any] | Sequence[Any],
    classifier: object,
    target: object,
    *,
    bias: object = None,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    chunk: int | None = None,
    backend: str,
    grad_output: object = None,
    wrt: str | tuple[str, ...] | None = None,
    **options: Unpack[ReductionOptions],
) -> tuple[Any, Any]: ...
@overload
def linear_value_and_grad(
    hidden: ArrayT,
    classifier: object,
    target: object,
    *,
    bias: object = None,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    chunk: int | None = None,
    backend: str | None = None,
    grad_output: object = None,
    wrt: str,
    **options: Unpack[ReductionOptions],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def linear_value_and_grad(
    hidden: ArrayT,
    classifier: object,
    target: object,
    *,
    bias: object = None,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    chunk: int | None = None,
    backend: str | None = None,
    grad_output: object = None,
    wrt: tuple[str, ...] | None = None,
    **options: Unpack[ReductionOptions],
) -> tuple[ArrayT, tuple[ArrayT, ...]]: ...
@shows_keywords(ReductionOptions)
def linear_value_and_grad(
    hidden: Any,
    classifier: Any,
    target: Any,
    *,
    bias: Any = None,
    weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    parallel: Any = None,
    chunk: int | None = None,
    backend: str | None = None,
    grad_output: Any = None,
    wrt: str | tuple[str, ...] | None = None,
    **options: Unpack[ReductionOptions],
) -> tuple[Array, Any]:
    """The fused loss and its gradients for hidden, classifier and bias, on every backend.

    Args:
        hidden, classifier, target, bias, weight, mask, reduction, ignore_index, label_smoothing, z_loss, scale,
        softcap, temperature, num_classes, normalizer, on_empty, dtype, validate, parallel, chunk, backend: as in
            `linear_cross_entropy`.
        grad_output: upstream gradient, of the shape of the loss; None for ones.
        wrt: one or several of "hidden", "classifier", "bias", "target"; None for hidden, classifier and, where given,
            bias.

    Returns:
        ``(loss, gradients)``: one gradient for a single name, a tuple for several; each has the shape and dtype of
        what it is taken with respect to.

    Raises:
        UnixentError: as `linear_cross_entropy`; `OptionError` for an unknown ``wrt``.

    Example:
        >>> import numpy as np, unixent
        >>> hidden, classifier = np.ones((2, 3)), np.zeros((2, 3))
        >>> loss, (for_hidden, for_classifier) = unixent.linear_value_and_grad(hidden, classifier, np.array([0, 0]))
        >>> print(loss.round(6), for_classifier)
        0.693147 [[-0.5 -0.5 -0.5]
         [ 0.5  0.5  0.5]]
    """
    common = dispatch.CommonArguments(target, weight, mask, normalizer, parallel, False, backend)
    linear = dispatch.LinearArguments(hidden, classifier, bias, chunk)
    checked = dispatch.make_options(common, (hidden, classifier, bias), axis=-1, **options)
    return dispatch.linear_value_and_grad(linear, common, checked, grad_output, wrt)
