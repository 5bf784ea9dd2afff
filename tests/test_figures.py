"""Figures: what is drawn is what the records hold, described in words, the same bytes each time."""

import base64
import io
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import samples
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from mergekit_lite import figures
from mergekit_lite.analysis import accuracy, published, traces
from mergekit_lite.errors import KitError
from mergekit_lite.suites.corruptions import CORRUPTIONS, corrupt

POOLS = pd.DataFrame(
    [
        ("task_arithmetic", 0, 70.0), ("task_arithmetic", 4, 50.0),
        ("soft_frank_wolfe", 0, 75.0), ("soft_frank_wolfe", 4, 74.5),
    ],
    columns=["line", "x", "y"],
)  # fmt: skip
AXES: dict[str, Any] = {"xlabel": "experts added", "ylabel": "average accuracy over the 4 tasks of all pools (%)"}
KINDS: dict[str, Callable[[], Figure]] = {
    "bars": lambda: figures.accuracy_bars(samples.records(), published.accuracies()),
    "bars alone": lambda: figures.accuracy_bars(samples.records()),
    "heat map": lambda: figures.accuracy_heatmap(samples.records()),
    "coefficients": lambda: figures.coefficient_map(samples.records()[3]),
    "curve": lambda: figures.adaptation_curve(samples.records()[2:4]),
    "budgets": lambda: figures.over_budget(budgets(), {"pretrained": 48.0}),
    "gallery": lambda: figures.gallery(samples.suite(), samples.TASKS),
    "gallery of two rows": lambda: figures.gallery(samples.suite(), samples.TASKS, rows=2),
    "transfer": lambda: figures.transfer_heatmap(accuracy.transfer(samples.experts(), samples.records()[0])),
    "cosines": lambda: figures.cosine_heatmap(samples.geometry()),
    "vertices of a hard run": lambda: figures.choice_map(samples.hard()),
    "vertices of a soft run": lambda: figures.choice_map(samples.soft()),
    "promises": lambda: figures.descent_bars(samples.hard()),
    "Frank-Wolfe": lambda: figures.frank_wolfe_trace({"hard": samples.hard(), "soft": samples.soft()}),
    "variants": lambda: figures.variant_bars(
        {"Hard": {"one": samples.hard()}, "Soft": {"two": samples.soft()}}, {"Zero-shot": samples.records()[0]}
    ),
    "pools": lambda: figures.lines(POOLS, published=published.scaling("irrelevant"), beside=True, **AXES),
    "kinds of pools": lambda: figures.group_dots(pools(), xlabel="average accuracy over 3 tasks (%)"),
    "agreement": lambda: figures.scatter(
        published.agreement({"task_arithmetic": (70.0, 1.0), "ties_merging": (72.5, 0.5)}, published.accuracies()),
        xlabel="published average (%)", ylabel="our average (%)", diagonal=True,
    ),
    "twenty cosines": lambda: figures.cosine_heatmap(samples.geometry(20)),
    "pairs": lambda: figures.pair_heatmap(kept()),
    "lines": lambda: figures.lines(curves(), xlabel="coefficient", ylabel="average accuracy (%)"),
    "lines with everything": lambda: figures.lines(
        curves(), xlabel="coefficient", ylabel="accuracy (%)", published=theirs(), log=True, ticks=[0.1, 1.0],
        references={"pretrained": 40.0, "individual": 90.5},
    ),
    "lines of eight tasks": lambda: figures.lines(many(), xlabel="steps", ylabel="coefficient"),
    "scatter": lambda: figures.scatter(dots(), xlabel="entropy (nats)", ylabel="loss (nats)"),
    "costs": lambda: figures.cost_scatter(spent(), {"pretrained": 40.0}, apart=["multi_task_training"]),
    "spreads": lambda: figures.spread_dots(seeds(), {"task_arithmetic": (0.4, -0.8, 0.7), "dare": (0.5, -1.0, 1.0)}),
    "arrows": lambda: figures.arrows(moves(), xlabel="accuracy (%)"),
    "groups": lambda: figures.group_dots(marks(), xlabel="accuracy (%)"),
    "groups of differences": lambda: figures.group_dots(marks(), xlabel="gain (points)", zero=True),
    "corrupted pictures": lambda: figures.corrupted_pictures(samples.suite(32), samples.TASKS, list(CORRUPTIONS)),
}  # fmt: skip


