"""The workflows of the project's hosting, which can't run here, name what there is."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
pytestmark = pytest.mark.skipif(not WORKFLOWS.exists(), reason="the workflows are not beside the tests")


def environments() -> list[str]:
    tox = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",))
    tox.read(ROOT / "tox.ini", "utf-8")
    return [name.strip() for name in tox["tox"]["env_list"].split(",")]


def test_every_environment_has_a_job() -> None:
    text = (WORKFLOWS / "tests.yml").read_text("utf-8")
    matrix = text.partition("environment:\n")[2].partition("    steps:")[0]
    assert re.findall(r"- (\S+)", matrix) == environments()


@pytest.mark.parametrize("workflow", ["tests", "site", "release"])
def test_their_scripts_are_there(workflow: str) -> None:
    text = (WORKFLOWS / f"{workflow}.yml").read_text("utf-8")
    for script in re.findall(r"python (\S+\.py)", text):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("workflow", ["tests", "site", "release"])
def test_nothing_of_a_request_is_pasted_into_a_shell(workflow: str) -> None:
    text = (WORKFLOWS / f"{workflow}.yml").read_text("utf-8")
    pasted = re.findall(r"run:.*\$\{\{ *(github\.(?:event|head_ref|ref_name)\S*)", text)
    assert not pasted, pasted
