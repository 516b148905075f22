"""The public functions about positions: what a row of logits says besides its loss, from one definition."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unixent import dispatch
from unixent.keywords import PositionOptions, TermsKeywords, shows_keywords
from unixent.protocol import PositionStats

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack


@shows_keywords(TermsKeywords)
def position_stats(
    logits: Any,
    target: Any = None,
    *,
    outputs: str | Sequence[str] = ("log_prob",),
    selected: Any = None,
    k: int = 0,
    weight: Any = None,
    mask: Any = None,
    parallel: Any = None,
    backend: str | None = None,
    **options: Unpack[TermsKeywords],
) -> PositionStats:
    r"""What each position's logits say: log-probability of the target, entropy and the rest, without its softmax.

    With x' the logits after ``scale``, ``softcap`` and ``temperature``, p = softmax(x') over the classes that exist,
    lse = log sum_c exp x'_c and L_c = lse - x'_c = -log p_c:

    .. code-block:: text

        loss               the unreduced loss, with all options      log_sum_sq               log sum_c p_c^2
        log_prob           -L_y                                      max_prob, prediction     max_c p_c, and its class
        entropy            sum_c p_c L_c                             correct                  prediction = y
        logsumexp          lse                                       rank                     how many classes before y
        selected_log_prob  -L_c of the classes ``selected``          top_log_prob, top_index  the ``k`` largest -L_c
        mean_logit         mean of x'_c

    Equal logits count in the order of their classes. Nothing is formed as a difference that cancels: at logits
    ``[20, 0, 0, 0]`` in float32 the log-probability of class 0 is -6.18e-9 and the entropy 1.30e-7, which a
    log-softmax gives as 0.

    A position that is ignored or masked gives 0 (False; -1 for indices), whatever its logits hold. One whose row has
    NaN, +inf or nothing but -inf, and one whose target is out of range and could not be read, gives NaN (False; -1).
    ``mask`` scales ``loss`` alone; weight, label smoothing and z-loss concern it alone, too.

    Args:
        logits, target, weight, mask, axis, ignore_index, label_smoothing, z_loss, scale, softcap, temperature,
        num_classes, validate, backend: as in `cross_entropy`. ``target`` may be None where no output needs it;
            probabilities have a ``loss`` and what needs no target.
        outputs: the fields of `PositionStats` to compute, by name.
        selected: class indices of shape P + (K,) for ``selected_log_prob``; ``ignore_index`` pads them, and gives
            0 whatever the logits hold.
        k: how many classes ``top_log_prob`` and ``top_index`` have.
        dtype: dtype of the floating outputs; None for that of logits. Indices are int64.
        parallel: as in `cross_entropy`, of backends that declare ``parallel_position_stats``: the outputs are those of
            this process's positions, and class indices, ``selected`` too, count over the whole vocabulary.

    Returns:
        `PositionStats`: an array of shape P for each output asked for (P + (K,) or P + (k,) where the name says so),
        None for the others. All logarithms are natural.

    Raises:
        OptionError: an unknown output, one without what it needs, or an option out of range.
        DTypeError: an output needs a target and there is none.
        TargetRangeError: an index in ``target`` or ``selected`` is no class, and could be read.
        BackendError: the backend does not declare ``position_stats``.
        UnixentError: otherwise as in `cross_entropy`.

    Example:
        >>> import numpy as np, unixent
        >>> logits = np.array([[20, 0, 0, 0], [0, 1, 0, 0]], np.float32)
        >>> stats = unixent.position_stats(logits, np.array([0, 1]), outputs=("log_prob", "entropy", "correct"))
        >>> print(stats.log_prob)
        [-6.183461e-09 -7.436684e-01]
        >>> print(stats.entropy)
        [1.2985268e-07 1.2683015e+00]
        >>> print(stats.correct, stats.rank)
        [ True  True] None
    """
    common = dispatch.CommonArguments(target, weight, mask, None, parallel, False, backend)
    return _logits_stats(logits, common, dispatch.StatsRequest(outputs, selected, k), options)[0]


@shows_keywords(TermsKeywords)
def position_stats_and_grad(
    logits: Any,
    target: Any = None,
    *,
    grad_output: PositionStats | None = None,
    outputs: str | Sequence[str] = ("log_prob",),
    selected: Any = None,
    k: int = 0,
    weight: Any = None,
    mask: Any = None,
    parallel: Any = None,
    backend: str | None = None,
    **options: Unpack[TermsKeywords],
) -> tuple[PositionStats, Any]:
    """`position_stats` and the gradient for logits, on every backend: NumPy has no automatic differentiation.

    With G the sum of the upstream gradients of log-probabilities, for class c, before scale, softcap and temperature:

    .. code-block:: text

        d/dx'_c = p_c (g_logsumexp - G + g_entropy (L_c - entropy)) + g_log_prob [c = y] + sum_k g_selected,k [c = c_k]

    Args:
        grad_output: upstream gradients, each of the shape of its output; those of outputs without a gradient, or that
            are not asked for, are None. None for ones.
        logits, target, outputs, selected, k, weight, mask, axis, ignore_index, label_smoothing, z_loss, scale, softcap,
        temperature, num_classes, dtype, validate, parallel, backend: as in `position_stats`.

    Returns:
        ``(stats, gradient)``, the gradient in the shape and dtype of logits.

    Raises:
        UnixentError: as `position_stats`; `OptionError` where no output asked for has a gradient.

    Example:
        >>> import numpy as np, unixent
        >>> stats, gradient = unixent.position_stats_and_grad(np.array([20.0, 0.0]), outputs="entropy")
        >>> print(gradient)
        [-4.12230723e-08  4.12230723e-08]
    """
    common = dispatch.CommonArguments(target, weight, mask, None, parallel, False, backend)
    return _logits_stats(logits, common, dispatch.StatsRequest(outputs, selected, k), options, (grad_output, "logits"))


@shows_keywords(PositionOptions)
def linear_position_stats(
    hidden: Any,
    classifier: Any,
    target: Any = None,
    *,
    bias: Any = None,
    outputs: str | Sequence[str] = ("log_prob",),
    selected: Any = None,
    k: int = 0,
    weight: Any = None,
    mask: Any = None,
    parallel: Any = None,
    chunk: int | None = None,
    backend: str | None = None,
    **options: Unpack[PositionOptions],
) -> PositionStats:
    """`position_stats` of ``hidden @ classifier.T + bias``, one chunk of those logits at a time.

    Args:
        hidden, classifier, bias, chunk: as in `linear_cross_entropy`.
        target, outputs, selected, k, weight, mask, ignore_index, label_smoothing, z_loss, scale, softcap, temperature,
        num_classes, dtype, validate, parallel, backend: as in `position_stats`; ``dtype=None`` means that of hidden.

    Returns:
        `PositionStats`, as `position_stats` does.

    Raises:
        UnixentError: as `position_stats` and `linear_cross_entropy`.

    Example:
        >>> import numpy as np, unixent
        >>> hidden, classifier = np.eye(2), np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> stats = unixent.linear_position_stats(hidden, classifier, outputs=("prediction", "top_index"), k=2)
        >>> print(stats.prediction, stats.top_index.tolist())
        [0 1] [[0, 1], [1, 2]]
    """
    common = dispatch.CommonArguments(target, weight, mask, None, parallel, False, backend)
    linear = dispatch.LinearArguments(hidden, classifier, bias, chunk)
    return _linear_stats(linear, common, dispatch.StatsRequest(outputs, selected, k), options)[0]


@shows_keywords(PositionOptions)
def linear_position_stats_and_grad(
    hidden: Any,
    classifier: Any,
    target: Any = None,
    *,
    bias: Any = None,
    grad_output: PositionStats | None = None,
    wrt: str | tuple[str, ...] | None = None,
    outputs: str | Sequence[str] = ("log_prob",),
    selected: Any = None,
    k: int = 0,
    weight: Any = None,
    mask: Any = None,
    parallel: Any = None,
    chunk: int | None = None,
    backend: str | None = None,
    **options: Unpack[PositionOptions],
) -> tuple[PositionStats, Any]:
    """`linear_position_stats` and its gradients for hidden, classifier and bias, on every backend.

    Args:
        grad_output: as in `position_stats_and_grad`.
        wrt: one or several of "hidden", "classifier", "bias"; None for all that are given.
        hidden, classifier, target, bias, outputs, selected, k, weight, mask, ignore_index, label_smoothing, z_loss,
        scale, softcap, temperature, num_classes, dtype, validate, parallel, chunk, backend: as in
            `linear_position_stats`.

    Returns:
        ``(stats, gradients)``: one gradient for a single name, a tuple for several.

    Raises:
        UnixentError: as `linear_position_stats`; `OptionError` where no output asked for has a gradient.

    Example:
        >>> import numpy as np, unixent
        >>> hidden, classifier = np.ones((1, 1)), np.array([[1.0], [0.0]])
        >>> _, gradient = unixent.linear_position_stats_and_grad(hidden, classifier, np.array([0]), wrt="hidden")
        >>> print(gradient.round(6))
        [[0.268941]]
    """
    common = dispatch.CommonArguments(target, weight, mask, None, parallel, False, backend)
    linear = dispatch.LinearArguments(hidden, classifier, bias, chunk)
    return _linear_stats(linear, common, dispatch.StatsRequest(outputs, selected, k), options, (grad_output, wrt))


def _logits_stats(
    logits: Any, common: Any, request: dispatch.StatsRequest, options: Any, grads: Any = None
) -> tuple[PositionStats, Any]:
    """What both functions of logits do: the statistics and, where asked for, the gradient."""
    checked = dispatch.make_options(common, (logits,), reduction="none", **options)
    return dispatch.logits_stats(logits, common, checked, request, grads)


def _linear_stats(
    linear: Any, common: Any, request: dispatch.StatsRequest, options: Any, grads: Any = None
) -> tuple[PositionStats, Any]:
    """The same of the fused linear form."""
    # By their places: what MindSpore compiles has plain tuples.
    checked = dispatch.make_options(common, linear[:3], axis=-1, reduction="none", **options)
    return dispatch.linear_stats(linear, common, checked, request, grads)
