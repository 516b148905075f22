"""Weight, mask and normalizer are constants: whoever asks for their derivative gets an error, in either direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.func import functionalize, grad, jacfwd, jvp, vmap

import unixent
from unixent_torch import CrossEntropyLoss, LinearCrossEntropyLoss

X, INDEX = torch.linspace(-1, 1, 6).view(2, 3), torch.tensor([0, 1])
PROBABILITIES, EYE = X.flip(0).softmax(1), torch.eye(3)
LINEAR_MODULE = LinearCrossEntropyLoss(3, 3)
CONSTANTS = {"weight": torch.ones(3), "mask": torch.ones(2), "normalizer": torch.tensor(2.0)}

Loss = Callable[..., Any]
FORMS: dict[str, Loss] = {
    "index": lambda x, **constant: unixent.cross_entropy(x, INDEX, **constant),
    "probability": lambda x, **constant: unixent.cross_entropy(x, PROBABILITIES, **constant),
    "linear": lambda x, **constant: unixent.linear_cross_entropy(x, EYE, INDEX, **constant),
    "gradient": lambda x, **constant: unixent.value_and_grad(x, INDEX, **constant)[1].sum(),
    "linear gradient": lambda x, **constant: unixent.linear_value_and_grad(x, EYE, INDEX, **constant)[1][0].sum(),
    "terms": lambda x, **constant: sum(unixent.loss_terms(x, INDEX, **constant)),
    "module": lambda x, **constant: CrossEntropyLoss()(x, INDEX, **constant),
    "linear module": lambda x, **constant: LINEAR_MODULE(x, INDEX, **constant),
}


def dual(function: Loss, primal: Tensor, tangent: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(primal, tangent))).tangent


def reverse(function: Loss, constant: Tensor) -> Any:
    leaf = constant.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)


# Of a loss f of logits and a constant: f(logits, constant).
Transform = Callable[[Loss, Tensor], Any]
TRANSFORMS: dict[str, Transform] = {
    "reverse": lambda f, c: reverse(lambda c: f(X, c), c),
    "grad": lambda f, c: grad(lambda c: f(X, c))(c),
    "grad of grad": lambda f, c: grad(lambda c: grad(lambda x: f(x, c))(X).sum())(c),
    "jvp": lambda f, c: jvp(lambda c: f(X, c), (c,), (c,)),
    "jvp along zero": lambda f, c: jvp(lambda c: f(X, c), (c,), (0 * c,)),
    "jvp of logits too": lambda f, c: jvp(f, (X, c), (X, c)),
    "jacfwd": lambda f, c: jacfwd(lambda c: f(X, c))(c),
    "jvp of grad": lambda f, c: jvp(lambda c: grad(lambda x: f(x, c))(X), (c,), (c,)),
    "jvp of vmap": lambda f, c: jvp(lambda c: vmap(lambda x: f(x, c))(torch.stack((X, X))), (c,), (c,)),
    "vmap of jvp": lambda f, c: vmap(lambda c: jvp(lambda c: f(X, c), (c,), (c,))[1])(torch.stack((c, c))),
    "dual": lambda f, c: dual(lambda c: f(X, c), c, c),
    "dual of grad": lambda f, c: dual(lambda c: grad(lambda x: f(x, c))(X), c, c),
    "functionalize of grad": lambda f, c: functionalize(grad(lambda c: f(X, c)))(c),
    "grad of functionalize": lambda f, c: grad(functionalize(lambda c: f(X, c)))(c),
    "jvp of functionalize": lambda f, c: jvp(functionalize(lambda c: f(X, c)), (c,), (c,)),
    "jvp of jvp": lambda f, c: jvp(lambda c: jvp(lambda c: f(X, c), (c,), (c,))[1], (c,), (c,)),
    "jvp of jvp of logits": lambda f, c: jvp(lambda c: jvp(lambda x: f(x, c), (X,), (X,))[1], (c,), (c,)),
    "jvp of logits of jvp": lambda f, c: jvp(lambda x: jvp(lambda c: f(x, c), (c,), (c,))[1], (X,), (X,)),
}


def cases() -> Iterator[tuple[str, str, str]]:
    for form in FORMS:
        for name in CONSTANTS:
            if (form, name) != ("terms", "normalizer") and not (name == "weight" and "module" in form):
                yield from ((form, name, transform) for transform in TRANSFORMS)


@pytest.mark.parametrize(("form", "name", "transform"), list(cases()))
def test_a_derivative_along_a_constant_is_refused_by_name(form: str, name: str, transform: str) -> None:
    with pytest.raises(unixent.OptionError, match=f"{name}: expected a constant"):
        TRANSFORMS[transform](lambda x, c: FORMS[form](x, **{name: c}), CONSTANTS[name])


@pytest.mark.parametrize(
    ("form", "name", "transform"),
    [
        *(("index", "weight", transform) for transform in ("grad", "jacfwd", "jvp of grad", "vmap of jvp")),
        ("linear", "mask", "jvp of vmap"),
        ("gradient", "normalizer", "grad"),
    ],
)
def test_a_compiled_derivative_along_a_constant_is_refused_by_name(form: str, name: str, transform: str) -> None:
    compiled = torch.compile(
        lambda c: TRANSFORMS[transform](lambda x, c: FORMS[form](x, **{name: c}), c), backend="eager", fullgraph=True
    )
    with pytest.raises(RuntimeError, match=f"{name}: expected a constant"):
        compiled(CONSTANTS[name])


def test_no_operation_is_left_of_the_look_at_constants_in_a_compiled_derivative() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Loss:
        graphs.append(graph)
        return graph.forward

    backend = aot_autograd(fw_compiler=keep)
    gradient = grad(lambda x, weight: unixent.cross_entropy(x, INDEX, weight=weight))
    compiled = torch.compile(gradient, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(X, torch.arange(3.0)), gradient(X, torch.arange(3.0)))
    assert len(graphs) == 1
    assert "refuse_derivative" not in graphs[0].code


@pytest.mark.parametrize("derivative", [grad, jacfwd, lambda f: jacfwd(jacfwd(f)), lambda f: functionalize(grad(f))])
def test_a_constant_that_was_made_of_the_logits_is_detached_first(derivative: Loss) -> None:
    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return unixent.cross_entropy(x, INDEX, weight=weight)

    with pytest.raises(unixent.OptionError, match="weight: expected a constant"):
        derivative(lambda x: loss(x, x[0].exp()))(X)
    due = derivative(lambda x: loss(x, X[0].exp()))(X)
    torch.testing.assert_close(derivative(lambda x: loss(x, x[0].exp().detach()))(X), due)


@pytest.mark.parametrize("form", FORMS)
def test_constants_beside_moving_logits_are_taken(form: str) -> None:
    constants = CONSTANTS if form != "terms" else {"mask": CONSTANTS["mask"]}
    given = {name: value for name, value in constants.items() if name != "weight" or "module" not in form}
    _, tangent = jvp(lambda x: FORMS[form](x, **given), (X,), (X,))
    assert tangent.isfinite()
    if "gradient" not in form:
        gradient = grad(lambda x: FORMS[form](x, **given))(X)
        torch.testing.assert_close(tangent, (gradient * X).sum())


@pytest.mark.parametrize("loss", [unixent.cross_entropy, lambda x, y: unixent.linear_cross_entropy(x, EYE, y)])
@pytest.mark.parametrize("rows", [2, 20000])
def test_forward_mode_passes_a_backward_pass(rows: int, loss: Loss) -> None:
    """The tangent of an upstream gradient reaches the gradient, also where the loss was formed without forward mode."""
    x, y = X.repeat(rows // 2, 1).requires_grad_(), INDEX.repeat(rows // 2)
    (due,) = torch.autograd.grad(loss(x, y), x)
    value = loss(x, y)
    gradient = dual(lambda g: torch.autograd.grad(value, x, g)[0], torch.tensor(1.0), torch.tensor(3.0))
    torch.testing.assert_close(gradient, 3 * due)
