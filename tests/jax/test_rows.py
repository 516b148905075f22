"""Both formulations of a row's statistics against float64, in every regime."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unixent

U = 2.0**-24


def spike(shape: tuple[int, int], height: float) -> np.ndarray:
    """The height at each row's target."""
    return height * (np.arange(shape[1]) == np.arange(shape[0])[:, None])


REGIMES = {
    "ordinary": lambda rng, shape: rng.normal(size=shape) * 3,
    "confident": lambda rng, shape: rng.normal(size=shape) + spike(shape, 30),
    "very confident": lambda rng, shape: -40 * rng.random(shape) + spike(shape, 75),
    "wrong": lambda rng, shape: rng.normal(size=shape) + spike(shape, -30),
    "far from zero": lambda rng, shape: rng.normal(size=shape) * 5 + 1e4,
    "huge": lambda rng, shape: rng.normal(size=shape) * 1e30,
}


@pytest.mark.parametrize("classes", [2, 7, 512])
@pytest.mark.parametrize("regime", REGIMES)
def test_losses_and_gradients_keep_their_relative_accuracy(formulation: str, regime: str, classes: int) -> None:
    rows = min(classes, 48)
    x = np.asarray(REGIMES[regime](np.random.default_rng(classes), (rows, classes)), np.float32)
    y = np.arange(rows)
    exact, grad_exact = truth(x, y)

    loss = unixent.cross_entropy(jnp.asarray(x), y, reduction="none")
    loss_beside_grad, grad = unixent.value_and_grad(jnp.asarray(x), y, reduction="none")

    bound = (8 + 2 * np.log2(classes)) * U * exact + 1e-37
    assert np.all(abs(np.asarray(loss, float) - exact) <= bound)
    assert np.all(abs(np.asarray(loss_beside_grad, float) - exact) <= bound)
    gap = x.max(1, keepdims=True).astype(float) - x
    assert np.all(
        abs(np.asarray(grad, float) - grad_exact) <= (16 + 2 * gap + 2 * np.log2(classes)) * U * abs(grad_exact) + 1e-37
    )


