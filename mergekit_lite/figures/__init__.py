"""One function for each kind of figure, and `show`, which puts a figure into a notebook with its alternative text.

All figures have an opaque white ground and dark ink. A transparent ground would need a second set of inks for dark
mode, and a copied figure would be unreadable on the other ground; a white card reads the same in both and in print.
Lines and letters are vectors (SVG, letters as outlines, so no font is needed), and the same data give the same bytes.
Each function writes what it drew into the figure's label, in words and numbers: `show` takes it as alternative text.
Nothing is computed here: numbers come from records and from `mergekit_lite.analysis`.
"""

from mergekit_lite.figures.bars import accuracy_bars, descent_bars, variant_bars
from mergekit_lite.figures.claims import claim_intervals, claims_table
from mergekit_lite.figures.curves import adaptation_curve, frank_wolfe_trace, lines, over_budget
from mergekit_lite.figures.heatmaps import (
    accuracy_heatmap,
    choice_map,
    coefficient_map,
    cosine_heatmap,
    pair_heatmap,
    transfer_heatmap,
)
from mergekit_lite.figures.pictures import corrupted_pictures, gallery
from mergekit_lite.figures.points import arrows, cost_scatter, group_dots, scatter, spread_dots
from mergekit_lite.figures.style import LOOKS, SPARE, figure_html, look, show

__all__ = [
    "LOOKS",
    "SPARE",
    "accuracy_bars",
    "accuracy_heatmap",
    "adaptation_curve",
    "arrows",
    "choice_map",
    "claim_intervals",
    "claims_table",
    "coefficient_map",
    "corrupted_pictures",
    "cosine_heatmap",
    "cost_scatter",
    "descent_bars",
    "figure_html",
    "frank_wolfe_trace",
    "gallery",
    "group_dots",
    "lines",
    "look",
    "over_budget",
    "pair_heatmap",
    "scatter",
    "show",
    "spread_dots",
    "transfer_heatmap",
    "variant_bars",
]
