"""The arithmetic that the backends share: accurate in every regime, the same over each array namespace, traceable."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import unixent
from unixent import pivot, semantics
from unixent.logit_transform import LogitTransform
from unixent.pivot import RowStats

# Infinities and NaN are part of the semantics; NumPy's backend silences the warnings around its calls.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

MODULES = {"numpy": "numpy", "torch": "torch", "jax": "jax.numpy"}
NAMESPACES = [name for name in MODULES if find_spec(name)]
DTYPES = ["float32", "float64"]
# D = m - x_k in the dtype itself, whose difference is not exact: the target far below the others, about as large, far
# above, and so far above that exp(D) is subnormal.
REGIMES = {"far below": (2, 80), "close": (-2, 2), "far above": (-50, -2), "very far above": (-100, -60)}


class Namespace:
    """Arrays of one framework, from NumPy and back."""

    def __init__(self, name: str) -> None:
        self.name, self.xp = name, importlib.import_module(MODULES[name])

    def array(self, value: Any) -> Any:
        value = np.asarray(value)
        return self.xp.from_numpy(value.copy()) if self.name == "torch" else self.xp.asarray(value)


@pytest.fixture(params=NAMESPACES)
def namespace(request: pytest.FixtureRequest) -> Any:
    if request.param != "jax":
        yield Namespace(request.param)
        return
    jax: Any = importlib.import_module("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield Namespace("jax")
    jax.config.update("jax_enable_x64", before)


def rows(regime: str, dtype: str, count: int = 20_000) -> tuple[np.ndarray[Any, Any], ...]:
    """Shifts, pivots' logits and sums over the other classes."""
    rng = np.random.default_rng(11)
    low, high = REGIMES[regime]
    if dtype == "float64" and regime == "very far above":
        low, high = -720, -600
    shift = (20 * rng.normal(size=count)).astype(dtype)
    pivot_logit = (shift - rng.uniform(low, high, count)).astype(dtype)
    return shift, pivot_logit, (1 + 30 * rng.exponential(size=count)).astype(dtype)


def exact_row_stats(shift: Any, pivot_logit: Any, sum_rest: Any) -> RowStats:
    shift, pivot_logit, sum_rest = (np.asarray(value, np.longdouble) for value in (shift, pivot_logit, sum_rest))
    gap = shift - pivot_logit
    others = sum_rest * np.exp(gap)
    log_total = np.log(sum_rest + np.exp(-gap))
    loss = np.where(gap > 0, gap + log_total, np.log1p(others))
    return RowStats(
        loss=loss,
        logsumexp=np.where(gap > 0, shift + log_total, pivot_logit + loss),
        logsumexp_minus_shift=np.where(gap > 0, log_total, loss - gap),
        p=1 / (1 + others),
        one_minus_p=others / (1 + others),
        exp_scale=np.exp(gap) / (1 + others),
    )


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="long double is no wider than double here")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
def test_row_stats_are_accurate_to_a_few_units_whatever_the_distance(namespace, regime, dtype):
    inputs = rows(regime, dtype)
    stats = pivot.row_stats(namespace.xp, *map(namespace.array, inputs))
    truth = exact_row_stats(*inputs)
    unit = np.finfo(dtype).eps / 2
    # What is smaller is subnormal, or flushed to zero; the two halves of exp(D) and their product are within 10 units.
    smallest = 4 * np.finfo(dtype).tiny
    for name in ("loss", "p", "one_minus_p", "exp_scale"):
        expected = getattr(truth, name)
        error = np.abs(np.asarray(getattr(stats, name)) - expected)
        assert (error <= 10 * unit * expected + smallest).all(), name
    # These are sums, whose terms may cancel and whose logarithm may be of a number near 1.
    scale = np.abs(truth.logsumexp_minus_shift) + 1
    error = np.abs(np.asarray(stats.logsumexp_minus_shift) - truth.logsumexp_minus_shift)
    assert (error <= 6 * unit * scale).all()
    error = np.abs(np.asarray(stats.logsumexp) - truth.logsumexp)
    assert (error <= 6 * unit * (scale + np.abs(inputs[0]) + np.abs(inputs[1]) * (inputs[1] > inputs[0]))).all()


