"""`unixent_torch.LinearCrossEntropyLoss`: a drop-in for torch's, owning or borrowing its weight."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import unixent
from unixent_torch import LinearCrossEntropyLoss

N, D, C = 9, 4, 6


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(N, D, generator=generator), torch.randint(C, (N,), generator=generator)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "label_smoothing": 0.1},
        {"weight": torch.arange(1.0, C + 1), "reduction": "sum"},
        {"reduction": "none", "ignore_index": 2},
        {"dtype": torch.float64},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_stands_in_for_the_one_of_torch(batch, options):
    hidden, target = batch
    hidden = hidden.to(options.get("dtype", torch.float32))
    theirs, ours = nn.LinearCrossEntropyLoss(D, C, **options), LinearCrossEntropyLoss(D, C, **options)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(hidden, target), theirs(hidden, target))
    for loss in (ours, theirs):
        loss(hidden, target).sum().backward()
    torch.testing.assert_close(ours.linear.weight.grad, theirs.linear.weight.grad)


def test_a_mean_over_nothing_is_nan_by_default(batch):
    hidden, target = batch
    target = torch.full_like(target, -100)
    assert LinearCrossEntropyLoss(D, C)(hidden, target).isnan()
    assert LinearCrossEntropyLoss(D, C, on_empty="zero")(hidden, target) == 0


@pytest.mark.parametrize("owner", [nn.Embedding(C, D), nn.Linear(D, C)], ids=["embedding", "linear"])
def test_a_borrowed_weight_stays_with_its_owner(batch, owner):
    hidden, target = batch
    loss = LinearCrossEntropyLoss(D, C, classifier=owner)
    assert not list(loss.parameters())
    assert not loss.state_dict()
    loss(hidden, target).backward()
    assert owner.weight.grad.abs().sum() > 0
    expected = unixent.linear_cross_entropy(hidden, owner.weight, target, bias=getattr(owner, "bias", None))
    torch.testing.assert_close(loss(hidden, target), expected)
    # What happens to the owner happens to the loss.
    owner.weight = nn.Parameter(torch.zeros(C, D))
    if getattr(owner, "bias", None) is not None:
        nn.init.zeros_(owner.bias)
    torch.testing.assert_close(loss(hidden, target).item(), torch.tensor(C).log().item())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(C, D)
        self.loss = LinearCrossEntropyLoss(D, C, classifier=self.embedding)

    def forward(self, tokens):
        return self.loss(self.embedding(tokens), tokens)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_borrows_from_itself(batch, clone):
    model = Tied()
    copied = clone(model)
    assert copied.loss.classifier is copied.embedding
    assert [name for name, _ in copied.named_parameters()] == ["embedding.weight"]
    torch.testing.assert_close(copied(batch[1]), model(batch[1]), rtol=0, atol=0)
    copied.double()
    assert copied(batch[1]).dtype == torch.float64


def test_a_mask_and_a_normalizer_are_those_of_the_function(batch):
    hidden, target = batch
    loss = LinearCrossEntropyLoss(D, C, bias=True, z_loss=0.1, softcap=3.0, chunk=2)
    mask = torch.arange(N) % 3
    expected = unixent.cross_entropy(loss.linear(hidden), target, mask=mask, normalizer=5.0, z_loss=0.1, softcap=3.0)
    torch.testing.assert_close(loss(hidden, target, mask, normalizer=5.0), expected)


def test_probabilities_give_the_stock_loss(batch):
    hidden, _ = batch
    target = torch.rand(N, C, generator=torch.Generator().manual_seed(6)).requires_grad_()
    loss = LinearCrossEntropyLoss(D, C)
    torch.testing.assert_close(loss(hidden, target), nn.functional.cross_entropy(loss.linear(hidden), target))


def test_an_index_to_ignore_is_refused_beside_probabilities(batch):
    hidden, _ = batch
    with pytest.raises(unixent.OptionError, match="ignore_index: expected the default -100 with probability targets"):
        LinearCrossEntropyLoss(D, C, ignore_index=2)(hidden, torch.rand(N, C))


def test_autocast_gives_float32(batch):
    hidden, target = batch
    loss = LinearCrossEntropyLoss(D, C)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(hidden.bfloat16(), target)
    assert value.dtype == torch.float32
    value.backward()
    assert loss.linear.weight.grad.dtype == torch.float32


def test_arguments_are_checked_on_construction():
    with pytest.raises(unixent.OptionError, match="label_smoothing: expected"):
        LinearCrossEntropyLoss(D, C, label_smoothing=2.0)
    with pytest.raises(unixent.ShapeError, match=r"classifier: expected a module with a weight of shape \(6, 4\)"):
        LinearCrossEntropyLoss(D, C, classifier=nn.Embedding(C, D + 1))


def test_repr_shows_what_is_not_the_default():
    loss = LinearCrossEntropyLoss(D, C, weight=torch.ones(C), reduction="sum", chunk=7)
    assert repr(loss) == (
        "LinearCrossEntropyLoss(\n  in_features=4, num_classes=6, weight=(6,), reduction='sum', chunk=7\n"
        "  (linear): Linear(in_features=4, out_features=6, bias=False)\n)"
    )


def test_the_compiled_module_agrees_with_eager(batch):
    hidden, target = batch
    loss = LinearCrossEntropyLoss(D, C)
    torch.compiler.reset()
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(hidden, target), loss(hidden, target), rtol=0, atol=0)


class Adapted(nn.Linear):
    """A head with a low-rank adapter, as fine-tuning libraries make it."""

    def __init__(self):
        super().__init__(D, C)
        self.a, self.b = nn.Parameter(torch.ones(2, D)), nn.Parameter(torch.ones(C, 2) / 3 * torch.arange(C)[:, None])

    def forward(self, x):
        return super().forward(x) + x @ self.a.T @ self.b.T


def hooked():
    linear = nn.Linear(D, C)
    linear.register_forward_hook(lambda module, inputs, output: output * torch.arange(C))
    return linear


def replaced():
    linear = nn.Linear(D, C)
    linear.forward = lambda x: torch.sin(nn.functional.linear(x, linear.weight, linear.bias))
    return linear


@pytest.mark.parametrize("make", [Adapted, hooked, replaced, lambda: nn.Sequential(nn.Linear(D, 3), nn.Linear(3, C))])
def test_a_classifier_that_is_more_than_its_weight_is_called(batch, make):
    (hidden, target), classifier = batch, make()
    loss = LinearCrossEntropyLoss(D, C, classifier=classifier, label_smoothing=0.1)
    expected = unixent.cross_entropy(classifier(hidden), target, label_smoothing=0.1)
    got = loss(hidden, target)
    torch.testing.assert_close(got, expected)
    assert got.isfinite()
    parameters = list(classifier.parameters())
    due = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(torch.autograd.grad(got, parameters), due)
    with pytest.raises(unixent.ShapeError, match="classifier: expected a module that makes 7 logits"):
        LinearCrossEntropyLoss(D, C + 1, classifier=classifier)(hidden, target)


def test_a_parametrized_weight_is_used_as_it_is_parametrized(batch):
    hidden, target = batch
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(D, C))
    got = LinearCrossEntropyLoss(D, C, classifier=linear)(hidden, target)
    torch.testing.assert_close(got, unixent.cross_entropy(linear(hidden), target))


@pytest.mark.parametrize("owner", [nn.Embedding(C + 2, D), nn.Linear(D, C + 2)], ids=["embedding", "linear"])
@pytest.mark.parametrize("called", [False, True], ids=["borrowed", "called"])
def test_a_borrowed_classifier_may_hold_padding(batch, owner, called):
    """The classes behind num_classes do not exist, whatever they hold."""
    hidden, target = batch
    with torch.no_grad():
        owner.weight[C] = 30
        owner.weight[C + 1] = torch.nan
    bias = getattr(owner, "bias", None)
    if called:
        owner = nn.Sequential(nn.Linear(D, C + 2, bias=bias is not None))
        with torch.no_grad():
            owner[0].weight[C:] = torch.nan
    layer = owner[0] if called else owner
    weight, bias = layer.weight.detach()[:C].clone(), getattr(layer, "bias", None)
    options = {"label_smoothing": 0.1, "z_loss": 0.1}
    loss = LinearCrossEntropyLoss(D, C, classifier=owner, weight=torch.linspace(0.5, 1, C), **options)
    exact = LinearCrossEntropyLoss(D, C, bias=bias is not None, weight=loss.weight, **options)
    exact.linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias.detach()[:C]}))
    torch.testing.assert_close(loss(hidden, target), exact(hidden, target))
    loss(hidden, target).backward()
    exact(hidden, target).backward()
    torch.testing.assert_close(layer.weight.grad[:C], exact.linear.weight.grad)
    assert not layer.weight.grad[C:].any()
    with pytest.raises(unixent.TargetRangeError):
        loss(hidden, torch.full_like(target, C))
    with pytest.raises(unixent.ShapeError, match="classifier: expected a module"):
        LinearCrossEntropyLoss(D, C + 3, classifier=owner)(hidden, target)


def test_a_share_of_the_classes_holds_no_padding():
    """How much of it exists is not known to one process alone."""
    with pytest.raises(unixent.ShapeError, match="classifier: expected a module"):
        LinearCrossEntropyLoss(D, C, classifier=nn.Embedding(C + 2, D), parallel_config=unixent.ParallelConfig())
