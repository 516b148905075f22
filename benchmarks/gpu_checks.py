"""The checks of `gpu.py`: each a function of the device that returns a detail, or raises AssertionError."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import unixent


class LeftOut(Exception):
    """A check that this device, or the time that is left, does not allow."""


def run_checks(device: torch.device, small: bool, left: Callable[[], float]) -> list[dict[str, str]]:
    """Every check, with its verdict: right, wrong, or left out."""
    rows = []
    for check in CHECKS:
        name = (check.__doc__ or "").splitlines()[0].rstrip(".")
        verdict, detail = "right", ""
        try:
            if left() < 30:
                raise LeftOut("no time was left")
            detail = check(device, small)
        except LeftOut as why:
            verdict, detail = "left out", str(why)
        except Exception as error:
            verdict, detail = "wrong", f"{type(error).__name__}: {error}".splitlines()[0]
        rows.append({"check": name, "verdict": verdict, "detail": detail.replace("|", "\\|")})
        print(f"{name}: {verdict} {detail}", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def example(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.empty(rows, classes, dtype=dtype, device=device).normal_(0, 4, generator=generator)
    return x, torch.randint(classes, (rows,), generator=generator, device=device)


def step(x: Tensor, y: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The unreduced losses, and the gradient of their sum."""
    x = x.detach().requires_grad_()
    losses = unixent.cross_entropy(x, y, reduction="none", **options)
    (grad,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), grad


def catalogue(device: torch.device, small: bool) -> str:
    """The conformance catalogue, eager and by autograd."""
    import unixent_conformance

    features = ["class indices", "class probabilities"] if small else None
    report = unixent_conformance.run(
        "torch", device=str(device), quick=small, features=features, modes=["eager", "autograd"], budget=150
    )
    first = [f"{case.id} ({case.mode}): {case.detail}" for case in report.failures[:1]]
    assert not report.failures, f"{len(report.failures)} of {len(report.cases)} cases are wrong, {first[0]}"
    return f"{len(report.cases)} cases{'; ' + report.left_out[0] if report.left_out else ''}"


def exponentials(device: torch.device, small: bool) -> str:
    """exp and log1p of the compiled programs, in units in the last place."""
    if device.type != "cuda":
        raise LeftOut("nothing is compiled for this device")
    from gpu_exponentials import errors

    by_function = errors(device)
    assert max(by_function.values()) <= 2.5, by_function
    return ", ".join(f"{name} {error:.2f}" for name, error in by_function.items())


def rising_rows(device: torch.device, small: bool) -> str:
    """Confident rows that rise slowly over 151,936 classes."""
    classes = 4096 if small else 151936
    x = torch.linspace(-20, 0, classes, device=device).repeat(2, 1)
    x[:, 5] = 40.0
    y = torch.tensor([5, 6], device=device)
    got = unixent.cross_entropy(x, y, reduction="none").double().cpu()
    wide, index = x.double().cpu(), y.cpu()
    due = torch.logsumexp(wide, -1) - wide[torch.arange(2), index]
    others = wide[0].index_fill(0, index[:1], -math.inf)
    due[0] = torch.log1p(torch.exp(others - wide[0, 5]).sum())
    bound = (8 + 2 * math.log2(classes)) * 2.0**-24
    worst = ((got - due).abs() / due / bound).max().item()
    assert worst <= 1, f"{worst:.3g} times the bound"
    return f"{worst:.3g} of the bound"


def many_elements(device: torch.device, small: bool) -> str:
    """The last rows of more than 2^31 logits have the bits that they have alone."""
    rows, classes = (64, 4096) if small else (14400, 151936)
    need = 2.2 * 2 * rows * classes
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < need:
        raise LeftOut(f"{need / 2**30:.0f} GiB were not free")
    x, y = example(rows, classes, torch.bfloat16, device)
    losses, grad = step(x, y)
    alone, grad_alone = step(x[-3:].clone(), y[-3:])
    assert torch.equal(losses[-3:], alone)
    assert torch.equal(grad[-3:], grad_alone)
    return f"{rows * classes:,} logits"


def batches(device: torch.device, small: bool) -> str:
    """A row's bits among 1, 7 and 8,192 rows."""
    x, y = example(64 if small else 8192, 32000 if not small else 3000, torch.float32, device)
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 30.0}):
        losses, grad = step(x, y, **options)
        for count in (1, 7):
            some, grad_some = step(x[:count].clone(), y[:count], **options)
            assert torch.equal(some, losses[:count]), count
            assert torch.equal(grad_some, grad[:count]), count
    return "equal"


@contextmanager
def without_synchronisation(device: torch.device) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def calls(device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Losses of every kind, with their backward pass."""
    x, y = example(256, 4096, torch.bfloat16, device)
    q, mask = torch.softmax(x.float(), -1), torch.rand(256, device=device)
    weight, count = torch.rand(4096, device=device), torch.ones((), device=device)
    hidden, classifier = example(256, 512, torch.bfloat16, device)[0], example(4096, 512, torch.bfloat16, device)[0]
    ids = torch.randint(4096, (256, 8), device=device)

    def of(target: Any, **options: Any) -> Callable[[], Any]:
        return lambda: unixent.cross_entropy(x.detach().requires_grad_(), target, **options).sum().backward()

    yield "mean of indices", of(y)
    yield "every option", of(y, weight=weight, mask=mask, label_smoothing=0.1, z_loss=1e-3, softcap=30.0)
    yield "a count on the device", of(y, normalizer=count)
    yield "probabilities", of(q)
    yield "sparse targets", of(unixent.TopK(ids, probs=torch.rand(256, 8, device=device), tail="bucket"))

    def linear() -> None:
        h, w = (each.detach().requires_grad_() for each in (hidden, classifier))
        unixent.linear_cross_entropy(h, w, y).backward()

    yield "linear", linear
    yield "statistics", lambda: unixent.position_stats(x, y, outputs=("log_prob", "entropy", "rank"))


def synchronisation(device: torch.device, small: bool) -> str:
    """No call waits for the device (sync-debug mode "error")."""
    if device.type != "cuda":
        raise LeftOut("the device has no such mode")
    names = []
    for name, call in calls(device):
        call()  # compiles
        with without_synchronisation(device):
            call()
        names.append(name)
    return ", ".join(names)


def graphs(device: torch.device, small: bool) -> str:
    """A CUDA graph of loss and gradient gives the bits of the call."""
    if device.type != "cuda":
        raise LeftOut("the device has no graphs")
    x, y = example(512, 32000, torch.bfloat16, device)
    due = unixent.value_and_grad(x, y)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        unixent.value_and_grad(x, y)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grad = unixent.value_and_grad(x, y)
    loss.zero_()
    graph.replay()
    torch.cuda.synchronize(device)
    assert torch.equal(loss, due[0])
    assert torch.equal(grad, due[1])
    return "equal"


CHECKS = (rising_rows, batches, synchronisation, graphs, exponentials, many_elements, catalogue)