def test_logsumexp_does_not_take_the_rounding_of_the_distance(namespace):
    # The distance 10001.0001 rounds by far more than the 1.0001 that the target adds nothing to.
    shift, pivot_logit, sum_rest = np.float32([1.0001]), np.float32([-1e4]), np.float32([1.0])
    stats = pivot.row_stats(namespace.xp, *map(namespace.array, (shift, pivot_logit, sum_rest)))
    np.testing.assert_array_equal(np.asarray(stats.logsumexp), shift)


def test_row_stats_of_special_rows(namespace):
    inf = np.inf
    cases = {
        "the only class": (2.0, 2.0, 0.0),
        "a target of -inf": (1.0, -inf, 2.0),
        "nothing but -inf": (-inf, -inf, np.nan),
        "a target of +inf": (1.0, inf, 2.0),
        "another class of +inf": (inf, 1.0, np.nan),
        "a distance that overflows": (-3e38, 3e38, 2.0),
        "one whose rounding is huge": (-1e38, 3e30, 2.0),
    }
    inputs = np.array(list(cases.values()), np.float32).T
    stats = pivot.row_stats(namespace.xp, *map(namespace.array, inputs))
    of = {name: RowStats(*(float(value[i]) for value in stats)) for i, name in enumerate(cases)}
    assert of["the only class"][:5] == (0, 2, 0, 1, 0)
    assert of["a target of -inf"].loss == inf
    assert of["a target of -inf"].logsumexp == pytest.approx(1 + np.log(2), rel=1e-6)
    assert of["a target of -inf"][3:] == (0, 1, 0.5)
    for name in ("nothing but -inf", "a target of +inf", "another class of +inf"):
        assert np.isnan(of[name].loss), name
        assert np.isnan(of[name].p), name
    for name in ("a distance that overflows", "one whose rounding is huge"):
        assert (of[name].loss, of[name].p, of[name].one_minus_p) == (0, 1, 0), name
        assert not np.signbit(of[name].loss), name


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
@pytest.mark.parametrize(("ignore_index", "num_classes"), [(-100, 5), (2, 5), (4, 5), (300, 5), (-1, 1000)])
@pytest.mark.parametrize("masked", [False, True])
def test_positions_are_those_of_the_definition(namespace, dtype, ignore_index, num_classes, masked):
    limits = np.iinfo(dtype)
    target = np.array([0, 2, 4, 5, -1, -100, 100], np.int64).clip(limits.min, limits.max).astype(dtype)
    mask = np.array([1, 0.5, 1, 2, 1, 3, 0], np.float32)
    index, position_weight, out_of_range = semantics.index_positions(
        namespace.xp,
        namespace.array(target),
        namespace.array(mask) if masked else None,
        namespace.array(np.ones(target.shape, np.float32)),
        num_classes,
        ignore_index,
    )
    values = target.astype(np.int64)
    outside, ignored = (values < 0) | (values >= num_classes), values == ignore_index
    np.testing.assert_array_equal(np.asarray(index), np.where(outside, 0, values))
    np.testing.assert_array_equal(np.asarray(out_of_range), outside & ~ignored)
    if position_weight is None:
        assert not masked
        assert not ignored.any()
        return
    assert np.asarray(position_weight).dtype == np.float32
    np.testing.assert_array_equal(np.asarray(position_weight), np.where(ignored, 0, mask if masked else 1))


