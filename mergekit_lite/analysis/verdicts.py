"""Verdicts on the papers' claims: differences with their intervals, and the one rule that turns them into words.

The claims stand in ``reference/claims.csv``: what is claimed, the published number and where it stands, how far that
source can be trusted, and of which checkpoints it is. What is measured here comes from records.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal, NamedTuple

import pandas as pd
from scipy import stats

from mergekit_lite.analysis.published import DOUBTFUL, reference
from mergekit_lite.errors import KitError

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record

LEVEL = 0.95
"""Of all intervals."""

ENOUGH = 0.5
"""Share of the published difference that has to be there for a claim to hold."""


class Verdict(StrEnum):
    """What became of a claim."""

    HOLDS = "holds"
    IN_PART = "holds in part"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    UNTESTABLE = "not testable here"


class Claim(NamedTuple):
    """One row of ``reference/claims.csv``.

    Attributes:
        paper: whose claim.
        words: the claim, in the paper's words as far as they are short.
        number: the published number, as printed; a percentage may be a relative one.
        where: in which part of the paper it stands.
        family: of the checkpoints behind it, see the README of the folder.
        trust: how it was read, see there.
        kind: "better" (a difference above 0) or "stable" (a difference of no more than `margin`).
        unit: of the differences that are measured here.
        margin: of equivalence, for "stable".
        differences: published ones that ours can be held against, one for all conditions or one for each.
        higher: the published number that is said to be higher, where a percentage is formed from two, one a condition.
        lower: the other one.
        untestable: why the number cannot be tested here; empty if it can.
        note: what a reader of the verdict should know besides.
        page: the notebook with the evidence; empty for the page on reproducing.
    """

    paper: str
    words: str
    number: str
    where: str
    family: str
    trust: str
    kind: Literal["better", "stable"]
    unit: str
    margin: float
    differences: tuple[float, ...]
    higher: tuple[float, ...]
    lower: tuple[float, ...]
    untestable: str
    note: str
    page: str

    @property
    def source(self) -> str:
        """Family and trust in words: ``OC-8; re-printed by others``."""
        doubt = {"primary": "; read at the authors'", "reprint": "; re-printed by others"} | DOUBTFUL
        return f"{self.family}{doubt[self.trust]}"


class Measured(NamedTuple):
    """A difference under one condition, with its interval.

    Attributes:
        what: the condition, to stand in a list: ``at 0.3``.
        value: the difference, in the claim's unit.
        low: lower end of the interval.
        high: upper end.
        runs: training runs of the experts that it is from; the interval of a single one is that of the images alone.
        who: which rows were compared, and what each knew.
    """

    what: str
    value: float
    low: float
    high: float
    runs: int
    who: str = ""


def claims() -> dict[str, Claim]:
    """Return the claims by their short names, in the order of the file."""
    table = reference("claims").set_index("claim").drop(columns="source")
    return {str(name): _claim(row) for name, row in table.iterrows()}


def _claim(row: "pd.Series[str]") -> Claim:
    texts = {name: "" if pd.isna(value) else str(value) for name, value in row.items()}
    lists = {
        name: tuple(float(part) for part in texts.pop(name).split(";") if part)
        for name in ("differences", "higher", "lower")
    }
    margin = float(texts.pop("margin") or "nan")
    return Claim(**{str(name): text for name, text in texts.items()}, **lists, margin=margin)  # type: ignore[arg-type]


def verdict(claim: Claim, measured: Sequence[Measured]) -> Verdict:
    """Return what becomes of a claim.

    Under one condition, "better" holds if the whole interval lies above 0 and the difference is at least `ENOUGH` of
    the published one, where one is known that ours can be held against; above 0, but less than that, it holds in
    part. If the interval contains 0 it is undecided, else it does not hold. "Stable" holds if the whole interval lies
    within the margin around 0, does not hold if the whole interval lies outside, and is undecided otherwise.

    Several conditions that agree decide together. Where they differ, the claim holds in part if it holds, at least in
    part, under one of them; if under none, one contradicts it and the others leave it open, so that it does not hold.

    A claim whose number was measured on something that this kit does not have is not testable, whatever else was found.

    Raises:
        KitError: a claim that can be tested, and no measurement; or as many published differences as fit no condition.
    """
    if claim.untestable:
        return Verdict.UNTESTABLE
    if not measured:
        raise KitError(f"'{claim.words}' has no measurement to judge. Give one for each condition.")
    found = set(conditions(claim, measured))
    if len(found) == 1:
        return found.pop()
    return Verdict.IN_PART if found & {Verdict.HOLDS, Verdict.IN_PART} else Verdict.FAILS


def conditions(claim: Claim, measured: Sequence[Measured]) -> list[Verdict]:
    """Return the verdict under each condition, see `verdict`."""
    return [_one(claim, one, theirs) for one, theirs in zip(measured, held_against(claim, measured), strict=True)]


def held_against(claim: Claim, measured: Sequence[Measured]) -> list[float]:
    """Return the published difference that each measurement is held against, NaN where there is none."""
    theirs = claim.differences or (math.nan,)
    if len(theirs) not in (1, len(measured)):
        raise KitError(f"'{claim.words}' has {len(theirs)} published differences, but {len(measured)} conditions.")
    return list(theirs) if len(theirs) > 1 else list(theirs) * len(measured)


def _one(claim: Claim, one: Measured, published: float) -> Verdict:
    if claim.kind == "stable":
        if -claim.margin <= one.low and one.high <= claim.margin:
            return Verdict.HOLDS
        return Verdict.FAILS if one.low > claim.margin or one.high < -claim.margin else Verdict.UNDECIDED
    if one.low > 0:
        return Verdict.IN_PART if one.value < ENOUGH * published else Verdict.HOLDS  # NaN is never more
    return Verdict.UNDECIDED if one.high >= 0 else Verdict.FAILS


def reason(claim: Claim, measured: Sequence[Measured]) -> str:
    """Return a sentence on why the verdict is what it is: what was found, and under which conditions."""
    found = zip(measured, conditions(claim, measured), held_against(claim, measured), strict=True)
    groups: dict[str, list[str]] = {}
    for one, which, theirs in found:
        groups.setdefault(_finding(claim, which, theirs), []).append(one.what)
    parts = [f"{', '.join(names)}: {words}" for words, names in groups.items()]
    if len(parts) == 1 and len(measured) > 2:
        parts = [f"all {len(measured)} conditions: {next(iter(groups))}"]
    who = dict.fromkeys(one.who for one in measured if one.who)
    told = f"{'; '.join(parts)}."
    said = [claim.untestable, f"{told[0].upper()}{told[1:]}" if parts else "", *(f"{one}." for one in who), claim.note]
    return " ".join(part for part in said if part)


def _finding(claim: Claim, which: Verdict, published: float) -> str:
    if claim.kind == "stable":
        margin = f"{claim.margin:g} {claim.unit if claim.margin != 1 else claim.unit.removesuffix('s')}"
        return {
            Verdict.HOLDS: f"the whole interval is within {margin}",
            Verdict.UNDECIDED: f"the interval reaches beyond {margin}",
        }.get(which, f"the whole interval is beyond {margin}")
    half = "" if math.isnan(published) else f" half of the published {published:+g}"
    return {
        Verdict.HOLDS: "above 0" + (f" and at least{half}" if half else ""),
        Verdict.IN_PART: f"above 0, but less than{half}",
        Verdict.UNDECIDED: "the interval contains 0",
    }.get(which, "below 0")


def difference(
    what: str,
    one: Sequence["Record"],
    other: Sequence["Record"],
    sizes: Mapping[str, int],
    paired: float | None = None,
) -> Measured:
    """Return the mean difference of two rows' average accuracies (points) over training runs of the experts.

    The half width of the interval is the root of the sum of two squares. One is that of a t interval over the runs'
    differences; experts of both rows are from the same run, so the runs are paired. The other belongs to the test
    images, which are the same ones in all runs: 1.96 standard deviations of the difference. Unless `paired` says
    otherwise these are binomial, and as if the two rows answered different images, for records do not hold single
    answers. That is too wide rather than too narrow. With one run, the images are all there is.

    Args:
        what: the condition.
        one: a record for each run, all of one row, measured on all test images.
        other: of the row that it is compared with, in the same order.
        sizes: number of test images by task.
        paired: standard deviation of the difference over bootstrap samples of the images, see
            `uncertainty.paired_spread`.

    Raises:
        KitError: other numbers of runs, or a size is missing.
    """
    if len(one) != len(other) or not one:
        raise KitError(f"'{what}' compares {len(one)} runs with {len(other)}. Give the records of the same runs.")
    gaps = [a.average - b.average for a, b in zip(one, other, strict=True)]
    squares = [_binomial(a, sizes) + _binomial(b, sizes) for a, b in zip(one, other, strict=True)]
    images = math.sqrt(fmean(squares)) if paired is None else paired
    half = math.hypot(_half(gaps), float(stats.norm.ppf((1 + LEVEL) / 2)) * images)
    who = f"{_knowing(one[0])} against {_knowing(other[0])}" if one[0].access != other[0].access else ""
    return Measured(what, fmean(gaps), fmean(gaps) - half, fmean(gaps) + half, len(gaps), who)


def over_runs(what: str, values: Sequence[float]) -> Measured:
    """Return the mean of a number that is no accuracy, with its t interval over training runs.

    A single run has no interval: both ends are its value.
    """
    half = _half(values)
    return Measured(what, fmean(values), fmean(values) - half, fmean(values) + half, len(values))


def correlation(what: str, value: float, count: int) -> Measured:
    """Return a rank correlation over `count` images of one run, with the interval of Fisher's z.

    The variance of z is 1.06 / (count - 3), which suits ranks (Fieller, Hartley and Pearson 1957).
    """
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(1.06 / (count - 3))
    return Measured(what, value, math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half), 1)


def growth(what: str, peaks: Mapping[int, float]) -> Measured:
    """Return by how many percent the largest pool takes more than the smallest; the interval is the range over pools.

    Args:
        what: the condition.
        peaks: experts in the pool -> peak memory, in any unit, of two pools or more.
    """
    smallest = peaks[min(peaks)]
    more = {count: 100 * (peak / smallest - 1) for count, peak in peaks.items() if count != min(peaks)}
    return Measured(what, more[max(more)], min(more.values()), max(more.values()), 1)


def _half(values: Sequence[float]) -> float:
    """Return half the width of a t interval of the mean, 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def _binomial(record: "Record", sizes: Mapping[str, int]) -> float:
    """Return the variance (points squared) of a record's average that comes from the number of its test images."""
    missing = [task for task in record.accuracy if not sizes.get(task)]
    if missing:
        raise KitError(f"The number of test images of {', '.join(missing)} is needed. Give sizes[task].")
    shares = {task: value / 100 for task, value in record.accuracy.items()}
    return sum(100**2 * share * (1 - share) / sizes[task] for task, share in shares.items()) / len(shares) ** 2


def _knowing(record: "Record") -> str:
    seen = "no data" if record.access == "none" else record.access
    return f"{record.title} ({seen})"


def counts(verdicts: Sequence[Verdict]) -> str:
    """Return one sentence without a full stop: ``Of 12 claims, 5 hold, 2 hold in part, 1 is undecided``."""
    found = Counter(verdicts)
    words = {
        Verdict.HOLDS: ("holds", "hold"),
        Verdict.IN_PART: ("holds in part", "hold in part"),
        Verdict.FAILS: ("does not hold", "do not hold"),
        Verdict.UNDECIDED: ("is undecided", "are undecided"),
        Verdict.UNTESTABLE: ("is not testable here", "are not testable here"),
    }
    parts = [f"{found[one]} {words[one][found[one] > 1]}" for one in Verdict if found[one]]
    return f"Of {len(verdicts)} claims, {', '.join(parts)}"