def pools() -> pd.DataFrame:
    """Return accuracies of two methods (rows) with two kinds of pools."""
    rows = [("task_arithmetic", "alone", 70.0), ("layer_wise_adamerging", "alone", 80.0)]
    rows += [("task_arithmetic", "and 4 of noise", 69.0), ("layer_wise_adamerging", "and 4 of noise", 79.5)]
    return pd.DataFrame(rows, columns=["row", "name", "value"])


def kept() -> pd.DataFrame:
    values = [[np.nan, 95.0, 80.0], [101.0, np.nan, 99.0], [70.0, 90.0, np.nan]]
    return pd.DataFrame(values, index=list(samples.TASKS), columns=list(samples.TASKS))


def curves() -> pd.DataFrame:
    points = [("task_arithmetic", 0.1, 50.0), ("task_arithmetic", 0.3, 70.0), ("task_arithmetic", 1.0, 60.0)]
    points += [("mine", 0.1, 40.0), ("mine", 0.3, 45.0), ("mine", 1.0, 62.5)]
    frame = pd.DataFrame(points, columns=["line", "x", "y"])
    return frame.assign(low=frame["y"] - 5, high=frame["y"] + 5)


def theirs() -> pd.DataFrame:
    frame = pd.DataFrame([{"line": "task_arithmetic", "x": 0.3, "y": 69.1}])
    frame.attrs["label"] = "AdaMerging Table 1, ViT-B/32 (OC-8)"
    return frame


def many() -> pd.DataFrame:
    rows = [(f"a task of number {line}", step, 0.3 + line * step / 1000) for line in range(8) for step in range(50)]
    return pd.DataFrame(rows, columns=["line", "x", "y"])


def dots() -> pd.DataFrame:
    return pd.DataFrame({"group": ["signs", "digits"] * 3, "x": [1, 2, 3, 4, 5, 6], "y": [2, 1, 3, 4, 6, 5]})


def spent() -> pd.DataFrame:
    rows = [("task_arithmetic", 0.01, 70.0), ("ties_merging", 0.1, 65.0), ("layer_wise_adamerging", 50.0, 85.0)]
    return pd.DataFrame([*rows, ("multi_task_training", 70.0, 95.0)], columns=["name", "seconds", "accuracy"])


def seeds() -> pd.DataFrame:
    rows = [("task_arithmetic", 70.0), ("dare", 68.0), ("dare", 70.0), ("dare", 69.0)]
    return pd.DataFrame(rows, columns=["name", "accuracy"])


def moves() -> pd.DataFrame:
    rows = [("signs", "the task itself", 60.0, 10.0), ("signs", "mean of the others", 50.0, 48.0)]
    rows += [("digits", "the task itself", 70.0, 75.0), ("digits", "mean of the others", 45.0, 30.0)]
    return pd.DataFrame(rows, columns=["row", "series", "before", "after"])


def marks() -> pd.DataFrame:
    rows = [("measured here", "seen", "task_arithmetic", 70.0), ("measured here", "unseen", "task_arithmetic", 50.0)]
    rows += [("measured here", "seen", "ties_merging", 72.0), ("measured here", "unseen", "mine", 61.5)]
    rows += [("published", "seen", "task_arithmetic", 69.1), ("published", "unseen", "ties_merging", np.nan)]
    return pd.DataFrame(rows, columns=["panel", "row", "name", "value"])


def printed(figure: Figure) -> list[str]:
    """Return the texts in and beside the first panel."""
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def mesh(figure: Figure) -> QuadMesh:
    """Return the cells of a heat map."""
    (cells,) = figure.axes[0].collections
    assert isinstance(cells, QuadMesh)
    return cells


def picture(html: str) -> tuple[str, bytes]:
    """Return alternative text and SVG of the one image in a piece of HTML."""
    (image,) = list(ElementTree.fromstring(html).iter("img"))
    source = image.get("src", "")
    assert source.startswith("data:image/svg+xml;base64,")
    return image.get("alt", ""), base64.b64decode(source.split(",", 1)[1])


def budgets() -> dict[tuple[str, str], Any]:
    """Return two pools with two lines each; one run of the larger pool has not converged."""
    runs = {}
    for pool in ("4 + 0 experts", "4 + 8 experts"):
        for line, record in zip(("layer_wise_adamerging", "with labels"), samples.records()[2:4], strict=True):
            curve = [
                point.model_copy(update={"images": 32 * point.step})
                for point in next(one for one in samples.records() if one.curve).curve
            ]
            settled = not (pool.endswith("8 experts") and line == "with labels")
            runs[pool, line] = record.model_copy(
                update={"curve": curve, "converged": settled, "images": curve[-1].images}
            )
    return runs


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_described_deterministic_white_small_and_offline(kind: str) -> None:
    html = figures.figure_html(KINDS[kind]()).data
    alt, svg = picture(html)
    assert len(alt) > 60
    assert re.search(r"\d", alt)
    assert html == figures.figure_html(KINDS[kind]()).data
    text = svg.decode()
    assert "fill: #ffffff" in text[: text.index("axes_1")]  # the ground of the whole figure
    assert len(html) < 200_000
    assert "font-family" not in text  # letters are outlines
    assert not re.search(r'href="(?!#|data:)', text)
    assert not re.search(r"<dc:date>|<script", text)


