"""Compile the native kernel (backends/unixent_native/source) while a wheel is built, or into a checkout.

    python hatch_build.py        # into backends/unixent_native, where a checkout's loader finds it

The compiler is $CC, cc, gcc or clang; where there is none, ziglang, a C compiler in a wheel. Where nothing compiles, or
with UNIXENT_NATIVE=0, the wheel has no library and is a pure one. UNIXENT_TARGET builds for another machine by ziglang:
"zig target=platform tag" (tools/build_wheels.py).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    BuildHookInterface = object

PACKAGE = Path(__file__).resolve().parent / "backends" / "unixent_native"
SOURCE = PACKAGE / "source"

FLAGS = ["-O3", "-std=gnu11", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
X86 = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}


def compiler() -> list[str] | None:
    """The command of this machine's compiler, else of ziglang's; None where there is neither."""
    given = os.environ.get("CC")
    for command in [given] if given else ["cc", "gcc", "clang"]:
        if shutil.which(shlex.split(command)[0]):
            return shlex.split(command)
    return [sys.executable, "-m", "ziglang", "cc"] if find_spec("ziglang") else None


def compile_library(folder: Path, command: list[str], system: str, machine: str, extra: list[str]) -> Path:
    """Compile the library for a system ("linux", "darwin", "win32") and machine into ``folder``, and return it.

    Raises:
        subprocess.CalledProcessError, OSError: it can't be compiled.
    """
    library = folder / ("rows" + {"win32": ".dll", "darwin": ".dylib"}.get(system, ".so"))
    flags = [*FLAGS, *extra, *([] if system == "win32" else ["-fPIC"])]
    isas = {"plain": [], **(X86 if machine.lower() in ("x86_64", "amd64") else {})}
    with tempfile.TemporaryDirectory() as temporary:
        objects = [(SOURCE / f"{name}.c", Path(temporary) / f"{name}.o", []) for name in ("library", "xla")]
        for isa, isa_flags in isas.items():
            more = [f"-DISA={isa}", *isa_flags]
            names = ("rows", "positions")
            objects += [(SOURCE / f"{name}.c", Path(temporary) / f"{name}_{isa}.o", more) for name in names]
        # At the same time: it takes seconds.
        running = [
            subprocess.Popen([*command, *flags, *more, "-c", str(source), "-o", str(target)])
            for source, target, more in objects
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise subprocess.CalledProcessError(max(codes), command)
        built = Path(temporary) / library.name
        link = [] if system == "win32" else ["-lm", *(["-pthread"] if system == "linux" else [])]
        strip = [] if system == "darwin" or "-g" in extra else ["-s"]
        names = [str(target) for _, target, _ in objects]
        subprocess.run([*command, *extra, "-shared", *strip, "-o", str(built), *names, *link], check=True)
        shutil.move(built, library)  # at once: a process may have the old one mapped
    return library


def build(folder: Path) -> Path | None:
    """The library for this machine, or for that of UNIXENT_TARGET, in ``folder``; None where it can't be built."""
    if os.environ.get("UNIXENT_NATIVE") == "0":
        return None
    target = os.environ.get("UNIXENT_TARGET")
    command, system, machine, extra = compiler(), sys.platform, platform.machine(), []
    if target:
        triple = target.partition("=")[0]
        command, extra = [sys.executable, "-m", "ziglang", "cc"], ["-target", triple]
        machine, name = triple.split("-")[:2]
        system = {"macos": "darwin", "windows": "win32"}.get(name, name)
    if command is None:
        print("unixent: no C compiler found; installing without the native kernel", file=sys.stderr)
        return None
    try:
        return compile_library(folder, command, system, machine, extra)
    except (subprocess.CalledProcessError, OSError) as error:
        if target:
            raise
        print(f"unixent: installing without the native kernel, which failed to compile: {error}", file=sys.stderr)
        return None


def platform_tag() -> str:
    """The wheel's platform: that of UNIXENT_TARGET, or this machine's, without a promise about other ones."""
    target = os.environ.get("UNIXENT_TARGET")
    if target:
        return target.partition("=")[2]
    from packaging.tags import sys_tags

    return next(tag.platform for tag in sys_tags() if "many" not in tag.platform and "musl" not in tag.platform)


class NativeKernel(BuildHookInterface):  # type: ignore[misc]
    """The build hook."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        if self.target_name != "wheel" or os.environ.get("UNIXENT_NATIVE") == "0":
            return []
        command = compiler()
        return ["ziglang"] if os.environ.get("UNIXENT_TARGET") or command is None or "ziglang" in command else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        editable = version == "editable"
        self._folder = Path(tempfile.mkdtemp())
        library = build(PACKAGE if editable else self._folder)
        if library is not None:
            build_data["pure_python"], build_data["tag"] = False, f"py3-none-{platform_tag()}"
            if not editable:
                build_data["force_include"][str(library)] = f"unixent_native/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(getattr(self, "_folder", ""), ignore_errors=True)


if __name__ == "__main__":
    built = build(PACKAGE)
    print(built or "not built")
    sys.exit(0 if built else 1)
