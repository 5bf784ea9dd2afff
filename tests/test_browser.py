"""The built book in a browser: each page in light and dark mode and on a phone, its search, its keys and its print.

The browser is the system's own Chromium, headless, and the book is served on this machine. Where there is none, all of
this is skipped.
"""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urldefrag

import pytest

from mergekit_lite.figures.tables import plain_table
from mergekit_lite.pipeline.book import build_book, toc_pages

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytest.importorskip("jupyter_book", reason="the book extra is not installed")

from test_book import copy_of_the_book, fill_in  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium")

DESKTOP: "ViewportSize" = {"width": 1280, "height": 900}
PHONE: "ViewportSize" = {"width": 390, "height": 800}
SORTED_PAGE = "book/reference/changelog"  # gets a table, since stand-ins of notebooks hold none
ROWS = [
    ("Average", "none", 52.5),
    ("TSV-M", "none", 9.5),
    ("RegMean", "images", float("nan")),
    ("Fisher", "images", 61.0),
]

# What is wrong with the page that is shown, in words; nothing if all is well.
COMPLAINTS = """() => {
  const said = [];
  const shown = (one) => one.outerHTML.slice(0, 120);
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  if (wide > 0) said.push(`the page is ${wide} pixels too wide`);
  for (const image of document.images) {
    if (image.complete && !image.naturalWidth) said.push(`broken picture ${shown(image)}`);
    if (!image.alt.trim()) said.push(`no words for the picture ${shown(image)}`);
  }
  for (const figure of document.querySelectorAll("figure.kit-figure img")) {
    const ground = getComputedStyle(figure).backgroundColor;
    const dark = document.documentElement.dataset.theme === "dark";
    if (dark && ground !== "rgb(255, 255, 255)") said.push(`a figure without its sheet in dark mode: ${ground}`);
  }
  for (const formula of document.querySelectorAll(".math")) {
    if (!formula.querySelector("mjx-container")) said.push(`formula not set: ${shown(formula)}`);
  }
  for (const wrong of document.querySelectorAll("mjx-merror")) said.push(`formula with an error: ${wrong.textContent}`);
  for (const one of document.querySelectorAll("details")) {
    if (!one.querySelector(":scope > summary")) said.push(`nothing to open ${shown(one)}`);
  }
  return said;
}"""


@dataclass
class Visit:
    """What was seen on one page in one mode."""

    page: str
    mode: str
    complaints: list[str]
    links: list[str]
    ids: list[str]


@dataclass
class Book:
    """The served book, the browser, and what went wrong while pages were open."""

    address: str
    html: Path
    pages: tuple[str, ...]
    browser: "Browser"
    errors: list[str] = field(default_factory=list)

    def open(self, page: str, *, mode: Literal["light", "dark"] = "light", size: "ViewportSize" = DESKTOP) -> "Page":
        """Return `page` in a new window that notes errors and what is asked of other hosts."""
        window = self.browser.new_page(viewport=size, color_scheme=mode)
        self.watch(window)
        window.goto(f"{self.address}/{page}.html")
        return window

    def watch(self, window: "Page") -> None:
        def asked(request: Any) -> None:
            if not request.url.startswith((self.address, "data:", "blob:")):
                self.errors.append(f"{window.url} asks for {request.url}")

        def said(message: Any) -> None:
            if message.type == "error":
                self.errors.append(f"{window.url}: {message.text}")

        def answered(response: Any) -> None:
            if response.status >= 400:
                self.errors.append(f"{response.status} for {response.url}")

        window.on("request", asked)
        window.on("console", said)
        window.on("pageerror", lambda error: self.errors.append(f"{window.url}: {error}"))
        window.on("response", answered)


