"""Tables of records: the numbers, what is bold, what a screen reader gets, and what the book can quote."""

import logging
import re
from xml.etree import ElementTree

import nbformat
import pytest
import samples
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from myst_nb.ext.glue import extract_glue_data

from mergekit_lite.analysis.accuracy import KNOWLEDGE, accuracy_frame, best_constant, told, tuned
from mergekit_lite.analysis.published import accuracies, beside, counterparts
from mergekit_lite.errors import KitError
from mergekit_lite.figures.tables import (
    accuracy_table,
    deviations,
    glue,
    plain_table,
    regime_table,
    sources_table,
    task_table,
)
from mergekit_lite.study.records import Record

LABEL = "AdaMerging Table 1, ViT-B/32 (OC-8)"


def rows(html: str) -> list[list[ElementTree.Element]]:
    """Return the cells of each line of a table; ElementTree refuses HTML that is not well-formed."""
    return [list(row) for row in ElementTree.fromstring(html).iter("tr")]


def words(cell: ElementTree.Element) -> str:
    return "".join(cell.itertext())


def test_frame_holds_records_in_order_with_the_published_average() -> None:
    frame = accuracy_frame(samples.records(), accuracies())
    assert list(frame.columns) == ["method", *KNOWLEDGE, *samples.TASKS, "average", LABEL]
    assert list(frame.index) == [
        "pretrained",
        "simple_average",
        "task_arithmetic",
        "layer_wise_adamerging",
        "individual",
    ]
    assert frame.loc["layer_wise_adamerging", "data access"] == "unlabelled test"
    assert frame.loc["task_arithmetic", "average"] == pytest.approx(70)
    assert list(frame[LABEL]) == [48.0, 65.8, 69.1, 80.1, 90.5]


def test_a_method_without_published_number_gets_a_dash() -> None:
    mine = samples.record("mine", "Mine & <yours>", (1.0, 2.0, 3.0))
    frame = accuracy_frame([mine], accuracies())
    assert list(frame[LABEL].isna()) == [True]
    last = rows(accuracy_table([mine], accuracies()).data)[-1]
    assert [words(cell) for cell in last] == [
        "Mine & <yours>",
        "none",
        "–",
        "–",
        "all",
        "1.0",
        "2.0",
        "3.0",
        "2.0",
        "–",
    ]


def test_best_merged_value_of_each_column_is_bold_and_references_do_not_compete() -> None:
    lines = rows(accuracy_table(samples.records(), accuracies()).data)
    bold = {words(line[0]): [words(cell) for cell in line if cell.find("strong") is not None] for line in lines}
    assert bold == {
        "method": [],
        "Pre-trained (reference)": [],
        "Simple average": [],
        "Task Arithmetic": ["71.0"],
        "Layer-wise AdaMerging": ["80.0", "96.0", "82.0", "80.1"],
        "Individual experts (reference)": [],
    }


def test_values_that_look_equal_are_equally_bold() -> None:
    pair = [samples.record(name, name, (50.04, 1.0, value)) for name, value in (("a", 2.04), ("b", 1.96))]
    assert accuracy_table(pair).data.count("<strong>2.0</strong>") == 2


def test_a_table_says_how_much_each_method_was_shown_and_whether_it_was_told_which_tasks_count() -> None:
    pool = (*samples.TASKS, "faces")
    given = {"access": "labelled train", "images": 12_800, "labels": 640, "pool": pool}
    shown = [
        samples.record("one", "Told", (1.0, 2.0, 3.0), adapt=samples.TASKS, **given),
        samples.record("two", "Saw all", (1.0, 2.0, 3.0), adapt=pool, **given),
        samples.record("three", "Blind", (1.0, 2.0, 3.0), pool=pool),
    ]
    lines = [[words(cell) for cell in line] for line in rows(accuracy_table(shown).data)]
    assert lines[0][:5] == ["method", "data access", "images", "labels", "told which tasks count"]
    assert lines[1][1:5] == ["labelled train", "12.8k", "640", "yes, 3 of 4"]
    assert lines[2][1:5] == ["labelled train", "12.8k", "640", "no"]
    assert lines[3][1:5] == ["none", "–", "–", "no"]
    # A record that is shown on a part of its tasks was told no more than it was told before.
    assert told(shown[0].on(("signs",))) == "no"


