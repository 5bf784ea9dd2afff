"""Published numbers: what is read, how it is labelled, and what is refused."""

from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch

import mergekit_lite
from mergekit_lite.analysis.published import (
    SPELLING,
    accuracies,
    agreement,
    average,
    beside,
    by_task,
    coefficients,
    counterparts,
    curves,
    label,
    released_tensors,
    scaling,
)
from mergekit_lite.errors import KitError


def test_table_1_of_adamerging_is_read() -> None:
    table = accuracies()
    assert label(table) == "AdaMerging Table 1, ViT-B/32 (OC-8)"
    assert len(table) == 12 * 9  # twelve methods; eight tasks and their average
    assert average(table, "task_arithmetic") == 69.1
    assert average(table, "layer_wise_adamerging") == 80.1
    assert average(table, "individual") == 90.5


@pytest.mark.parametrize("method", sorted(set(accuracies()["name"].dropna())))
def test_the_averages_of_table_1_are_those_of_its_tasks(method: str) -> None:
    table = accuracies()
    per_task = table[(table["name"] == method) & (table["task"] != "average")]["accuracy"]
    assert len(per_task) == 8
    assert average(table, method) == pytest.approx(per_task.mean(), abs=0.2)  # the paper cuts decimals off


@pytest.mark.parametrize("method", SPELLING)
def test_every_spelling_is_one_of_the_files(method: str) -> None:
    reported = pd.read_csv(Path(mergekit_lite.__file__).parent / "reference" / "reported.csv")
    assert SPELLING[method] in set(reported.loc[reported["model"] == "ViT-B-32", "method"])


def test_each_model_has_its_own_main_table() -> None:
    assert label(accuracies("ViT-L-14")) == "AdaMerging Table 2, ViT-L/14 (OC-8)"
    assert label(accuracies("ViT-B-16")) == "AdaMerging appendix ViT-B/16 (OC-8; from a third-party note)"
    assert label(accuracies(setting="twenty", paper="FusionBench", table="twenty tasks")).endswith("(FB)")


def test_no_table_holds_every_method() -> None:
    assert average(accuracies("ViT-B-16"), "task_arithmetic") is None


def test_agreement_holds_the_methods_that_both_have_with_their_spread() -> None:
    ours = {"task_arithmetic": (70.0, 1.5), "mine": (1.0, 0.0), "ties_merging": (72.0, 0.0)}
    frame = agreement(ours, accuracies())
    assert frame.to_numpy().tolist() == [["task_arithmetic", 69.1, 70, 68.5, 71.5], ["ties_merging", 72.4, 72, 72, 72]]
    assert frame.attrs["label"] == "AdaMerging Table 1, ViT-B/32 (OC-8)"


def test_unknown_model_setting_paper_or_table_lists_what_there_is() -> None:
    with pytest.raises(KitError, match=r"model 'ViT-H-14'.*AdaMerging has: ViT-B-32 eight"):
        accuracies("ViT-H-14")
    with pytest.raises(KitError, match=r"paper 'AdaMergin'.*Papers there are: .*AdaMerging"):
        accuracies(paper="AdaMergin")
    with pytest.raises(KitError, match=r"no table 'Table 7'.*Table 1; "):
        accuracies(table="Table 7")
    with pytest.raises(KitError, match=r"Name one of: .*TSV-M example"):
        accuracies(paper="FusionBench", setting="twenty")


def test_families_never_share_a_label() -> None:
    mixed = pd.concat([accuracies(), accuracies(paper="FusionBench", table="eight tasks")])
    with pytest.raises(KitError, match=r"one checkpoint family.*OC-8; FusionBench eight tasks ViT-B-32 FB"):
        label(mixed)


def test_counterparts_are_found_by_title_or_name_in_any_spelling() -> None:
    frame = counterparts(["SUN397", "Stanford Cars", "FashionMNIST", "rendered sst2", "Flowers102"])
    assert list(frame["title"]) == ["SUN397", "Cars", "Fashion-MNIST", "Rendered SST2", "Flowers102"]
    assert list(frame["pretrained"]) == [63.18, 59.58, 63.01, 58.65, 66.45]
    assert list(frame.loc["Stanford Cars", ["classes", "test images", "finetuned"]]) == [196, 8041, 78.52]
    assert frame.attrs["label"] == "CLIP ViT-B/32 (FB)"