def test_bars_are_as_long_as_the_averages_and_diamonds_stand_at_the_published_ones() -> None:
    axes = figures.accuracy_bars(samples.records(), published.accuracies()).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([40, 60, 70, 82, 94.666667])  # type: ignore[attr-defined]
    (diamonds,) = axes.lines
    assert list(diamonds.get_xdata()) == [48.0, 65.8, 69.1, 80.1, 90.5]  # type: ignore[arg-type]
    assert diamonds.get_label() == "published: AdaMerging Table 1, ViT-B/32 (OC-8)"
    assert "%" in axes.get_xlabel()


def test_bars_of_a_method_without_published_number_have_no_diamond() -> None:
    mine = samples.record("mine", "Mine", (1.0, 2.0, 3.0))
    axes = figures.accuracy_bars([*samples.records(), mine], published.accuracies()).axes[0]
    assert len(axes.patches) == 6
    assert len(list(axes.lines[0].get_xdata())) == 5  # type: ignore[arg-type]
    assert "–" in [text.get_text() for text in axes.texts]


def test_bars_mark_what_had_not_converged_and_a_variant_has_no_diamond() -> None:
    plain = samples.records()[3]
    still = plain.model_copy(update={"converged": False})
    axes = figures.accuracy_bars([plain, still], published.accuracies()).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [plain.title, f"{plain.title} †"]
    assert len(list(axes.lines[0].get_xdata())) == 1  # type: ignore[arg-type]
    assert "†: not converged" in axes.get_xlabel()
    assert "†" not in figures.accuracy_bars([plain]).axes[0].get_xlabel()
    variants = figures.variant_bars({"Group": {"one": plain, "two": still}}).axes[0]
    assert [label.get_text() for label in variants.get_yticklabels()] == ["Group", "one", "two †"]


def test_heat_map_prints_every_accuracy_and_the_average() -> None:
    figure = figures.accuracy_heatmap(samples.records())
    assert printed(figure)[:4] == ["40.0", "30.0", "50.0", "40.0"]
    assert len(printed(figure)) == 5 * 4
    assert "Pre-trained from 30.0 (signs) to 50.0 (digits)" in str(figure.get_label())


def test_coefficient_map_shows_the_trace_with_blocks_and_centre_at_the_start() -> None:
    record = samples.records()[3]
    figure = figures.coefficient_map(record)
    cells = mesh(figure)
    np.testing.assert_allclose(np.asarray(cells.get_array()), record.trace["coefficients"]["values"])
    assert cells.norm(np.array(0.3)) == pytest.approx(0.5)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["in", "block 1", "block 2", "out"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(samples.TASKS)
    assert "ended between 0.00 and 0.50" in str(figure.get_label())


@pytest.mark.parametrize("initial", [0.0, 1.0])
def test_coefficient_map_has_room_around_any_start(initial: float) -> None:
    record = samples.records()[3]
    cell = record.cell.model_copy(update={"parameters": {"initial": initial}})
    cells = mesh(figures.coefficient_map(record.model_copy(update={"cell": cell})))
    assert cells.norm(np.array(initial)) == pytest.approx(0.5)


def test_coefficients_of_a_record_without_any_are_refused() -> None:
    with pytest.raises(KitError, match=r"Task Arithmetic has no coefficient for each tensor\. Show layer"):
        figures.coefficient_map(samples.records()[2])


def test_curve_shows_accuracy_and_entropy_against_steps() -> None:
    above, below = figures.adaptation_curve(samples.records()[2:4]).axes
    still, adapted = above.lines
    assert set(still.get_ydata()) == {70.0}  # type: ignore[arg-type]
    assert list(adapted.get_xdata()) == [0, 3]  # type: ignore[arg-type]
    assert list(adapted.get_ydata()) == [70.0, 82.0]  # type: ignore[arg-type]
    assert list(below.lines[0].get_ydata()) == pytest.approx([1.0, 0.8, 0.5])  # type: ignore[arg-type]  # per task
    assert "(%)" in above.get_ylabel()
    assert "nats" in below.get_ylabel()
    assert "steps" in below.get_xlabel()


def test_curve_without_any_curve_is_refused() -> None:
    with pytest.raises(KitError, match=r"None of these records has a curve\. Give a cell curve_every"):
        figures.adaptation_curve(samples.records()[:2])


def test_gallery_shows_the_first_image_of_spread_classes() -> None:
    figure = figures.gallery(samples.suite(), ["signs"], columns=4)
    shades = [np.asarray(axes.images[0].get_array()) / 255 * 31 for axes in figure.axes]
    assert [axes.get_title(loc="center") for axes in figure.axes] == [f"signs <{label}>" for label in (0, 3, 6, 9)]
    assert [shade.mean() for shade in shades] == pytest.approx([7, 0, 3, 6], abs=0.1)  # image i has class i + 3


def test_gallery_shows_several_images_of_each_class_where_there_are_few() -> None:
    figure = figures.gallery(samples.suite(), ["signs", "digits"], columns=8, rows=2)
    titles = [axes.get_title(loc="center") for axes in figure.axes]
    labels = [0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9]
    assert titles == [f"{name} <{label}>" for name in ("signs", "digits") for label in labels]
    first, second = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:2])
    assert (first != second).any()  # two images of the same class
    assert "16 test images of each of 2 tasks" in str(figure.get_label())


