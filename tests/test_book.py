"""The real pages, built strictly, from the promoted notebook if there is one and a stand-in otherwise."""

import inspect
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.methods import all_methods
from mergekit_lite.pipeline.book import EXECUTED, build_book, notebook_times, times_table, toc_pages
from mergekit_lite.suites import suite
from mergekit_lite.suites.miniature.tasks import TASKS

ROOT = Path(__file__).parents[1]
QUOTE = re.compile(r"\{glue:text\}`(?:\.\./)?(executed/\w+\.ipynb)::([\w-]+):\.(\d)f`")
WORDS = re.compile(r"\{glue:text\}`(executed/\w+\.ipynb)::([\w-]+):s`")
PICTURE = re.compile(r"^```\{glue\} ([\w-]+)\n:doc: (executed/\w+\.ipynb)$", flags=re.MULTILINE)
SOURCES = {
    path.relative_to(ROOT / "book"): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "book").rglob("*.md"))
    if "_build" not in path.parts
}
SHEET = (
    '<figure class="kit-figure"><img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" alt="Bars">'
    "<figcaption>Bars.</figcaption></figure>"
)

pytest.importorskip("jupyter_book", reason="the book extra is not installed")


def stand_ins() -> dict[str, dict[str, float | str]]:
    """Return for each executed notebook of the book what the pages quote of it: made-up numbers, or a picture."""
    found: dict[str, dict[str, float | str]] = {
        f"{page}.ipynb": {} for page in toc_pages(ROOT) if page.startswith(EXECUTED)
    }
    numbers = count(31.17)  # no two alike, so that a page shows which one it quotes
    for text in SOURCES.values():
        for notebook, name, _ in QUOTE.findall(text):
            if name not in found[f"book/{notebook}"]:
                found[f"book/{notebook}"][name] = next(numbers)
        for notebook, name in WORDS.findall(text):
            found[f"book/{notebook}"][name] = f"Words of {name}"
        for name, notebook in PICTURE.findall(text):
            found[f"book/{notebook}"][name] = SHEET
    return found


STAND_INS = stand_ins()
WELCOME = QUOTE.findall(SOURCES[Path("welcome.md")])
NOTEBOOK = f"book/{WELCOME[0][0]}"  # one that a page quotes


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


def stand_in(path: Path, quoted: dict[str, float | str], seconds: int | None = None) -> None:
    """Write the smallest executed notebook that the pages can quote."""
    outputs = [
        glued(name, {"text/html": value, "text/plain": "sheet"} if value == SHEET else {"text/plain": repr(value)})
        for name, value in quoted.items()
    ]
    cells = [new_markdown_cell(f"# {title(path)}"), new_code_cell("show()", execution_count=1, outputs=outputs)]
    metadata: dict[str, dict[str, object]] = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    if seconds is not None:
        metadata["mergekit_lite"] = {"profile": "miniature", "seconds": seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)


def title(notebook: Path) -> str:
    return notebook.stem.replace("_", " ").capitalize()


def fill_in(tree: Path, *, anew: bool = False) -> None:
    """Write a stand-in for each executed notebook that is not there, or for all of them."""
    for name, quoted in STAND_INS.items():
        if anew or not (tree / name).is_file():
            stand_in(tree / name, quoted)


def copy_of_the_book(to: Path) -> Path:
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, to / name)
    shutil.copytree(ROOT / "book", to / "book", ignore=shutil.ignore_patterns("_build"))
    # the method pages show functions of the library
    shutil.copytree(ROOT / "mergekit_lite/methods", to / "mergekit_lite/methods")
    shutil.copytree(ROOT / "mergekit_lite/course", to / "mergekit_lite/course")  # and one page what students are handed
    shutil.copytree(ROOT / "benchmarks/results", to / "benchmarks/results")
    for name in ("notebooks", "profiles"):  # of which a page lists the schedules
        shutil.copytree(ROOT / name, to / name)
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


def test_numbers_on_the_pages_are_the_notebooks(tree: Path) -> None:
    for source, text in SOURCES.items():
        quotes = QUOTE.findall(text)
        page = tree / "book/_build/html/book" / source.with_suffix(".html")
        pasted = re.findall(r'class="pasted-text">([^<]*)<', page.read_text(encoding="utf-8")) if quotes else []
        shown = [one for one in pasted if re.fullmatch(r"-?[\d.]+", one)]
        assert shown == [f"{glued_number(tree / 'book' / book, name):.{places}f}" for book, name, places in quotes]


