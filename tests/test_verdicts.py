"""Verdicts: the rule under one condition and under several, the intervals behind it, and the claims as data."""

import math
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
import samples

from mergekit_lite import figures
from mergekit_lite.analysis import published, traces, verdicts
from mergekit_lite.analysis.verdicts import Claim, Measured, Verdict
from mergekit_lite.errors import KitError

SIZES = dict.fromkeys(samples.TASKS, 1000)
CLAIMS = verdicts.claims()


def claim(**changes: Any) -> Claim:
    """Return a claim of ten published points, changed by what is given."""
    return CLAIMS["gain"]._replace(**{"differences": (10.0,)} | changes)


def found(low: float, high: float, what: str = "here") -> Measured:
    return Measured(what, (low + high) / 2, low, high, 3)


STABLE = {"kind": "stable", "margin": 1.0, "differences": ()}


@pytest.mark.parametrize(
    ("changes", "low", "high", "expected"),
    [
        ({}, 4.0, 6.0, Verdict.HOLDS),  # half of the published ten, to the point
        ({}, 3.9, 6.0, Verdict.IN_PART),
        ({}, -0.1, 30.0, Verdict.UNDECIDED),
        ({}, -3.0, -0.1, Verdict.FAILS),
        ({"differences": ()}, 0.1, 0.3, Verdict.HOLDS),  # nothing to hold its size against
        (STABLE, -1.0, 1.0, Verdict.HOLDS),
        (STABLE, -0.5, 1.1, Verdict.UNDECIDED),
        (STABLE, -3.0, -1.1, Verdict.FAILS),
        (STABLE, 1.1, 3.0, Verdict.FAILS),
        ({"untestable": "It is another benchmark."}, 4.0, 6.0, Verdict.UNTESTABLE),
    ],
)
def test_rule_under_one_condition(changes: dict[str, Any], low: float, high: float, expected: Verdict) -> None:
    assert verdicts.verdict(claim(**changes), [found(low, high)]) is expected


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(8, 12), (6, 9)], Verdict.HOLDS),
        ([(8, 12), (1, 3)], Verdict.IN_PART),
        ([(1, 2), (1, 3)], Verdict.IN_PART),
        ([(8, 12), (-1, 3)], Verdict.IN_PART),
        ([(8, 12), (-3, -1)], Verdict.IN_PART),
        ([(-1, 1), (-2, 3)], Verdict.UNDECIDED),
        ([(-1, 1), (-3, -1)], Verdict.FAILS),
        ([(-5, -2), (-3, -1)], Verdict.FAILS),
    ],
)
def test_several_conditions(intervals: list[tuple[float, float]], expected: Verdict) -> None:
    assert verdicts.verdict(claim(), [found(*ends) for ends in intervals]) is expected


def test_each_condition_has_its_own_published_difference() -> None:
    two = claim(differences=(10.0, 2.0))
    assert verdicts.verdict(two, [found(6, 8), found(0.9, 1.3)]) is Verdict.HOLDS
    assert verdicts.verdict(two, [found(0.9, 1.3), found(6, 8)]) is Verdict.IN_PART
    with pytest.raises(KitError, match="has 2 published differences, but 3 conditions"):
        verdicts.verdict(two, [found(1, 2)] * 3)
    with pytest.raises(KitError, match="has no measurement to judge"):
        verdicts.verdict(claim(), [])


def test_reason_is_a_sentence_with_the_conditions_and_who_knew_what() -> None:
    one = found(8, 12, "at 0.3")._replace(who="A (labels) against B (no data)")
    assert verdicts.reason(claim(note="So it is."), [one, found(-1, 3, "at 0.4")]) == (
        "At 0.3: above 0 and at least half of the published +10; at 0.4: the interval contains 0. "
        "A (labels) against B (no data). So it is."
    )
    assert verdicts.reason(claim(**STABLE), [found(-3, -2)]) == "Here: the whole interval is beyond 1 point."
    many = verdicts.reason(claim(differences=()), [found(8, 12, name) for name in "abc"])
    assert many == "All 3 conditions: above 0."


def runs(*averages: float) -> list[Any]:
    return [samples.record("mine", "Mine", (average,) * 3) for average in averages]


def test_interval_joins_training_runs_and_images() -> None:
    one = verdicts.difference("here", runs(80, 82, 81), runs(70, 71, 72), SIZES)
    assert one.value == pytest.approx(10.0)
    spread = 4.302653 * 1.0 / math.sqrt(3)  # t of two degrees of freedom; the differences are 10, 11 and 9
    shares = [0.80, 0.82, 0.81, 0.70, 0.71, 0.72]
    images = 1.959964 * math.sqrt(sum(100**2 * p * (1 - p) / 3000 for p in shares) / 3)
    assert one.high - one.value == pytest.approx(math.hypot(spread, images), rel=1e-5)
    assert one.value - one.low == pytest.approx(one.high - one.value)
    paired = verdicts.difference("here", runs(80, 82, 81), runs(70, 71, 72), SIZES, paired=0.0)
    assert paired.high - paired.value == pytest.approx(spread, rel=1e-5)


def test_a_single_run_has_the_spread_of_its_images_alone() -> None:
    one = verdicts.difference("here", runs(80), runs(70), SIZES)
    assert one.runs == 1
    assert one.value == pytest.approx(10.0)
    assert one.high - one.value == pytest.approx(1.959964 * 100 * math.sqrt((0.16 + 0.21) / 3000), rel=1e-5)


