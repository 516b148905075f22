"""MaxText and Tunix: the functions against the libraries' own, whose files are loaded without their packages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from originals import load, parameters

from unixent_jax.trainers import maxtext, tunix

LOGITS = 4 * jax.random.normal(jax.random.key(0), (2, 5, 7))
INDEX = jax.random.randint(jax.random.key(1), (2, 5), 0, 7)


def _close(actual, expected, rtol=2e-6):
    for value, truth in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert value.shape == truth.shape
        np.testing.assert_allclose(value, truth, rtol=0, atol=rtol * float(jnp.abs(truth).max()))


@pytest.fixture(scope="module")
def of_maxtext():
    absent = ("common", "common.common_types", "common.gcloud_stub", "utils")
    names = ("maxtext", *(f"maxtext.{name}" for name in absent), "etils", "psutil", "orbax", "orbax.checkpoint")
    emergency = "orbax.checkpoint.experimental.emergency"
    parents = ("orbax.checkpoint.experimental", emergency, f"{emergency}.multi_tier_checkpointing")
    return load("maxtext", "maxtext/utils/max_utils.py", (*names, *parents))


@pytest.fixture(scope="module")
def of_tunix():
    return load("google-tunix", "tunix/rl/common.py", ("tunix", "tunix.sft"))


@pytest.fixture(scope="module")
def trainer_of_tunix():
    parts = ("perf", "perf.experimental", "sft")
    absent = ("orbax", "orbax.checkpoint", "tunix", *(f"tunix.{part}" for part in parts))
    return load("google-tunix", "tunix/sft/peft_trainer.py", absent)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_loss_is_that_of_maxtext(of_maxtext, z_loss):
    original = of_maxtext.cross_entropy_with_logits
    assert parameters(maxtext.cross_entropy_with_logits) == parameters(original)
    one_hot = jax.nn.one_hot(INDEX, 7)

    def value_and_grad(function, targets):
        def total(logits):
            loss, z = function(logits, targets, z_loss)
            return (loss * jnp.arange(10).reshape(2, 5)).sum() + z.sum(), (loss, z)

        return jax.jit(jax.value_and_grad(total, has_aux=True))(LOGITS)

    expected = value_and_grad(original, one_hot)
    _close(value_and_grad(maxtext.cross_entropy_with_logits, one_hot), expected)
    _close(value_and_grad(maxtext.cross_entropy_with_logits, INDEX), expected)


def test_a_class_of_probability_zero_leaves_the_loss_of_maxtext_finite(of_maxtext):
    logits = LOGITS.at[..., 6].set(-jnp.inf)
    one_hot = jax.nn.one_hot(INDEX % 6, 7)
    assert jnp.isnan(of_maxtext.cross_entropy_with_logits(logits, one_hot)[0]).all()
    assert jnp.isfinite(maxtext.cross_entropy_with_logits(logits, one_hot)[0]).all()


def test_log_probabilities_are_those_of_tunix(of_tunix):
    assert parameters(tunix.selective_log_softmax) == parameters(of_tunix.selective_log_softmax)
    weights = jnp.arange(10.0).reshape(2, 5)
    actual, expected = (
        jax.value_and_grad(lambda x, f=each.selective_log_softmax: (f(x, INDEX) * weights).sum())(LOGITS)
        for each in (tunix, of_tunix)
    )
    _close(actual, expected)
    confident = jnp.array([[20.0, 0.0]]), jnp.array([0])
    assert of_tunix.selective_log_softmax(*confident) == 0
    np.testing.assert_allclose(tunix.selective_log_softmax(*confident), -np.log1p(np.exp(-20)), rtol=1e-6)


class Model(nnx.Module):
    """Tunix's models return logits and a cache."""

    def __init__(self):
        self.embed = nnx.Embed(7, 4, rngs=nnx.Rngs(0))

    def __call__(self, tokens, positions, cache, attention_mask):
        hidden = self.embed(tokens)
        return 8 * self.embed.attend(hidden + jnp.roll(hidden, 1, -1)), cache


def test_the_loss_of_the_trainer_is_that_of_tunix(trainer_of_tunix):
    original = trainer_of_tunix._default_loss_fn
    assert parameters(tunix.loss_fn) == parameters(original)
    mask = jnp.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
    arguments = (INDEX, mask, None, None)
    actual, expected = (nnx.value_and_grad(each)(Model(), *arguments) for each in (tunix.loss_fn, original))
    _close(actual, expected)
    # Nothing to learn from: Tunix has 0 by its 1e-8, ours by definition.
    assert tunix.loss_fn(Model(), INDEX, 0 * mask, None, None) == 0