def test_words_on_the_pages_are_the_notebooks(tree: Path) -> None:
    page = (tree / "book/_build/html/book/welcome.html").read_text(encoding="utf-8")
    (words,) = WORDS.findall(SOURCES[Path("welcome.md")])
    assert words == ("executed/scorecard.ipynb", "scorecard-line")
    (shown,) = [one for one in re.findall(r'class="pasted-text">([^<]*)<', page) if not re.fullmatch(r"-?[\d.]+", one)]
    assert re.match(r"Words of scorecard-line$|Of \d+ claims, ", shown)  # no quotation marks around it


def test_schedules_are_a_table_with_links(tree: Path) -> None:
    page = (tree / "book/_build/html/book/reproduce.html").read_text(encoding="utf-8")
    section = page.split('id="all-schedules-of-this-book"')[1].split("</section>")[0]
    assert section.count("<tr") > 10
    assert 'href="executed/scorecard.html"' in section


def glued_number(notebook: Path, wanted: str) -> float:
    """Return what an executed notebook glued under the name `wanted`."""
    cells = nbformat.read(notebook, as_version=4).cells
    (data,) = [
        output["data"]
        for cell in cells
        for output in cell.get("outputs", ())
        if output.get("metadata", {}).get("scrapbook", {}).get("name") == wanted
    ]
    return float(next(text for kind, text in data.items() if kind.endswith("text/plain")).strip("'"))


def test_suite_page_is_in_step_with_the_suite() -> None:
    rows = re.findall(r"^\| ([\w ]+) \| ([\w -]+) \| (\d+) \|", SOURCES[Path("miniature.md")], flags=re.MULTILINE)
    assert rows == [(task.title, task.counterpart, str(len(task.classes))) for task in TASKS.values()]


def test_every_example_that_is_tested_is_shown() -> None:
    for example in (ROOT / "book/examples").glob("*.py"):
        assert any(re.search(rf"^```{{literalinclude}} .*{example.name}$", one, re.M) for one in SOURCES.values())


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
    below = re.search(r'^PREFIXES.*?^"""(.*?:.*?)"""', inspect.getsource(suite), flags=re.MULTILINE | re.DOTALL)
    assert below
    assert below[1] in library  # though napoleon takes words before a colon for a type
    commands = (tree / "book/_build/html/book/reference/cli.html").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert command.callback
        assert f'id="mergekit-lite-{command.callback.__name__}"' in commands


def test_an_executed_notebook_that_is_missing_is_named(tmp_path: Path) -> None:
    tree = copy_of_the_book(tmp_path)
    fill_in(tree)
    (tree / NOTEBOOK).unlink()
    with pytest.raises(KitError, match=rf"{NOTEBOOK}.*mergekit-lite run miniature.*promote miniature"):
        build_book(tree)


def test_a_folder_without_a_book_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"_config\.yml and _toc\.yml not found"):
        build_book(tmp_path)


def test_changes_and_mistakes_are_seen_in_a_second_build(tmp_path: Path) -> None:
    tree = copy_of_the_book(tmp_path)
    welcome, page = tree / "book/_build/html/book/welcome.html", tree / "book/references.md"
    fill_in(tree, anew=True)
    build_book(tree)
    _, name, places = WELCOME[0]
    before, after = (f"{value:.{places}f}" for value in (STAND_INS[NOTEBOOK][name], 12.34))
    assert before in welcome.read_text()

    # a page that quotes a notebook follows it, though the page itself did not change
    times = tree / "book/_build/html/book/reproduce.html"
    assert times_shown(times)[title(Path(NOTEBOOK))] == ("–", "–")
    stand_in(tree / NOTEBOOK, {**STAND_INS[NOTEBOOK], name: 12.34}, seconds=1234)
    build_book(tree)
    assert after in welcome.read_text()
    assert before not in welcome.read_text()
    assert times_shown(times)[title(Path(NOTEBOOK))] == ("miniature", "1,234")
    assert "All" not in times_shown(times)  # the others do not say

    # a mistake fails the build, is named, and is named again until it is mended
    sound = page.read_text(encoding="utf-8")
    page.write_text(sound + "\nSee {cite}`nobody1900nothing`.\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(KitError, match=r"book/references\.md:\d+: WARNING: .*nobody1900nothing"):
            build_book(tree)
    page.write_text(sound, encoding="utf-8")
    build_book(tree)
