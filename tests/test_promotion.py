"""Only a complete, current, portable and described notebook gets into the book."""

import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import samples
from nbformat import NotebookNode
from projects import write_notebook, write_profile

from mergekit_lite.errors import KitError
from mergekit_lite.pipeline import promotion, runner
from mergekit_lite.study.records import Provenance, write_record

RUN = {"profile": "short", "stamp": "0123", "records": []}
PICTURE = "iVBORw0KGgo/tmp/abc/home/user="  # base64 may hold what looks like a path


def output(kind: str, content: str, **metadata: Any) -> NotebookNode:
    return nbformat.v4.new_output("display_data", {kind: content}, metadata=metadata)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return write_notebook(tmp_path, "one", "# Prose with a [link](other.md) and https://example.org/home/page", "1 + 1")


@pytest.fixture
def executed(tmp_path: Path, template: Path) -> Callable[..., Path]:
    """Return a function that writes an executed notebook, changed by what it is given."""

    def write(change: Callable[[NotebookNode], Any] = lambda notebook: None) -> Path:
        notebook = nbformat.read(template, as_version=4)
        injected = nbformat.v4.new_code_cell("# Parameters\nsteps = 5", metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(1, injected)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for count, cell in enumerate(code, 1):
            cell.execution_count = count
            cell.metadata["papermill"] = {"start_time": "now", "status": "completed"}
        code[-1].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=3)]
        notebook.metadata["papermill"] = {"output_path": str(tmp_path / "build" / "x.ipynb"), "duration": 3.0}
        notebook.metadata["mergekit_lite"] = {**RUN, "seconds": 61.7}
        notebook.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
        change(notebook)
        path = tmp_path / "build" / "short" / "one.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return write


def show(*outputs: NotebookNode, **metadata: Any) -> Callable[[NotebookNode], None]:
    """Return a change that gives the last cell these outputs and metadata."""

    def change(notebook: NotebookNode) -> None:
        notebook.cells[-1].outputs = list(outputs)
        notebook.cells[-1].metadata.update(metadata)

    return change


def another_run(notebook: NotebookNode) -> None:
    """Change what differs between two runs with the same results: a figure may draw the seconds."""
    notebook.metadata["papermill"]["duration"] = 9.0
    notebook.metadata["mergekit_lite"]["seconds"] = 9.4
    notebook.cells[1]["id"] = "another-id"
    notebook.cells[-1].outputs = [output("image/png", "bm90aGVy", alt="Seconds.")]


def made_from(*keys: str, **run: Any) -> Callable[[NotebookNode], None]:
    """Return a change to another run, made from these records and whatever `run` says of it."""

    def change(notebook: NotebookNode) -> None:
        another_run(notebook)
        notebook.metadata["mergekit_lite"].update(records=[f"fake/{key}" for key in keys], **run)

    return change


def record(cache: Path, key: str, accuracy: float = 50.0, seconds: float = 3.0, **provenance: str) -> Path:
    """Write a record into the cache."""
    path = cache / "records" / "fake" / f"{key}.json"
    made = samples.record("simple_average", "Simple average", (accuracy, 50.0, 50.0), trace={"loss": [math.nan]})
    known = made.provenance.model_dump() | {"torch": "2.12", **provenance}
    run = {"seconds": {"merge": seconds}, "peak_memory_mib": 100 * seconds}
    write_record(made.model_copy(update={"key": key, **run, "provenance": Provenance.model_validate(known)}), path)
    return path


def test_a_damaged_record_is_not_promoted(
    tmp_path: Path, template: Path, executed: Callable[..., Path], cache: Path
) -> None:
    book = tmp_path / "book"
    path = record(cache, "aa")
    promotion.promote(executed(made_from("aa")), template, book)
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace("50.0", "51.0"), encoding="utf-8")
    with pytest.raises(KitError, match="The record fake/aa of a notebook is not whole in the cache"):
        promotion.promote_records(book)
    path.write_text(whole, encoding="utf-8")
    (kept,) = promotion.promote_records(book)
    path.write_text(whole.replace("50.0", "51.0"), encoding="utf-8")
    assert promotion.promote_records(book) == [kept]  # the promoted one stands for it
    assert kept.read_text(encoding="utf-8") == whole


def promoted(book: Path) -> dict[str, Any]:
    """Return what the promoted notebook says of its run."""
    return dict(nbformat.read(book / "executed" / "one.ipynb", as_version=4).metadata["mergekit_lite"])


def test_a_good_notebook_is_promoted_without_what_belongs_to_the_machine(
    tmp_path: Path, template: Path, executed: Callable[..., Path]
) -> None:
    target = promotion.promote(executed(), template, tmp_path / "book")
    assert target == tmp_path / "book" / "executed" / "one.ipynb"
    text = target.read_text()
    for trace in (str(tmp_path), "papermill", "start_time", "3.11.7"):
        assert trace not in text
    notebook = nbformat.read(target, as_version=4)
    nbformat.validate(notebook)
    assert promoted(tmp_path / "book") == {**RUN, "seconds": 62, "stamp": promoted(tmp_path / "book")["stamp"]}
    assert notebook.cells[-1].outputs[0]["data"]["text/plain"] == "2"
    assert notebook.cells[1]["id"] == "injected-parameters"
    assert [path.name for path in target.parent.iterdir()] == ["one.ipynb"]


