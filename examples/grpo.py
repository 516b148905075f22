"""Reinforcement learning of the character model with a rule as the reward: GRPO, in about 30 lines.

    python examples/grpo.py [--steps 30] [--temperature 0.7] [--plot grpo.svg]

The model of charlm.py first learns to predict the text, then to write what a rule likes: the share of a completion's
characters that are part of distinct words of the text. Each step samples a group of completions for each prompt at a
temperature and takes their advantages from the group's own mean and deviation; a few updates follow with the clipped
ratio of the new policy to the old one and a bonus for entropy. `unixent.linear_position_stats` gives the
log-probability of the sampled characters and the entropy of the policy, differentiably and without the logits, at the
temperature at which they were sampled.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import charlm
import corpus
import unixent

PROMPT, LENGTH, PROMPTS, GROUP = 16, 32, 8, 16
CLIP, IGNORED = 0.2, -100


class Samples(NamedTuple):
    """Prompts with their completions [batch, PROMPT + LENGTH], and the log-probabilities by which they were drawn."""

    chunks: Tensor
    log_prob: Tensor

    @property
    def target(self) -> Tensor:
        """The next character of each, where it was sampled; the others are ignored, and have statistics of 0."""
        target = self.chunks[:, 1:].clone()
        target[:, : PROMPT - 1] = IGNORED
        return target


class Step(NamedTuple):
    """One step of GRPO: the mean reward of its samples, and what its updates did to the policy."""

    reward: float
    entropy: float  # nats a character, of the policy that sampled
    kl: float  # of the old policy from the new, nats a character, estimated from the samples
    clipped: float  # share of the characters whose ratio left the clipping range


def sample(model: charlm.Model, prompts: Tensor, temperature: float) -> Samples:
    """Complete the prompts, character by character."""
    chunks, log_probs = [prompts], []
    with torch.no_grad():
        hidden, state = model.memory(model.embedding(prompts))
        for _ in range(LENGTH):
            log_p = torch.log_softmax(model.scores(hidden[:, -1]) / temperature, -1)
            chunks.append(torch.multinomial(log_p.exp(), 1))
            log_probs.append(log_p.gather(1, chunks[-1]))
            hidden, state = model.memory(model.embedding(chunks[-1]), state)
    return Samples(torch.cat(chunks, 1), torch.cat(log_probs, 1))


def policy(model: charlm.Model, samples: Samples, temperature: float) -> unixent.PositionStats:
    """Log-probability of each sampled character and entropy of the policy there, [batch, LENGTH]."""
    stats = unixent.linear_position_stats(
        model(samples.chunks[:, :-1]),
        model.scores.weight,
        samples.target,
        bias=model.scores.bias,
        outputs=("log_prob", "entropy"),
        temperature=temperature,
    )
    return stats._replace(log_prob=stats.log_prob[:, PROMPT - 1 :], entropy=stats.entropy[:, PROMPT - 1 :])


def reward(completion: str, words: frozenset[str]) -> float:
    """The rule: how much of the completion is distinct words of three letters or more that occur in the text."""
    written = set(re.findall(r"\b[a-z]{3,}\b", completion))
    return sum(map(len, written & words)) / len(completion)


def advantages(rewards: Tensor) -> Tensor:
    """Rewards [PROMPTS, GROUP], normalised within each group."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


class Text(NamedTuple):
    """The text, as characters and as indices of them, and its words."""

    chunks: Tensor
    characters: list[str]
    words: frozenset[str]

    def decode(self, chunks: Tensor) -> str:
        return "".join(self.characters[i] for i in chunks.tolist())


def load() -> Text:
    source = corpus.text()
    return Text(charlm.encode(source, 0)[0], sorted(set(source)), frozenset(re.findall(r"\b[a-z]{3,}\b", source)))


def train(model: charlm.Model, text: Text, steps: int, options: argparse.Namespace) -> Iterator[Step]:
    optimizer = torch.optim.Adam(model.parameters(), lr=options.rate)
    for _ in range(steps):
        prompts = charlm.windows(text.chunks, PROMPTS, PROMPT).repeat_interleave(GROUP, 0)
        samples = sample(model, prompts, options.temperature)
        rewards = torch.tensor([reward(text.decode(row), text.words) for row in samples.chunks[:, PROMPT:]])
        advantage = advantages(rewards.view(PROMPTS, GROUP)).view(-1, 1)
        with torch.no_grad():
            old = policy(model, samples, options.temperature)
        for _ in range(options.updates):
            new = policy(model, samples, options.temperature)
            ratio = (new.log_prob - old.log_prob).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            gain = torch.minimum(ratio * advantage, clipped * advantage) + options.entropy * new.entropy
            optimizer.zero_grad()
            (-gain.mean()).backward()
            optimizer.step()
        with torch.no_grad():
            log_ratio = policy(model, samples, options.temperature).log_prob - old.log_prob
        yield Step(
            rewards.mean().item(),
            old.entropy.mean().item(),
            (log_ratio.expm1() - log_ratio).mean().item(),
            ((log_ratio.exp() - 1).abs() > CLIP).float().mean().item(),
        )


def draw(steps: list[Step], path: Path) -> None:
    """Reward and entropy against steps."""
    from plotting import colour, panels

    with panels(path, 2) as (left, right):
        left.plot(range(1, len(steps) + 1), [step.reward for step in steps], color=colour("unixent"))
        left.set(xlabel="step", ylabel="mean reward of the samples", ylim=(0, 1))
        right.plot(range(1, len(steps) + 1), [step.entropy for step in steps], color=colour("unixent"))
        right.set(xlabel="step", ylabel="entropy of the policy (nats)", ylim=(0, None))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="GRPO of a character model with a rule as the reward.")
    parser.add_argument("--pretrain", type=int, default=300, help="steps of training on the text")
    parser.add_argument("--steps", type=int, default=30, help="of GRPO")
    parser.add_argument("--updates", type=int, default=2, help="of the policy, for the samples of each step")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--entropy", type=float, default=0.01, help="weight of the entropy bonus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="plot to write")
    chosen = parser.parse_args(arguments)
    torch.manual_seed(chosen.seed)
    text = load()
    model = charlm.Model(len(text.characters))
    for _ in charlm.fit(model, charlm.fused, text.chunks, chosen.pretrain):
        pass

    prompts = charlm.windows(text.chunks, 3, PROMPT)

    def show(when: str) -> Samples:
        torch.manual_seed(chosen.seed)
        samples = sample(model, prompts, chosen.temperature)
        print(f"{when}:")
        for row in samples.chunks:
            print(f"    {text.decode(row[:PROMPT])!r} -> {text.decode(row[PROMPT:])!r}")
        return samples

    samples = show("before")
    with torch.no_grad():
        at = {t: policy(model, samples, t).log_prob.mean().item() for t in (chosen.temperature, 1.0)}
    drawn = samples.log_prob.mean().item()
    print(f"\nlog-probability of a sampled character: {drawn:.4f}, as drawn")
    for temperature, log_prob in at.items():
        print(f"                                        {log_prob:.4f}, asked at temperature {temperature:g}")
    print("\nstep  reward  entropy      KL  clipped")
    steps = []
    for step in train(model, text, chosen.steps, chosen):
        steps.append(step)
        if len(steps) == 1 or len(steps) % 5 == 0 or len(steps) == chosen.steps:
            print(f"{len(steps):4}  {step.reward:6.3f}  {step.entropy:7.4f}  {step.kl:6.4f}  {step.clipped:7.1%}")
    print()
    show("after")
    if chosen.plot:
        draw(steps, chosen.plot)
        print(f"plotted in {chosen.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
