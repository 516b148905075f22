"""The build hook: the machine's compiler, else ziglang's, else a wheel without the library, which it says."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hatch_build(monkeypatch):
    for name in ("CC", "UNIXENT_NATIVE", "UNIXENT_TARGET"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nothing_compiles(hatch_build, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(hatch_build, "find_spec", lambda name: None)


def wanted(hatch_build):
    """What the hook asks pip for while a wheel is built."""
    return hatch_build.NativeKernel.dependencies(SimpleNamespace(target_name="wheel"))


def test_a_compiler_makes_a_library_that_loads(hatch_build, tmp_path):
    if hatch_build.compiler() is None:
        pytest.skip("no C compiler here")
    library = ctypes.CDLL(str(hatch_build.build(tmp_path)))
    library.unixent_isa.restype = ctypes.c_char_p
    assert library.unixent_isa(ctypes.c_int64(0))
    assert "ziglang" not in hatch_build.compiler() or wanted(hatch_build) == ["ziglang"]


@pytest.mark.usefixtures("nothing_compiles")
def test_without_a_compiler_one_in_a_wheel_is_asked_for(hatch_build):
    assert wanted(hatch_build) == ["ziglang"]


@pytest.mark.usefixtures("nothing_compiles")
def test_without_any_compiler_it_is_said_that_there_is_no_library(hatch_build, tmp_path, capsys):
    assert hatch_build.build(tmp_path) is None
    assert "no C compiler" in capsys.readouterr().err


def test_a_compiler_that_fails_is_no_failure_of_the_installation(hatch_build, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CC", "false")
    assert hatch_build.build(tmp_path) is None
    assert "failed to compile" in capsys.readouterr().err
    assert wanted(hatch_build) == []


def test_switched_off_nothing_is_built_or_asked_for(hatch_build, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIXENT_NATIVE", "0")
    assert hatch_build.build(tmp_path) is None
    assert wanted(hatch_build) == []


def test_a_wheel_for_another_machine_is_tagged_for_it(hatch_build, monkeypatch):
    monkeypatch.setenv("UNIXENT_TARGET", "aarch64-macos.11.0=macosx_11_0_arm64")
    assert hatch_build.platform_tag() == "macosx_11_0_arm64"
    assert wanted(hatch_build) == ["ziglang"]
