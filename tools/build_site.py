"""Build the documentation site into static files that open from disk.

    python -m pip install . --group site
    python tools/build_site.py                       # into build/site/, beginning with index.html

The pages are those of docs/, with what a site needs and a code host does not: fences lose the words that the tests
read, source files that a page links to come along, and the page on other libraries gets the results of their study.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from peers import page as results

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()(?![a-z]+:)([^)#\s]+)([^)\s]*\))")
FENCE = re.compile(r"^```(\w+) [^\n]*$", re.MULTILINE)
REMOTE_SCRIPT = re.compile(r"<script\b[^>]*\bsrc=\"https://[^>]*></script>")
PROJECT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")  # of the checkout's root, beside the others in the site


def stage(folder: Path) -> None:
    """Lay out the sources of the site in a folder."""
    docs = folder / "docs"
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("*.json"))
    shutil.copy(ROOT / "zensical.toml", folder)
    for page in [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in PROJECT_PAGES)]:
        text = FENCE.sub(r"```\1", page.read_text("utf-8"))
        if results.MARKER in text:
            text = text.replace(results.MARKER, results.markdown())
        for target in {link[2] for link in LINK.finditer(text)}:
            text = text.replace(f"]({target}", f"]({moved(target, page, docs)}")
        (docs / page.name).write_text(text, "utf-8")


def moved(target: str, page: Path, docs: Path) -> str:
    """Where the site has what a page links to; a source file is copied into it, as text."""
    path = (page.parent / target).resolve()
    if path.parent == ROOT / "docs" or path.name in PROJECT_PAGES:
        return path.name
    place = Path("source", f"{path.relative_to(ROOT).as_posix()}.txt")
    (docs / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, docs / place)
    return place.as_posix()


def build(output: Path) -> None:
    """Stage and build, with every warning of the builder an error."""
    work = ROOT / "build" / "site-sources"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    stage(work)
    # The builder imports an extension for docstrings from here.
    paths = os.pathsep.join(filter(None, (str(ROOT / "tools"), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", "zensical.toml"]
    subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": paths}, check=True)
    finish(work / "site")
    shutil.rmtree(output, ignore_errors=True)
    shutil.move(work / "site", output)


def finish(site: Path) -> None:
    """Leave out what needs a server or a network: pages for a host, and a script of a search from disk."""
    for name in ("404.html", "sitemap.xml"):
        (site / name).unlink(missing_ok=True)
    for page in site.glob("*.html"):
        page.write_text(REMOTE_SCRIPT.sub("", page.read_text("utf-8")), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site")
    options = parser.parse_args()
    build(options.output)
    print(options.output / "index.html")


if __name__ == "__main__":
    main()
