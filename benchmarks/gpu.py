"""Everything that only a GPU can show, in at most eight minutes: is the loss right there, and how long does it take.

    python benchmarks/gpu.py [--device cuda:0] [--out DIR] [--limit 480] [--small]

Checks first, then times, medians of interleaved rounds by CUDA's own clock, against torch's stock loss, the same
compiled, Liger-Kernel where it is installed, and optax for JAX. Writes ``gpu.json`` and ``gpu.md``. Runs from a
checkout where nothing but the frameworks is installed. Ends with status 1 if a check fails.

``--small`` takes small shapes, to try the command itself: with ``--device cpu`` it needs no GPU, and shows nothing of
one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent


def make_importable() -> None:
    """Put a checkout that is not installed on the path, with the entry points of its backends."""
    try:
        metadata.version("unixent")
        return
    except metadata.PackageNotFoundError:
        pass
    record = Path(tempfile.mkdtemp()) / "unixent-0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: unixent\nVersion: 0\n", "utf-8")
    groups = (
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in entry_points().items()
    )
    (record / "entry_points.txt").write_text("\n\n".join(groups) + "\n", "utf-8")
    paths = [str(record.parent), *(str(ROOT / name) for name in ("", "backends", "conformance"))]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])


def entry_points() -> dict[str, dict[str, str]]:
    """Those of pyproject.toml."""
    if sys.version_info < (3, 11):
        sys.exit("unixent is not installed, and before Python 3.11 its pyproject.toml can't be read: pip install .")
    else:
        import tomllib

        project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        return dict(project["entry-points"])


def jax_times(small: bool, limit: float) -> list[dict[str, Any]]:
    """Those of ``gpu_jax.py``, in a process of its own: two frameworks in one would fight for the memory."""
    command = [sys.executable, str(HERE / "gpu_jax.py"), *(["--small"] if small else [])]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=max(limit, 1))
    except subprocess.TimeoutExpired:
        return [{"what": "JAX", "left_out": f"not done in {limit:.0f} s"}]
    if done.returncode:
        return [{"what": "JAX", "left_out": done.stderr.strip().splitlines()[-1] if done.stderr else "no output"}]
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [f"# {report['machine']}", ""]
    lines += [f"{report['versions']}; `{report['command']}`; {report['seconds']:.0f} s", ""]
    lines += ["| check | | |", "|---|---|---|"]
    lines += [f"| {row['check']} | {row['verdict']} | {row['detail']} |" for row in report["checks"]]
    lines += ["", "| problem | what | ms | of the stock loss' | share of a copy's rate | peak memory, logits |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in report["times"]:
        if "left_out" in row:
            lines.append(f"| {row['what']} | left out: {row['left_out']} | | | | |")
            continue
        numbers = (row["ms"], row["ratio"], row.get("share"), row.get("peak"))
        cells = " | ".join("" if number is None else f"{number:.3g}" for number in numbers)
        lines.append(f"| {row['problem']} | {row['what']} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="where torch's tensors lie")
    parser.add_argument("--out", type=Path, default=Path(), help="directory for gpu.json and gpu.md")
    parser.add_argument("--limit", type=float, default=480, help="seconds; what there is no time for is left out")
    parser.add_argument("--small", action="store_true", help="small shapes, to try the command")
    options = parser.parse_args()
    start = time.monotonic()
    make_importable()

    import torch

    from gpu_checks import run_checks
    from gpu_timing import run_times

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch sees no CUDA device")

    def left() -> float:
        return float(options.limit - (time.monotonic() - start))

    checks = run_checks(device, options.small, left)
    times = run_times(device, options.small, left)
    times += jax_times(options.small, left())
    from measuring import processor

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    installed = {each: version_of(each) for each in ("unixent", "torch", "triton", "jax", "liger-kernel")}
    report = {
        "machine": name,
        "versions": ", ".join(f"{each} {version}" for each, version in installed.items() if version),
        "command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]),
        "seconds": time.monotonic() - start,
        "checks": checks,
        "times": times,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    page = to_markdown(report)
    (options.out / "gpu.md").write_text(page, "utf-8")
    print(page)
    return int(any(row["verdict"] == "wrong" for row in checks))


def version_of(distribution: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