@pytest.mark.parametrize("model", ["ViT-B-32", "ViT-B-16", "ViT-L-14"])
def test_counterparts_agree_with_the_reported_table(model: str) -> None:
    table = accuracies(model, "twenty", "FusionBench", "twenty tasks")
    for method, column in (("pretrained", "pretrained"), ("individual", "finetuned")):
        rows = table[(table["name"] == method) & (table["task"] != "average")]
        assert list(counterparts(list(rows["task"]), model)[column]) == list(rows["accuracy"])


def test_every_task_of_the_miniature_has_a_counterpart() -> None:
    tasks = pytest.importorskip("mergekit_lite.suites.miniature.tasks").TASKS
    frame = counterparts([task.counterpart for task in tasks.values()])
    assert not frame.isna().any(axis=None)
    assert [task.zero_shot for task in tasks.values()] == list(frame["pretrained"])


def test_an_unknown_data_set_is_missing_and_an_unknown_model_refused() -> None:
    assert counterparts(["lanterns"]).isna().all(axis=None)
    with pytest.raises(KitError, match=r"model 'ViT-H-14'\. Known: ViT-B-32, ViT-B-16, ViT-L-14"):
        counterparts(["SUN397"], "ViT-H-14")


EIGHT = ("SUN397", "Cars", "RESISC45", "EuroSAT", "SVHN", "GTSRB", "MNIST", "DTD")


def test_released_task_wise_coefficients_are_one_an_expert() -> None:
    found = coefficients("ViT-B-32", "Task-wise AdaMerging", EIGHT, ["conv1.weight"])
    assert found == [[0.2202], [0.1413], [0.2826], [0.3284], [0.2841], [0.4003], [0.1978], [0.1692]]
    assert coefficients("ViT-B-32", "Task-wise AdaMerging", ["DTD", "SVHN"], []) == [[0.1692], [0.2841]]


@pytest.mark.parametrize(("model", "mean"), [("ViT-B-32", 0.24), ("ViT-B-16", 0.269), ("ViT-L-14", 0.27)])
def test_released_layer_wise_coefficients_name_every_tensor_of_the_image_encoder(model: str, mean: float) -> None:
    """The names are open_clip's own; the means of all released rows are printed in the authors' summary."""
    with torch.device("meta"):  # the architecture without memory for its weights
        visual = open_clip.model.CLIP(**open_clip.get_model_config(model)).visual
    names = [name for name, _ in visual.named_parameters()]
    found = np.array(coefficients(model, "Layer-wise AdaMerging", EIGHT, names))
    assert found.shape == (8, len(names))
    rows = len(names) + 6  # six more tensors are outside the image encoder, at 0.3
    assert (found.sum() + 8 * 6 * 0.3) / (8 * rows) == pytest.approx(mean, abs=5e-4)
    assert not (found == 0.3).all(axis=0).any()


def test_released_coefficients_follow_the_names_asked_for() -> None:
    both = ["ln_post.bias", "conv1.weight"]
    alone = [coefficients("ViT-B-32", "Layer-wise AdaMerging++", ["MNIST"], [name])[0][0] for name in both]
    assert coefficients("ViT-B-32", "Layer-wise AdaMerging++", ["MNIST"], both) == [alone]
    assert alone[0] != alone[1]


def test_coefficients_that_were_not_released_are_named_with_those_there_are() -> None:
    with pytest.raises(KitError, match=r"for 'ViT-L-14', 'Task-wise AdaMerging'\. There are: ViT-B-32 Task-wise"):
        coefficients("ViT-L-14", "Task-wise AdaMerging", EIGHT, [])
    with pytest.raises(KitError, match=r"for the data set 'PCAM'\. There are: dtd, eurosat"):
        coefficients("ViT-B-32", "Layer-wise AdaMerging", ["PCAM"], [])
    with pytest.raises(KitError, match=r"for the tensor 'head\.weight' of ViT-B-32"):
        coefficients("ViT-B-32", "Layer-wise AdaMerging", ["DTD"], ["head.weight"])


def test_released_tensors_are_those_that_coefficients_are_found_for() -> None:
    for model, count in (("ViT-B-32", 152), ("ViT-L-14", 296)):
        names = released_tensors(model)
        assert len(names) == count
        assert len(coefficients(model, "Layer-wise AdaMerging", ["DTD"], names)[0]) == count
    with pytest.raises(KitError, match=r"for the model 'ViT-H-14'\. There are: ViT-B-32, "):
        released_tensors("ViT-H-14")


