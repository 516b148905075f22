"""Every causal language model of transformers that can be built small: the loss and gradients of `use` are its own.

In training mode, and with the auxiliary loss of routed experts where a model has one.
"""

from __future__ import annotations

import re
import signal

import pytest
import torch
import transformers
from tiny_models import model_inputs, model_types, tiny_model

from unixent.errors import OptionError
from unixent_torch.transformers import DeferredLogits, use

# Plain, tied, soft-capped and scaled logits; experts, state space, recurrence, a head with a bias; logits that are
# shifted by the model (git) or cut to the classes that exist (inkling2_text), a model that calls cross_entropy (bart).
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
    "git",
    "inkling2_text",
    "bart",
]
OWN_LOSS = {
    "prophetnet": "whose loss is its own by __getitem__",
    "musicgen": "head is a torch.nn.Linear; got ModuleList",
}


def _losses(model_type, loss_and_grads):
    """The model's own loss and ours, each with gradients."""
    model, inputs = tiny_model(model_type), model_inputs(model_type)
    expected = loss_and_grads(model.train(), **inputs)
    use(model, inputs=inputs)
    return loss_and_grads(model, **inputs), expected


@pytest.mark.parametrize("model_type", SAMPLE)
def test_loss_and_gradients_are_those_of_the_model(model_type, loss_and_grads, assert_same):
    actual, expected = _losses(model_type, loss_and_grads)
    assert_same(actual, expected)
    assert isinstance(actual[0].logits, DeferredLogits)
    assert actual[0].logits.values is None


def test_the_auxiliary_loss_of_experts_is_added(loss_and_grads, assert_same):
    actual, expected = _losses("mixtral", loss_and_grads)
    assert actual[0].aux_loss > 0
    torch.testing.assert_close(actual[0].aux_loss, expected[0].aux_loss, rtol=1e-6, atol=0)
    assert any("gate" in name and grad.any() for name, grad in actual[1].items())
    assert_same(actual, expected)


@pytest.mark.parametrize(("model_type", "reason"), OWN_LOSS.items())
def test_models_with_a_loss_of_their_own_are_refused(model_type, reason):
    model, inputs = tiny_model(model_type), model_inputs(model_type)
    with pytest.raises(OptionError, match=re.escape(reason)):
        use(model, inputs=inputs)
    assert not isinstance(model(**inputs).logits, DeferredLogits)


def test_a_model_that_calls_cross_entropy_takes_no_options():
    model = tiny_model("bart")
    with pytest.raises(OptionError, match="expected none for BartForCausalLM, which calls cross_entropy itself"):
        use(model, label_smoothing=0.1)
    assert not isinstance(model(**model_inputs("bart")).logits, DeferredLogits)


def _too_long(*_):
    raise TimeoutError("60 seconds")


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_every_model_is_served_or_refused_with_a_reason(loss_and_grads, assert_same, capsys):
    served, routed, refused, not_built, wrong = [], [], {}, {}, {}
    signal.signal(signal.SIGALRM, _too_long)
    for model_type in model_types():
        signal.alarm(60)
        try:
            model, inputs = tiny_model(model_type).train(), model_inputs(model_type)
            expected = loss_and_grads(model, **inputs)
        except Exception as error:
            not_built[model_type] = f"{type(error).__name__}: {str(error).strip()[:120]!r}"
            continue
        finally:
            signal.alarm(0)
        try:
            use(model, inputs=inputs)
            actual = loss_and_grads(model, **inputs)
            assert_same(actual, expected)
            assert actual[0].logits.values is None
            served.append(model_type)
            if getattr(actual[0], "aux_loss", None) is not None:
                routed.append(model_type)
        except OptionError as error:
            refused[model_type] = str(error)
        except Exception as error:
            wrong[model_type] = f"{type(error).__name__}: {error}"
    with capsys.disabled():
        print(f"\ntransformers {transformers.__version__}: {len(served)} served: {' '.join(served)}")
        print(f"{len(routed)} of them with an auxiliary loss: {' '.join(routed)}")
        for title, reasons in (("refused", refused), ("not built", not_built), ("wrong", wrong)):
            print(f"{len(reasons)} {title}")
            for model_type, reason in reasons.items():
                print(f"    {model_type}: {reason}")
    assert not wrong
    assert refused.keys() == {"musicgen", "musicgen_melody", "prophetnet"}
    assert not_built.keys() <= {"gemma3n", "gemma4_assistant", "gemma4_unified_assistant"}
