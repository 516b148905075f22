"""The errors of exp and log1p as the Triton programs are compiled, over a million arguments each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

_COUNT = 1 << 20


@triton.jit  # type: ignore[untyped-decorator]
def _evaluate(x_ptr, exp_ptr, log1p_ptr, BLOCK: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    tl.store(exp_ptr + at, tl.exp(x))
    tl.store(log1p_ptr + at, libdevice.log1p(-x))


def errors(device: torch.device) -> dict[str, float]:
    """The largest error of exp(x) and log1p(-x) for x in [-87, 0], in units in the last place of the result."""
    x = torch.linspace(-87, 0, _COUNT, device=device)
    exp, log1p = torch.empty_like(x), torch.empty_like(x)
    _evaluate[(_COUNT // 1024,)](x, exp, log1p, BLOCK=1024, enable_fp_fusion=False)
    return {"exp": _units(exp, torch.exp(x.double())), "log1p": _units(log1p, torch.log1p(-x.double()))}


def _units(got: Tensor, due: Tensor) -> float:
    unit = torch.ldexp(torch.ones_like(due), torch.frexp(due).exponent - 24)
    return float(((got.double() - due).abs() / unit).max())
