"""What the built wheel puts into site-packages, by its own record."""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib import import_module, metadata
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = [Path(path) for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
LIBRARIES = {".so", ".dylib", ".dll"}
FILES = [Path(str(file)) for file in metadata.files("unixent") or []]

editable = any(file.suffix == ".pth" for file in FILES)
pytestmark = pytest.mark.skipif(editable, reason="unixent is installed editable here; tox tests the built wheel")


def test_packages_listed_are_the_folders() -> None:
    folders = {"unixent"} | {
        path.parent.relative_to(ROOT).as_posix()
        for root in ("backends", "conformance")
        for path in (ROOT / root).glob("*/__init__.py")
    }
    assert {path.as_posix() for path in PACKAGES} == folders


def test_wheel_holds_exactly_the_packages() -> None:
    top = {file.parts[0] for file in FILES if ".." not in file.parts and "__pycache__" not in file.parts}
    assert {name for name in top if not name.endswith(".dist-info")} == {path.name for path in PACKAGES}


@pytest.mark.parametrize("package", [path.name for path in PACKAGES])
def test_every_source_is_in_the_wheel(package: str) -> None:
    source = next(path for path in PACKAGES if path.name == package)
    present = {file.as_posix() for file in FILES}
    for path in sorted((ROOT / source).rglob("*")):
        # A library in the checkout was built for it.
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in LIBRARIES:
            assert path.relative_to(ROOT / source.parent).as_posix() in present
    assert f"{package}/py.typed" in present


@pytest.mark.parametrize("name", ["unixent", "unixent_numpy", "unixent_conformance"])
def test_what_is_tested_is_the_wheel(name: str) -> None:
    module = import_module(name)
    # A wheel with a compiled library goes to platlib.
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    assert any(Path(str(module.__file__)).is_relative_to(place) for place in places)
    roots = {str(ROOT), str(ROOT / "backends"), str(ROOT / "conformance")}
    assert not roots & set(sys.path)


def test_metadata_has_version_license_extras_and_project_urls() -> None:
    meta = metadata.metadata("unixent")
    assert meta["Version"] == import_module("unixent").__version__
    assert meta["License-Expression"] == "Apache-2.0"
    assert set(meta.get_all("Provides-Extra") or []) == set(PROJECT["project"]["optional-dependencies"])
    labels = {url.partition(",")[0] for url in meta.get_all("Project-URL") or []}
    assert labels == set(PROJECT["project"].get("urls", ()))


def test_entry_points() -> None:
    backends = {entry.name: entry.value for entry in metadata.entry_points(group="unixent.backends")}
    shipped = {path.name.removeprefix("unixent_") for path in PACKAGES if (ROOT / path / "backend.py").exists()}
    assert {name: f"unixent_{name}:backend" for name in shipped}.items() <= backends.items()


def test_wheel_names_the_platform_of_its_native_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    wheel = next(file for file in metadata.files("unixent") or [] if file.name == "WHEEL").read_text()
    tags = [line.partition(": ")[2] for line in wheel.splitlines() if line.startswith("Tag: ")]
    built = [file for file in FILES if file.suffix in LIBRARIES]
    assert [file.parent.name for file in built] in ([], ["unixent_native"])
    assert all(tag.startswith("py3-none-") and (tag == "py3-none-any") == (not built) for tag in tags)
    assert (import_module("unixent_native").load() is not None) == (
        bool(built) and os.environ.get("UNIXENT_NATIVE") != "0"
    )
    with capsys.disabled():
        print(f" [{tags[0]}: {'with' if built else 'without'} the native kernel]", end="")
