"""The leaderboard: places among methods of the same data access, and a page that a click sorts, offline."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
import torch

from mergekit_lite import study
from mergekit_lite.analysis.accuracy import normalised
from mergekit_lite.course.leaderboard import BASELINES, Row, kit_rows, place, ranked, row, write_html
from mergekit_lite.course.pico_suite import PicoSuite
from mergekit_lite.errors import KitError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)


def entry(name: str, normalised: float, access: str = "none", **about: object) -> Row:
    given = {
        "name": name,
        "title": f"Method of {name}",
        "access": access,
        "accuracy": {"known": normalised - 5, "hidden": normalised - 10},
        "normalised": normalised,
        "interval": (normalised - 9, normalised - 6),
        "seconds": 100 / normalised,
    }
    return Row(**{**given, **about})  # type: ignore[arg-type]


ROWS = [
    entry("anna", 80.0),
    entry("ben", 9.5, accuracy={"known": 4.5}, interval=None, note="did not end on: hidden"),
    entry("<script>alert(1)</script>", 90.0),
    entry("task_arithmetic", 80.0, baseline=True),
    entry("carla", 95.0, "labelled train"),
    entry("dora", 70.0, "unlabelled test"),
]


def test_a_place_is_one_among_methods_of_the_same_data_access() -> None:
    assert [place(one, ROWS) for one in ROWS] == [(2, 4), (4, 4), (1, 4), (2, 4), (1, 1), (1, 1)]
    assert place(entry("new", 85.0), ROWS) == (2, 5)
    assert place(entry("new", 1.0, "calibration inputs"), ROWS) == (1, 1)
    assert {access: [one.normalised for one in group] for access, group in ranked(ROWS).items()} == {
        "none": [90.0, 80.0, 80.0, 9.5],
        "unlabelled test": [70.0],
        "labelled train": [95.0],
    }


def test_normalised_accuracy_is_the_mean_share_of_the_experts() -> None:
    assert normalised({"a": 40.0, "b": 90.0}, {"a": 80.0, "b": 90.0, "c": 1.0}) == 75.0
    with pytest.raises(KitError, match="missing or 0 on a, c"):
        normalised({"a": 40.0, "b": 90.0, "c": 5.0}, {"a": 0.0, "b": 90.0})


def test_rows_of_the_kit_come_from_records(cache: Path) -> None:
    suite = PicoSuite(torch.device("cpu"))
    pool = tuple(suite.tasks)
    questions = {
        f"run {seed}": study.Cell(method="individual", pool=pool, evaluate=pool, expert_seed=seed) for seed in (0, 1)
    }
    rows = kit_rows(suite, questions, ("simple_average", "iso_c"), workers=1)
    assert [(one.name, one.title, one.access, one.baseline) for one in rows] == [
        ("simple_average", "Simple average", "none", True),
        ("iso_c", "Iso-C", "none", True),
    ]
    for one in rows:
        cells = {name: cell.model_copy(update={"method": one.name}) for name, cell in questions.items()}
        records = study.run(suite, cells, workers=1)
        assert one.accuracy == {name: record.average for name, record in records.items()}
        assert one.average == pytest.approx(sum(one.accuracy.values()) / 2)
        low, high = one.interval or (0, 0)
        assert low < one.average < high
        assert one.average < one.normalised < 100
    with pytest.raises(KitError, match="individual experts are missing: run 0, run 1"):
        row("mine", records, {}, {})


def test_baselines_merge_without_data_and_are_the_kits_own() -> None:
    assert set(BASELINES) >= {"simple_average", "task_arithmetic", "ties_merging", "tsv_merging"}
    assert not set(BASELINES) & {"individual", "pretrained", "regmean", "fixed_coefficients"}


def test_a_page_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="There is no row to show"):
        write_html([], tmp_path / "leaderboard.html")
    assert list(tmp_path.iterdir()) == []


def test_a_page_asks_no_host_and_runs_no_script_of_a_students(tmp_path: Path) -> None:
    write_html(ROWS, tmp_path / "leaderboard.html", "Course <2026>")
    text = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert text.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in text
    assert "<title>Course &lt;2026&gt;</title>" in text


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def board(browser: "Browser", tmp_path: Path) -> "Iterator[Page]":
    write_html(ROWS, tmp_path / "leaderboard.html")
    window = browser.new_page()
    errors: list[str] = []
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.on("console", lambda message: errors.append(message.text))
    window.on("dialog", lambda dialog: errors.append(dialog.message))
    window.goto((tmp_path / "leaderboard.html").as_uri())
    yield window
    window.close()
    assert errors == []


def column(window: "Page", head: str) -> list[str]:
    """Return what the first table shows in a column, from top to bottom."""
    rows: list[str] = window.evaluate(
        """(head) => {
          const table = document.querySelector("table");
          const column = [...table.tHead.rows[0].cells].findIndex((one) => one.textContent === head);
          return [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
        }""",
        head,
    )
    return rows


def press(window: "Page", head: str, way: Literal["ascending", "descending"]) -> None:
    heading = window.locator("table").first.locator("thead th", has_text=head)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == way
    assert window.locator("table").first.locator("th[aria-sort]").count() == 1


def test_a_click_sorts_numbers_as_numbers_and_names_as_names(board: "Page") -> None:
    assert column(board, "place") == ["1", "2", "2", "4"]
    press(board, "normalised", "descending")
    assert column(board, "normalised") == ["90.0", "80.0", "80.0", "9.5"]
    press(board, "normalised", "ascending")
    assert column(board, "normalised") == ["9.5", "80.0", "80.0", "90.0"]
    press(board, "hidden", "descending")
    assert column(board, "hidden") == ["80.0", "70.0", "70.0", "–"]
    press(board, "hidden", "ascending")
    assert column(board, "hidden") == ["70.0", "70.0", "80.0", "–"]  # what has no value stays last
    press(board, "interval", "descending")
    assert column(board, "interval") == ["81.0 – 84.0", "71.0 – 74.0", "71.0 – 74.0", "–"]
    press(board, "name", "ascending")
    assert column(board, "name") == ["<script>alert(1)</script>", "anna", "ben", "task_arithmetic kit"]
    press(board, "seconds", "ascending")
    assert column(board, "seconds") == ["1.11", "1.25", "1.25", "10.53"]
    press(board, "place", "ascending")
    assert column(board, "place") == ["1", "2", "2", "4"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_readable_by_day_by_night_and_on_a_phone(board: "Page", scheme: Literal["light", "dark"]) -> None:
    board.emulate_media(color_scheme=scheme)
    colours = board.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, ground = (sum(map(int, one[4:-1].split(","))) for one in colours)
    assert (ink < ground) == (scheme == "light")
    assert abs(ink - ground) > 600
    assert board.locator("h2").all_text_contents() == [
        "Data access: none",
        "Data access: unlabelled test",
        "Data access: labelled train",
    ]
    board.set_viewport_size({"width": 390, "height": 800})
    assert board.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
