"""The fused linear form against the unfused one, in float64: options, chunks, transforms, memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import unixent

RNG = np.random.default_rng(3)
N, D, C = 13, 5, 11
HIDDEN, CLASSIFIER, BIAS = RNG.normal(size=(N, D)), RNG.normal(size=(C, D)), RNG.normal(size=C)
INDEX = RNG.integers(C, size=N).astype(np.int32)
INDEX[[2, 9]] = -100
PROBABILITIES = RNG.dirichlet(np.ones(C), N)
MASK = np.where(RNG.random(N) > 0.3, RNG.random(N), 0)
WEIGHT = RNG.random(C)
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "weight": {"weight": WEIGHT},
    "normalizer": {"mask": MASK, "normalizer": 7.0},
    "smoothing": {"label_smoothing": 0.2, "weight": WEIGHT, "reduction": "sum"},
    "z-loss and softcap": {"z_loss": 0.1, "softcap": 2.0, "mask": MASK},
    "none": {"reduction": "none", "grad_output": RNG.normal(size=N), "label_smoothing": 0.1, "mask": MASK},
    "empty": {"mask": np.zeros(N)},
}
CLOSE = {"rtol": 1e-11, "atol": 1e-14}


def equal(got: Any, expected: Any, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **(tolerance or CLOSE)), got, expected)


def unfused(hidden: Any, classifier: Any, bias: Any, target: Any, **options: Any) -> Any:
    return unixent.cross_entropy(hidden @ classifier.T + bias, target, **options)


def fused(hidden: Any, classifier: Any, bias: Any, target: Any, **options: Any) -> Any:
    return unixent.linear_cross_entropy(hidden, classifier, target, bias=bias, **options)


TARGET_KINDS = ("index", "probability")


@pytest.mark.parametrize(
    ("options", "target_kind", "chunk"),
    [
        *((name, target_kind, 5) for name in OPTIONS for target_kind in TARGET_KINDS),
        *(("smoothing", TARGET_KINDS[i % 2], chunk) for i, chunk in enumerate((None, 1, N, 1000))),
        ("none", "probability", None),
    ],
)
def test_value_and_gradients_equal_those_of_the_unfused_form(
    wide: None, options: str, target_kind: str, chunk: int | None
) -> None:
    keywords = dict(OPTIONS[options])
    upstream = keywords.pop("grad_output", None)
    arrays = jax.tree.map(jnp.asarray, (HIDDEN, CLASSIFIER, BIAS, INDEX if target_kind == "index" else PROBABILITIES))
    wrt = ("hidden", "classifier", "bias", "target")[: 3 if target_kind == "index" else 4]

    @jax.jit
    def both(*given: Any) -> Any:
        value, vjp = jax.vjp(lambda *own: unfused(*own, *given[len(own) :], **keywords), *given[: len(wrt)])
        return value, vjp(jnp.ones_like(value) if upstream is None else jnp.asarray(upstream))

    expected = both(*arrays)
    hidden, classifier, bias, target = arrays
    got = unixent.linear_value_and_grad(
        hidden, classifier, target, bias=bias, chunk=chunk, wrt=wrt, grad_output=upstream, **keywords
    )
    equal(got, expected)


@pytest.mark.parametrize(("options", "target_kind"), [(name, TARGET_KINDS[i % 2]) for i, name in enumerate(OPTIONS)])
def test_the_value_alone_equals_the_unfused_form(wide: None, options: str, target_kind: str) -> None:
    keywords = {name: value for name, value in OPTIONS[options].items() if name != "grad_output"}
    arrays = tuple(map(jnp.asarray, (HIDDEN, CLASSIFIER, BIAS, INDEX if target_kind == "index" else PROBABILITIES)))
    equal(fused(*arrays, chunk=5, **keywords), unfused(*arrays, **keywords))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3, 4)])
def test_positions_may_have_any_shape(wide: None, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    hidden, target = jnp.asarray(rng.normal(size=(*shape, D))), jnp.asarray(rng.integers(C, size=shape))

    def both(form: Callable[..., Any], **options: Any) -> Any:
        losses = [lambda *given, r=r: jnp.sum(form(*given, reduction=r, **options)) for r in ("none", "mean")]
        return jax.jit(lambda *given: [jax.value_and_grad(f)(*given) for f in losses])(hidden, CLASSIFIER, BIAS, target)

    equal(both(fused, chunk=5), both(unfused))


def _along(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda h, w, b: jax.jvp(f, (h, w, b), (jnp.cos(h), jnp.sin(w), b**2))


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "jacfwd": lambda f: jax.jacfwd(f, (0, 1, 2)),
    "jacrev": lambda f: jax.jacrev(f, (0, 1, 2)),
    "jvp": _along,
    "hessian": lambda f: jax.hessian(f, (0, 1, 2)),
    "hessian by reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f, 1), (0, 1, 2)),
    "third derivative": lambda f: jax.jacfwd(jax.hessian(f, 2), 2),
    "vmap of grad": lambda f: (
        lambda h, w, b: jax.vmap(lambda s: jax.grad(lambda *given: jnp.sum(f(*given)), (0, 1))(s * h, w, b))(
            jnp.arange(1.0, 4.0)
        )
    ),
    "checkpoint": lambda f: jax.jacrev(jax.checkpoint(f), (0, 1, 2)),
}


CASES = [("index", 0.0, "mean"), ("probability", 0.2, "mean"), ("index", 0.0, "none")]


@pytest.mark.parametrize(
    # Two of the three in turn: each transform meets two, and each of them two transforms in three.
    ("transform", "target_kind", "smoothing", "reduction"),
    [(name, *CASES[(i + j) % 3]) for i, name in enumerate(TRANSFORMS) for j in range(2)],
)
def test_transforms_equal_those_of_the_unfused_form(
    wide: None, unoptimized: None, transform: str, target_kind: str, smoothing: float, reduction: str
) -> None:
    rows = slice(0, 5)
    target = (INDEX if target_kind == "index" else PROBABILITIES)[rows]
    options = {"mask": MASK[rows], "z_loss": 0.1, "softcap": 3.0, "label_smoothing": smoothing, "reduction": reduction}
    arrays = tuple(map(jnp.asarray, (HIDDEN[rows], CLASSIFIER, BIAS)))
    change = TRANSFORMS[transform]
    got = jax.jit(change(lambda *given: fused(*given, target, chunk=2, **options)))(*arrays)
    equal(got, jax.jit(change(lambda *given: unfused(*given, target, **options)))(*arrays), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_outside_shard_map_are_those_of_the_sum_over_shards(reduction: str) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    hidden, classifier, bias = (jnp.asarray(x, "float32") for x in (np.tile(HIDDEN, (4, 1)), CLASSIFIER, BIAS))
    target = jnp.tile(INDEX, 4)

    def local(h: Any, w: Any, b: Any, y: Any) -> Any:
        loss = fused(h, w, b, y, reduction=reduction, chunk=4, normalizer=5.0 if reduction == "mean" else None)
        return jax.lax.psum(jnp.sum(loss), "data")

    whole = jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P(), P(), P("data")), out_specs=P())
    got = jax.jit(jax.value_and_grad(whole, (0, 1, 2)))(hidden, classifier, bias, target)
    scale = 1 / 5 if reduction == "mean" else 1
    expected = jax.value_and_grad(lambda *given: scale * unfused(*given, target, reduction="sum"), (0, 1, 2))(
        hidden, classifier, bias
    )
    equal(got, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("classifier", [CLASSIFIER, np.full_like(CLASSIFIER, np.nan)], ids=["finite", "nan classifier"])
def test_inactive_positions_contribute_exactly_zero(wide: None, classifier: Any, reduction: str) -> None:
    hidden = HIDDEN.copy()
    hidden[2], hidden[9] = np.nan, np.inf
    upstream = np.where(INDEX == -100, np.nan, 1.0) if reduction == "none" else None
    loss, (grad, grad_classifier) = unixent.linear_value_and_grad(
        jnp.asarray(hidden), classifier, INDEX, chunk=4, reduction=reduction, grad_output=upstream
    )
    clean, (clean_grad, clean_classifier) = unixent.linear_value_and_grad(
        jnp.asarray(HIDDEN), classifier, INDEX, chunk=4, reduction=reduction
    )
    assert not grad[jnp.array([2, 9])].any()
    equal((loss, grad, grad_classifier), (clean, clean_grad, clean_classifier))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_index_out_of_range_is_nan_at_its_position(reduction: str) -> None:
    target = INDEX.copy()
    target[4] = C
    loss, (grad, _) = unixent.linear_value_and_grad(
        jnp.asarray(HIDDEN, "float32"), CLASSIFIER, target, chunk=4, reduction=reduction, validate="off"
    )
    others = np.arange(N) != 4
    assert np.isnan(grad[4]).all()
    assert np.isfinite(grad[others]).all()
    assert np.isnan(loss if reduction == "mean" else loss[4])


def test_arguments_without_a_gradient_cost_no_product() -> None:
    """The gradient for hidden alone takes a product less than that for both."""
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((64, 32), (512, 32), (512,))]

    def products(wrt: tuple[int, ...]) -> int:
        def loss(*given: Any) -> Any:
            return fused(*given, jnp.zeros(64, "int32"), chunk=16)

        return str(jax.make_jaxpr(jax.grad(loss, wrt))(*shapes)).count("dot_general")

    assert products((0,)) == 2
    assert products((0, 1)) == 4  # the classifier's: one of parts, one of what is left over


@pytest.mark.parametrize("chunk", [None, 4])
def test_export_round_trip_with_a_symbolic_batch(chunk: int | None) -> None:
    pytest.importorskip("flatbuffers", reason="jax.export writes programs with flatbuffers")
    from jax import export

    def loss(hidden: Any, classifier: Any, target: Any) -> Any:
        return unixent.linear_cross_entropy(hidden, classifier, target, chunk=chunk, label_smoothing=0.1)

    (batch,) = export.symbolic_shape("b")
    shapes = (
        jax.ShapeDtypeStruct((batch, D), "float32"),
        jax.ShapeDtypeStruct((C, D), "float32"),
        jax.ShapeDtypeStruct((batch,), "int32"),
    )
    exported = export.export(jax.jit(jax.value_and_grad(loss, (0, 1))))(*shapes)
    arrays = (jnp.asarray(HIDDEN, "float32"), jnp.asarray(CLASSIFIER, "float32"), INDEX)
    got = export.deserialize(exported.serialize()).call(*arrays)
    equal(got, jax.value_and_grad(loss, (0, 1))(*arrays), rtol=1e-5, atol=1e-7)


def error(got: Any, exact: Any) -> float:
    """Root of the summed squares."""
    return float(np.linalg.norm(np.asarray(got, float) - np.asarray(exact, float)))


HALF_CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "sum": {"reduction": "sum"},
    "smoothing": {"label_smoothing": 0.1, "weight": WEIGHT},
    "mask": {"mask": MASK, "normalizer": 7.0},
    "z-loss and softcap": {"z_loss": 1e-3, "softcap": 5.0},
}


@pytest.mark.parametrize("options", HALF_CASES)
def test_half_precision_is_no_worse_than_the_unfused_form(wide: None, options: str) -> None:
    """Value and gradients of our fused form and of our loss on logits made in half precision, beside the exact ones."""

    def all_of(loss: Callable[..., Any]) -> Callable[..., Any]:
        def total(*given: Any) -> Any:
            return loss(*given, jnp.asarray(INDEX), **HALF_CASES[options])

        return jax.jit(jax.value_and_grad(total, (0, 1, 2)))

    ours, theirs = all_of(fused), all_of(unfused)
    for dtype, scale in itertools.product(("float16", "bfloat16"), (0.3, 1.0, 4.0)):
        arrays = [jnp.asarray(array, dtype) for array in (HIDDEN * scale, CLASSIFIER, BIAS)]
        exact, *got = (
            (value, *grads)
            for value, grads in (theirs(*(array.astype("float64") for array in arrays)), ours(*arrays), theirs(*arrays))
        )
        for name, truth, *results in zip(("loss", "hidden", "classifier", "bias"), exact, *got, strict=True):
            own, other = (error(result, truth) for result in results)
            # The one rounding that a result in half precision cannot be without, where both are down to that.
            least = error(jnp.asarray(truth, dtype), truth)
            assert own <= max(other, 1.01 * least), (name, dtype, scale, own, other, least)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_half_precision_rounds_gradients_once_after_summing(dtype: str, reduction: str) -> None:
    """Sums over 4096 positions of a gradient that half precision would lose."""
    rng = np.random.default_rng(5)
    hidden = jnp.asarray(rng.normal(size=(4096, 8)), dtype)
    classifier = jnp.asarray(rng.normal(size=(16, 8)), dtype)
    target = jnp.asarray(rng.integers(16, size=4096), "int32")
    _, grads = unixent.linear_value_and_grad(hidden, classifier, target, chunk=64, reduction=reduction)
    _, expected = unixent.linear_value_and_grad(
        hidden.astype("float32"), classifier.astype("float32"), target, reduction=reduction
    )
    for grad, exact in zip(grads, expected, strict=True):
        assert grad.dtype == dtype
        unit, smallest = float(jnp.finfo(dtype).eps) / 2, float(jnp.finfo(dtype).smallest_subnormal)
        # One rounding to half precision, and those of the float32 sums on both sides.
        sums = 8 * 2.0**-24 * float(jnp.max(jnp.abs(exact)))
        np.testing.assert_allclose(grad.astype("float32"), exact, rtol=unit, atol=smallest + sums)


def test_compiled_program_never_holds_all_logits(single_device: None) -> None:
    count, width, classes = 2048, 64, 8000
    shapes = (
        jax.ShapeDtypeStruct((count, width), "float32"),
        jax.ShapeDtypeStruct((classes, width), "float32"),
        jax.ShapeDtypeStruct((count,), "int32"),
    )

    def temporaries(loss: Callable[..., Any], **options: Any) -> float:
        def total(h: Any, w: Any, y: Any) -> Any:
            return jnp.sum(loss(h, w, 0.0 if loss is unfused else None, y, **options))

        compiled = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * count * classes)

    assert temporaries(unfused) > 1
    for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.1}, {"z_loss": 0.1, "softcap": 5.0}):
        assert temporaries(fused, chunk=128, **options) < 0.5, options


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_product_names_its_precision(dtype: str) -> None:
    """What a GPU or a TPU would round by default."""
    hidden, classifier = jnp.asarray(HIDDEN, dtype), jnp.asarray(CLASSIFIER, dtype)
    loss = jax.value_and_grad(lambda h, w: unixent.linear_cross_entropy(h, w, INDEX, chunk=4), argnums=(0, 1))
    lines = jax.jit(loss).lower(hidden, classifier).as_text().splitlines()
    products = [line for line in lines if "dot_general" in line]
    assert len(products) >= 3
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), products
