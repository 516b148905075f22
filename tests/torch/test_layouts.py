"""Tensors that are not one dense block of memory are refused by name, as logits and as anything else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import unixent

LOGITS = torch.linspace(-2, 2, 12).view(4, 3)
INDEX = torch.tensor([0, 2, 1, 1])
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse_coo": lambda dense: dense.to_sparse(),
    "sparse_csr": lambda dense: dense.to_sparse_csr(),
    "mkldnn": lambda dense: dense.to_mkldnn(),
    "nested": lambda dense: torch.nested.nested_tensor([dense, dense]),
    "jagged": lambda dense: torch.nested.nested_tensor([dense, dense], layout=torch.jagged),
    "masked": lambda dense: torch.masked.masked_tensor(dense, dense > 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*(prototype|beta).*:UserWarning")
def test_other_layouts_than_dense_are_refused_by_name(name: str) -> None:
    layout = "nested" if name == "jagged" else name
    with pytest.raises(unixent.BackendError, match=f"logits: expected a dense array; got one of layout {layout}"):
        unixent.cross_entropy(LAYOUTS[name](LOGITS), INDEX)
    with pytest.raises(unixent.BackendError, match=f"target: expected a dense array; got one of layout {layout}"):
        unixent.cross_entropy(LOGITS, LAYOUTS[name](LOGITS.softmax(1)))
    with pytest.raises(unixent.BackendError, match=f"classifier: expected a dense array; got one of layout {layout}"):
        unixent.linear_cross_entropy(LOGITS, LAYOUTS[name](LOGITS), INDEX)


@pytest.mark.parametrize("dtype", [np.ulonglong, np.longlong, np.dtype(">i4"), np.dtype(">u8")], ids=str)
def test_every_integer_of_numpy_is_taken(dtype: np.typing.DTypeLike) -> None:
    fields = np.zeros(4, [("", "i1"), ("index", dtype)])  # its items are no multiple of their size apart
    fields["index"] = INDEX.numpy()
    for target in (INDEX.numpy().astype(dtype), fields["index"]):
        torch.testing.assert_close(unixent.cross_entropy(LOGITS, target), unixent.cross_entropy(LOGITS, INDEX))


def refused_pairs(x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    return {
        "logits": lambda: unixent.cross_entropy(x, y),
        "target": lambda: unixent.cross_entropy(LOGITS, y),
        "mask": lambda: unixent.cross_entropy(LOGITS, INDEX, mask=y),
        "weight": lambda: unixent.value_and_grad(LOGITS, INDEX, weight=y),
        "grad_output": lambda: unixent.value_and_grad(LOGITS, INDEX, grad_output=y, reduction="none"),
        "hidden": lambda: unixent.linear_value_and_grad(x, torch.eye(3), y),
        "bias": lambda: unixent.linear_cross_entropy(LOGITS, torch.eye(3), INDEX, bias=y),
    }


@pytest.mark.filterwarnings("ignore:.*nested tensor.*:UserWarning")
def test_a_jagged_pair_is_refused_and_its_values_have_the_loss_of_its_positions() -> None:
    cuts = (slice(0, 3), slice(3, 3), slice(3, 4))
    x = torch.nested.nested_tensor([LOGITS[cut] for cut in cuts], layout=torch.jagged, requires_grad=True)
    y = torch.nested.nested_tensor([INDEX[cut] for cut in cuts], layout=torch.jagged)
    for name, call in refused_pairs(x, y).items():
        with pytest.raises(unixent.BackendError, match=f"{name}: expected a dense array; got one of layout nested"):
            call()
    loss = unixent.cross_entropy(x.values(), y.values())
    loss.backward()
    assert x.grad is not None
    value, gradient = unixent.value_and_grad(LOGITS, INDEX)
    torch.testing.assert_close(loss, value)
    torch.testing.assert_close(x.grad.values(), gradient)
