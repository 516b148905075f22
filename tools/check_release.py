"""Check that what is about to be released says what is true: its version everywhere, and addresses that lead somewhere.

    python tools/check_release.py v0.1.0

Until the project has a public address, pyproject.toml has no table ``[project.urls]``, and this refuses a release.
Reports take the address of the documentation from there alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
LABELS = ("Homepage", "Documentation", "Issues", "Changelog")
# Reserved names, which lead nowhere (RFC 2606).
RESERVED = re.compile(r"(^|\.)(example|invalid|test|localhost|example\.(com|net|org))$")


def problems(root: Path, tag: str) -> list[str]:
    """What keeps the checkout from being released under this tag."""
    project = (root / "pyproject.toml").read_text("utf-8")
    (version,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    said = {
        "the tag": tag.removeprefix("v"),
        "CITATION.cff": _first(r"^version: (.+)$", root / "CITATION.cff"),
        "CHANGELOG.md": _first(r"^## (.+)$", root / "CHANGELOG.md"),
    }
    wrong = [f"{place}: expected {version}, got {value}" for place, value in said.items() if value != version]
    table = project.partition("\n[project.urls]\n")[2].partition("\n[")[0]
    urls = dict(re.findall(r'^(\w+) = "(.+)"$', table, re.MULTILINE))
    wrong += [f"pyproject.toml: expected {label} in [project.urls]" for label in LABELS if label not in urls]
    for label, url in urls.items():
        host = urlsplit(url).hostname or ""
        if urlsplit(url).scheme != "https" or "." not in host or RESERVED.search(host):
            wrong.append(f"pyproject.toml: expected a public https address of {label}, got {url}")
    return wrong


def _first(pattern: str, path: Path) -> str:
    """What the first line of a file that has this form says."""
    return next(iter(re.findall(pattern, path.read_text("utf-8"), re.MULTILINE)), "nothing")


def main(tag: str) -> int:
    wrong = problems(ROOT, tag)
    print("\n".join(wrong))
    return len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
