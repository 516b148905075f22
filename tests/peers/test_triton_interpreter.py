"""Others' Triton kernels on CPU tensors: what the interpreter lacks, each shown by a kernel that a GPU would run."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, whose tensors Triton's kernels take")
if find_spec("triton") is None:
    pytest.skip("needs triton (Linux): pip install triton", allow_module_level=True)

from unixent_conformance import triton_interpreter  # noqa: E402

triton_interpreter.enable()
triton_interpreter.enable()  # twice does no harm

import triton_kernels as kernels  # noqa: E402

from unixent_conformance import run  # noqa: E402
from unixent_conformance.harness import Unsupported  # noqa: E402
from unixent_conformance.results import Verdict  # noqa: E402

X = np.array([0.0, -0.0, 1e-8, 0.3, -2.5, 60.0, -np.inf, np.nan], np.float32)


def test_a_float_is_a_float32_as_in_a_compiled_kernel() -> None:
    out = torch.zeros(2)
    kernels.scalar[(1,)](out, 0.1)
    assert out.tolist() == [np.float32(0.1), np.float32(0.1) * np.float32(3)]


@pytest.mark.parametrize("kernel", [kernels.from_libdevice, kernels.from_cuda_libdevice], ids=["generic", "cuda"])
def test_tanh_and_log1p_are_numpys(kernel: Any) -> None:
    out = torch.zeros(16)
    kernel[(1,)](torch.from_numpy(X), out, 8)
    with np.errstate(all="ignore"):
        expected = np.concatenate([np.tanh(X), np.log1p(X)])
    np.testing.assert_array_equal(out.numpy(), expected)


def test_a_function_of_the_language_is_known_by_another_name() -> None:
    out = torch.zeros(4, dtype=torch.int32)
    kernels.by_another_name[(1,)](torch.tensor([0.5, 1.5, -2.5, 7.0]), out, 4)
    assert out.tolist() == [0, 1, -2, 7]


def test_a_store_in_bfloat16_rounds_to_the_nearest() -> None:
    values = np.random.default_rng(0).normal(size=8).astype(np.float32)
    values[:3] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.4e38  # two ties, which go to even, and an overflow
    out = torch.zeros(8, dtype=torch.bfloat16)
    kernels.copy[(1,)](torch.from_numpy(values), out, 8)
    torch.testing.assert_close(out, torch.from_numpy(values).bfloat16(), rtol=0, atol=0)


def test_bfloat16_is_computed_with_as_numbers() -> None:
    """Negative ones compare by value, sums round, a dot product is of the values: not of their bits."""
    a = torch.from_numpy(np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32)).bfloat16()
    b, product, total = a.flip(0), torch.zeros(16, 16), torch.zeros(16, 16, dtype=torch.bfloat16)
    greater, top = torch.zeros(16, 16, dtype=torch.int32), torch.zeros(16)
    kernels.in_bfloat16[(1,)](a, b, product, total, greater, top, 16)
    torch.testing.assert_close(product, a.float() @ b.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(total, a + b, rtol=0, atol=0)
    assert torch.equal(greater.bool(), a > b)
    torch.testing.assert_close(top, a.float().amax(1), rtol=0, atol=0)


def test_bfloat16_converts_to_and_from_every_number() -> None:
    values = torch.arange(-4, 4).to(torch.int32)
    out, wide = torch.zeros(8, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.float64)
    kernels.convert[(1,)](values, out, wide, 8)
    assert out.tolist() == wide.tolist() == values.tolist()


def test_what_no_interpreter_can_run_is_refused_and_not_a_crash() -> None:
    with pytest.raises(Unsupported, match="inline_asm not supported"):
        kernels.assembly[(1,)](torch.ones(8), torch.zeros(8), 8)


def test_a_fault_of_the_kernel_stays_a_fault() -> None:
    with pytest.raises(Exception, match="no_such_name"):
        kernels.faulty[(1,)](torch.ones(8), 8)


def test_every_function_is_one_of_libdevice() -> None:
    from triton.language.extra import libdevice

    assert all(hasattr(libdevice, name) for name in triton_interpreter.LIBDEVICE)


def test_too_late_is_an_error_that_says_so() -> None:
    code = "import triton; from unixent_conformance import triton_interpreter; triton_interpreter.enable()"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "triton was imported before triton_interpreter.enable()" in done.stderr


def test_the_suite_judges_an_interpreted_kernel() -> None:
    """One kernel as it should be, with a soft-cap and half precision; the same with the cap after the mask."""
    features = ["class indices", "softcap", "large inputs"]
    right, wrong = (
        run(f"triton_kernels:{name}", "triton_kernels:plain", features=features, quick=True, isolate=False)
        for name in ("right", "late")
    )
    assert right.ok, [result.detail for result in right.cases if not result.verdict.ok]
    assert sum(r.verdict is Verdict.MATCHES for r in right.cases if r.feature == "softcap") > 3
    assert any(r.verdict is Verdict.MATCHES and "bfloat16" in r.id for r in right.cases)
    assert any(r.verdict is Verdict.WRONG for r in wrong.cases if r.feature == "softcap")
