"""The fused linear form: the loss of ``hidden @ classifier.T + bias`` without ever holding those logits."""

from __future__ import annotations

from typing import Any

from unixent import checks
from unixent.arguments import resolve
from unixent.errors import OptionError
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions
from unixent.protocol import Array


def linear_cross_entropy(
    hidden: Array,
    classifier: Array,
    target: Array,
    *,
    bias: Array | None = None,
    weight: Array | None = None,
    mask: Array | None = None,
    reduction: str = "mean",
    ignore_index: int = DEFAULT_IGNORE_INDEX,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: Array | float | None = None,
    on_empty: str = "zero",
    dtype: Any = None,
    validate: str = "auto",
    parallel: Any = None,
    chunk: int | None = None,
    backend: str | None = None,
) -> Array:
    """Cross-entropy of ``hidden @ classifier.T + bias``, computed a chunk of positions at a time.

    Value and gradients are those of `cross_entropy` on the logits, accumulated in float32 for half inputs, without a
    P x C array ever existing: peak extra memory is one chunk of logits plus the gradients themselves.

    Args:
        hidden: P + (D,), floating.
        classifier: (C, D), floating.
        target: class indices of shape P, or probabilities of shape P + (C,).
        bias: (C,), floating, or None.
        weight, mask, reduction, ignore_index, label_smoothing, z_loss, softcap, normalizer, on_empty, dtype, validate,
        parallel, backend: as in `cross_entropy`; ``dtype=None`` means the dtype of hidden.
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
    found = resolve(backend, hidden, "hidden")
    options = LossOptions(-1, reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, dtype, validate)
    sides = checks.Sides(target, weight, mask, normalizer, parallel, False)
    problem, _ = checks.linear_problem(found, hidden, classifier, bias, chunk, sides, options)
    return found.linear_cross_entropy(problem)


def linear_value_and_grad(
    hidden: Array,
    classifier: Array,
    target: Array,
    *,
    bias: Array | None = None,
    weight: Array | None = None,
    mask: Array | None = None,
    reduction: str = "mean",
    ignore_index: int = DEFAULT_IGNORE_INDEX,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: Array | float | None = None,
    on_empty: str = "zero",
    dtype: Any = None,
    validate: str = "auto",
    parallel: Any = None,
    chunk: int | None = None,
    backend: str | None = None,
    grad_output: Array | float | None = None,
    wrt: str | tuple[str, ...] | None = None,
) -> tuple[Array, Any]:
    """The fused loss and its gradients for hidden, classifier and bias, on every backend.

    Args:
        hidden, classifier, target, bias, weight, mask, reduction, ignore_index, label_smoothing, z_loss, softcap,
        normalizer, on_empty, dtype, validate, parallel, chunk, backend: as in `linear_cross_entropy`.
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
    found = resolve(backend, hidden, "hidden")
    if wrt is None:
        wrt = ("hidden", "classifier") if bias is None else ("hidden", "classifier", "bias")
    allowed = ("hidden", "classifier", "target") if bias is None else ("hidden", "classifier", "bias", "target")
    names = checks.wanted(wrt, allowed)
    options = LossOptions(-1, reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, dtype, validate)
    sides = checks.Sides(target, weight, mask, normalizer, parallel, False)
    problem, lead = checks.linear_problem(found, hidden, classifier, bias, chunk, sides, options)
    if "target" in names and problem.target_kind == "index":
        raise OptionError(
            "wrt: expected 'hidden', 'classifier' or 'bias', since class indices have no gradient; got 'target'"
        )
    grad_output = checks.upstream(found, grad_output, lead, lead.info.shape[:-1], options)
    loss, grads = found.linear_value_and_grad(problem, grad_output, names)
    return loss, grads[0] if isinstance(wrt, str) else grads
