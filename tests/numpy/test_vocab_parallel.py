"""Vocabulary-parallel losses over any engine's processes: here threads of this one, so that no MPI is needed."""

from __future__ import annotations

import numpy as np
import pytest

import unixent
import unixent_numpy.linear as linear

N, C, D = 10, 9, 4
# The first process holds no class at all.
SHARDS = [slice(0, 0), slice(0, 7), slice(7, 9)]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def logits(rng):
    return 3 * rng.normal(size=(N, C))


@pytest.fixture
def index(rng):
    return rng.integers(C, size=N)


@pytest.fixture
def hidden(rng):
    return rng.normal(size=(N, D))


@pytest.fixture
def classifier(rng):
    return rng.normal(size=(C, D))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "weighted": True, "z_loss": 0.1}], ids=str)
def test_any_group_shares_the_classes(run_model_parallel, rng, logits, index, options):
    options = dict(options)
    if options.pop("weighted", False):
        options["weight"] = rng.random(C)
    expected_loss, expected_grad = unixent.value_and_grad(logits, index, **options)
    results = run_model_parallel(
        lambda shard, config: unixent.value_and_grad(logits[:, shard], index, parallel=config, **options), SHARDS
    )
    for loss, _ in results:
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-13)
    grad = np.concatenate([local_grad for _, local_grad in results], axis=1)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("num_classes", [1, 6, 7, 8, 9])