def test_other_seconds_memory_and_dates_are_no_change(
    tmp_path: Path, template: Path, executed: Callable[..., Path], cache: Path
) -> None:
    book = tmp_path / "book"
    record(cache, "aa", commit="0123", started="2026-01-01", python="3.11.7", device="cpu")
    target = promotion.promote(executed(made_from("aa")), template, book)
    (kept,) = promotion.promote_records(book)
    for path in (target, kept):
        os.utime(path, (1, 1))

    record(cache, "aa", seconds=9.0, commit="4567", started="2026-02-02", python="3.12.1", device="NVIDIA H100")
    promotion.promote(executed(made_from("aa", seconds=1.0)), template, book)
    assert promotion.promote_records(book) == [kept]
    assert (target.stat().st_mtime, kept.stat().st_mtime) == (1, 1)
    assert promoted(book)["seconds"] == 9

    (cache / "records" / "fake" / "aa.json").unlink()  # the promoted record stands for it
    promotion.promote(executed(made_from("aa")), template, book)
    promotion.promote_records(book)
    assert (target.stat().st_mtime, kept.stat().st_mtime) == (1, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: made_from("aa", stamp="4567"),  # another template, parameter or library
        lambda cache: record(cache, "bb") and made_from("aa", "bb"),
        lambda cache: record(cache, "aa", accuracy=50.1) and made_from("aa"),
        lambda cache: record(cache, "aa", torch="2.13") and made_from("aa"),
    ],
)
def test_what_came_out_otherwise_is_written(
    tmp_path: Path,
    template: Path,
    executed: Callable[..., Path],
    cache: Path,
    change: Callable[[Path], Callable[[NotebookNode], None]],
) -> None:
    book = tmp_path / "book"
    record(cache, "aa")
    before = promotion.promote(executed(made_from("aa")), template, book)
    promotion.promote_records(book)
    os.utime(before, (1, 1))
    promotion.promote(executed(change(cache)), template, book)
    assert before.stat().st_mtime > 1
    for path in promotion.promote_records(book):
        assert path.read_bytes() == (cache / "records" / "fake" / path.name).read_bytes()


def test_a_notebook_follows_a_record_that_another_one_promoted(
    tmp_path: Path, template: Path, executed: Callable[..., Path], cache: Path
) -> None:
    book = tmp_path / "book"
    record(cache, "aa")
    target = promotion.promote(executed(made_from("aa")), template, book)
    promotion.promote_records(book)
    os.utime(target, (1, 1))
    record(cache, "aa", accuracy=60.0)
    promotion.promote_records(book)
    promotion.promote(executed(made_from("aa")), template, book)
    assert target.stat().st_mtime > 1


def test_records_of_no_notebook_go_and_damaged_ones_are_replaced(
    tmp_path: Path, template: Path, executed: Callable[..., Path], cache: Path
) -> None:
    book, records = tmp_path / "book", tmp_path / "book" / "records" / "fake"
    for key in ("aa", "bb"):
        record(cache, key)
    promotion.promote(executed(made_from("aa", "bb")), template, book)
    assert promotion.promote_records(book) == [records / "aa.json", records / "bb.json"]

    (records / "aa.json").write_text("<<<<<<< a merge that went wrong")
    promotion.promote(executed(made_from("aa")), template, book)
    assert promotion.promote_records(book) == [records / "aa.json"]
    assert [path.name for path in records.iterdir()] == ["aa.json"]
    assert (records / "aa.json").read_bytes() == (cache / "records" / "fake" / "aa.json").read_bytes()


def test_a_record_that_is_nowhere_is_worded(
    tmp_path: Path, template: Path, executed: Callable[..., Path], cache: Path
) -> None:
    with pytest.raises(KitError, match=r"fake/cc .* not whole in the cache. Run its profile again with --force"):
        promotion.promote(executed(made_from("cc")), template, tmp_path / "book")


def set_count(value: int | None) -> Callable[[NotebookNode], None]:
    def change(notebook: NotebookNode) -> None:
        notebook.cells[-1].execution_count = value
        notebook.cells[-1].outputs = []

    return change


def fail(notebook: NotebookNode) -> None:
    notebook.cells[-1].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=["x"])]


def edit(notebook: NotebookNode) -> None:
    notebook.cells[-1].source = "1 + 2"


def shorten(notebook: NotebookNode) -> None:
    notebook.cells.pop()


def by_hand(notebook: NotebookNode) -> None:
    del notebook.metadata["mergekit_lite"]