def test_gallery_keeps_names_of_two_lines_off_the_pictures_above_them() -> None:
    suite = samples.suite()
    for task in suite.tasks.values():
        task.classnames = ("industrial buildings or commercial buildings",) * 10
    figure = figures.gallery(suite, samples.TASKS, rows=2)
    FigureCanvasAgg(figure).draw()
    above, below = figure.axes[0], figure.axes[8]
    assert below.title.get_window_extent().y1 < above.get_window_extent().y0


@pytest.mark.filterwarnings("error")
def test_gallery_spells_out_letters_that_its_font_lacks() -> None:
    suite = samples.suite()
    suite.tasks["signs"].classnames = ("お", "naïve", *"cdefghij")
    figure = figures.gallery(suite, ["signs"], columns=10)
    figures.figure_html(figure)
    assert [axes.get_title(loc="center") for axes in figure.axes[:2]] == ["hiragana letter\no", "naïve"]


def test_gallery_reduces_large_images() -> None:
    axes = figures.gallery(samples.suite(side=300), ["signs"], pixels=64).axes[0]
    assert np.asarray(axes.images[0].get_array()).shape == (64, 64, 3)


def test_transfer_is_the_change_against_zero_shot() -> None:
    frame = accuracy.transfer(samples.experts(), samples.records()[0])
    assert frame.to_dict("index") == {
        "scenes": {"scenes": 50.0, "signs": -10.0, "digits": 0.0},
        "signs": {"scenes": -20.0, "signs": 60.0, "digits": 5.0},
    }
    figure = figures.transfer_heatmap(accuracy.transfer(samples.experts(), samples.records()[0]))
    axes = figure.axes[0]
    assert printed(figure) == ["+50", "−10", "0", "−20", "+60", "+5"]
    assert [(patch.get_x(), patch.get_y()) for patch in axes.patches] == [(0.02, 0.02), (1.02, 1.02)]  # type: ignore[attr-defined]
    assert "the expert of signs changes its own task by +60.0 and the others by -7.5 on average" in str(
        figure.get_label()
    )


def test_transfer_to_tasks_without_their_expert_has_no_frame() -> None:
    alone = [samples.experts()[0].model_copy(update={"accuracy": {"digits": 20.0}})]
    figure = figures.transfer_heatmap(accuracy.transfer(alone, samples.records()[0]))
    assert len(figure.axes[0].patches) == 0
    assert "the expert of scenes changes the others by -30.0 on average" in str(figure.get_label())


def test_transfer_of_what_is_no_single_expert_is_refused() -> None:
    with pytest.raises(KitError, match=r"record of Simple average holds 3 experts.*pool=\(task,\)"):
        accuracy.transfer(samples.records()[1:2], samples.records()[0])
    without = samples.records()[0].model_copy(update={"accuracy": {"scenes": 4.0}})
    with pytest.raises(KitError, match="Pre-trained was evaluated on scenes, not on signs, digits"):
        accuracy.transfer(samples.experts(), without)