def test_runs_are_paired_and_sizes_needed() -> None:
    with pytest.raises(KitError, match="compares 2 runs with 1"):
        verdicts.difference("here", runs(80, 81), runs(70), SIZES)
    with pytest.raises(KitError, match="number of test images of signs is needed"):
        verdicts.difference("here", runs(80), runs(70), {"scenes": 10, "digits": 10})


def test_rows_of_different_knowledge_say_so() -> None:
    taught = samples.record("mine", "Mine", (80.0,) * 3, access="labelled train")
    assert verdicts.difference("here", [taught], runs(70), SIZES).who == "Mine (labelled train) against Mine (no data)"
    assert verdicts.difference("here", runs(71), runs(70), SIZES).who == ""


def test_what_is_no_accuracy_has_intervals_too() -> None:
    assert verdicts.over_runs("depth", [0.1]) == Measured("depth", 0.1, 0.1, 0.1, 1)
    three = verdicts.over_runs("depth", [0.1, 0.2, 0.3])
    assert three.high - three.value == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    grown = verdicts.growth("memory", {4: 100.0, 64: 103.0, 16: 101.0})
    assert (grown.value, grown.low, grown.high) == pytest.approx((3.0, 1.0, 3.0))
    rho = verdicts.correlation("all images", 0.6, 1003)
    assert rho.low == pytest.approx(math.tanh(math.atanh(0.6) - 1.959964 * math.sqrt(1.06 / 1000)), rel=1e-5)
    assert rho.low < 0.6 < rho.high


def test_counts_are_one_sentence() -> None:
    some = [Verdict.HOLDS, Verdict.UNTESTABLE, Verdict.HOLDS, Verdict.FAILS]
    assert verdicts.counts(some) == "Of 4 claims, 2 hold, 1 does not hold, 1 is not testable here"


def test_scorecard_has_a_row_for_each_claim_with_its_evidence() -> None:
    measured = {"gain": [found(8, 12, "at 0.3")], "memory": [found(1, 2, name) for name in "abcd"]}
    some = {name: CLAIMS[name] for name in measured}
    html = figures.claims_table(some, measured, "Two claims.").data
    table = ElementTree.fromstring(html)  # refuses what is not well-formed
    gain, memory = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")][1:]
    assert gain[:2] == ["AdaMerging: improves on Task Arithmetic", f"{some['gain'].number}: {some['gain'].where}"]
    assert gain[3:5] == ["points: at 0.3 +10.0 (+8.0 to +12.0, 3 runs)", "holds"]
    assert memory[3].count(" runs") == 2  # the least and the greatest of four
    assert [link.get("href") for link in table.iter("a")] == ["eight_tasks.html", "../reproduce.html"]


def test_intervals_are_drawn_and_told() -> None:
    figure = figures.claim_intervals(CLAIMS, {"gain": [found(8, 12, "at 0.3")], "depth": [found(1, 2)]})
    told = "gain: at 0.3 +10.0 (+8.0 to +12.0), holds."
    assert figure.get_label() == f"Measured differences in points with their intervals: {told}"
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["gain: at 0.3"]
    with pytest.raises(KitError, match="No claim has a difference in points"):
        figures.claim_intervals(CLAIMS, {"depth": [found(1, 2)]})


def test_there_are_twelve_claims_and_each_is_complete() -> None:
    assert len(CLAIMS) == 12
    assert {one.paper for one in CLAIMS.values()} == {"AdaMerging", "FW-Merging"}
    sources = published.reference("claims").set_index("claim")["source"]
    for name, one in CLAIMS.items():
        assert all((one.words, one.number, one.where, one.unit, sources[name])), name
        assert one.family in {"OC-8", "OC-20", "FB", "RoBERTa", "any"}, name
        assert one.trust in {"primary", "reprint", "figure", "note"}, name
        assert one.kind in {"better", "stable"}, name
        assert (one.kind == "stable") == (one.margin > 0), name
        assert one.source.startswith(f"{one.family}; ")


@pytest.mark.parametrize("name", [name for name, one in CLAIMS.items() if one.higher and one.differences])
def test_published_differences_are_formed_from_two_published_numbers(name: str) -> None:
    one = CLAIMS[name]
    gaps = [high - low for high, low in zip(one.higher, one.lower, strict=True)]
    assert list(one.differences) == pytest.approx(gaps, abs=1e-9)
    reported = set(published.reference("reported")["accuracy"])
    assert {*one.higher, *one.lower} <= reported


@pytest.mark.parametrize(("name", "percent"), [("relevant", 15.3), ("over AdaMerging", 8.39), ("data-free", 32.8)])
def test_papers_percentages_are_relative(name: str, percent: float) -> None:
    (high,), (low,) = CLAIMS[name].higher, CLAIMS[name].lower
    assert f"{percent} %" in CLAIMS[name].number
    assert 100 * (high / low - 1) == pytest.approx(percent, abs=0.08)


def test_released_coefficients_are_those_of_the_claim() -> None:
    tensors = published.released_tensors("ViT-B-32")
    tasks = ("SUN397", "Stanford Cars", "RESISC45", "EuroSAT", "SVHN", "GTSRB", "MNIST", "DTD")
    values = published.coefficients("ViT-B-32", "Layer-wise AdaMerging", tasks, tensors)
    blocks = traces.by_block(pd.DataFrame(values, columns=tensors))
    first, second = (blocks.loc[side, "y"].mean() for side in (blocks["x"] < 0.5, blocks["x"] > 0.5))
    expected = f"mean {first:.2f} in the first half of the blocks, {second:.2f} in the second"
    assert CLAIMS["depth"].number == expected