def stream(text: str) -> NotebookNode:
    return nbformat.v4.new_output("stream", name="stderr", text=text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fail, "cell 4 raised ValueError: no"),
        (set_count(None), "it was not run to its end"),
        (set_count(7), r"not run once each from top to bottom: the counts are \[1, 2, 7\]"),
        (edit, "another version of its template: they differ from the template's cell 3 on"),
        (by_hand, "it was not made by `mergekit-lite run`"),
        (shorten, "another version of its template: they differ from the template's cell 3 on"),
        (show(stream("/home/me/lib.py:3: UserWarning")), "cell 4 holds the path /home/me/lib.py:3:, which exists on"),
        (show(stream(f"{os.getcwd()}/x.py")), "cell 4 holds the path"),
        (show(output("text/html", "<a href='file:///x/y'>")), "cell 4 holds the path file:///x/y,"),
        (show(stream("C:\\Users\\me\\x")), "cell 4 holds the path"),
        (show(output("application/papermill.record/text/plain", "'/tmp/abc'")), "cell 4 holds the path /tmp/abc,"),
        (show(output("image/png", PICTURE)), "cell 4: a figure has no alternative text"),
        (show(output("image/svg+xml", "<svg/>", alt=" ")), "cell 4: a figure has no alternative text"),
        (show(output("text/html", f'<img src="data:image/png;base64,{PICTURE}">')), "no alternative text"),
        (show(output("text/html", '<p>x</p><img alt="" src="a.png">')), "no alternative text"),
        (show(output("text/html", "<svg></svg>")), "no alternative text"),
        (show(stream("x" * 3_000_000)), "it is 2.9 MiB large; 2 MiB are allowed"),
    ],
)
def test_what_is_not_fit_for_the_book_is_refused(
    tmp_path: Path,
    template: Path,
    executed: Callable[..., Path],
    change: Callable[[NotebookNode], None],
    words: str,
) -> None:
    with pytest.raises(KitError, match=words) as caught:
        promotion.promote(executed(change), template, tmp_path / "book")
    assert str(caught.value).startswith("build/short/one.ipynb cannot go into the book:\n  ")
    assert str(caught.value).endswith("Mend notebooks/one.ipynb and run it again.")
    assert not (tmp_path / "book").exists()


@pytest.mark.parametrize(
    "change",
    [
        show(output("image/png", PICTURE, alt="A bar chart.")),
        show(output("image/png", PICTURE, **{"image/png": {"alt": "A bar chart."}})),
        show(output("image/png", PICTURE), mystnb={"image": {"alt": "A bar chart."}}),
        show(output("text/html", f'<img alt="Bars." src="data:image/png;base64,{PICTURE}">')),
        show(output("text/html", '<svg role="img" aria-label="Bars."><path d="M0 0/home/x"/></svg>')),
        show(stream("445 images/s, see book/executed/one.ipynb and https://example.org/tmp/x, [1/7], 3 /home run")),
    ],
)
def test_described_figures_and_relative_paths_pass(
    tmp_path: Path, template: Path, executed: Callable[..., Path], change: Callable[[NotebookNode], None]
) -> None:
    assert promotion.promote(executed(change), template, tmp_path / "book").exists()


def test_all_reasons_are_listed(tmp_path: Path, template: Path, executed: Callable[..., Path]) -> None:
    def change(notebook: NotebookNode) -> None:
        fail(notebook)
        notebook.cells[0].execution_count = 9

    with pytest.raises(KitError) as caught:
        promotion.promote(executed(change), template, tmp_path / "book")
    assert len(str(caught.value).splitlines()) == 4


def test_a_notebook_that_was_not_run_is_worded(tmp_path: Path, template: Path) -> None:
    with pytest.raises(KitError, match=r"no build/short/one.ipynb to promote. Run `mergekit-lite run short` first"):
        promotion.promote(tmp_path / "build" / "short" / "one.ipynb", template, tmp_path / "book")


STUDY = """import time
import fakes
from mergekit_lite import study
cells = [study.Cell(method="task_arithmetic", pool=("digits",), evaluate=("digits", "signs"))]
print(study.run(fakes.fake_suite(), cells, workers=1)[0].average, time.time())"""


def test_a_run_from_nothing_that_gives_the_same_leaves_the_book_as_it_is(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    template, book = write_notebook(tmp_path, "one", STUDY), tmp_path / "book"
    profile = write_profile(tmp_path, one={})

    def run_and_promote() -> dict[str, bytes]:
        (executed,) = runner.run_profile(profile, tmp_path)
        promotion.promote(executed, template, book)
        promotion.promote_records(book)
        return {str(path): path.read_bytes() for path in book.rglob("*") if path.is_file()}

    before = run_and_promote()
    assert len(before) == 2
    shutil.rmtree(cache)
    shutil.rmtree(tmp_path / "build")
    assert run_and_promote() == before


def test_what_figures_show_has_words(tmp_path: Path, template: Path, executed: Callable[..., Path]) -> None:
    from matplotlib.figure import Figure

    from mergekit_lite.figures import figure_html

    figure = Figure()
    figure.add_subplot().plot([1, 2])
    html = figure_html(figure, alt="A line that rises.").data
    assert promotion.promote(executed(show(output("text/html", html))), template, tmp_path / "book").exists()