def truth(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide, own = x.astype(float), np.arange(x.shape[1]) == y[:, None]
    top = np.where(own, -np.inf, wide).max(1, keepdims=True)
    e = np.exp(np.where(own, -np.inf, wide) - top)
    rest, gap = e.sum(1), top[:, 0] - wide[own]
    near = np.exp(-abs(gap))
    total = np.where(gap > 0, rest + near, 1 + rest * near)
    loss = np.where(gap > 0, gap + np.log(rest + near), np.log1p(rest * near))
    scale = np.where(gap > 0, 1, near) / total
    return loss, np.where(own, -(rest * scale)[:, None], e * scale[:, None])


@pytest.mark.parametrize("classes", [2, 512])
@pytest.mark.parametrize("regime", REGIMES)
def test_so_do_those_of_mixed_targets_relative_to_their_terms(formulation: str, regime: str, classes: int) -> None:
    rows = min(classes, 48)
    rng = np.random.default_rng(classes)
    x = np.asarray(REGIMES[regime](rng, (rows, classes)), np.float32)
    is_one = np.arange(classes) == np.arange(rows)[:, None]
    for coefs in (is_one, 0.9 * is_one + 0.1 / classes, rng.dirichlet(np.ones(classes), rows)):
        q = np.asarray(coefs, np.float32)
        both = unixent.value_and_grad(jnp.asarray(x), jnp.asarray(q), reduction="none", wrt=("logits", "target"))
        loss, (grad, nll) = both
        terms, grad_exact, grad_terms, gap = mixed_truth(x, q)
        bound = (8 + 2 * np.log2(classes)) * U
        exact = np.where(q == 0, 0, q * terms).sum(1)
        assert np.all(abs(np.asarray(loss, float) - exact) <= bound * exact + 1e-37)
        assert np.all(abs(np.asarray(nll, float) - terms) <= bound * terms + 1e-37)
        bounds = (16 + 2 * gap + 2 * np.log2(classes)) * U * grad_terms + 1e-37
        assert np.all(abs(np.asarray(grad, float) - grad_exact) <= bounds)


def mixed_truth(x: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, ...]:
    """L_c, the gradient of sum_c q_c L_c and the sum of its terms, and the distance to the largest logit."""
    wide, q, is_top = x.astype(float), q.astype(float), np.arange(x.shape[1]) == x.argmax(1)[:, None]
    gap = wide.max(1, keepdims=True) - wide
    odds = np.exp(-gap)
    rest = np.where(is_top, 0, odds).sum(1, keepdims=True)
    total = q.sum(1, keepdims=True)
    added = odds / (1 + rest) * np.where(is_top, total - q, total)
    taken = q * np.where(is_top, rest / (1 + rest), 1)
    return np.log1p(rest) + gap, added - taken, added + taken, gap


@pytest.mark.parametrize("classes", [1, 2, 3, 512])
@pytest.mark.parametrize("offset", [-3, -0.1, 0, 0.1])
def test_the_log_normaliser_of_a_z_loss_is_accurate_where_it_is_near_zero(
    formulation: str, classes: int, offset: float
) -> None:
    rng = np.random.default_rng(classes)
    x = np.asarray(rng.normal(size=(64, classes)) * 0.1 + offset, np.float32)
    x[rng.random(x.shape) < 0.3] = -np.inf
    x[:, 0] = offset
    y = rng.integers(0, classes, 64)
    top = x.max(1, keepdims=True).astype(float)
    odds = np.exp(x - top)
    logsumexp = top + np.log(odds.sum(1, keepdims=True))
    exact = logsumexp * odds / odds.sum(1, keepdims=True)
    _, grad = unixent.value_and_grad(jnp.asarray(x), y, z_loss=0.5, weight=jnp.zeros(classes), reduction="none")
    # The sum of the exponentials holds a 1, of which it is rounded.
    error = (abs(exact) * (16 + 2 * np.log2(classes)) + (1 + np.log2(classes)) * (odds.sum(1, keepdims=True) != 1)) * U
    assert np.all(abs(np.asarray(grad, float) - exact) <= error)


@pytest.mark.parametrize("position", ["target", "first other", "last"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nan_and_infinity_make_the_loss_and_the_whole_gradient_row_nan(
    formulation: str, smoothing: float, value: float, position: str
) -> None:
    """The row maximum alone would lose a NaN: XLA's reduction on CPU drops it."""
    x = np.zeros((2, 128), np.float32)
    x[0, {"target": 5, "first other": 0, "last": 127}[position]] = value
    loss, grad = unixent.value_and_grad(jnp.asarray(x), np.array([5, 5]), reduction="none", label_smoothing=smoothing)
    value_only = unixent.cross_entropy(jnp.asarray(x), np.array([5, 5]), reduction="none", label_smoothing=smoothing)
    assert np.isnan(loss[0])
    assert np.isnan(value_only[0])
    assert np.isnan(grad[0]).all()
    assert np.isfinite(loss[1])
    assert np.isfinite(grad[1]).all()


def test_a_large_target_logit_does_not_overflow_its_block_of_classes(formulation: str) -> None:
    x = jnp.zeros((1, 1024)).at[0, 700].set(500.0)
    assert unixent.cross_entropy(x, np.array([700])) == 0
    assert unixent.cross_entropy(x, np.array([3])) == 500


def test_any_class_axis_gives_the_same_losses(formulation: str) -> None:
    x = jax.random.normal(jax.random.key(0), (3, 96, 5))
    y = jax.random.randint(jax.random.key(1), (3, 5), 0, 96)
    moved = unixent.cross_entropy(jnp.moveaxis(x, 1, -1), y, reduction="none")
    np.testing.assert_array_max_ulp(unixent.cross_entropy(x, y, axis=1, reduction="none"), moved, 4)
