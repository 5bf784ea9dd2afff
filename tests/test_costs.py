"""Costs: images that went through the encoder, the Pareto front, and published costs with their source."""

from typing import Any

import pandas as pd
import pytest
import samples

from mergekit_lite.analysis import costs
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, Merged, method
from mergekit_lite.methods.adamerging import RECIPES


@pytest.mark.parametrize(
    ("name", "parameters", "images"),
    [
        ("task_arithmetic", {}, 0),
        ("layer_wise_adamerging", {"steps": 500, "images_per_task": 32}, 500 * 32 * 3),
        ("multi_task_training", {"steps": 10, "images_per_task": 4}, 120),
        ("regmean", {"images": 256}, 768),
        ("hard_frank_wolfe", {"iterations": 3, "samples": 100}, 900),
        (
            "soft_frank_wolfe",
            {"iterations": 2, "samples": 25, "inner_steps": 10, "images_per_task": 8},
            2 * 3 * (25 + 10 * 8),
        ),
    ],
)
def test_images_are_counted_as_the_method_draws_them(name: str, parameters: dict[str, Any], images: int) -> None:
    record = samples.record(name, "Mine", (1.0, 2.0, 3.0), parameters=parameters, adapt=samples.TASKS)
    assert costs.images_seen(record) == images


def test_images_of_the_tasks_adapted_to_count_and_not_those_of_the_pool() -> None:
    parameters = {"steps": 5, "images_per_task": 2}
    record = samples.record("layer_wise_adamerging", "Mine", (1.0, 2.0, 3.0), parameters=parameters, adapt=("signs",))
    assert costs.images_seen(record) == 10


def test_a_method_that_sees_data_in_an_unknown_way_is_refused() -> None:
    @method(title="Peeking", cite="", access=Access.UNLABELLED)
    def peeking(base: Any, experts: Any, data: Any, *, glances: int = 3) -> Merged:
        return Merged(dict(base))

    with pytest.raises(KitError, match="How many images Peeking sees is not known"):
        costs.images_seen(samples.record("peeking", "Peeking", (1.0, 2.0, 3.0)))


def test_both_recipes_of_adamerging_see_as_many_images() -> None:
    both = [recipe["steps"] * recipe["images_per_task"] for recipe in RECIPES.values()]
    assert both == [16_000, 16_000]


def test_frame_counts_gains_from_the_start_and_no_time_as_a_millisecond() -> None:
    first, second = samples.records()[2:4]
    first = first.model_copy(update={"seconds": {"merge": 0.0, "evaluate": 1.0}})
    second = second.model_copy(update={"seconds": {"merge": 21.0, "evaluate": 1.0}})
    frame = costs.cost_frame([first, second], start=40.0)
    assert list(frame["seconds"]) == [0.001, 21.0]
    assert list(frame["rate"]) == pytest.approx([30_000.0, 2.0])
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
