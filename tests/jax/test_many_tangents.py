"""Second derivatives along many tangents at a time are those of one at a time.

jaxlib 0.10.2 multiplies wrongly on a CPU where one factor of a sum is shared by all of at least 65,536 numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unixent

N, D, C = 8, 6, 32
RNG = np.random.default_rng(0)
LOGITS, TANGENTS = RNG.normal(size=(N, C)) * 2, RNG.normal(size=(300, N, C))
INDEX, PROBABILITIES = RNG.integers(C, size=N), RNG.dirichlet(np.ones(C), N)
OPTIONS = [
    {},
    {"weight": RNG.random(C), "label_smoothing": 0.1},
    {"softcap": 3.0, "z_loss": 0.1, "mask": RNG.random(N)},
]


def float32(array):
    return jnp.asarray(array, "int32" if array.dtype.kind == "i" else "float32")


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "weight and smoothing", "softcap, z-loss and mask"])
@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["index", "probability"])
def test_mapped_tangents_give_what_each_gives_alone(target, options):
    own = {name: float32(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}
    x, tangents = float32(LOGITS), float32(TANGENTS)

    def along(target):
        def loss(x):
            return unixent.cross_entropy(x, target, reduction="sum", **own)

        return lambda tangent: (*jax.jvp(loss, (x,), (tangent,)), jax.jvp(jax.grad(loss), (x,), (tangent,))[1])

    one = jax.jit(along(float32(target)))
    due = [np.stack(part) for part in zip(*map(one, tangents), strict=True)]
    for got, expected in zip(jax.jit(jax.vmap(along(float32(target))))(tangents), due, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["index", "probability"])
def test_forward_over_reverse_hessians_are_those_of_reverse_over_reverse(target):
    hidden, classifier = float32(RNG.normal(size=(N, D))), float32(RNG.normal(size=(C, D)))

    def of_logits(x):
        return unixent.cross_entropy(x, float32(target))

    def of_classifier(classifier):
        return unixent.linear_cross_entropy(hidden, classifier, float32(target))

    for loss, at in ((of_logits, float32(LOGITS)), (of_classifier, classifier)):
        np.testing.assert_allclose(jax.hessian(loss)(at), jax.jacrev(jax.jacrev(loss))(at), rtol=1e-4, atol=1e-6)
