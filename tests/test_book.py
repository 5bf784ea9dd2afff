"""The real pages, built strictly, from the promoted notebook if there is one and a stand-in otherwise."""

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mergekit_lite.errors import KitError
from mergekit_lite.methods import all_methods
from mergekit_lite.pipeline.book import EXECUTED, build_book, notebook_times, times_table, toc_pages

ROOT = Path(__file__).parents[1]
NOTEBOOK = f"{EXECUTED}eight_tasks.ipynb"
TASKS_NOTEBOOK = f"{EXECUTED}tasks.ipynb"
SCALING_NOTEBOOK = f"{EXECUTED}scaling.ipynb"
TASKS_NUMBERS = {"tasks-zero-shot": 48.17, "tasks-experts": 91.27, "tasks-norm": 3.37, "tasks-cosine": 0.027}
NUMBERS = {
    "eight-zero-shot": 41.17,
    "eight-simple-average": 52.27,
    "eight-task-arithmetic": 63.37,
    "eight-ties": 64.47,
    "eight-tsv": 66.97,
    "eight-regmean": 68.87,
    "eight-task-wise": 65.57,
    "eight-layer-wise": 76.67,
    "eight-individual": 87.77,
}
SCALING_NUMBERS = {
    "scaling-alone-blind": 71.27,
    "scaling-crowd-blind": 33.37,
    "scaling-alone-soft": 74.47,
    "scaling-crowd-soft": 72.97,
}
QUOTED = {NOTEBOOK: NUMBERS, TASKS_NOTEBOOK: TASKS_NUMBERS, SCALING_NOTEBOOK: SCALING_NUMBERS}  # by pages of the book
STAND_INS: dict[str, dict[str, float]] = {
    f"{page}.ipynb": QUOTED.get(f"{page}.ipynb", {}) for page in toc_pages(ROOT) if page.startswith(EXECUTED)
}
SHEET = (
    '<figure class="kit-figure"><img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" alt="Bars">'
    "<figcaption>Bars.</figcaption></figure>"
)

pytest.importorskip("jupyter_book", reason="the book extra is not installed")


class Page(HTMLParser):
    """Collects the tags of a page with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def loads(self) -> Iterator[str]:
        """Every address from which the browser fetches something to show the page."""
        for tag, attributes in self.tags:
            for key in ("src", "href", "poster", "data"):
                if key in attributes and tag in {
                    "script",
                    "link",
                    "img",
                    "iframe",
                    "source",
                    "video",
                    "object",
                    "embed",
                }:
                    yield attributes[key] or ""


def glued(name: str, data: dict[str, str]) -> nbformat.NotebookNode:
    return new_output("display_data", data=data, metadata={"scrapbook": {"name": name, "mime_prefix": ""}})


def stand_in(path: Path, numbers: dict[str, float], seconds: int | None = None) -> None:
    """Write the smallest executed notebook that the pages can quote."""
    outputs = [glued(name, {"text/plain": repr(value)}) for name, value in numbers.items()]
    sheets = ("eight-table", "eight-bars", "scaling-irrelevant")
    outputs += [glued(name, {"text/html": SHEET, "text/plain": "sheet"}) for name in sheets]
    title = path.stem.replace("_", " ").capitalize()
    cells = [new_markdown_cell(f"# {title}"), new_code_cell("show()", execution_count=1, outputs=outputs)]
    metadata: dict[str, dict[str, object]] = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    if seconds is not None:
        metadata["mergekit_lite"] = {"profile": "miniature", "seconds": seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)


def fill_in(tree: Path, *, anew: bool = False) -> None:
    """Write a stand-in for each executed notebook that is not there, or for all of them."""
    for name, numbers in STAND_INS.items():
        if anew or not (tree / name).is_file():
            stand_in(tree / name, numbers)


def copy_of_the_book(to: Path) -> Path:
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, to / name)
    shutil.copytree(ROOT / "book", to / "book", ignore=shutil.ignore_patterns("_build"))
    # the method pages show functions of the library
    shutil.copytree(ROOT / "mergekit_lite/methods", to / "mergekit_lite/methods")
    return to


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built copy of the book."""
    tree = copy_of_the_book(tmp_path_factory.mktemp("book"))
    fill_in(tree)
    assert build_book(tree) == tree / "book/_build/html/index.html"
    return tree