def test_a_position_without_weight_does_not_look_at_its_class_weight(namespace):
    position_weight = np.array([1, 0, 0, 2, np.nan], np.float32)
    target_weight = np.array([3, np.nan, np.inf, 5, 1], np.float32)
    out_of_range = np.array([False, False, True, True, False])
    arrays = [namespace.array(value) for value in (position_weight, target_weight, out_of_range)]
    result = semantics.denominators(namespace.xp, *arrays)
    np.testing.assert_array_equal(np.asarray(result), np.array([3, 0, 0, 2, np.nan], np.float32))
    result = semantics.denominators(namespace.xp, None, arrays[1], arrays[2])
    np.testing.assert_array_equal(np.asarray(result), np.array([3, np.nan, 1, 1, 1], np.float32))
    assert semantics.denominators(namespace.xp, None, None, None) is None


@pytest.mark.parametrize("weight", [[1.0] * 5, [1e-9, 3.0, 2e-9, 0.0, 4e-9], [0.0, 0.0, 1.0, 0.0, 0.0], [2.0]])
def test_smoothing_coefs_do_not_cancel_for_a_class_that_outweighs_the_others(namespace, weight):
    wide = np.array(weight)
    coefs = semantics.smoothing_coefs(namespace.xp, namespace.array(wide), namespace.array(np.arange(len(wide))), 0.3)
    exact = wide.astype(np.longdouble) * np.longdouble(0.3) / len(wide)
    np.testing.assert_allclose(np.asarray(coefs.base), exact.astype(float), rtol=4e-16)
    np.testing.assert_allclose(float(coefs.total), float(exact.sum()), rtol=1e-15)
    without = [float(np.delete(exact, i).sum()) for i in range(len(wide))]
    np.testing.assert_allclose(np.asarray(coefs.without), without, rtol=1e-15)


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("empty", [0.0, np.nan])
def test_an_empty_mean_follows_on_empty_and_keeps_nan(namespace, empty, host):
    for numerator, denominator, expected in [
        (6.0, 4.0, 1.5),
        (0.0, 0.0, empty),
        (np.inf, 0.0, empty),
        (np.nan, 0.0, np.nan),
        (np.nan, 2.0, np.nan),
        (1.0, np.nan, np.nan),
    ]:
        arrays = [namespace.array(np.float32(value)) for value in (numerator, denominator)]
        mean = semantics.mean_of(namespace.xp, *arrays, empty, host)
        np.testing.assert_array_equal(np.asarray(mean), np.float32(expected))
        scale = semantics.grad_scale(namespace.xp, *arrays, empty, host)
        np.testing.assert_array_equal(
            np.asarray(scale), np.float32(empty if denominator == 0 else numerator / denominator)
        )


def test_a_product_with_zero_is_zero_even_of_infinity(namespace):
    coefficient = namespace.array(np.array([0, 0, 0, 2, -0.0], np.float32))
    value = namespace.array(np.array([np.inf, -np.inf, np.nan, np.inf, 3], np.float32))
    result = np.asarray(semantics.product(namespace.xp, coefficient, value))
    np.testing.assert_array_equal(result, np.array([0, 0, np.nan, np.inf, 0], np.float32))


def everything(xp: Any, shift: Any, pivot_logit: Any, sum_rest: Any, target: Any, mask: Any) -> Any:
    stats = pivot.row_stats(xp, shift, pivot_logit, sum_rest)
    index, position_weight, out_of_range = semantics.index_positions(xp, target, mask, mask, 5, -100)
    parts = semantics.denominators(xp, position_weight, mask[index], out_of_range)
    coefs = semantics.smoothing_coefs(xp, mask, target, 0.1)
    mean = semantics.mean_of(xp, semantics.product(xp, position_weight, stats.loss).sum(), parts.sum(), 0.0)
    return *stats, index, *coefs, mean, semantics.grad_scale(xp, mask, parts.sum(), 0.0)


