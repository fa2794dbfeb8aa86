"""The page of a run: self-contained, readable at any width, in a real browser where there is one."""

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from secateur.reporting import Report, render_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOAD = 'import secateur as sc\n\nmodel = sc.load("secateur-run")'

CONTRASTS = """() => {
  const light = c => { c = c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                       return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; };
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
                        if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), low = [];
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !e.checkVisibility() || ["title", "desc"].includes(e.tagName)) continue;
    const style = getComputedStyle(e), ink = parse(e.closest("svg") ? style.fill : style.color);
    const a = light(ink), b = light(behind(e));
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) low.push(texts.currentNode.data);
  }
  return low;
}"""

OVERFLOWING = """() => [...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  return !e.closest(".unseen") && box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.outerHTML.slice(0, 80))"""


class _Structure(HTMLParser):
    """Open tags, identities and addresses of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


def test_structure(large: dict[str, Any], histories: dict[str, Any]) -> None:
    found = _Structure(render_page(Report(large), histories=histories, load=LOAD, settings="a: 1"))
    assert found.open == []
    identities = found.values("id")
    assert len(identities) == len(set(identities))
    for reference in found.values("aria-labelledby"):
        assert set(reference.split()) <= set(identities)
    assert {target.removeprefix("#") for target in found.values("href") if target != "data:,"} <= set(identities)
    assert found.tags.count("h1") == 1


def test_it_is_self_contained_and_escapes(large: dict[str, Any], histories: dict[str, Any]) -> None:
    page = render_page(Report(large), histories=histories, load=LOAD)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|src=", page)
    assert "<script" not in page
    assert "<b>network" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_what_it_says(data: dict[str, Any], histories: dict[str, Any]) -> None:
    page = render_page(Report(data), histories=histories, load=LOAD, settings="threshold: 0.8").replace("\u00a0", " ")
    for text in (
        "2.50× fewer parameters, accuracy 97.2 % → 96.9 %",
        "The measured latency did not fall",
        "Proved: the smaller model computes",
        "secateur prune --budget params=0.4",
        "sc.load(&quot;secateur-run&quot;)",
        "threshold: 0.8",
        "120 → <b>71</b>",
        "A processor with a long name",
        "Training of the dense network",
        "Fine-tuning of the pruned network",
    ):
        assert text in page, text


def test_the_same_report_gives_the_same_page(data: dict[str, Any], histories: dict[str, Any]) -> None:
    assert render_page(Report(data), histories=histories) == render_page(Report(data), histories=histories)


@pytest.mark.parametrize("missing", ["dense", "pruned", "tuned", "proof", "axes", "environment", "command", "model"])
def test_a_page_without_a_part(data: dict[str, Any], missing: str) -> None:
    assert _Structure(render_page(Report(data | {missing: None}))).open == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
@pytest.mark.parametrize("which", ["data", "large"])
def test_in_a_browser(
    browser: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    histories: dict[str, Any],
    which: str,
    size: tuple[int, int],
    colors: str,
) -> None:
    report = request.getfixturevalue(which)
    (tmp_path / "report.html").write_text(
        render_page(Report(report), histories=histories, load=LOAD, settings="a: 1"), encoding="utf-8"
    )
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=colors)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(CONTRASTS) == []
    for text in ("81,194", "32,478", "2.50× fewer"):
        assert page.get_by_text(text).first.is_visible(), text
    assert page.locator(".chart svg").count() == 4
    assert page.locator(".axes li").count() == len(report["axes"])
    assert all(box["width"] > 100 for box in (line.bounding_box() for line in page.locator(".axes .bar").all()[:5]))
    page.close()