def test_cosine_map_shows_each_pair_once_and_tells_lengths() -> None:
    figure = figures.cosine_heatmap(samples.geometry())
    assert printed(figure) == ["0.40", "−0.10", "0.00", "3.0", "4.0", "5.0", "length (%)"]
    cells = mesh(figure)
    assert cells.norm(np.array(0.0)) == pytest.approx(0.5)  # white is zero
    assert "from -0.100 (digits and scenes) to 0.400 (signs and scenes)" in str(figure.get_label())


def test_cosine_map_of_one_expert_has_its_length_alone() -> None:
    figure = figures.cosine_heatmap(samples.geometry(1))
    assert printed(figure) == ["3.0", "length (%)"]


def test_pair_map_prints_what_is_kept_with_everything_in_white() -> None:
    figure = figures.pair_heatmap(kept())
    assert printed(figure) == ["95", "80", "101", "99", "70", "90", "88", "100", "80", "mean"]
    cells = mesh(figure)
    assert cells.norm(np.array(100.0)) == pytest.approx(0.5)
    assert "least 70.0 (digits with scenes)" in str(figure.get_label())


def test_a_pair_map_without_any_pair_is_refused() -> None:
    with pytest.raises(KitError, match="holds no pair of experts"):
        figures.pair_heatmap(pd.DataFrame([[np.nan]], index=["signs"], columns=["signs"]))


def test_coefficients_by_block_are_means_over_experts_and_tensors() -> None:
    frame = traces.by_block(traces.coefficients(samples.records()[3]))
    # value: 0.1 * expert + 0.05 * tensor; tensors 2 and 3 are block 1, tensors 4 and 5 block 2
    assert frame["x"].tolist() == [0.25, 0.75]
    assert frame["y"].tolist() == pytest.approx([0.225, 0.325])
    assert frame["low"].tolist() == pytest.approx([0.125, 0.225])
    assert frame["high"].tolist() == pytest.approx([0.325, 0.425])
    with pytest.raises(KitError, match="None of these tensors belongs to a transformer block"):
        traces.by_block(pd.DataFrame({"conv1.weight": [0.3]}))


def test_lines_have_the_looks_of_their_methods_bands_references_and_published_points() -> None:
    figure = KINDS["lines with everything"]()
    (axes,) = figure.axes
    ours, mine, low, high, hollow = axes.lines
    assert ours.get_color() == hollow.get_color() == figures.look("task_arithmetic").colour
    assert mine.get_color() not in {look.colour for name, look in figures.LOOKS.items() if name == "task_arithmetic"}
    assert list(ours.get_ydata()) == [50.0, 70.0, 60.0]  # type: ignore[arg-type]
    assert [set(line.get_ydata()) for line in (low, high)] == [{40.0}, {90.5}]  # type: ignore[arg-type]
    assert list(hollow.get_ydata()) == [69.1]  # type: ignore[arg-type]
    assert hollow.get_markerfacecolor() == "#ffffff"
    assert len(axes.collections) == 2  # a band each
    assert axes.get_xscale() == "log"
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [
        "Task Arithmetic", "mine", "Pre-trained", "Individual experts",
        "hollow: AdaMerging Table 1, ViT-B/32 (OC-8)",
    ]  # fmt: skip
    assert "Task Arithmetic goes from 50.0 at 0.1 to 60.0 at 1, highest 70.0 at 0.3" in str(figure.get_label())
    assert "published for Task Arithmetic: is 69.1 at 0.3" in str(figure.get_label())


def test_eight_lines_that_are_no_methods_differ_in_colour_marker_and_dash() -> None:
    (axes,) = KINDS["lines of eight tasks"]().axes
    for look in ([line.get_color() for line in axes.lines], [line.get_marker() for line in axes.lines]):
        assert len(set(look)) == 8


@pytest.mark.parametrize("kind", ["lines with everything", "lines of eight tasks", "costs", "pools", "arrows"])
def test_legends_are_no_wider_than_the_figure(kind: str) -> None:
    figure = KINDS[kind]()
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 > -1
    assert box.x1 < figure.bbox.width + 1


def test_frames_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(KitError, match=r"no column y\. Needed: line, x, y; there: line, x, low, high"):
        figures.lines(curves().drop(columns="y"), xlabel="x", ylabel="y")
    with pytest.raises(KitError, match="has no row"):
        figures.scatter(dots().iloc[:0], xlabel="x", ylabel="y")
    unnamed = theirs()
    unnamed.attrs.clear()
    with pytest.raises(KitError, match="whose the published points are"):
        figures.lines(curves(), xlabel="x", ylabel="y", published=unnamed)