@pytest.mark.parametrize(("count", "text"), [(999, "999"), (1000, "1k"), (999_499, "999k"), (1_024_000, "1.02M")])
def test_counts_are_compact(count: int, text: str) -> None:
    html = accuracy_table([samples.record("mine", "Mine", (1.0, 2.0, 3.0), images=count)]).data
    assert words(rows(html)[1][2]) == text


def test_what_had_not_converged_is_marked() -> None:
    pair = [samples.record(name, name, (1.0, 2.0, 3.0), converged=name == "there") for name in ("there", "not yet")]
    html = accuracy_table(pair).data
    assert [words(line[0]) for line in rows(html)[1:]] == ["there", "not yet †"]
    assert "†: not converged" in html
    assert "†" not in accuracy_table(pair[:1]).data


def test_only_the_first_of_a_methods_rows_has_the_published_average() -> None:
    pair = [samples.records()[2], samples.records()[2]]
    assert accuracy_frame(pair, accuracies())[LABEL].tolist() == [69.1, pytest.approx(float("nan"), nan_ok=True)]


def tried(**averages: float) -> dict[float, Record]:
    held_out = {"method": "task_arithmetic", "title": "Task Arithmetic", "split": "held-out"}
    return {float(value): samples.record(accuracy=(one,) * 3, **held_out) for value, one in averages.items()}


def test_a_constant_is_chosen_on_held_out_images_and_the_row_says_what_that_took() -> None:
    sweep = tried(**{"0.5": 70.0, "0.3": 72.0, "0.4": 72.0})
    assert best_constant(sweep) == 0.3
    row = tuned(samples.records()[2], sweep, images=750)
    assert (row.title, row.access, row.images, row.labels) == (
        "Task Arithmetic, tuned: 0.3", "labelled held-out", 2250, 2250,
    )  # fmt: skip
    assert row.seconds["merge"] == 1.0 + 3 * 2.0  # merging and measuring, for each value
    assert row.accuracy == samples.records()[2].accuracy


def test_a_constant_is_never_chosen_on_test_images() -> None:
    with pytest.raises(KitError, match=r"must not be chosen on test images\. Try it out with Cell"):
        best_constant({0.3: samples.records()[2]})


def test_table_is_readable_by_a_screen_reader_and_has_no_script() -> None:
    html = accuracy_table(samples.records(), accuracies()).data
    root = ElementTree.fromstring(html)
    caption = root.find(".//caption")
    assert caption is not None
    assert caption.text is not None
    assert LABEL in caption.text
    assert "3 tasks" in caption.text
    assert {head.get("scope") for head in root.findall(".//thead//th")} == {"col"}
    assert [line[0].get("scope") for line in rows(html)[1:]] == ["row"] * 5
    assert "<script" not in html
    assert not re.search(r"\bon\w+=", html)


def test_same_records_give_the_same_bytes() -> None:
    assert accuracy_table(samples.records(), accuracies()).data == accuracy_table(samples.records(), accuracies()).data


def test_a_caption_of_ones_own_is_escaped() -> None:
    assert "<caption" in accuracy_table(samples.records(), caption="a < b").data
    assert "a &lt; b" in accuracy_table(samples.records(), caption="a < b").data


def test_records_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(KitError, match="There is no record to show"):
        accuracy_table([])
    other = samples.record("mine", "Mine", (1.0, 2.0, 3.0)).model_copy(update={"accuracy": {"signs": 4.0}})
    with pytest.raises(KitError, match="Pre-trained was evaluated on scenes, signs, digits, but Mine on signs"):
        accuracy_frame([*samples.records(), other])


def test_task_table_says_what_each_task_stands_for() -> None:
    lines = rows(task_table(samples.suite(), ["signs", "digits"]).data)
    assert [words(cell) for cell in lines[1]] == ["Signs (signs)", "SIGNS", "10", "1234", "a drawing of signs <0>."]
    assert len(lines) == 3


def test_regime_table_puts_clip_beside_ours() -> None:
    zero_shot, *_, experts = samples.records()
    theirs = counterparts(["SUN397", "Stanford Cars"])
    html = regime_table(samples.suite(), ["scenes", "digits"], zero_shot, experts, theirs).data
    lines = [[words(cell) for cell in line] for line in rows(html)]
    assert lines[0][-2:] == ["zero-shot, CLIP ViT-B/32 (FB)", "fine-tuned, CLIP ViT-B/32 (FB)"]
    assert lines[1] == ["Scenes (scenes)", "SCENES", "10", "60", "1234", "40.0", "90.0", "63.2", "74.9"]
    assert lines[2][5:] == ["50.0", "99.0", "59.6", "78.5"]
    assert lines[3] == ["average", "", "", "", "", "45.0", "94.5", "61.4", "76.7"]  # of the two tasks shown