class Silent(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Does not mind a browser that leaves a page before it has all of it."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Book]:
    tree = copy_of_the_book(tmp_path_factory.mktemp("book"))
    fill_in(tree)
    table = plain_table(("method", "data access", "accuracy"), ROWS, "Accuracy in percent.").data
    with (tree / f"{SORTED_PAGE}.md").open("a", encoding="utf-8") as page:
        page.write(f"\n```{{raw}} html\n{table}\n```\n")
    html = build_book(tree).parent
    server = Server(("127.0.0.1", 0), partial(Silent, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # no other host can be reached
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # which refuses to work for root
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield Book(f"http://127.0.0.1:{server.server_port}", html, toc_pages(tree), browser)
        browser.close()
    server.shutdown()


def look(window: "Page", page: str, mode: str, theme: str) -> Visit:
    window.wait_for_function("(theme) => document.documentElement.dataset.theme === theme", arg=theme)
    window.wait_for_function("!document.querySelector('.math') || window.MathJax?.startup?.promise !== undefined")
    window.evaluate("() => window.MathJax?.startup?.promise")
    return Visit(
        page=page,
        mode=mode,
        complaints=window.evaluate(COMPLAINTS),
        links=window.evaluate("[...document.querySelectorAll('a[href]')].map((one) => one.href)"),
        ids=window.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)"),
    )


@pytest.fixture(scope="module")
def visits(book: Book) -> list[Visit]:
    """Every page by day, by night, and narrow as a phone, in one window: what pages share is fetched once."""
    seen = []
    window = book.open(book.pages[0])
    for page in (*book.pages, "search", "genindex"):
        window.goto(f"{book.address}/{page}.html")
        seen.append(look(window, page, "light", "light"))
        window.emulate_media(color_scheme="dark")
        seen.append(look(window, page, "dark", "dark"))
        window.set_viewport_size(PHONE)
        seen.append(look(window, page, "phone", "dark"))
        window.set_viewport_size(DESKTOP)
        window.emulate_media(color_scheme="light")
    window.close()
    return seen


def test_each_page_is_sound_in_each_mode(visits: list[Visit]) -> None:
    assert {visit.mode for visit in visits} == {"light", "dark", "phone"}
    assert [(visit.page, visit.mode, visit.complaints) for visit in visits if visit.complaints] == []


def test_no_page_reports_an_error_or_asks_another_host(book: Book, visits: list[Visit]) -> None:
    assert visits
    assert book.errors == []


def test_every_link_leads_to_a_place_that_exists(book: Book, visits: list[Visit]) -> None:
    ids = {f"{book.address}/{visit.page}.html": set(visit.ids) for visit in visits}
    broken = set()
    for visit in visits:
        for link in visit.links:
            address, place = urldefrag(link)
            if not address.startswith(book.address):
                continue
            file = book.html / unquote(address.removeprefix(f"{book.address}/").partition("?")[0])
            if not file.exists() or (place and address in ids and unquote(place) not in ids[address]):
                broken.add((visit.page, link.removeprefix(book.address)))
    assert broken == set()


def test_search_finds_adamerging(book: Book) -> None:
    window = book.open("search")
    window.goto(f"{book.address}/search.html?q=AdaMerging")
    window.wait_for_selector("#search-results ul.search li a")
    found = window.evaluate("[...document.querySelectorAll('#search-results li a')].map((one) => one.href)")
    window.close()
    assert any("methods/adamerging.html" in address for address in found)


def test_what_the_search_shows_of_a_page_is_its_text(book: Book) -> None:
    window = book.open("search")
    window.goto(f"{book.address}/search.html?q=AdaMerging")
    window.wait_for_selector("#search-results p.context")
    window.wait_for_load_state("networkidle")
    shown = window.evaluate("[...document.querySelectorAll('#search-results p.context')].map((one) => one.textContent)")
    window.close()
    assert [text for text in shown if re.match(r"[.\s]*(ipynb|md|pdf)\b", text)] == []


def test_a_hint_is_opened_by_the_keyboard(book: Book) -> None:
    window = book.open("book/methods/averaging")
    opened = "document.activeElement.parentElement.open"
    window.locator("details > summary").last.focus()
    assert window.evaluate(opened) is False
    window.keyboard.press("Enter")
    assert window.evaluate(opened) is True
    window.close()


def column(window: "Page", number: int) -> list[str]:
    cells = f"[...document.querySelectorAll('table.kit-table tbody tr')].map((row) => row.cells[{number}].textContent)"
    answer: list[str] = window.evaluate(cells)
    return answer


def test_a_table_is_sorted_by_the_keyboard(book: Book) -> None:
    window = book.open(SORTED_PAGE)
    given = ["Average", "TSV-M", "RegMean", "Fisher"]
    assert column(window, 0) == given
    head = window.locator("table.kit-table th[scope=col]").nth(2)
    head.locator("button").focus()
    for state, rows in [
        ("descending", ["Fisher", "Average", "TSV-M", "RegMean"]),
        ("ascending", ["TSV-M", "Average", "Fisher", "RegMean"]),
        (None, given),
    ]:
        window.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == state
        assert column(window, 0) == rows
    window.locator("table.kit-table th[scope=col] button").first.press("Enter")
    assert column(window, 0) == sorted(given)
    window.close()


def test_a_wide_table_is_scrolled_by_the_keyboard_inside_its_box(book: Book) -> None:
    window = book.open(SORTED_PAGE, size=PHONE)
    window.evaluate("document.querySelector('table.kit-table').style.width = '1200px'")
    box = window.locator("[role=region]:has(table.kit-table)")
    box.focus()
    window.keyboard.press("ArrowRight")
    window.wait_for_function("document.querySelector('[role=region]:has(table.kit-table)').scrollLeft > 0")
    assert window.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert window.evaluate("document.querySelector('table.kit-table tbody th').getBoundingClientRect().left >= 0")
    window.close()


def test_paper_is_white_and_has_no_side_bars(book: Book) -> None:
    window = book.open("book/methods/adamerging", mode="dark")
    window.emulate_media(media="print")
    window.wait_for_function("document.documentElement.dataset.theme === 'light'")
    for bar in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article"):
        assert window.evaluate(f"getComputedStyle(document.querySelector('{bar}')).display") == "none"
    window.set_viewport_size({"width": 700, "height": 990})  # A4 less its margins
    assert window.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    window.emulate_media(media="screen")
    window.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    window.close()
