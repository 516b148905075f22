"""Every causal language model of transformers that can be built small: the loss and gradients of `use` are its own."""

from __future__ import annotations

import signal

import pytest
import transformers
from tiny_models import TOKENS, model_types, tiny_model

from unixent.errors import OptionError
from unixent_torch.transformers import DeferredLogits, use

# Plain, tied, soft-capped and scaled logits; experts, state space, recurrence, a head with a bias.
SAMPLE = [
    "llama",
    "gpt2",
    "gemma2",
    "cohere",
    "granite",
    "mixtral",
    "mamba",
    "recurrent_gemma",
    "bert",
    "bloom",
    "opt",
    "phi",
]
OWN_LOSS = "whose loss is its own"


@pytest.mark.parametrize("model_type", SAMPLE)
def test_loss_and_gradients_are_those_of_the_model(model_type, loss_and_grads, assert_same):
    model = tiny_model(model_type)
    expected = loss_and_grads(model, input_ids=TOKENS, labels=TOKENS)
    use(model)
    actual = loss_and_grads(model, input_ids=TOKENS, labels=TOKENS)
    assert_same(actual, expected)
    assert isinstance(actual[0].logits, DeferredLogits)
    assert actual[0].logits.values is None


@pytest.mark.parametrize("model_type", ["bart", "trocr"])
def test_models_with_a_loss_of_their_own_are_refused(model_type):
    model = tiny_model(model_type)
    with pytest.raises(OptionError, match=OWN_LOSS):
        use(model)
    assert not isinstance(model(input_ids=TOKENS, labels=TOKENS).logits, DeferredLogits)


def _too_long(*_):
    raise TimeoutError("60 seconds")


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_every_model_is_served_or_refused_with_a_reason(loss_and_grads, assert_same, capsys):
    served, refused, not_built, wrong = [], {}, {}, {}
    signal.signal(signal.SIGALRM, _too_long)
    for model_type in model_types():
        signal.alarm(60)
        try:
            model = tiny_model(model_type)
            expected = loss_and_grads(model, input_ids=TOKENS, labels=TOKENS)
        except Exception as error:
            not_built[model_type] = f"{type(error).__name__}: {str(error).strip()[:120]!r}"
            continue
        finally:
            signal.alarm(0)
        try:
            use(model)
            actual = loss_and_grads(model, input_ids=TOKENS, labels=TOKENS)
            assert_same(actual, expected)
            assert actual[0].logits.values is None
            served.append(model_type)
        except OptionError as error:
            refused[model_type] = str(error)
        except Exception as error:
            wrong[model_type] = f"{type(error).__name__}: {error}"
    with capsys.disabled():
        print(f"\ntransformers {transformers.__version__}: {len(served)} served: {' '.join(served)}")
        for title, reasons in (("refused", refused), ("not built", not_built), ("wrong", wrong)):
            print(f"{len(reasons)} {title}")
            for model_type, reason in reasons.items():
                print(f"    {model_type}: {reason}")
    assert not wrong
    assert len(served) > len(refused)
