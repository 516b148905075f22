"""The policy learns the rule, and its statistics are those of the distribution that was sampled from."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason='needs the extra "torch"')
import charlm  # noqa: E402
import grpo  # noqa: E402


@pytest.fixture(scope="module")
def text() -> grpo.Text:
    return grpo.load()


@pytest.fixture(scope="module")
def model(text: grpo.Text) -> charlm.Model:
    torch.manual_seed(0)
    model = charlm.Model(len(text.characters))
    assert len(list(charlm.fit(model, charlm.fused, text.chunks, 25))) == 25
    return model


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probabilities_are_those_of_the_sampling(model: charlm.Model, text: grpo.Text, temperature: float) -> None:
    samples = grpo.sample(model, charlm.windows(text.chunks, 4, grpo.PROMPT), temperature)
    stats = grpo.policy(model, samples, temperature)
    torch.testing.assert_close(stats.log_prob, samples.log_prob, rtol=1e-4, atol=1e-5)
    other = grpo.policy(model, samples, 1.3)
    assert (other.log_prob - samples.log_prob).abs().mean() > 0.05
    assert (other.entropy > stats.entropy).all()


def test_prompts_have_no_gradient(model: charlm.Model, text: grpo.Text) -> None:
    samples = grpo.sample(model, charlm.windows(text.chunks, 4, grpo.PROMPT), 1.0)
    assert (samples.target[:, : grpo.PROMPT - 1] == grpo.IGNORED).all()
    assert (samples.target[:, grpo.PROMPT - 1 :] == samples.chunks[:, grpo.PROMPT :]).all()


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    advantages = grpo.advantages(torch.tensor([[0.5, 0.5, 0.5], [0.0, 1.0, 0.5]]))
    assert (advantages[0] == 0).all()
    assert advantages[1].tolist() == pytest.approx([-1, 1, 0], abs=1e-3)


def test_the_rule_counts_each_word_once() -> None:
    words = frozenset({"the", "name"})
    assert grpo.reward("the the name", words) == pytest.approx(7 / 12)
    assert grpo.reward("then names a", words) == 0


def test_the_reward_rises(model: charlm.Model, text: grpo.Text) -> None:
    options = argparse.Namespace(rate=2e-3, temperature=0.7, updates=2, entropy=0.01)
    torch.manual_seed(1)
    steps = list(grpo.train(model, text, 10, options))
    rewards = [step.reward for step in steps]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.1
    assert all(0 < step.kl < 1 and step.entropy > 0 for step in steps)


def test_it_prints_the_reward_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason='needs the extra "examples"')
    plot = tmp_path / "grpo.svg"
    assert grpo.main(["--pretrain", "2", "--steps", "1", "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "step  reward" in printed
    assert "mean reward of the samples" in plot.read_text("utf-8")