def test_everything_is_traceable(namespace):
    if namespace.name == "numpy":
        pytest.skip("NumPy has no tracer")
    target = np.array([0, 1, 7, -100, 4, 3])
    mask = np.float32([1, 0, 1, 1, 2, 1])
    inputs = [namespace.array(value) for value in (*rows("close", "float32", 6), target, mask)]
    expected = everything(namespace.xp, *inputs)
    if namespace.name == "torch":
        compiled = namespace.xp.compile(everything, backend="eager", fullgraph=True, dynamic=True)
        result = compiled(namespace.xp, *inputs)
    else:
        result = importlib.import_module("jax").jit(everything, static_argnums=0)(namespace.xp, *inputs)
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_of_losses_whose_sum_overflows_is_formed_by_every_namespace(namespace: Namespace, dtype: str) -> None:
    large = float(np.finfo(dtype).max) / 1.5
    for values, denominator, expected in (
        ([large, large, 0], 4, large / 2),
        ([-large, -large, 1], 2, -large),
        ([np.inf, large, large], 2, np.inf),
    ):
        losses = namespace.array(np.array(values, dtype))
        mean = semantics.mean_of_large(losses, denominator, lambda array: array.sum())
        if namespace.name != "numpy" or np.lib.NumpyVersion(np.__version__) >= "2.0.0":
            # NumPy 1 takes a Python float beside a float32 scalar for a float64.
            assert str(mean.dtype).endswith(dtype)
        assert float(mean) == pytest.approx(expected, rel=1e-6)


def softcap_of(softcap, dtype):
    return LogitTransform.of(1.0, softcap, 1.0, dtype).softcap


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_softcap_of_a_transform_is_one_that_the_dtype_holds(dtype):
    limits = np.finfo(dtype)
    smallest, largest = float(limits.smallest_normal), float(limits.max)
    kept = {cap: softcap_of(cap, dtype) for cap in (smallest, 1.0, 30.0, largest)}
    assert all(cap == given for given, cap in kept.items())
    assert softcap_of(smallest / 4, dtype) == smallest
    assert softcap_of(1e300, "float32") is None
    assert softcap_of(None, dtype) is None


@pytest.mark.parametrize(
    ("scale", "softcap", "temperature"),
    [(0.5, None, 1.0), (1.0, None, 0.7), (0.3, 30.0, 0.7), (1e-30, 2.0, 1e-20), (1e30, 1e-9, 1e-8), (1e38, 2.0, 3.0)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_transform_is_the_logits_scaled_capped_and_tempered(scale, softcap, temperature, dtype):
    x = np.array([0.0, 1e-3, -2.0, 50.0])
    expected = scale * x
    if softcap is not None:
        expected = softcap * np.tanh(expected / softcap)
    cap, inverse_temperature = LogitTransform.of(scale, softcap, temperature, dtype)
    capped = x if cap is None else cap * np.tanh(x / cap)
    np.testing.assert_allclose(inverse_temperature * capped, expected / temperature, rtol=1e-12)


@pytest.mark.parametrize(("scale", "temperature"), [(1.0, 1e-39), (1e39, 1.0), (1e-39, 1.0), (1e-30, 1e30)])
def test_a_transform_that_the_dtype_cannot_hold_is_refused_rather_than_wrong(scale, temperature):
    with pytest.raises(OverflowError, match="to compute in float32"):
        LogitTransform.of(scale, None, temperature, "float32")
    assert LogitTransform.of(scale, None, temperature, "float64").inverse_temperature == scale / temperature


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_softcap_beyond_the_accumulation_dtype_has_the_value_that_the_formula_gives(dtype):
    logits, target = np.array([[0.0, 1.0, -2.0]], dtype), np.array([1])
    loss, grad = unixent.value_and_grad(logits, target, softcap=1e300)
    np.testing.assert_array_equal((loss, *grad[0]), (lambda a, b: (a, *b[0]))(*unixent.value_and_grad(logits, target)))
    loss, grad = unixent.value_and_grad(logits, target, softcap=1e-50, dtype="float64")
    assert loss == pytest.approx(np.log(3), rel=1e-7)
    np.testing.assert_allclose(grad, [[1 / 3, 0, 0]], rtol=1e-3)
