"""The times of `gpu.py`: medians of interleaved rounds, as milliseconds and as a share of what a copy moves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import unixent
from gpu_checks import example

Call = Callable[[], Any]
SHAPES = ((8192, 151936), (8192, 32000), (65536, 512), (32768, 256), (8, 151936))
SMALL_SHAPES = ((64, 1000), (8, 5000))
LINEAR, SMALL_LINEAR = (8192, 4096, 151936), (64, 32, 1000)


def run_times(device: torch.device, small: bool, left: Callable[[], float]) -> list[dict[str, Any]]:
    """Every problem by every loss: ms, ratio to the stock loss, share of a copy's rate, peak memory in logits."""
    rate = copy_rate(device, small)
    rows: list[dict[str, Any]] = [{"problem": "copy", "what": f"{rate / 1e9:.4g} GB/s", "ms": None, "ratio": None}]
    for shape in SMALL_SHAPES if small else SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            for backward in (False, True):
                problem = f"{list(shape)} {str(dtype).removeprefix('torch.')}, {'both' if backward else 'forward'}"
                if left() < 60:
                    rows.append({"what": problem, "left_out": "no time was left"})
                    continue
                x, y = example(*shape, dtype, device)
                least = x.numel() * x.element_size() * (3 if backward else 1)
                rows += timed(problem, losses(x, y, backward, small), least, rate, x, left)
    n, d, v = SMALL_LINEAR if small else LINEAR
    if left() < 60:
        return [*rows, {"what": "linear", "left_out": "no time was left"}]
    hidden, classifier = (example(rows_, d, torch.bfloat16, device)[0].mul_(0.02) for rows_ in (n, v))
    y = torch.randint(v, (n,), device=device)
    logits = torch.empty((n, v), dtype=torch.bfloat16, device="meta")
    rows += timed(f"linear N={n}, D={d}, V={v}, bfloat16, both", linear(hidden, classifier, y), 0, rate, logits, left)
    return rows


def copy_rate(device: torch.device, small: bool) -> float:
    """Bytes read and written a second by a copy of 2 GiB."""
    x = torch.empty(1 << (20 if small else 30), dtype=torch.bfloat16, device=device)
    y = torch.empty_like(x)
    seconds = statistics.median(seconds_of(lambda: y.copy_(x), device) for _ in range(9))
    return float(2 * x.numel() * x.element_size() / seconds)


def losses(x: Tensor, y: Tensor, backward: bool, small: bool) -> dict[str, Call]:
    """What computes the mean loss of x, and its gradient where ``backward``."""
    stock = torch.nn.functional.cross_entropy

    def step(loss: Callable[..., Tensor]) -> Call:
        def both() -> None:
            loss(leaf, y).backward()
            leaf.grad = None

        def forward() -> None:
            with torch.no_grad():
                loss(x, y)

        leaf = x.detach().requires_grad_()
        return both if backward else forward

    steps = {"torch": step(stock), "unixent": step(unixent.cross_entropy)}
    if not small:
        steps["torch, compiled"] = step(torch.compile(stock))
        steps["unixent, compiled"] = step(torch.compile(unixent.cross_entropy))
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy
    except ImportError:
        return steps
    if x.is_cuda:  # it writes the gradient over its logits
        steps["Liger"] = step(lambda x, y: liger_cross_entropy(x * 1, y))
    return steps


def linear(hidden: Tensor, classifier: Tensor, y: Tensor) -> dict[str, Call]:
    """What computes the loss of hidden @ classifier.T and the gradients of both."""
    operands = [hidden.requires_grad_(), classifier.requires_grad_()]

    def step(loss: Callable[..., Tensor]) -> Call:
        def call() -> None:
            loss(*operands).backward()
            for each in operands:
                each.grad = None

        return call

    def stock(h: Tensor, w: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(h @ w.t(), y)

    def at(precision: str) -> Callable[..., Tensor]:
        def loss(h: Tensor, w: Tensor) -> Tensor:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(precision)
            try:
                return unixent.linear_cross_entropy(h, w, y)
            finally:
                torch.set_float32_matmul_precision(before)

        return loss

    calls = {f'unixent, precision "{precision}"': step(at(precision)) for precision in ("highest", "high", "medium")}
    return {"torch": step(stock), **calls}


def timed(
    problem: str, calls: dict[str, Call], least: int, rate: float, logits: Tensor, left: Callable[[], float]
) -> list[dict[str, Any]]:
    """Rows of a report; ``least`` bytes have to move, 0 where that is not what decides."""
    device = torch.device("cuda" if torch.cuda.is_available() and logits.device.type != "cpu" else "cpu")
    rows: list[dict[str, Any]] = []
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int | None] = {}
    for name, call in calls.items():
        failure = _prepared(name, call, peaks)
        if failure is None:
            seconds[name] = []
        else:
            rows.append({"what": f"{problem}, {name}", "left_out": failure})
    for _ in range(15):
        for name, taken in seconds.items():
            taken.append(seconds_of(calls[name], device))
        if left() < 45:
            break
    bytes_of_logits = logits.numel() * logits.element_size()
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, median in medians.items():
        peak = peaks[name]
        rows.append({
            "problem": problem,
            "what": name,
            "ms": median * 1e3,
            "ratio": median / medians["torch"] if "torch" in medians else None,
            "share": least / rate / median if least else None,
            "peak": None if peak is None else peak / bytes_of_logits,
        })  # fmt: skip
    return rows


def _prepared(name: str, call: Call, peaks: dict[str, int | None]) -> str | None:
    """Compile, and note the peak; why not, where that fails: another library, or memory."""
    try:
        call()
        peaks[name] = peak_of(call)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def seconds_of(call: Call, device: torch.device) -> float:
    """By the device's own clock where it has one."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def peak_of(call: Call) -> int | None:
    """Bytes that a call takes at its peak beyond what was there; None where torch doesn't count them."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)
