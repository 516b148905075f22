"""A release of torch without one of the private names that are used gives the same losses and gradients."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, vmap
from torch.nn import functional as F

import unixent
from unixent_torch import compat

unixent.get_backend("torch")

PRIVATE = {
    "_C._len_torch_dispatch_stack": torch._C,
    "_C._are_functorch_transforms_active": torch._C,
    "_C._is_tracing": torch._C,
    "_C._AutoDispatchBelowAutograd": torch._C,
    "_C._functorch": torch._C,
    "_C._functorch.is_legacy_batchedtensor": torch._C._functorch,
    "_C._functorch.get_interpreter_stack": torch._C._functorch,
    "_C._functorch.TransformType": torch._C._functorch,
    "_C._functorch.peek_interpreter_stack": torch._C._functorch,
    "_C._autograd._get_current_graph_task_keep_graph": torch._C._autograd,
    "_C._autograd._top_saved_tensors_default_hooks": torch._C._autograd,
    "autograd.forward_ad._current_level": forward_ad,
    "utils._python_dispatch._get_current_dispatch_mode_stack": torch.utils._python_dispatch,
}


def compat_without(*paths: str) -> Any:
    """`compat` as it is where torch lacks these names; torch itself has them back afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for path in paths:
            patch.delattr(PRIVATE[path], path.rpartition(".")[2])
        spec = importlib.util.spec_from_file_location("unixent_torch.compat_without", compat.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[*PRIVATE, "every one of them"])
def _without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = PRIVATE if request.param not in PRIVATE else (request.param,)
    module = compat_without(*paths)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where the compiler looks for a function's globals
    for name, value in vars(module).items():
        if not name.startswith("__"):
            monkeypatch.setattr(compat, name, value)


def problem(rows: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(rows, classes, generator=source, dtype=torch.float64)
    return x.requires_grad_(), torch.randint(classes, (rows,), generator=source)


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_without")
def test_values_and_gradients() -> None:
    for rows in (6, 5000):  # small losses, and those too large for their path
        x, y = problem(rows)
        ours, stock = unixent.cross_entropy(x, y), F.cross_entropy(x, y)
        close(ours, stock)
        close(torch.autograd.grad(3 * ours, x), torch.autograd.grad(3 * stock, x))
    y[0] = -1
    with pytest.raises(unixent.TargetRangeError):
        unixent.cross_entropy(x, y)


@pytest.mark.usefixtures("_without")
@pytest.mark.parametrize("mask", [None, torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0, 1.0])], ids=["plain", "mask"])
def test_a_kept_graph_and_derivatives_of_the_gradient(mask: Tensor | None) -> None:
    x, y = problem()
    loss = unixent.cross_entropy(x, y, mask=mask)
    first = torch.autograd.grad(2 * loss, x, retain_graph=True)[0]
    close(torch.autograd.grad(2 * loss, x, retain_graph=True)[0], first)
    upstream = torch.tensor([1.0, 2.0], dtype=torch.float64)
    batched = torch.autograd.grad(loss, x, upstream, is_grads_batched=True, retain_graph=True)[0]
    close(batched[1], first)
    assert torch.autograd.gradgradcheck(lambda x: unixent.cross_entropy(x, y, mask=mask), (x,))


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "grad": grad,
    "hessian": hessian,
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
    "vmap": lambda f: lambda x: vmap(f)(torch.stack([x, 2 * x])),
    "functionalize": functionalize,
}


@pytest.mark.usefixtures("_without")
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_are_right_without_private_names(transform: Callable[[Any], Any]) -> None:
    x, y = problem()
    x = x.detach()
    ours, stock = transform(lambda x: unixent.cross_entropy(x, y)), transform(lambda x: F.cross_entropy(x, y))
    close(ours(x), stock(x))


@pytest.mark.usefixtures("_without")
def test_forward_mode_is_right_without_private_names() -> None:
    x, y = problem()

    def tangent(loss: Callable[..., Any]) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.detach(), torch.cos(x.detach()))
            return forward_ad.unpack_dual(loss(dual, y)).tangent

    close(tangent(unixent.cross_entropy), tangent(F.cross_entropy))


@pytest.mark.usefixtures("_without")
def test_tracers_are_right_without_private_names() -> None:
    x, y = problem()
    torch.compiler.reset()
    compiled = torch.compile(unixent.cross_entropy, fullgraph=True, backend="aot_eager")
    close(compiled(x, y), F.cross_entropy(x, y))
    fused = torch.compile(unixent.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    close(fused(x, torch.eye(5, dtype=x.dtype), y), F.cross_entropy(x, y))
    with FakeTensorMode():
        assert unixent.cross_entropy(torch.empty(6, 7), torch.empty(6, dtype=torch.int64)).shape == ()


@pytest.mark.usefixtures("_without")
def test_the_fused_linear_form() -> None:
    hidden, y = problem(6, 3)
    classifier = torch.eye(4, 3, dtype=torch.float64, requires_grad=True)

    def fused(hidden: Tensor, classifier: Tensor) -> Tensor:
        return unixent.linear_cross_entropy(hidden, classifier, y, chunk=2)

    def plain(hidden: Tensor, classifier: Tensor) -> Tensor:
        return F.cross_entropy(hidden @ classifier.T, y)

    close(fused(hidden, classifier), plain(hidden, classifier))
    leaves = (hidden, classifier)
    close(torch.autograd.grad(2 * fused(*leaves), leaves), torch.autograd.grad(2 * plain(*leaves), leaves))
    close(hessian(fused)(*leaves), hessian(plain)(*leaves))


@pytest.mark.usefixtures("_without")
def test_saved_tensors_hooks_see_what_is_saved() -> None:
    x, y = problem()
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: packed.append(tensor) or tensor, lambda tensor: tensor
    ):
        unixent.cross_entropy(x, y)
    assert any(tensor.shape == x.shape for tensor in packed)


@pytest.fixture
def group(tmp_path: Any) -> Iterator[Any]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_groups_tell_whether_they_exchange_host_memory(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compat.serves_host(group)
    monkeypatch.setattr(type(group), "_device_types", [torch.device("cuda")])
    assert not compat.serves_host(group)
    monkeypatch.delattr(type(group), "_device_types")
    assert compat.serves_host(group)


def test_the_precision_of_products_is_read_however_it_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compat.float32_matmul_precision() == torch.get_float32_matmul_precision()

    def mixed() -> str:
        raise RuntimeError("you have used mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    for setting, due in (("ieee", "highest"), ("tf32", "high")):
        monkeypatch.setattr(type(torch.backends.cuda.matmul), "fp32_precision", setting, raising=False)
        assert compat.float32_matmul_precision() == due


def test_traced_reductions_fall_back_to_those_of_groups(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.distributed._functional_collectives", None)
    assert compat.traced_all_reduce(torch.ones(2), "sum", group).tolist() == [1, 1]


def test_a_function_without_shortcuts_is_applied_as_any_other() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Tensor:
            return 2 * grad_output

    del Double._backward_cls
    assert compat.fast_function(Double) == Double.apply
