"""The page as a person meets it, in a headless Chromium: from a file, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from importlib import metadata
from math import nan
from pathlib import Path
from typing import Any

import pytest
from chromium import go, needs_chromium, started

from unixent_conformance import report, run
from unixent_conformance.results import Report, Result, Verdict

pytestmark = needs_chromium

FEATURES = ["class indices", "class weights", "label smoothing", "out-of-range targets"]
NAMES = ["right", "over_positions", "others_smoothed", "clamped", "off_by_a_thousandth"]


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return [run(f"subjects:{name}", "numpy", features=FEATURES, isolate=False) for name in NAMES]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, reports: list[Report]) -> Path:
    return report.write(tmp_path_factory.mktemp("report"), reports, "A <title> & more")[0]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one implementation, in which everything happens: 12 silent errors of three sizes in two features,
    15 crashes for one reason and 3 for another, a convention, refusals for ten reasons, an early end."""
    wrong = [
        Result(
            f"mask/{n}/value",
            "mask" if n < 9 else "z-loss",
            "eager",
            Verdict.WRONG,
            f"got {n}",
            1e3 * 10**n,
            f"wrong({n})",
        )
        for n in range(12)
    ]
    crashed = [
        Result(
            f"NaN/{n}",
            "NaN" if n % 2 else "mask",
            "eager",
            Verdict.CRASHED,
            "IndexError: lane" if n < 15 else "died",
            nan,
            "crash()",
        )
        for n in range(18)
    ]
    refused = [
        Result(f"softcap/{n}", "softcap", "eager", Verdict.REFUSES, f"has no option {n % 10}") for n in range(30)
    ]
    others = [
        Result("class-indices/a", "class indices", "eager", Verdict.MATCHES, "", 0.25),
        Result(
            "class-weights/a",
            "class weights",
            "vmap",
            Verdict.DIALECT,
            "why",
            7.0,
            "1 + 1",
            ("mean over all positions",),
        ),
    ]
    tested = Report("my:loss", "torch", "torch 2.13.0, triton 3.9.0", (*wrong, *crashed, *refused, *others))
    tested = replace(
        tested,
        left_out=("the mode compile",),
        date="2026-11-29 20:16 UTC",
        machine="Linux x86_64, 2 cores",
        stopped="Ctrl-C",
    )
    return report.write(tmp_path_factory.mktemp("one"), [tested], "Conformance of my:loss")[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def all_of(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def test_matrix_draws_a_cell_for_each_feature_and_implementation(browser: Any, page: Path) -> None:
    go(browser, page)
    assert browser.title == "A <title> & more"
    assert len(all_of(browser, "#matrix tbody tr")) == len(FEATURES)
    assert len(all_of(browser, "#matrix .box")) == len(FEATURES) * len(NAMES)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_colours_follow_the_verdict(browser: Any, page: Path) -> None:
    go(browser, page)
    matches, dialect, wrong = (
        all_of(browser, f"[data-cell='{cell}']")[0].get_attribute("class") for cell in ("0-0", "1-1", "4-1")
    )
    assert (matches, dialect, wrong) == ("box v0", "box v1", "box v3")
    colours = {all_of(browser, f".mark.v{i}")[0].value_of_css_property("background-color") for i in range(5)}
    assert len(colours) == 5


def test_a_cell_opens_to_its_cases_and_lines_to_paste(browser: Any, page: Path) -> None:
    go(browser, page)
    all_of(browser, "[data-cell='1-1']")[0].click()
    dialog = all_of(browser, "dialog[open]")[0]
    assert "mean over all positions" in dialog.text
    assert "× bound" in dialog.text
    assert "class-weights/" in dialog.text
    all_of(browser, "dialog details details > summary")[0].click()
    assert "uc.subject('subjects:over_positions', 'numpy', 'eager')" in dialog.text
    all_of(browser, "dialog .top button")[0].click()
    assert all_of(browser, "dialog[open]") == []


def test_a_cell_has_an_address(browser: Any, page: Path) -> None:
    go(browser, page, "#cell=4-0")
    assert "off_by_a_thousandth" in all_of(browser, "dialog[open] h2")[0].text


def test_differences_of_a_chosen_pair(browser: Any, page: Path) -> None:
    go(browser, page, "#differences=0-1")
    section = all_of(browser, "#differences")[0]
    assert "Only subjects:over_positions says" in section.text
    assert "class weights" in section.text
    option = all_of(browser, "#differences select[aria-label='to'] option[value='2']")[0]
    option.click()
    assert "smoothing over the other classes" in all_of(browser, "#differences")[0].text
    assert "=0-2" in browser.current_url


def test_each_view_shows_alone(browser: Any, page: Path) -> None:
    go(browser, page)
    for view in ("differences", "dialects", "environments", "matrix"):
        all_of(browser, f"[data-view='{view}']")[0].click()
        assert [s.get_attribute("id") for s in all_of(browser, "main > section") if s.is_displayed()] == [view]


def test_the_report_of_one_implementation_begins_with_its_verdict(browser: Any, one: Path) -> None:
    go(browser, one)
    section = all_of(browser, "#one")[0]
    assert section.text.startswith("✗ Stopped early (Ctrl-C). 12 silently wrong and 18 crashed of 32 judged cases")
    assert [tile.text.split("\n")[1] for tile in all_of(browser, ".tiles li")] == ["1", "1", "30", "12", "18"]
    assert not all_of(browser, "#tabs")[0].is_displayed()


def test_the_worst_failures_come_first_and_are_open(browser: Any, one: Path) -> None:
    go(browser, one)
    failures = all_of(browser, ".failure")
    titles = [failure.find_element("css selector", "strong").text for failure in failures]
    assert titles == ["silently wrong: z-loss", "silently wrong: mask", "crashed: IndexError: lane", "crashed: died"]
    assert [failure.get_attribute("open") for failure in failures] == ["true", "true", "true", None]
    assert "got 11" in failures[0].text  # of its group the furthest off
    assert "1e14 × bound" in failures[0].text
    assert "15 cases · 2 features" in failures[2].text
    failures[0].find_element("css selector", ".case summary").click()
    assert failures[0].find_element("css selector", "pre").text == "wrong(11)"


def test_the_report_of_one_implementation_has_the_terminals_table(browser: Any, one: Path) -> None:
    go(browser, one)
    rows = {
        row.find_element("css selector", "th").text: [cell.text for cell in row.find_elements("css selector", "td")]
        for row in all_of(browser, ".counts tbody tr")
    }
    assert rows["mask"] == ["–", "–", "–", "9", "9", ""]
    assert rows["class indices"] == ["1", "–", "–", "–", "–", "0.25"]
    all_of(browser, ".counts [data-cell='0-0']")[0].click()
    assert "my:loss · mask" in all_of(browser, "dialog[open] h2")[0].text


def test_the_share_of_the_bound_is_explained_where_it_is_shown(browser: Any, one: Path) -> None:
    go(browser, one)
    assert "share of the bound" in all_of(browser, ".counts thead")[0].text
    note = all_of(browser, ".wide + .note")[0].text
    assert "1.00 is normal there, not a near miss" in note


def test_what_was_not_judged_has_its_reasons(browser: Any, one: Path) -> None:
    go(browser, one)
    text = all_of(browser, "#one")[0].text.partition("What was judged, and what was not")[2]
    assert "Judged by mode: eager 31, vmap 1." in text
    assert "Not in this run: the mode compile." in text
    assert "has no option 7" in text
    assert "2 more reasons, of 6 cases" in text


def test_the_header_has_date_versions_machine_and_the_definition(browser: Any, one: Path, page: Path) -> None:
    go(browser, one)
    text = "2026-11-29 20:16 UTC · torch 2.13.0, triton 3.9.0 · Linux x86_64, 2 cores · judged by unixent's definition"
    assert all_of(browser, "#meta")[0].text == text
    documented = any(url.startswith("Documentation") for url in metadata.metadata("unixent").get_all("Project-URL", []))
    assert len(all_of(browser, "header a")) == documented
    go(browser, page)
    assert "numpy 2" in all_of(browser, "#meta")[0].text or "numpy 1" in all_of(browser, "#meta")[0].text
    assert "core" in all_of(browser, "#meta")[0].text


def test_the_definition_is_a_link_where_the_project_has_an_address(
    browser: Any, tmp_path: Path, reports: list[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = Message()
    declared["Project-URL"] = "Documentation, https://docs.invalid/"
    monkeypatch.setattr("unixent_conformance.report.page.metadata.metadata", lambda name: declared)
    go(browser, report.write(tmp_path, reports[:1], "linked")[0])
    (link,) = all_of(browser, "header a")
    assert (link.text, link.get_attribute("href")) == ("unixent's definition", "https://docs.invalid/semantics.html")


def test_every_count_of_a_cell_is_in_it(browser: Any, page: Path, reports: list[Report]) -> None:
    go(browser, page)
    marks = dict(zip((v.value for v in Verdict), "✓≈–✗⚡", strict=True))
    for i, tested in enumerate(reports):
        for f, results in enumerate(tested.by_feature().values()):
            shown = all_of(browser, f"[data-cell='{i}-{f}']")[0].text.split()
            counts = dict(zip(shown[::2], map(int, shown[1::2]), strict=True))
            assert counts == {marks[v.value]: n for v in Verdict if (n := sum(r.verdict is v for r in results))}


def test_the_name_of_an_implementation_opens_its_own_report(browser: Any, page: Path) -> None:
    go(browser, page)
    all_of(browser, "[data-one='4']")[0].click()
    assert all_of(browser, "#one h2")[0].text == "subjects:off_by_a_thousandth"
    assert "silently wrong" in all_of(browser, "#one .overall")[0].text
    assert browser.current_url.endswith("#one=4")


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 800)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_screen_fits(browser: Any, one: Path, page: Path, width: int, height: int, scheme: str) -> None:
    """Of one implementation: the verdict, all counts and the worst failure. Of many: legend, tabs, the first cells."""
    go(browser, one, width=width, scheme=scheme)
    inside(browser, [".overall", ".tiles li", ".failure:nth-of-type(1) .text"], width, height)
    go(browser, page, width=width, scheme=scheme)
    inside(browser, ["#legend li", "#tabs button", "[data-cell='0-0']"], width, height)


def inside(browser: Any, selectors: list[str], width: int, height: int) -> None:
    for selector in selectors:
        for element in all_of(browser, selector):
            box = element.rect
            assert box["x"] >= 0, selector
            assert box["x"] + box["width"] <= width, selector
            assert box["y"] + box["height"] <= height, selector
        assert all_of(browser, selector), selector


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_of_one_implementation_scrolls_one_way(browser: Any, one: Path, width: int) -> None:
    go(browser, one, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    table = all_of(browser, "#one .wide")[0]
    assert browser.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", table) <= 0


@pytest.mark.parametrize("place", ["", "#cell=1-1", "#differences=0-1", "#dialects", "#environments"])
def test_a_phone_scrolls_nothing_but_the_table(browser: Any, page: Path, place: str) -> None:
    go(browser, page, place, width=360)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("many", [5, 33])
def test_on_paper_nothing_is_cut_off(browser: Any, tmp_path: Path, reports: list[Report], many: int) -> None:
    """Dark ink, whatever the screen has; the matrix as wide as a page that lies across, at the most."""
    named = [replace(reports[i % 5], implementation=f"a library's cross_entropy {i}") for i in range(many)]
    go(browser, report.write(tmp_path, named)[0], width=1062, scheme="dark")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    try:
        table, box = (browser.find_element("css selector", f"#matrix {each}") for each in ("table", ".wide"))
        assert browser.execute_script("return arguments[0].getBoundingClientRect().right", table) <= 1062
        height = "return arguments[0].scrollHeight - arguments[0].clientHeight"
        assert browser.execute_script(height, box) <= 0
        assert luminance(box.value_of_css_property("color")) < 0.1
        assert not browser.find_element("id", "tabs").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_header_counts_what_was_judged(browser: Any, page: Path, reports: list[Report]) -> None:
    cases, judged = sum(len(each.cases) for each in reports), sum(sum(each.judged.values()) for each in reports)
    assert judged < cases
    go(browser, page)
    assert f"{judged:,} of {cases:,} cases judged" in browser.find_element("id", "lead").text


def test_a_report_of_no_case_says_so(browser: Any, tmp_path: Path) -> None:
    go(browser, report.write(tmp_path, [Report("my:loss", "numpy", "", ())])[0])
    assert "No case was run" in browser.find_element("css selector", ".overall").text
    assert not all_of(browser, ".counts")


def test_arrows_go_from_tab_to_tab(browser: Any, page: Path) -> None:
    go(browser, page)
    tabs = all_of(browser, "#tabs [role=tab]")
    tabs[0].send_keys("\ue014")  # an arrow to the right
    assert browser.switch_to.active_element == tabs[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser: Any, page: Path, one: Path, scheme: str) -> None:
    """WCAG AA: a contrast of 4.5."""
    go(browser, one, scheme=scheme)
    overall = all_of(browser, ".overall")[0]
    shades = [luminance(overall.value_of_css_property(name)) + 0.05 for name in ("color", "background-color")]
    assert max(shades) / min(shades) >= 4.5
    go(browser, page, scheme=scheme)
    body = all_of(browser, "body")[0]
    pairs = [(body.value_of_css_property("color"), body.value_of_css_property("background-color"))]
    for i in range(5):
        mark = all_of(browser, f"#legend .mark.v{i}")[0]
        pairs.append((mark.value_of_css_property("color"), mark.value_of_css_property("background-color")))
    lightness = [tuple(map(luminance, pair)) for pair in pairs]
    assert all((max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5 for pair in lightness), pairs
    assert (lightness[0][1] < 0.2) == (scheme == "dark")


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