@pytest.mark.parametrize("fill", [np.nan, np.inf])
def test_padding_behind_the_classes_that_exist_changes_nothing(run_model_parallel, rng, logits, num_classes, fill):
    index, probabilities = rng.integers(num_classes, size=N), rng.random((N, C))
    logits[:, num_classes:] = probabilities[:, num_classes:] = fill
    options = {"num_classes": num_classes, "label_smoothing": 0.2, "weight": rng.random(num_classes)}
    wrt = ("logits", "target")
    loss, expected = unixent.value_and_grad(logits, index, **options)
    loss_of_probabilities, expected_of_probabilities = unixent.value_and_grad(logits, probabilities, wrt=wrt, **options)

    def work(shard, config):
        value, grad = unixent.value_and_grad(logits[:, shard], index, parallel=config, **options)
        np.testing.assert_allclose(value, loss, rtol=1e-13)
        of_probabilities = probabilities[:, shard]
        value, grads = unixent.value_and_grad(logits[:, shard], of_probabilities, wrt=wrt, parallel=config, **options)
        np.testing.assert_allclose(value, loss_of_probabilities, rtol=1e-13)
        return grad, *grads

    results = zip(*run_model_parallel(work, SHARDS), strict=True)
    for shares, whole in zip(results, (expected, *expected_of_probabilities), strict=True):
        np.testing.assert_allclose(np.concatenate(shares, axis=1), whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("num_classes", [1, 6, 7, 8])
def test_padding_of_a_split_classifier_changes_nothing(run_model_parallel, rng, hidden, classifier, num_classes):
    index = rng.integers(num_classes, size=N)
    classifier[num_classes:] = np.nan
    loss, (for_hidden, expected) = unixent.linear_value_and_grad(hidden, classifier, index, num_classes=num_classes)

    def work(shard, config):
        value, grads = unixent.linear_value_and_grad(
            hidden, classifier[shard], index, num_classes=num_classes, parallel=config
        )
        np.testing.assert_allclose(value, loss, rtol=1e-13)
        np.testing.assert_allclose(grads[0], for_hidden, rtol=1e-12, atol=1e-15)
        return grads[1]

    np.testing.assert_allclose(np.concatenate(run_model_parallel(work, SHARDS)), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("num_classes", [10, [3, 3, 4]], ids=str)
def test_processes_that_disagree_on_the_classes_all_raise(run_model_parallel, logits, index, num_classes):
    def work(shard, config):
        own = num_classes[config.model_group.rank] if isinstance(num_classes, list) else num_classes
        with pytest.raises(unixent.OptionError, match=r"num_classes: .*\[1, 9\]; got 10|the same options"):
            unixent.cross_entropy(logits[:, shard], np.zeros_like(index), num_classes=own, parallel=config)
        return True

    assert run_model_parallel(work, SHARDS) == [True] * len(SHARDS)


@pytest.mark.parametrize("differing", ["target", "mask"])
def test_processes_of_a_model_group_with_other_targets_or_masks_all_raise(run_model_parallel, logits, index, differing):
    def work(shard, config):
        arguments = {"target": index, "mask": np.ones(N)}
        if shard.start:
            arguments[differing] = arguments[differing].copy()
            arguments[differing][3] = (arguments[differing][3] + 1) % C
        with pytest.raises(unixent.ShapeError, match="expected the same positions, targets and mask on every process"):
            unixent.cross_entropy(logits[:, shard], parallel=config, **arguments)
        return unixent.cross_entropy(logits[:, shard], index, parallel=config)  # and stay in step

    expected = unixent.cross_entropy(logits, index)
    np.testing.assert_allclose(run_model_parallel(work, SHARDS), expected, rtol=1e-13)


def test_the_same_targets_and_masks_in_other_dtypes_are_the_same(run_model_parallel, logits, index):
    mask = np.arange(N) % 3 > 0
    dtypes = [("int8", "bool"), ("int64", "float32"), ("uint16", "float64")]

    def work(shard, config):
        target_dtype, mask_dtype = dtypes[config.model_group.rank]
        arguments = {"target": index.astype(target_dtype), "mask": mask.astype(mask_dtype)}
        return unixent.cross_entropy(logits[:, shard], parallel=config, **arguments)

    expected = unixent.cross_entropy(logits, index, mask=mask)
    np.testing.assert_allclose(run_model_parallel(work, SHARDS), expected, rtol=1e-13)


def test_a_target_far_below_keeps_the_accuracy_of_its_probability(run_model_parallel):
    # p_y = exp(-D) / R with D = 70.3 inexact in float32: its gradient under smoothing is as good as on one process.
    logits = np.zeros((1, C), np.float32)
    logits[0, 8] = -70.3
    target = np.array([8])
    options = {"label_smoothing": 1.0, "reduction": "none", "z_loss": 1e-3}
    expected = unixent.value_and_grad(logits.astype(np.float64), target, **options)[1]
    results = run_model_parallel(
        lambda shard, config: unixent.value_and_grad(logits[:, shard], target, parallel=config, **options)[1], SHARDS
    )
    np.testing.assert_allclose(np.concatenate(results, axis=1), expected, rtol=2e-6)


def test_processes_with_unequal_shares_of_a_classifier_take_the_same_chunks(
    run_model_parallel, monkeypatch, hidden, classifier, index
):
    # As many positions in a chunk as fit a budget: a small share of the classes alone would take more of them.
    monkeypatch.setattr(linear, "linear_chunk", lambda count, classes, *_: min(count, max(1, 21 // classes)))
    expected_loss, expected_grad = unixent.linear_value_and_grad(hidden, classifier, index, wrt="hidden")
    results = run_model_parallel(
        lambda shard, config: unixent.linear_value_and_grad(
            hidden, classifier[shard], index, wrt="hidden", parallel=config
        ),
        SHARDS,
    )
    for loss, grad in results:
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-13)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-12, atol=1e-15)


def test_processes_with_different_chunks_all_raise(run_model_parallel, hidden, classifier, index):
    def work(shard, config):
        chunk = 3 if shard.start else 2
        with pytest.raises(unixent.OptionError, match="expected the same options"):
            unixent.linear_cross_entropy(hidden, classifier[shard], index, chunk=chunk, parallel=config)
        return True

    assert run_model_parallel(work, SHARDS) == [True] * len(SHARDS)


@pytest.mark.parametrize(("smoothing", "probabilities", "numbers"), [(0.0, False, 3), (0.2, False, 4), (0.0, True, 7)])
@pytest.mark.parametrize("call", [unixent.cross_entropy, unixent.value_and_grad])
def test_a_position_sends_few_numbers_and_none_for_the_gradient(
    run_model_parallel, logits, index, call, smoothing, probabilities, numbers
):
    logits = logits.astype(np.float32)
    uniform = np.full_like(logits, 1 / C)

    def reduced_bytes(shard, config):
        target = uniform[:, shard] if probabilities else index
        call(logits[:, shard], target, label_smoothing=smoothing, parallel=config)
        return config.model_group.reduced_bytes

    assert run_model_parallel(reduced_bytes, SHARDS) == [4 * N * numbers] * len(SHARDS)


def test_a_gradient_that_overflows_on_one_process_raises_there_and_nobody_waits(run_model_parallel):
    logits = np.zeros((2, C), np.float16)
    logits[1, 7] = 20
    label = np.array([8, 8])

    def message(shard, config):
        loss = unixent.CrossEntropyLoss(config, check_for_nan_in_loss_and_grad=True, dtype="float32")
        try:
            loss(logits[:, shard], label, normalizer=1e-5)
        except unixent.NonFiniteError as error:
            return str(error)
        return None

    expected = "gradient: expected finite values; got a NaN or infinite gradient at position (0,)"
    assert run_model_parallel(message, SHARDS) == [None, None, expected]
