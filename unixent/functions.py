"""The public functions of logits: keywords become `LossOptions`, and `unixent.dispatch` does the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from unixent import dispatch
from unixent.keywords import ArrayT, LossKeywords, TermsKeywords, shows_keywords
from unixent.protocol import Array, LossTerms

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def cross_entropy(
    logits: float | Sequence[Any],
    target: object,
    *,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    backend: str | None = None,
    **options: Unpack[LossKeywords],
) -> Any: ...
@overload
def cross_entropy(
    logits: np.ndarray[Any, Any],
    target: object,
    *,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    backend: str,
    **options: Unpack[LossKeywords],
) -> Any: ...
@overload
def cross_entropy(
    logits: ArrayT,
    target: object,
    *,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    backend: str | None = None,
    **options: Unpack[LossKeywords],
) -> ArrayT: ...
@shows_keywords(LossKeywords)
def cross_entropy(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    parallel: Any = None,
    backend: str | None = None,
    **options: Unpack[LossKeywords],
) -> Any:
    r"""Cross-entropy between logits and targets, in nats, with one meaning on every framework.

    Let P be the shape of ``logits`` without the class axis, C the number of classes, x the logits (after ``scale``,
    ``softcap`` and ``temperature``), lse the log-sum-exp of a position over its classes, and L_c = lse - x_c >= 0 the
    negative log-probability of class c. With w the class weights, v the position weight (``mask``, and 0 where the
    target is ``ignore_index``), s the label smoothing and z the coefficient of the squared log-normaliser:

    .. code-block:: text

        class indices y   loss = v * [(1 - s) * w_y * L_y + s/C * sum_c w_c L_c + z * lse**2],   d = v * w_y
        probabilities q   loss = v * [sum_c w_c * ((1 - s) * q_c + s/C) * L_c + z * lse**2],     d = v

        "none" -> loss, shape P      "sum" -> sum loss      "mean" -> sum loss / sum d  (or / normalizer)

    A confident row keeps its relative accuracy (logits ``[20, 0]`` with target 0 give 2.06e-9, not 0), -inf logits
    mean probability 0, and a position that is masked or ignored adds nothing whatever its logits hold. The gradient,
    where the framework has one, is defined for logits and for probability targets.

    Args:
        logits: unnormalised scores: P with C inserted at ``axis``; float16, bfloat16, float32 or float64.
        target: class indices of shape P and any integer dtype, in [0, C) or ``ignore_index``; or probabilities of the
            shape of logits and any floating dtype, which need not sum to 1; or a `TopK`, a teacher's best classes.
        weight: class weights, shape (C,), floating. A constant: it has no gradient.
        mask: position weights, shape P, bool, integer or floating (fractions allowed). A constant.
        axis: the class axis of logits.
        reduction: "mean", "sum" or "none".
        ignore_index: positions with this target do not exist; may lie inside or outside [0, C). Class indices only.
        label_smoothing: in [0, 1]; the share of the target that is spread evenly over the C classes.
        z_loss: coefficient >= 0 of the squared log-normaliser.
        scale, softcap, temperature: k > 0, None or a > 0, and T > 0: x is replaced by cap(k * x) / T first, in this
            order, where cap(x) = a * tanh(x / a), or x without a softcap. -inf stays -inf.
        num_classes: None, or how many of the classes along ``axis`` exist. The rest pads the vocabulary: probability 0
            and gradient 0 whatever it holds, not in smoothing's C, out of range as an index. ``weight`` has num_classes
            entries; probability targets have the shape of logits.
        normalizer: replaces the denominator of "mean": a float or a 0-d array, e.g. the number of tokens of a whole
            gradient-accumulation step. A constant.
        on_empty: value of a mean whose denominator is 0: "zero", "nan", or "raise" (`EmptyMeanError` where values can
            be read, NaN elsewhere).
        dtype: dtype of the result, by name; None for the dtype of logits. Arithmetic is done in float32 for half
            inputs and in the dtype of logits otherwise; only the finished result is rounded.
        validate: when to read target values: "auto" where that does not stall, "full" also on an accelerator, "off".
            Unread, an index outside [0, C) gives NaN at its position.
        parallel: a `ParallelConfig` when positions or classes are split over processes.
        backend: name of a backend, or None for the framework that ``logits`` belongs to.

    Returns:
        An array of the backend: shape P for "none", 0-d otherwise.

    Raises:
        ShapeError: an argument's shape does not fit that of logits.
        DTypeError: an argument's dtype or type is not taken.
        OptionError: an option is out of range, or does not go with another.
        TargetRangeError: a class index is outside [0, C) and not ``ignore_index``, and could be read.
        EmptyMeanError: the mean's denominator is 0 under ``on_empty="raise"``, and could be read.
        BackendError: frameworks or devices are mixed, or the backend lacks a capability.
        UnknownBackendError: no backend of that name, or for arrays of that type.
        BackendUnavailableError: the backend's framework is not installed.

    Example:
        >>> import numpy as np, unixent
        >>> logits = np.array([[2.0, 0.5, -1.0], [0.0, 3.0, 0.0]])
        >>> print(unixent.cross_entropy(logits, np.array([0, 1])).round(6))
        0.168117
        >>> print(unixent.cross_entropy(logits, np.array([0, -100]), reduction="none").round(6))
        [0.241311 0.      ]
        >>> print(unixent.cross_entropy([20.0, 0.0], 0))
        2.061153620314381e-09

    See also:
        `loss_terms` for the two sums of a mean, `value_and_grad` for the gradient without autodiff,
        `linear_cross_entropy` for the form that never holds the logits.

    References:
        Szegedy et al., Rethinking the Inception Architecture, 2016 (label smoothing); de Brebisson and Vincent, The
        Z-loss, 2016, and Chowdhery et al., PaLM, 2022 (z-loss); Gemma Team, Gemma 2, 2024 (soft-cap); Blanchard,
        Higham and Higham, Accurately computing the log-sum-exp and softmax functions, 2021 (shifted log-sum-exp).
    """
    common = dispatch.CommonArguments(target, weight, mask, normalizer, parallel, False, backend)
    return dispatch.logits_loss(logits, common, dispatch.make_options(common, (logits,), **options))


@shows_keywords(TermsKeywords)
def loss_terms(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    parallel: Any = None,
    backend: str | None = None,
    **options: Unpack[TermsKeywords],
) -> LossTerms:
    """The numerator and the denominator of the mean loss, apart: what may be added up over micro-batches or processes.

    numerator = sum of the positions' losses, in nats; denominator = sum of d, as `cross_entropy` defines both. The
    mean over several batches is ``sum(numerators) / sum(denominators)``, which the mean of their means is not.

    Args:
        logits, target, weight, mask, axis, ignore_index, label_smoothing, z_loss, scale, softcap, temperature,
        num_classes, validate, parallel, backend: as in `cross_entropy`.
        dtype: dtype of both terms; None for the accumulation dtype (float32 for half and float32 logits, float64
            otherwise), since a float16 count is infinite beyond 65504.

    Returns:
        `LossTerms` of two 0-d arrays.

    Raises:
        UnixentError: as `cross_entropy`.

    Example:
        >>> import numpy as np, unixent
        >>> rng = np.random.default_rng(0)
        >>> logits, target = rng.normal(size=(6, 5)), rng.integers(5, size=6)
        >>> first, second = unixent.loss_terms(logits[:2], target[:2]), unixent.loss_terms(logits[2:], target[2:])
        >>> mean = (first.numerator + second.numerator) / (first.denominator + second.denominator)
        >>> bool(np.isclose(mean, unixent.cross_entropy(logits, target), rtol=1e-14))
        True
    """
    common = dispatch.CommonArguments(target, weight, mask, None, parallel, True, backend)
    checked = dispatch.make_options(common, (logits,), reduction="sum", on_empty="zero", **options)
    terms: LossTerms = dispatch.logits_loss(logits, common, checked)
    return terms


@overload
def value_and_grad(
    logits: float | Sequence[Any],
    target: object,
    *,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    backend: str | None = None,
    grad_output: object = None,
    wrt: str | tuple[str, ...] = "logits",
    **options: Unpack[LossKeywords],
) -> tuple[Any, Any]: ...
@overload
def value_and_grad(
    logits: np.ndarray[Any, Any],
    target: object,
    *,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    backend: str,
    grad_output: object = None,
    wrt: str | tuple[str, ...] = "logits",
    **options: Unpack[LossKeywords],
) -> tuple[Any, Any]: ...
@overload
def value_and_grad(
    logits: ArrayT,
    target: object,
    *,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    backend: str | None = None,
    grad_output: object = None,
    wrt: str = "logits",
    **options: Unpack[LossKeywords],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def value_and_grad(
    logits: ArrayT,
    target: object,
    *,
    weight: object = None,
    mask: object = None,
    normalizer: object = None,
    parallel: object = None,
    backend: str | None = None,
    grad_output: object = None,
    wrt: tuple[str, ...],
    **options: Unpack[LossKeywords],
) -> tuple[ArrayT, tuple[ArrayT, ...]]: ...
@shows_keywords(LossKeywords)
def value_and_grad(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    normalizer: Any = None,
    parallel: Any = None,
    backend: str | None = None,
    grad_output: Any = None,
    wrt: str | tuple[str, ...] = "logits",
    **options: Unpack[LossKeywords],
) -> tuple[Array, Any]:
    """The loss and its gradient in one pass, on every backend: NumPy has no autodiff of its own.

    The gradient is that of ``sum(grad_output * loss)``. For class indices without smoothing and z-loss it is, with p
    the softmax of a position and d the denominator of the reduction,

    .. code-block:: text

        c != y    v * w_y * p_c / d              c == y    -v * w_y * r / (r + e_y) / d

    where r sums the exponentials of the other classes: p_y - 1 without its cancellation.

    Args:
        logits, target, weight, mask, axis, reduction, ignore_index, label_smoothing, z_loss, scale, softcap,
        temperature, num_classes, normalizer, on_empty, dtype, validate, parallel, backend: as in `cross_entropy`.
        grad_output: upstream gradient, of the shape of the loss (P for "none", 0-d otherwise); None for ones.
        wrt: "logits", "target" (probabilities, or the probs or log_probs of a `TopK`), or a tuple of these.

    Returns:
        ``(loss, gradient)``; a gradient has the shape and dtype of what it is taken with respect to. With a tuple
        ``wrt`` the second item is the tuple of gradients.

    Raises:
        UnixentError: as `cross_entropy`; `OptionError` for an unknown ``wrt`` or for "target" with class indices.

    Example:
        >>> import numpy as np, unixent
        >>> loss, grad = unixent.value_and_grad(np.array([[0.0, 0.0]]), np.array([1]))
        >>> print(loss.round(6), grad)
        0.693147 [[ 0.5 -0.5]]
    """
    common = dispatch.CommonArguments(target, weight, mask, normalizer, parallel, False, backend)
    checked = dispatch.make_options(common, (logits,), **options)
    return dispatch.logits_value_and_grad(logits, common, checked, grad_output, wrt)