def test_scatter_tells_groups_apart_and_the_rank_correlation() -> None:
    figure = KINDS["scatter"]()
    signs, digits = figure.axes[0].lines
    assert list(signs.get_xdata()) == [1, 3, 5]  # type: ignore[arg-type]
    assert signs.get_color() != digits.get_color()
    assert signs.get_marker() != digits.get_marker()
    assert "6 points in 2 groups (signs, digits)" in str(figure.get_label())
    assert "Spearman's rank correlation is 0.89" in str(figure.get_label())
    assert accuracy.rank_correlation(pd.Series([1, 2, 3]), pd.Series([1, 8, 27])) == pytest.approx(1)
    assert not figures.scatter(dots().assign(group="all"), xlabel="x", ylabel="y").legends


def test_arrows_go_from_before_to_after() -> None:
    figure = KINDS["arrows"]()
    (axes,) = figure.axes
    ends = [(note.xyann[0], note.xy[0]) for note in axes.texts]  # type: ignore[attr-defined]
    assert ends == [(60.0, 10.0), (50.0, 48.0), (70.0, 75.0), (45.0, 30.0)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["signs", "digits"]
    assert "signs: the task itself 60.0 to 10.0, mean of the others 50.0 to 48.0" in str(figure.get_label())


@pytest.mark.parametrize("colours", [1, 256, 1024])
def test_pictures_keep_every_colour(colours: int) -> None:
    generator = np.random.default_rng(0)
    palette = generator.integers(0, 256, (colours, 3), dtype=np.uint8)
    pixels = palette[generator.integers(0, colours, (32, 32))]
    figure = Figure()
    figure.add_subplot().imshow(pixels, interpolation="none")
    svg = picture(figures.figure_html(figure, alt="colours").data)[1].decode()
    (stored,) = re.findall(r'data:image/png;base64,([^"]+)"', svg)
    read = Image.open(io.BytesIO(base64.b64decode(stored)))
    assert (read.mode == "P") == (colours <= 256)
    np.testing.assert_array_equal(np.asarray(read.convert("RGB")), pixels)


def test_methods_keep_their_colour_and_differ_without_colour_too() -> None:
    looks = list(figures.LOOKS.values())
    assert len({look.colour for look in [*looks, *figures.SPARE]}) == len(looks) + len(figures.SPARE)
    for one, other in pairwise(looks):  # neighbours in every table
        grey = [np.dot(to_rgb(look.colour), (0.2126, 0.7152, 0.0722)) for look in (one, other)]
        assert abs(grey[0] - grey[1]) > 0.15 or one.hatch != other.hatch
    assert figures.look("task_arithmetic") is figures.LOOKS["task_arithmetic"]
    assert figures.look("my_own") in figures.SPARE
    assert figures.look("my_own") == figures.look("my_own")


def test_a_figure_without_description_is_refused() -> None:
    with pytest.raises(KitError, match=r"no alternative text. Say in show\(figure, alt=...\)"):
        figures.show(Figure())


def test_alt_and_caption_are_escaped() -> None:
    html = figures.figure_html(Figure(), alt='5 < 6 & "so on"', caption="a < b").data
    assert 'alt="5 &lt; 6 &amp; &quot;so on&quot;"' in html
    assert "<figcaption>a &lt; b</figcaption>" in html


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_cut_off_at_the_edges(kind: str) -> None:
    figure = KINDS[kind]()
    FigureCanvasAgg(figure).draw()  # the layout has one go at it, as when it is saved
    width, height = figure.bbox.width, figure.bbox.height
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert min(box.x0, box.y0) > -1
        assert box.x1 < width + 1
        assert box.y1 < height + 1


def test_vertices_of_the_loss_stand_first_and_shares_add_up() -> None:
    frame = traces.choice_frame(samples.hard())
    assert list(frame.index) == ["signs", "scenes", "digits"]
    np.testing.assert_allclose(frame, [[0, 1], [1, 0], [0, 0]])
    soft = traces.choice_frame(samples.soft())[1]
    tensors = len(samples.TENSORS)
    assert soft["signs"] == pytest.approx(0.5)
    assert soft["scenes"] == pytest.approx(0.7 * 4 / tensors)
    assert soft["digits"] == pytest.approx(0.7 * (tensors - 5) / tensors)  # one tensor stayed
    assert traces.most_chosen(samples.hard(), ("signs", "scenes")) == pytest.approx((2, 0))
    with pytest.raises(KitError, match=r"Task Arithmetic says nothing of vertices\. Show hard or soft"):
        figures.choice_map(samples.records()[2])


def test_vertex_map_prints_what_was_chosen_and_says_who_never_was() -> None:
    figure = figures.choice_map(samples.hard())
    assert printed(figure) == ["1.00", "1.00"]
    bold = [label.get_text() for label in figure.axes[0].get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold == ["signs", "scenes"]
    assert "1 of 3 vertices were never chosen" in str(figure.get_label())


def test_promises_follow_from_gap_and_scores() -> None:
    promises = traces.descents(samples.hard())
    assert promises.to_dict() == {"scenes": 3.0, "signs": 1.0, "digits": -0.5}
    assert traces.descents(samples.hard(), 2).idxmax() == "signs"
    axes = figures.descent_bars(samples.hard()).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["scenes", "signs", "digits"]
    with pytest.raises(KitError, match="only inner products with whole models"):
        traces.descents(samples.soft())
    with pytest.raises(KitError, match="ran 2 iterations; there is no number 3"):
        traces.descents(samples.hard(), 3)


def test_frank_wolfe_trace_shows_accuracy_loss_per_task_and_gap() -> None:
    above, middle, below = figures.frank_wolfe_trace({"hard": samples.hard(), "soft": samples.soft()}).axes
    assert list(above.lines[0].get_ydata()) == [40.0, 46.0, 52.0]  # type: ignore[arg-type]
    assert len(above.lines) == 1  # the soft run has no curve
    assert list(middle.lines[0].get_ydata()) == [2.0, 1.0]  # type: ignore[arg-type]
    assert list(below.lines[1].get_ydata()) == [-0.5]  # type: ignore[arg-type]
    with pytest.raises(KitError, match="Pre-trained has no duality gap"):
        figures.frank_wolfe_trace({"base": samples.records()[0]})


def test_variants_stand_in_groups_with_references_drawn_through() -> None:
    axes = KINDS["variants"]().axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([52.0, 66.666667])  # type: ignore[attr-defined]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Hard", "one", "Soft", "two"]
    assert list(axes.lines[0].get_xdata()) == [40.0, 40.0]  # type: ignore[arg-type]


def test_published_curves_can_have_a_panel_of_their_own() -> None:
    ours, theirs = KINDS["pools"]().axes
    assert [line.get_label() for line in ours.lines] == ["Task Arithmetic", "FW-Merging (soft)"]
    assert list(ours.lines[0].get_ydata()) == [70.0, 50.0]  # type: ignore[arg-type]
    assert len(theirs.lines) == 5
    assert "FB; read off a figure" in theirs.get_title(loc="left").replace("\n", " ")
    assert len(figures.lines(POOLS, beside=True, **AXES).axes) == 1
    with pytest.raises(KitError, match="has no row"):
        figures.lines(POOLS[:0], **AXES)


def test_kinds_of_pools_are_marks_beside_each_other_without_a_panels_title() -> None:
    (axes,) = KINDS["kinds of pools"]().axes
    alone, noise = (line for line in axes.lines if line.get_marker() != "None")
    assert list(alone.get_xdata()) == [70.0, 80.0]  # type: ignore[arg-type]
    assert list(noise.get_xdata()) == [69.0, 79.5]  # type: ignore[arg-type]
    assert alone.get_marker() != noise.get_marker()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Task Arithmetic", "Layer-wise AdaMerging"]
    assert not axes.get_title(loc="left")


def test_agreement_has_a_point_per_method_with_its_spread_and_the_diagonal() -> None:
    figure = KINDS["agreement"]()
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[70.0], [72.5]]  # type: ignore[arg-type]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[69.1], [72.4]]  # type: ignore[arg-type]
    assert axes.lines[0].get_color() == figures.look("task_arithmetic").colour
    assert len(axes.collections) == 2  # a spread each
    assert "Task Arithmetic 69.1, 70.0" in str(figure.get_label())


def test_cost_front_is_a_staircase_over_what_nothing_cheaper_reaches() -> None:
    figure = figures.cost_scatter(spent(), {"pretrained": 40.0}, apart=["multi_task_training"])
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    (stairs,) = [line for line in axes.lines if str(line.get_label()).startswith("front")]
    assert list(stairs.get_ydata()) == [70.0, 85.0, 85.0]  # type: ignore[arg-type]
    assert list(stairs.get_xdata())[:2] == [0.01, 50.0]  # type: ignore[arg-type]
    assert str(figure.get_label()).endswith("Front: Task Arithmetic, Layer-wise AdaMerging.")


def test_spreads_stand_around_the_mean_with_both_deviations_beside() -> None:
    spreads = {"task_arithmetic": (0.4, -0.8, 0.7), "dare": (0.5, -1.0, 1.0)}
    figure = figures.spread_dots(seeds(), spreads)
    (axes,) = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(-0.8, 1.5), (-1.0, 2.0)]  # type: ignore[attr-defined]
    marks = [list(line.get_xdata()) for line in axes.lines if line.get_marker() != "None"]  # type: ignore[arg-type]
    assert marks == [[0.0], [-1.0, 1.0, 0.0]]
    assert printed(figure) == ["70.0", "69.0", "mean", "–", "1.00", "s.d. seeds", "0.40", "0.50", "s.d. images"]
    with pytest.raises(KitError, match="Both spreads are needed for each method"):
        figures.spread_dots(seeds(), {"dare": (0.5, -1.0, 1.0)})


