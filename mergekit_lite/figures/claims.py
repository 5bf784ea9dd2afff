"""The papers' claims at a glance: a table with a row each, and the measured differences with their intervals."""

import math
from collections.abc import Mapping, Sequence

from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mergekit_lite.analysis.verdicts import Claim, Measured, Verdict, conditions, held_against, reason, verdict
from mergekit_lite.errors import KitError
from mergekit_lite.figures.style import INK, PALE, WHITE, canvas, in_rows, legend, styled
from mergekit_lite.figures.tables import Link, plain_table

DRAWN = {
    Verdict.HOLDS: ("#0072B2", "o"),
    Verdict.IN_PART: ("#56B4E9", "D"),
    Verdict.UNDECIDED: (PALE, "s"),
    Verdict.FAILS: ("#D55E00", "X"),
}
"""Colour and marker of a measured difference, by the verdict under its condition."""


def claims_table(claims: Mapping[str, Claim], measured: Mapping[str, Sequence[Measured]], caption: str) -> HTML:
    """Return the scorecard: the claim, its number and source, what was measured, the verdict, why, and the evidence.

    Args:
        claims: as `verdicts.claims` returns them.
        measured: by the claims' short names.
        caption: what is seen.
    """
    heads = ("claim", "published number", "checkpoints, and how it was read", "measured here", "verdict", "why")
    rows: list[list[str | float | Link]] = []
    for name, claim in claims.items():
        found = measured.get(name, ())
        page = Link("the evidence", f"{claim.page}.html") if claim.page else Link("the page", "../reproduce.html")
        told = "; ".join(_said(claim, one) for one in _few(found))
        texts = (f"{claim.number}: {claim.where}", claim.source, f"{claim.unit}: {told}", str(verdict(claim, found)))
        rows.append([f"{claim.paper}: {claim.words}", *texts, reason(claim, found), page])
    return plain_table([*heads, "where"], rows, caption)


def _few(measured: Sequence[Measured]) -> Sequence[Measured]:
    """Return all, or of more than three the one with the least and the one with the greatest difference."""
    if len(measured) <= 3:
        return measured
    return [chosen(measured, key=lambda one: one.value) for chosen in (min, max)]


def _said(claim: Claim, one: Measured) -> str:
    digits = 2 if claim.unit in ("coefficient", "rank correlation") else 1
    # zero is added so that nothing is shown as -0.0
    value, low, high = (f"{round(number, digits) + 0:+.{digits}f}" for number in (one.value, one.low, one.high))
    runs = "one run" if one.runs == 1 else f"{one.runs} runs"
    return f"{one.what} {value} ({low} to {high}, {runs})"


@styled()
def claim_intervals(claims: Mapping[str, Claim], measured: Mapping[str, Sequence[Measured]]) -> Figure:
    """Draw the measured difference of each claim and condition with its interval, and the published one beside it.

    Args:
        claims: as `verdicts.claims` returns them; those that are not measured in points of accuracy are left out.
        measured: by the claims' short names.

    Raises:
        KitError: nothing is measured in points.
    """
    drawn = {name: claim for name, claim in claims.items() if claim.unit == "points" and measured.get(name)}
    if not drawn:
        raise KitError("No claim has a difference in points: there is nothing to draw.")
    lines = [
        (f"{name}: {one.what}", one, which, theirs)
        for name, claim in drawn.items()
        for one, which, theirs in zip(
            measured[name], conditions(claim, measured[name]), held_against(claim, measured[name]), strict=True
        )
    ]
    figure, axes = canvas(1.2 + 0.24 * len(lines))
    in_rows(axes, [label for label, *_ in lines])
    axes.axvline(0, color=INK, linewidth=1)
    for row, (_, one, which, theirs) in enumerate(lines):
        colour, marker = DRAWN[which]
        axes.plot([one.low, one.high], [row, row], color=colour, linewidth=2)
        axes.plot(one.value, row, marker=marker, color=colour, markersize=6, markeredgecolor=WHITE)
        if not math.isnan(theirs):
            axes.plot(theirs, row, marker="d", color=INK, markerfacecolor="none", markersize=6)
    axes.set_xlabel("difference of average accuracies (points)")
    shown = {which for _, _, which, _ in lines}
    handles = {
        str(which): Line2D([], [], color=colour, marker=marker)
        for which, (colour, marker) in DRAWN.items()
        if which in shown
    }
    legend(figure, handles | {"published": Line2D([], [], color=INK, marker="d", markerfacecolor="none", linestyle="")})
    said = (f"{label} {one.value:+.1f} ({one.low:+.1f} to {one.high:+.1f}), {which}" for label, one, which, _ in lines)
    figure.set_label(f"Measured differences in points with their intervals: {'; '.join(said)}.")
    return figure
