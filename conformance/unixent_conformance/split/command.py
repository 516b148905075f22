"""A split run as seen from outside: start the processes, wait, read the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unixent_conformance.model import Tier
from unixent_conformance.results import Report, Result
from unixent_conformance.split.engines import ENGINES


@dataclass(frozen=True)
class Request:
    """What to run; plain data, to cross into other processes.

    data: parts of positions. model: parts of classes. tier: how many of the cases. path: where modules are looked for.
    """

    implementation: str
    engine: str
    data: int
    model: int
    framework: str | None = None
    features: tuple[str, ...] | None = None
    tier: Tier = Tier.FULL
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Request:
        """What `to_json` wrote: a number is no Tier, nor a list a tuple."""
        data = json.loads(text)
        features, path = data["features"], tuple(data["path"])
        data |= {"features": features and tuple(features), "path": path, "tier": Tier(data["tier"])}
        return cls(**data)

    def line(self, result: Result) -> str:
        """The command that runs a result's feature again."""
        tested = "--implementation" if ":" in self.implementation else "--backend"
        framework = f" --framework {self.framework}" if self.framework else ""
        split = f"split {self.data}x{self.model}"
        return f"unixent conformance {split} {tested} {self.implementation}{framework} --feature '{result.feature}'"


def parse(split: str) -> tuple[int, int]:
    """Numbers of parts of positions and of classes.

    >>> parse("2x4")
    (2, 4)
    """
    data, cross, model = split.partition("x")
    if not (cross and data.isdecimal() and model.isdecimal() and int(data) and int(model)):
        raise ValueError(f"split: expected DATAxMODEL, as 2x2; got {split!r}")
    return int(data), int(model)


def run_split(request: Request, timeout: float = 1800.0) -> Report:
    """The report of a run over several processes of this machine, which are all gone when this returns.

    Raises:
        LookupError: there is no engine of that name.
        RuntimeError: the processes ended without a report, or took more than ``timeout`` seconds.
    """
    if request.engine not in ENGINES:
        raise LookupError(f"split: expected one of {', '.join(ENGINES)}; got {request.engine!r}")
    launch = ENGINES[request.engine].launch(request.data * request.model)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "report.json")
        command = [*launch, "unixent_conformance.split", request.to_json(), str(out)]
        code, output = _run(command, folder, timeout)
        if out.exists():
            return Report.from_json(out.read_text(encoding="utf-8"))
    tail = "\n".join(output.splitlines()[-30:])
    raise RuntimeError(f"the processes ended with code {code} and no report:\n{tail}")


def _run(command: list[str], folder: str, timeout: float) -> tuple[int | None, str]:
    """Exit code and output of a command; whatever it started dies with it."""
    # A session of its own, so that all of the launcher's children can be killed; logs stay in the folder.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the processes took more than {timeout:.0f} s") from error
    finally:
        if process.poll() is None:
            # Some launchers (msrun) give their children sessions of their own, and end them when they are interrupted.
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