def test_the_authors_curves_end_where_their_table_does() -> None:
    frame = curves()
    assert frame.attrs["label"] == "AdaMerging logs, ViT-B/32 (OC-8)"
    kinds = ("task_wise_adamerging", "layer_wise_adamerging")
    assert set(frame["method"]) == {f"{kind}{plus}" for kind in kinds for plus in ("", "_plus")}
    for method, logged in frame.groupby("method"):
        assert logged["step"].is_monotonic_increasing
        last = logged.iloc[-1]
        assert last["step"] == 500
        expected = average(accuracies(), str(method))
        assert last["accuracy"] == pytest.approx(expected, abs=0.1)  # the table cuts decimals off


def test_the_average_of_the_curves_is_that_of_the_tasks() -> None:
    tasks = [curves(task)["accuracy"] for task in ("sun397", "stanford-cars", "resisc45", "eurosat")]
    tasks += [curves(task)["accuracy"] for task in ("svhn", "gtsrb", "mnist", "dtd")]
    np.testing.assert_allclose(np.mean(tasks, axis=0), curves()["accuracy"], atol=1e-3)


def test_a_curve_of_an_unknown_task_is_refused() -> None:
    with pytest.raises(KitError, match=r"for the task 'SUN397'\. There are: average, dtd"):
        curves("SUN397")


def test_a_table_of_two_families_is_read_one_family_at_a_time() -> None:
    asked = ("ViT-B-32", "twenty-pool-four-eval", "FW-Merging", "ViT-B/32, 20 models")
    with pytest.raises(KitError, match="one checkpoint family"):
        accuracies(*asked)
    rows = accuracies(*asked, family="FB")
    assert set(rows["family"]) == {"FB"}
    assert average(rows, "soft_frank_wolfe") == 80.1
    assert average(rows, "pretrained") is None  # printed there, but of the other family
    with pytest.raises(KitError, match=r"no rows of the family 'OC-20'\. Families there are: FB, OC-8"):
        accuracies(*asked, family="OC-20")


def test_scaling_curves_are_read_in_the_order_of_the_pool() -> None:
    frame = scaling("irrelevant")
    assert frame.attrs["label"] == "FW-Merging scaling figure, irrelevant models, ViT-B/32 (FB; read off a figure)"
    line = frame[frame["line"] == "task_arithmetic"]
    assert list(line["x"]) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert (line["y"].iloc[0], line["y"].iloc[-1]) == (70.3, 21.2)
    assert set(frame["line"]) == {
        "task_arithmetic", "ties_merging", "dare", "layer_wise_adamerging", "soft_frank_wolfe"
    }  # fmt: skip
    assert scaling("relevant")["y"].max() == 68.4


def test_scaling_curves_that_nobody_published_are_refused() -> None:
    with pytest.raises(KitError, match=r"no curve 'noisy' for ViT-B-32\. Take 'irrelevant' or 'relevant'"):
        scaling("noisy")
    with pytest.raises(KitError, match="ViT-L-14"):
        scaling("relevant", "ViT-L-14")


def test_averages_of_several_papers_are_of_one_family_and_say_where_they_stand() -> None:
    frame = beside(["simple_average", "tsv_merging", "soft_frank_wolfe"], "ViT-B-32", "twenty", "FB")
    assert list(frame["name"]) == ["simple_average", "tsv_merging", "soft_frank_wolfe"]
    assert list(frame["accuracy"]) == [61.1, 73.23, 68.3]
    assert frame["where"].iloc[1] == "FusionBench, TSV-M example"
    assert frame["where"].iloc[2] == "FW-Merging, scaling figure, relevant models; read off a figure"
    assert beside(["tsv_merging"], "ViT-B-32", "twenty", "OC-20")["accuracy"].tolist() == [77.07]
    assert beside(["tsv_merging"], "ViT-B-16", "twenty", "FB").empty


def test_published_accuracies_are_read_task_by_task_under_our_names() -> None:
    table = by_task(accuracies(setting="generalization-1"), ["Stanford Cars", "MNIST", "average-unseen", "KMNIST"])
    assert list(table.columns) == ["Stanford Cars", "MNIST", "average-unseen", "KMNIST"]
    found = [table.at["layer_wise_adamerging", task] for task in table.columns[:3]]
    assert found == [65.9, 84.0, 70.0]
    assert table["KMNIST"].isna().all()


def test_rows_of_methods_that_the_kit_does_not_have_are_left_out_of_the_table_by_task() -> None:
    table = by_task(accuracies(setting="corruption-contrast", paper="FusionBench"), ["EuroSAT", "average"])
    assert list(table.index) == [
        "fisher_merging",
        "regmean",
        "task_arithmetic",
        "ties_merging",
        "layer_wise_adamerging",
    ]
    assert table.loc["layer_wise_adamerging", "average"] == 79.9
