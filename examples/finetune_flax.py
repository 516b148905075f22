"""Fine-tuning a language model in Flax, with optax's loss on logits and with the last layer and its loss as one.

    python examples/finetune_flax.py [--steps 40] [--plot finetune_flax.png]

A small transformer is trained on the text of some modules that ship with Python. Both runs start from it and see the
same batches of other modules. They differ in one function, `stock` or `fused`. The memory is that of the compiled step
beside its arguments, as XLA plans it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import corpus
import unixent
from comparison import Run, draw, report

LossOf = Callable[[Any, Any, Any], Any]  # of a model, tokens and the tokens after them: the mean in nats

LENGTH, BATCH, VOCABULARY, WIDTH, HEADS, LAYERS = 128, 16, 8192, 128, 4, 2


class Block(nnx.Module):  # type: ignore[misc]
    """Attention to what came before, and two dense layers."""

    def __init__(self, rngs: Any) -> None:
        self.norm, self.norm_2 = nnx.RMSNorm(WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs), nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norm(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class Model(nnx.Module):  # type: ignore[misc]
    """What the last layer is applied to; `embed` is that layer, too."""

    def __init__(self, rngs: Any) -> None:
        self.embed, self.place = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs), nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens) + self.place(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def stock(model: Any, tokens: Any, target: Any) -> Any:
    logits = model.embed.attend(model(tokens))
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def fused(model: Any, tokens: Any, target: Any) -> Any:
    return unixent.linear_cross_entropy(model(tokens), model.embed.embedding[...], target)


def train(loss_of: LossOf, graph: Any, params: Any, pieces: Any, steps: int, rate: float) -> tuple[Any, Run]:
    """Train with Adam on the pieces in a random order. Returns the parameters, too."""
    optimizer = optax.adam(rate)
    state = optimizer.init(params)

    def step(params: Any, state: Any, piece: Any) -> tuple[Any, Any, Any]:
        def loss_fn(params: Any) -> Any:
            return loss_of(nnx.merge(graph, params), piece[:, :-1], piece[:, 1:])

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    compiled = jax.jit(step).lower(params, state, pieces[:BATCH]).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    order = np.random.default_rng(0).integers(len(pieces), size=(steps, BATCH))
    losses, seconds = [], []
    for chosen in order:
        piece = pieces[chosen]
        begun = time.perf_counter()
        params, state, loss = compiled(params, state, piece)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - begun)
    return params, Run(losses, seconds, memory)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fine-tuning in Flax with optax's loss and with unixent.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--plot", type=Path, default=Path("finetune_flax.png"), help="picture to write")
    chosen = parser.parse_args(arguments)
    tokens, _ = corpus.chunk_indices(corpus.text(), VOCABULARY)
    pieces = jnp.array(tokens[: len(tokens) // (LENGTH + 1) * (LENGTH + 1)]).reshape(-1, LENGTH + 1)
    before, tuned = pieces[: len(pieces) // 2], pieces[len(pieces) // 2 :]

    graph, params = nnx.split(Model(nnx.Rngs(0)))
    params, started = train(fused, graph, params, before, chosen.steps, 3e-3)
    print(f"trained a model from {started.losses[0]:.4f} to {started.losses[-1]:.4f} nats a token\n")
    forms: dict[str, LossOf] = {"optax": stock, "unixent": fused}
    runs = {name: train(form, graph, params, tuned, chosen.steps, 1e-3)[1] for name, form in forms.items()}
    report(runs)
    draw(runs, chosen.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
