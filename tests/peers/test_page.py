"""The page as a person meets it, in a headless Chromium: from a file, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unixent_conformance import report, run

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which drives the browser")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver (Debian: chromium chromium-driver)"
)

FEATURES = ["class indices", "class weights", "label smoothing", "out-of-range targets"]
NAMES = ["right", "over_positions", "others_smoothed", "clamped", "off_by_a_thousandth"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        reports = [run(f"subjects:{name}", "numpy", features=FEATURES, isolate=False) for name in NAMES]
    return report.write(tmp_path_factory.mktemp("report"), reports, "A <title> & more")[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-component-update", "disable-sync", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def go(browser: Any, page: Path, place: str = "", width: int = 1280, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    browser.get(page.as_uri() + place)


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


@pytest.mark.parametrize("place", ["", "#cell=1-1", "#differences=0-1", "#dialects", "#environments"])
def test_a_phone_scrolls_nothing_but_the_table(browser: Any, page: Path, place: str) -> None:
    go(browser, page, place, width=360)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser: Any, page: Path, scheme: str) -> None:
    """WCAG AA: a contrast of 4.5."""
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