def drawn_marks(axes: Axes) -> list[tuple[str, float, int]]:
    """Return colour, value and number of the row of each mark."""
    return [
        (str(line.get_color()), float(x), round(float(y)))
        for line in axes.lines
        if line.get_marker() != "None"
        for x, y in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
    ]


def test_group_dots_have_a_panel_a_source_with_shared_rows_and_no_mark_for_what_is_missing() -> None:
    figure = figures.group_dots(marks(), xlabel="accuracy (%)")
    left, right = figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["measured here", "published"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["seen", "unseen"]
    blue, green = (figures.look(name).colour for name in ("task_arithmetic", "ties_merging"))
    ours = drawn_marks(left)
    assert {mark for mark in ours if mark[0] in (blue, green)} == {(blue, 70, 0), (blue, 50, 1), (green, 72, 0)}
    assert [mark[1:] for mark in ours if mark[0] not in (blue, green)] == [(61.5, 1)]
    assert drawn_marks(right) == [(blue, 69.1, 0)]
    assert "published: seen: Task Arithmetic 69.1" in str(figure.get_label())


def test_what_is_no_method_takes_no_methods_colour_in_group_dots() -> None:
    colours = {colour for colour, _, _ in drawn_marks(figures.group_dots(marks(), xlabel="accuracy (%)").axes[0])}
    assert len(colours - {look.colour for look in figures.LOOKS.values()}) == 1


def test_group_dots_of_differences_show_where_zero_is() -> None:
    plain, difference = (figures.group_dots(marks(), xlabel="x", zero=zero).axes[0] for zero in (False, True))
    upright = [
        [line for line in axes.lines if np.asarray(line.get_xdata()).tolist() == [0, 0]] for axes in (plain, difference)
    ]
    assert [len(lines) for lines in upright] == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="row"), r"no column row\. Needed: row, name, value"),
        (lambda frame: frame.assign(value=np.nan), "no value"),
        (lambda frame: pd.concat([frame, frame]), "two values of task_arithmetic in the row 'seen'"),
    ],
)
def test_group_dots_without_a_clear_value_for_each_mark_are_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(KitError, match=message):
        figures.group_dots(change(marks()), xlabel="accuracy (%)")


