"""Snippets and commands of the pages work.

Every ```python block runs: the blocks of a page one after another in one namespace, prompts and outputs as a doctest.
Words after the language say what a block needs or how it runs:

    ```python torch       needs the framework torch; skipped where it is not installed
    ```python msrun       run by `test_quickstart`, on several processes
    ```bash run           the command runs in a copy of the checkout, with this environment's Python
    ```bash fresh         the same, with a new virtual environment in which nothing is installed

A shell block without such a word is not run.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import unixent

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for fence in FENCE.finditer(text):
        language, words, body = fence.groups()
        yield Block(page, text.count("\n", 0, fence.start()) + 1, language, tuple(words.split()), body)


ALL = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in ALL if block.language == "python"]
SHELL = [block for block in ALL if block.language == "bash" and block.words]
only_in_docs = pytest.mark.skipif(
    os.environ.get("TOX_ENV_NAME", "docs") != "docs", reason="runs once, in the environment `docs`"
)


def missing(block: Block) -> list[str]:
    return [name for name in block.words if find_spec(name) is None]


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in PYTHON), ids=lambda page: page.name)
def test_python_snippets_run_as_shown(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = [block for block in PYTHON if block.page == page and not missing(block)]
    if not chosen:
        needed = sorted({name for block in PYTHON if block.page == page for name in missing(block)})
        pytest.skip(f"every snippet of this page needs a framework: {', '.join(needed)}")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in chosen:
        if ">>> " in block.text:
            test = doctest.DocTestParser().get_doctest(block.text, namespace, str(block), str(page), block.line)
            output: list[str] = []
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            runner.run(test, out=output.append, clear_globs=False)
            namespace = test.globs
            assert not runner.failures, "".join(output)
        else:
            source = "\n" * block.line + block.text  # so that a traceback points into the page
            exec(compile(source, str(page), "exec"), namespace)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: commands write pictures and reports where they run."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("checkout") / "unixent", ignore=NOT_SOURCES))


def test_shell_blocks_say_how_they_run() -> None:
    unknown = [str(block) for block in SHELL if block.words[0] not in ("fresh", "run")]
    assert not unknown, f"expected 'run' or 'fresh' after bash: {', '.join(unknown)}"


@only_in_docs
@pytest.mark.parametrize("block", [block for block in SHELL if block.words[0] == "run"], ids=str)
def test_commands_succeed(block: Block, checkout: Path) -> None:
    not_installed = missing(block._replace(words=block.words[1:]))
    if not_installed:
        pytest.skip(f"needs {', '.join(not_installed)}")
    run(block, checkout, Path(sys.executable).parent)


@only_in_docs
@pytest.mark.parametrize("block", [block for block in SHELL if block.words[0] == "fresh"], ids=str)
def test_commands_succeed_with_python_and_pip_alone(block: Block, checkout: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    run(block, checkout, tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin"))


def run(block: Block, folder: Path, programs: Path) -> None:
    environment = {**os.environ, "PATH": os.pathsep.join((str(programs), os.environ["PATH"]))}
    environment.pop("VIRTUAL_ENV", None)
    environment.pop("PYTHONSAFEPATH", None)  # tox's, which a reader does not have: a script finds its neighbours
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, f"{block}\n{block.text}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def test_links_between_pages_exist() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+)[^)]*\)", page.read_text("utf-8"))]
    assert len(links) > 5
    assert not [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not (page.parent / link).exists()]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^python -m pip install tox && .*$", readme, re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text("utf-8")


def cell(capability: frozenset[str] | bool) -> str:
    if isinstance(capability, bool):
        return "yes" if capability else "-"
    return ", ".join(sorted(capability)) or "-"


@pytest.mark.parametrize("name", [s.name for s in unixent.backends() if s.installed and s.name != "toy"])
def test_the_table_of_backends_is_what_they_declare(name: str) -> None:
    backend = unixent.get_backend(name)
    declared = backend.capabilities
    columns = (
        declared.dtypes,
        declared.targets,
        declared.transforms,
        declared.linear,
        declared.parallel,
        backend.devices()[0].batch_invariant,
    )
    row = f"| {name} | {' | '.join(map(cell, columns))} |"
    assert row in (ROOT / "docs" / "backends.md").read_text("utf-8").splitlines(), f"docs/backends.md lacks\n{row}"


def sections(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_sections_exist() -> None:
    links = [
        (page, *link) for page in PAGES for link in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text("utf-8"))
    ]
    assert links
    missing_anchors = [
        f"{page.relative_to(ROOT)}: {file}#{anchor}"
        for page, file, anchor in links
        if anchor not in sections(page.parent / file if file else page)
    ]
    assert not missing_anchors


def test_names_of_the_glossary_are_in_use() -> None:
    glossary = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Glossary")[2]
    first_column = "\n".join(re.findall(r"^\| ([^|]+) \|", glossary, re.MULTILINE))
    sources = [path for folder in ("unixent", "backends", "conformance") for path in (ROOT / folder).rglob("*.py")]
    used = set(re.findall(r"\w+", "\n".join(path.read_text("utf-8") for path in sources)))
    names = re.findall(r"`(\w+)`", first_column)
    assert len(names) > 30
    assert not [name for name in names if name not in used]