@pytest.fixture(scope="module")
def pages(tree: Path) -> list[Page]:
    return [Page(path) for path in sorted((tree / "book/_build/html").rglob("*.html")) if "_static" not in path.parts]


def test_every_page_of_the_toc_is_built(tree: Path) -> None:
    assert len(toc_pages(tree)) >= 7
    for page in toc_pages(tree):
        assert (tree / "book/_build/html" / f"{page}.html").is_file()


def test_nothing_is_loaded_from_another_host(tree: Path, pages: list[Page]) -> None:
    foreign = [
        (page.path.name, address)
        for page in pages
        for address in page.loads()
        if urlsplit(address).netloc or urlsplit(address).scheme not in {"", "data"}
    ]
    assert foreign == []
    html = tree / "book/_build/html"
    sheets = {html / "_static" / path.name for path in html.joinpath("_static").glob("*.css")}
    sheets |= set(html.joinpath("_static/styles").glob("*.css"))
    assert sheets
    for sheet in sheets:
        found = re.findall(r"""(?:url\(|@import\s)\s*["']?(?:https?:)?//[^)"']+""", sheet.read_text(encoding="utf-8"))
        assert found == [], sheet
    for page in pages:
        assert not re.search(r"unpkg\.com|jsdelivr|cdnjs|googleapis", page.path.read_text(encoding="utf-8")), page.path


def test_every_local_address_exists(pages: list[Page]) -> None:
    missing = []
    for page in pages:
        links = [attributes.get("href") or "" for tag, attributes in page.tags if tag == "a"]
        for address in {*page.loads(), *links}:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            if not (page.path.parent / unquote(parts.path)).resolve().exists():
                missing.append((page.path.name, address))
    assert missing == []


def test_every_picture_is_described(pages: list[Page]) -> None:
    pictures = [(page, attributes) for page in pages for tag, attributes in page.tags if tag == "img"]
    assert pictures
    for page, attributes in pictures:
        assert (attributes.get("alt") or "").strip(), (page.path.name, str(attributes)[:200])
    for page in pages:
        for tag, attributes in page.tags:
            if tag == "svg" and attributes.get("role") == "img":
                assert attributes.get("aria-labelledby") or attributes.get("aria-label"), page.path.name


def test_formulas_are_set_by_a_local_mathjax(tree: Path) -> None:
    page = Page(tree / "book/_build/html/book/merging-in-ten-minutes.html")
    engines = [address for address in page.loads() if "mathjax" in address]
    assert len(engines) == 1
    engine = page.path.parent / urlsplit(engines[0]).path
    assert engine.stat().st_size > 100_000
    assert list(engine.parent.rglob("MathJax_Main-Regular.woff"))


def test_numbers_on_the_welcome_page_are_the_notebook_s(tree: Path) -> None:
    values = glued_numbers(tree / NOTEBOOK, NUMBERS) | glued_numbers(tree / SCALING_NOTEBOOK, SCALING_NUMBERS)
    assert values.keys() == NUMBERS.keys() | SCALING_NUMBERS.keys()
    shown = re.findall(r'class="pasted-text">([^<]*)<', (tree / "book/_build/html/book/welcome.html").read_text())
    assert shown == [f"{values[name]:.1f}" for name in (*NUMBERS, *SCALING_NUMBERS)]


def glued_numbers(notebook: Path, wanted: dict[str, float]) -> dict[str, float]:
    """Return what an executed notebook glued under the names of `wanted`."""
    cells = nbformat.read(notebook, as_version=4).cells
    values = {}
    for output in (output for cell in cells for output in cell.get("outputs", ())):
        name = output.get("metadata", {}).get("scrapbook", {}).get("name")
        text = next((text for kind, text in output.get("data", {}).items() if kind.endswith("text/plain")), "")
        if name in wanted:
            values[name] = float(text.strip("'"))
    return values


def test_suite_page_is_in_step_with_the_suite() -> None:
    tasks = pytest.importorskip("mergekit_lite.suites.miniature.tasks").TASKS
    text = (ROOT / "book/miniature.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w ]+) \| ([\w -]+) \| (\d+) \|", text, flags=re.MULTILINE)
    assert len(rows) == 20
    assert rows == [(task.title, task.counterpart, str(len(task.classes))) for task in tasks.values()]


