"""Statistics of positions over any engine's processes: here threads of this one, so that no MPI is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unixent
from unixent import PositionStats

N, C, D, K = 9, 11, 4, 3
# The second process holds no class at all.
SHARDS = [slice(0, 6), slice(6, 6), slice(6, 11)]
GRADED = ("loss", "log_prob", "entropy", "logsumexp", "selected_log_prob")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"scale": 0.5, "softcap": 3.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.1},
    "padded": {"num_classes": 8},
    "hardly any": {"num_classes": 2},
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def case(rng: np.random.Generator, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], dict[str, Any]]:
    """Logits with ties within and between processes, -inf, NaN and +inf; targets, some of them ignored."""
    options = dict(OPTIONS[name])
    classes = options.get("num_classes", C)
    logits = 3 * rng.normal(size=(N, C))
    logits[1, [0, 7]] = logits[2, [0, 3]] = 9.0
    logits[3, 1:] = -np.inf
    logits[4, 0], logits[5, 1], logits[6, 0] = np.nan, np.inf, -np.inf
    target = rng.integers(classes, size=N)
    target[7] = -100
    selected = rng.integers(classes, size=(N, K))
    selected[:, 2] = -100
    mask = np.where(np.arange(N) == 8, 0, 1.5)
    options |= {"selected": selected, "k": min(5, classes), "mask": mask, "outputs": PositionStats._fields}
    return logits, target, options | {"weight": rng.random(classes)}


def assert_same_stats(got: PositionStats, expected: PositionStats) -> None:
    for name, value, whole in zip(PositionStats._fields, got, expected, strict=True):
        if whole is not None and whole.dtype.kind == "f":
            np.testing.assert_allclose(value, whole, rtol=1e-12, atol=1e-15, err_msg=name)
        else:
            np.testing.assert_array_equal(value, whole, err_msg=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_split_statistics_and_gradients_are_those_of_the_whole_rows(run_model_parallel, rng, name):
    logits, target, options = case(rng, name)
    upstream = PositionStats(**{name: rng.normal(size=(N, K) if name.startswith("sel") else N) for name in GRADED})
    expected, gradient = unixent.position_stats_and_grad(logits, target, grad_output=upstream, **options)

    def work(shard, config):
        given = {"parallel": config, **options}
        stats, own = unixent.position_stats_and_grad(logits[:, shard], target, grad_output=upstream, **given)
        assert_same_stats(stats, expected)
        assert_same_stats(unixent.position_stats(logits[:, shard], target, **given), expected)
        return own

    shares = run_model_parallel(work, SHARDS)
    np.testing.assert_allclose(np.concatenate(shares, axis=1), gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("chunk", [None, 4])
def test_the_split_linear_form_has_the_statistics_of_the_whole(run_model_parallel, rng, chunk):
    _, target, options = case(rng, "all")
    hidden, classifier, bias = rng.normal(size=(N, D)), rng.normal(size=(C, D)), rng.normal(size=C)
    hidden[8] = np.nan
    expected, whole = unixent.linear_position_stats_and_grad(hidden, classifier, target, bias=bias, **options)

    def work(shard, config):
        given = {"bias": bias[shard], "parallel": config, "chunk": chunk, **options}
        stats, grads = unixent.linear_position_stats_and_grad(hidden, classifier[shard], target, **given)
        assert_same_stats(stats, expected)
        np.testing.assert_allclose(grads[0], whole[0], rtol=1e-10, atol=1e-14)
        return grads[1:]

    for got, due in zip(zip(*run_model_parallel(work, SHARDS), strict=True), whole[1:], strict=True):
        np.testing.assert_allclose(np.concatenate(got), due, rtol=1e-10, atol=1e-14)


def test_small_log_probabilities_and_entropies_keep_their_accuracy(run_model_parallel):
    logits = np.array([[20, 0, 0, 0], [0, 0, 20, 0], [0, 0, 20, 0]], np.float32)
    target, outputs = np.array([0, 2, 3]), ("log_prob", "entropy", "log_sum_sq", "max_prob")
    expected = unixent.position_stats(logits.astype(np.float64), target, outputs=outputs)

    def work(shard, config):
        return unixent.position_stats(logits[:, shard], target, outputs=outputs, parallel=config)

    for stats in run_model_parallel(work, [slice(0, 3), slice(3, 4)]):
        for name in outputs:
            np.testing.assert_allclose(getattr(stats, name), getattr(expected, name), rtol=1e-6, err_msg=name)


def test_rows_in_many_blocks_are_reduced_block_by_block(run_model_parallel, rng, monkeypatch):
    monkeypatch.setattr("unixent_numpy.vocab_parallel.positions._SHARED_BYTES", 2 * 8 * 6)
    test_split_statistics_and_gradients_are_those_of_the_whole_rows(run_model_parallel, rng, "all")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"outputs": ("entropy",)}, "the same options"),
        ({"outputs": "nothing"}, "outputs: expected one or several of|refused its arguments"),
        ({"k": 2}, "the same options"),
        ({"k": 12}, "k: expected at most|the same options"),
        ({"selected": np.zeros((N, 2), int)}, "the same positions, targets and mask"),
        ({"selected": np.full((N, K), 1)}, "the same positions, targets and mask"),
        ({"selected": np.full((N, K), C)}, "the same positions, targets and mask"),
        ({"selected": np.zeros((N, K))}, "selected: expected|refused its arguments|the same positions"),
    ],
    ids=str,
)
def test_processes_that_ask_for_other_statistics_all_raise(run_model_parallel, rng, changes, match):
    logits, target = rng.normal(size=(N, C)), rng.integers(C, size=N)
    same = {"outputs": ("selected_log_prob", "top_index"), "k": 3, "selected": np.zeros((N, K), int)}

    def work(shard, config):
        given = {**same, **(changes if shard.start else {})}
        if given["outputs"] != same["outputs"]:
            given.pop("selected") if shard.start else None
        with pytest.raises(unixent.UnixentError, match=match):
            unixent.position_stats(logits[:, shard], target, parallel=config, **given)
        return unixent.position_stats(logits[:, shard], target, parallel=config).log_prob  # and stay in step

    expected = unixent.position_stats(logits, target).log_prob
    np.testing.assert_allclose(run_model_parallel(work, SHARDS), [expected] * 3, rtol=1e-13)


def test_a_loss_is_not_taken_for_statistics(run_model_parallel, rng):
    logits, target = rng.normal(size=(N, C)), rng.integers(C, size=N)

    def work(shard, config):
        function, option = unixent.cross_entropy, {"reduction": "none"}
        if shard.start:
            function, option = unixent.position_stats, {"outputs": "loss"}
        with pytest.raises(unixent.OptionError, match="the same options"):
            function(logits[:, shard], target, parallel=config, **option)
        return True

    assert run_model_parallel(work, SHARDS) == [True] * 3


def test_a_target_out_of_range_that_is_not_read_is_nan_on_all_processes(run_model_parallel, rng):
    logits, target = rng.normal(size=(2, C)), np.array([C, 1])
    outputs = ("log_prob", "entropy", "rank")

    def work(shard, config):
        return unixent.position_stats(logits[:, shard], target, outputs=outputs, validate="off", parallel=config)

    for stats in run_model_parallel(work, SHARDS):
        assert np.isnan([stats.log_prob[0], stats.entropy[0]]).all()
        assert stats.rank[0] == -1
        assert np.isfinite(stats.log_prob[1])


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("tail", ["drop", "renormalize", "bucket"])
def test_split_losses_of_sparse_targets_are_those_of_the_whole_rows(run_model_parallel, rng, tail, smoothed):
    logits, ids, probs = 3 * rng.normal(size=(N, C)), rng.integers(8, size=(N, K)), rng.random((N, K)) / 4
    logits[1, [0, 7]] = 9.0
    logits[3, 1:] = -np.inf
    logits[:, 8:] = np.nan
    ids[2], ids[4, 2], ids[3] = [0, 0, 7], -100, 0
    target = unixent.TopK(ids, probs=probs, tail=tail)
    options: dict[str, Any] = {
        "num_classes": 8,
        "mask": np.where(np.arange(N) == 5, 0, 1.5),
        "wrt": ("logits", "target"),
    }
    if smoothed:
        options |= {"label_smoothing": 0.2, "z_loss": 0.1, "weight": np.array([9.0, 1, 1, 0.5, 0.5, 0, 1, 1])}
    elif tail == "drop":
        options["reduction"] = "none"
    loss, (grad, of_probs) = unixent.value_and_grad(logits, target, **options)
    hidden, classifier = rng.normal(size=(N, D)), rng.normal(size=(C, D))
    of_hidden = {**options, "wrt": ("hidden", "classifier", "target"), "chunk": 2}
    linear = unixent.linear_value_and_grad(hidden, classifier, target, **of_hidden)

    def work(shard, config):
        value, (own, for_probs) = unixent.value_and_grad(logits[:, shard], target, parallel=config, **options)
        np.testing.assert_allclose(value, loss, rtol=1e-12)
        np.testing.assert_allclose(for_probs, of_probs, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(own, grad[:, shard], rtol=1e-10, atol=1e-14)
        value, grads = unixent.linear_value_and_grad(hidden, classifier[shard], target, parallel=config, **of_hidden)
        np.testing.assert_allclose(value, linear[0], rtol=1e-12)
        for got, due in zip(grads, (linear[1][0], linear[1][1][shard], linear[1][2]), strict=True):
            np.testing.assert_allclose(got, due, rtol=1e-10, atol=1e-13)
        return True

    assert run_model_parallel(work, SHARDS) == [True] * 3


@pytest.mark.parametrize("differing", ["ids", "probs", "tail"])
def test_processes_with_other_sparse_targets_all_raise(run_model_parallel, rng, differing):
    logits, same = rng.normal(size=(N, C)), {"ids": np.zeros((N, K), int), "probs": np.ones((N, K)), "tail": "drop"}
    other = {**same, differing: "bucket" if differing == "tail" else same[differing] + 1}

    def work(shard, config):
        target = unixent.TopK(**(other if shard.start else same))
        with pytest.raises(unixent.UnixentError, match=r"expected the same (options|positions, targets and mask)"):
            unixent.cross_entropy(logits[:, shard], target, parallel=config)
        return True

    assert run_model_parallel(work, SHARDS) == [True] * 3