def test_regime_table_leaves_out_what_clip_was_not_tested_on() -> None:
    zero_shot, *_, experts = samples.records()
    theirs = counterparts(["SUN397", "lanterns"])
    html = regime_table(samples.suite(), ["scenes", "digits"], zero_shot, experts, theirs).data
    lines = [[words(cell) for cell in line] for line in rows(html)]
    assert lines[2][-2:] == lines[3][-2:] == ["–", "–"]  # nor is there an average of different tasks


def test_plain_table_holds_texts_and_numbers() -> None:
    html = plain_table(
        ["model", "loss", "note"], [("a <b>", 1.234, "+0.5"), ("c", float("nan"), "")], "All <of it>.", 2
    )
    lines = rows(html.data)
    assert [[words(cell) for cell in line] for line in lines] == [
        ["model", "loss", "note"], ["a <b>", "1.23", "+0.5"], ["c", "–", ""],
    ]  # fmt: skip
    assert lines[1][0].get("scope") == "row"
    assert "text-align:right" in (lines[1][1].get("style") or "")
    assert "All &lt;of it&gt;." in html.data
    with pytest.raises(KitError, match=r"The row of 'a' has 2 cells, but there are 3 columns\."):
        plain_table(["x", "y", "z"], [("a", 1.0)], "Too short.")


@pytest.mark.parametrize("show", [True, False])
def test_glue_is_what_the_book_reads(show: bool) -> None:
    InteractiveShell.instance()  # display needs one
    with capture_output() as captured:
        glue("eight-zero-shot", "47.5", show=show)
    (output,) = captured.outputs
    cell = nbformat.v4.new_code_cell(
        outputs=[nbformat.v4.new_output("display_data", data=output.data, metadata=output.metadata)]
    )
    found = extract_glue_data(nbformat.v4.new_notebook(cells=[cell]), [0], logging.getLogger())
    assert found["eight-zero-shot"]["data"] == {"text/plain": "'47.5'"}
    assert len(cell.outputs) == show  # what is only stored does not appear on the notebook's page


def test_a_table_of_sources_puts_each_published_average_beside_ours_with_its_place() -> None:
    theirs = beside([record.cell.method for record in samples.records()], "ViT-B-32", "twenty", "FB")
    html = sources_table(samples.records(), theirs, "FB").data
    lines = [[words(one) for one in line] for line in rows(html)]
    assert lines[0] == ["method", "data access", "here", "published (FB)", "where"]
    assert lines[3][:4] == ["Task Arithmetic", "none", "70.0", "36.3"]
    assert "read off a figure" in lines[3][4]
    assert len(lines) == 1 + 5


def test_a_record_can_be_read_on_some_of_its_tasks() -> None:
    record = samples.records()[2]
    few = record.on(("digits", "scenes"))
    assert few.accuracy == {"digits": 77.0, "scenes": 71.0}
    assert few.average == 74.0
    assert record.average == 70.0
    with pytest.raises(KitError, match="Task Arithmetic was evaluated on scenes, signs, digits, not on faces"):
        record.on(("digits", "faces"))


def test_deviations_name_the_parameters_that_differ_from_the_defaults_once() -> None:
    one = samples.record(
        "layer_wise_adamerging", "Layer-wise AdaMerging", (1, 2, 3), parameters={"steps": 300, "initial": 0.3}
    )
    assert deviations([*samples.records(), one, one]) == "* Layer-wise AdaMerging: steps 300 instead of 500"
    assert deviations(samples.records()) == "* All methods ran with their defaults."


def test_deviations_from_a_recipe_and_under_names_of_ones_own() -> None:
    one = samples.record("layer_wise_adamerging", "Layer-wise AdaMerging", (1, 2, 3), parameters={"steps": 300})
    named = {"layer_wise_adamerging": one, "short": one, ("clean", "task_arithmetic"): one}
    recipes = {"layer_wise_adamerging": {"steps": 200}, "short": {"steps": 300, "clamp": False}}
    assert deviations(named, recipes).splitlines() == [
        "* Layer-wise AdaMerging: steps 300 instead of 200",
        "* short: clamp True instead of False",
        "* clean, Task Arithmetic: steps 300 instead of 200",
    ]