def test_corrupted_pictures_show_the_clean_image_first_and_then_each_corruption() -> None:
    suite = samples.suite(32)
    figure = figures.corrupted_pictures(suite, samples.TASKS[:2], ["contrast", "impulse_noise"])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["clean", "contrast", "impulse\nnoise", "", "", ""]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:3]]
    label_zero = suite.split(samples.TASKS[0], "test").images[[7]]  # the first image of class 0
    for picture_shown, expected in zip(
        shown, (label_zero, corrupt(label_zero, "contrast"), corrupt(label_zero, "impulse_noise")), strict=True
    ):
        # A palette of few colours may move a value a little.
        assert np.abs(picture_shown.astype(int) - expected[0].transpose(1, 2, 0)).mean() < 6
    assert np.ptp(shown[2]) > np.ptp(shown[0])


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_curves_over_a_budget_have_a_panel_per_pool_and_end_hollow_where_nothing_stood_still() -> None:
    figure = figures.over_budget(budgets())
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["4 + 0 experts", "4 + 8 experts"]
    assert first.get_ylim() == second.get_ylim()
    assert (len(first.lines), len(second.lines)) == (2, 3)
    assert second.lines[-1].get_markerfacecolor() == "#ffffff"
    curve = budgets()["4 + 0 experts", "with labels"].curve
    assert np.asarray(first.lines[1].get_xdata()).tolist() == [point.images / 1000 for point in curve]
    assert str(figure.get_label()).count("still falling in loss") == 1


def test_a_run_without_a_curve_cannot_be_drawn_over_its_budget() -> None:
    bare = {("pool", "line"): samples.records()[0]}
    with pytest.raises(KitError, match="has no curve"):
        figures.over_budget(bare)
