"""The documentation site: built by its command, and looked at in a headless Chromium, from disk, without a network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from chromium import go, needs_chromium, started
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
SCREENS = [(1280, 800), (390, 844)]
SCHEMES = ["light", "dark"]
pytest.importorskip("zensical", reason="needs the builder of the site: pip install --group site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "out"
    subprocess.run([sys.executable, str(ROOT / "tools" / "build_site.py"), "--output", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with started(tmp_path_factory.mktemp("profile")) as driver:
        driver.get("about:blank")
        driver.get_log("performance")  # of the browser's own start
        yield driver


class Page(HTMLParser):
    """The anchors of a page, and all that it points to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value for name, value in attrs if value}
        self.anchors |= {named[name] for name in ("id", "name") if name in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        elif tag == "link" and "href" in named:
            self.loaded.append(named["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in named:
            self.loaded.append(named["src"])


def test_links_and_anchors_point_to_files_on_disk(site: Path) -> None:
    pages = {path: Page(path) for path in sorted(site.glob("*.html"))}
    assert len(pages) > 25
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            file, _, anchor = link.partition("#")
            if re.match(r"(https?|mailto|data):", link):
                continue
            goal = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            if not goal.is_file() or (anchor and goal in pages and unquote(anchor) not in pages[goal].anchors):
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_everything_that_a_page_loads_lies_beside_it(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not [link for link in Page(path).loaded if re.match(r"(https?:)?/", link)], path


def test_every_page_is_in_the_navigation(site: Path) -> None:
    listed = re.findall(r'"([\w-]+)\.md"', (ROOT / "zensical.toml").read_text("utf-8"))
    assert sorted(listed) == sorted(path.stem for path in site.glob("*.html"))


def test_the_reference_keeps_every_argument_of_a_docstring(site: Path) -> None:
    text = (site / "api.html").read_text("utf-8")
    for name in ("softcap", "temperature", "num_classes", "normalizer", "on_empty", "validate"):
        assert re.search(rf"<strong>[^<]*\b{name}\b", text), name
    assert "code-block::" not in text


def wrong_on(browser: Any, width: int) -> list[str]:
    """What a page does that it should not: scroll sideways, fail to load, speak to a network or to the console."""
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    wrong = [f"{wide} wide"] if wide > width else []
    wrong += [entry["message"] for entry in browser.get_log("browser")]
    asked: dict[str, str] = {}  # by id; a failure of another id is of the browser's own start
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked[message["params"]["requestId"]] = url = message["params"]["request"]["url"]
            wrong += [url] if url.startswith(("http:", "https:")) else []
        elif message["method"] == "Network.loadingFailed":
            wrong += [f"{asked[key]}: failed"] if (key := message["params"]["requestId"]) in asked else []
    return wrong


@needs_chromium
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_every_page_fits_and_is_quiet(browser: Any, site: Path, width: int, height: int, scheme: str) -> None:
    faults = {}
    for path in sorted(site.glob("*.html")):
        go(browser, path, width=width, height=height, scheme=scheme)
        faults[path.name] = wrong_on(browser, width)
    assert not {name: each for name, each in faults.items() if each}


@needs_chromium
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_the_first_page_is_one_screen(browser: Any, site: Path, width: int, height: int, scheme: str) -> None:
    go(browser, site / "index.html", width=width, height=height, scheme=scheme)
    last = browser.find_elements("css selector", "article li")[-1]
    assert last.rect["y"] + last.rect["height"] <= height
    assert last.is_displayed()
    search = browser.find_elements("css selector", 'label[for="__search"], .md-search')
    assert not any(each.is_displayed() for each in search)  # it can't work from disk
    assert (
        browser.execute_script("return document.body.dataset.mdColorScheme")
        == {"light": "default", "dark": "slate"}[scheme]
    )


@needs_chromium
@pytest.mark.parametrize("scheme", SCHEMES)
def test_plots_stand_on_white(browser: Any, site: Path, scheme: str) -> None:
    for name in ("benchmarks", "calibration", "distillation", "grpo"):
        go(browser, site / f"{name}.html", scheme=scheme)
        # A page may still be loading, on a machine that has other things to do.
        (image,) = WebDriverWait(browser, 20).until(lambda page: page.find_elements("css selector", "article img"))
        assert image.value_of_css_property("background-color") in ("rgba(255, 255, 255, 1)", "rgb(255, 255, 255)")
        assert browser.execute_script("return arguments[0].naturalWidth", image) > 300


@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_tables_of_other_libraries_keep_their_names_in_sight(browser: Any, site: Path, width: int, height: int) -> None:
    """Scrolled to their last row and column: the names of the row and of the column."""
    go(browser, site / "peers.html", width=width, height=height)
    seen = """
        const box = document.querySelectorAll(".matrix")[arguments[0]], rows = box.querySelectorAll("tr");
        box.scrollTo(1e6, 1e6);
        const row = rows[rows.length - 1], [head, first] = [rows[0].lastChild, row.firstChild];
        const at = (e) => e.getBoundingClientRect(), edge = at(box);
        return [box.scrollLeft, box.scrollTop, at(first).left - edge.left, at(head).top - edge.top, at(first).width];
    """
    for i in (0, 1):
        right, down, left, top, wide = browser.execute_script(seen, i)
        assert down > 0
        assert right > 0 or width > 600
        assert -1 <= left <= 2
        assert -1 <= top <= 2
        assert wide < width / 2
    names = browser.execute_script("return [...document.querySelectorAll('.of-features th')].map((e) => e.innerText)")
    assert "1. unixent numpy" in names
