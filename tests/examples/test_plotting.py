"""The colours of plots: one a library, apart from each other and from the paper, on the plots of the pages too."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from plotting import COLOURS, colour, markers

ROOT = Path(__file__).resolve().parents[2]
PLOTS = sorted((ROOT / "docs").glob("*.svg"))
DEFAULTS = {"#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b"}  # matplotlib's


def luminance(code: str) -> float:
    parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("library", COLOURS)
def test_a_line_stands_out_from_white(library: str) -> None:
    assert 1.05 / (luminance(COLOURS[library]) + 0.05) >= 2.2


@pytest.mark.parametrize("pair", list(combinations(COLOURS, 2)), ids=" ".join)
def test_no_two_libraries_look_alike(pair: tuple[str, str]) -> None:
    one, other = ([int(COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)] for name in pair)
    assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 75


def test_a_name_has_the_colour_of_its_library() -> None:
    assert {colour(name) for name in ("unixent", "unixent-torch", "fused")} == {COLOURS["unixent"]}
    assert colour("torch: F.cross_entropy") == COLOURS["torch"]
    assert colour("optax") == COLOURS["jax"]
    assert colour("a plug-in") not in COLOURS.values()
    assert markers(["torch", "unixent", "fused", "jax"]) == ["o", "o", "s", "o"]


@pytest.mark.parametrize("plot", PLOTS, ids=lambda path: path.name)
def test_plots_of_the_pages_have_no_default_colour(plot: Path) -> None:
    assert not DEFAULTS & set(re.findall(r"#[0-9a-f]{6}", plot.read_text("utf-8")))


def test_only_one_module_makes_figures() -> None:
    sources = [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in sources if "pyplot" in path.read_text("utf-8")] == ["plotting.py"]
