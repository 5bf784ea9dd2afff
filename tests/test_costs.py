"""Costs: what records cost, the Pareto front, and published costs with their source."""

import pandas as pd
import pytest
import samples

from mergekit_lite.analysis import costs
from mergekit_lite.methods.adamerging import RECIPES


def test_both_recipes_of_adamerging_see_as_many_images() -> None:
    both = [recipe["steps"] * recipe["images_per_task"] for recipe in RECIPES.values()]
    assert both == [16_000, 16_000]


def test_frame_counts_gains_from_the_start_and_no_time_as_a_millisecond() -> None:
    first, second = samples.records()[2:4]
    first = first.model_copy(update={"seconds": {"merge": 0.0, "evaluate": 1.0}})
    second = second.model_copy(update={"seconds": {"merge": 21.0, "evaluate": 1.0}, "images": 960})
    frame = costs.cost_frame([first, second], start=40.0)
    assert list(frame["seconds"]) == [0.001, 21.0]
    assert list(frame["rate"]) == pytest.approx([30_000.0, 2.0])
    assert list(frame["images"]) == [0, 960]
    assert list(frame["access"]) == ["none", "unlabelled test"]


def test_front_holds_what_nothing_cheaper_reaches() -> None:
    rows = [
        ("late twin", 3.0, 80.0),
        ("dear", 9.0, 90.0),
        ("cheap", 1.0, 60.0),
        ("good", 2.0, 80.0),
        ("worse", 2.0, 70.0),
    ]
    frame = pd.DataFrame(rows, columns=["name", "seconds", "accuracy"])
    assert list(costs.front(frame)["name"]) == ["cheap", "good", "dear"]


def test_memory_is_counted_above_the_smallest_pool_beside_what_the_added_experts_take() -> None:
    rows = [("task_arithmetic", 2, 501.0), ("dare", 2, 534.0), ("task_arithmetic", 1, 500.0), ("dare", 1, 520.0)]
    records = [
        samples.record(name, name, (1, 2, 3), pool=samples.TASKS[:pool]).model_copy(update={"peak_memory_mib": mib})
        for name, pool, mib in rows
    ]
    frame = costs.memory_frame(records, 3.5)
    lines = {name: list(zip(own["x"], own["y"], strict=True)) for name, own in frame.groupby("line")}
    assert lines == {
        "task_arithmetic": [(1, 0), (2, 1)], "dare": [(1, 0), (2, 14)], "the added experts alone": [(1, 0), (2, 3.5)],
    }  # fmt: skip


def test_published_costs_say_where_they_stand_and_how_sure_they_are() -> None:
    found = costs.published_costs()
    assert set(found["unit"]) == {"images", "s", "min", "h"}
    where = dict(zip(found["what"], found["where"], strict=True))
    assert where["time of 1000 steps"] == "FusionBench, docs of AdaMerging, ViT-B/32 (FB)"
    note = "AdaMerging, Table 12, ViT-B/32 (OC-8; from a third-party note)"
    assert where["time for 8 points over Task Arithmetic"] == note


def test_the_parts_of_fusionbenchs_profile_are_nearly_the_whole() -> None:
    found = costs.published_costs().set_index("what")["value"]
    parts = found[found.index.str.startswith("of this")].sum()
    assert 0.97 < parts / found["time of 1000 steps"] <= 1


def test_the_published_number_of_images_is_that_of_the_papers_recipe() -> None:
    found = costs.published_costs().set_index("what")["value"]
    assert found["images drawn in a run"] == 8 * RECIPES["paper"]["steps"] * RECIPES["paper"]["images_per_task"]