def test_suite_page_quotes_the_notebook_and_shows_the_tested_example(tree: Path) -> None:
    values = glued_numbers(tree / TASKS_NOTEBOOK, TASKS_NUMBERS)
    page = (tree / "book/_build/html/book/miniature.html").read_text(encoding="utf-8")
    shown = re.findall(r'class="pasted-text">([^<]*)<', page)
    digits = {"tasks-zero-shot": 1, "tasks-experts": 1, "tasks-norm": 1, "tasks-cosine": 2}
    assert shown == [f"{values[name]:.{places}f}" for name, places in digits.items()]
    assert "Flags in two colours" in page


def times_shown(page: Path) -> dict[str, tuple[str, str]]:
    """Return notebook -> profile and seconds, as the page about reproducing shows them."""
    section = page.read_text(encoding="utf-8").split('id="how-long-it-took"')[1].split("</section>")[0]
    rows = [re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL) for row in section.split("<tr")[2:]]
    plain = [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row] for row in rows]
    return {name: (profile, seconds) for name, profile, seconds in plain}


def test_page_about_reproducing_has_a_row_for_each_promoted_notebook(tree: Path) -> None:
    found = notebook_times(tree)
    assert [f"{page}.ipynb" for page, *_ in found] == list(STAND_INS)
    shown = times_shown(tree / "book/_build/html/book/reproduce.html")
    assert len(shown) == len(found) + ("All" in shown)
    told = [("–" if seconds is None else f"{seconds:,}") for *_, seconds in found]
    assert {seconds for name, (_, seconds) in shown.items() if name != "All"} == set(told)


def test_times_are_summed_if_all_are_known_and_dashes_stand_for_others() -> None:
    rows = [("a", "miniature", 1200), ("c", "mine", 34)]
    told = ["| [](/a.ipynb) | miniature | 1,200 |", "| [](/c.ipynb) | mine | 34 |"]
    assert times_table(rows)[2:] == [*told, "| All | | 1,234 |"]
    assert times_table([*rows, ("b", None, None)])[2:] == [*told, "| [](/b.ipynb) | – | – |"]


def test_library_and_command_line_pages_are_written_from_the_code(tree: Path) -> None:
    library = (tree / "book/_build/html/book/reference/api.html").read_text(encoding="utf-8")
    for info in all_methods():
        if info.function.__module__.startswith("mergekit_lite."):
            assert f'id="mergekit_lite.methods.{info.name}"' in library
    assert not re.search(r"FieldInfo|Annotated|factory&gt;|model_config|\*args", re.sub(r"<[^>]+>", "", library))
    assert "Named task sets of the benchmark: each is a prefix of the next." in library
    commands = (tree / "book/_build/html/book/reference/cli.html").read_text(encoding="utf-8")
    assert 'id="fetch"' in commands
    assert "--dry-run" in commands


def test_an_executed_notebook_that_is_missing_is_named(tmp_path: Path) -> None:
    tree = copy_of_the_book(tmp_path)
    fill_in(tree)
    (tree / NOTEBOOK).unlink()
    with pytest.raises(
        KitError, match=r"book/executed/eight_tasks\.ipynb.*mergekit-lite run miniature.*promote miniature"
    ):
        build_book(tree)


def test_a_folder_without_a_book_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"_config\.yml and _toc\.yml not found"):
        build_book(tmp_path)


def test_changes_and_mistakes_are_seen_in_a_second_build(tmp_path: Path) -> None:
    tree = copy_of_the_book(tmp_path)
    welcome, page = tree / "book/_build/html/book/welcome.html", tree / "book/references.md"
    fill_in(tree, anew=True)
    build_book(tree)
    assert "41.2" in welcome.read_text()

    # a page that quotes a notebook follows it, though the page itself did not change
    times = tree / "book/_build/html/book/reproduce.html"
    assert times_shown(times)["Eight tasks"] == ("–", "–")
    stand_in(tree / NOTEBOOK, {**NUMBERS, "eight-zero-shot": 12.34}, seconds=1234)
    build_book(tree)
    assert "12.3" in welcome.read_text()
    assert "41.2" not in welcome.read_text()
    assert times_shown(times)["Eight tasks"] == ("miniature", "1,234")
    assert "All" not in times_shown(times)  # the others do not say

    # a mistake fails the build, is named, and is named again until it is mended
    sound = page.read_text(encoding="utf-8")
    page.write_text(sound + "\nSee {cite}`nobody1900nothing`.\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(KitError, match=r"book/references\.md:\d+: WARNING: .*nobody1900nothing"):
            build_book(tree)
    page.write_text(sound, encoding="utf-8")
    build_book(tree)
