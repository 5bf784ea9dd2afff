"""One function for each kind of figure, and `show`, which puts a figure into a notebook with its alternative text.

All figures have an opaque white ground and dark ink. A transparent ground would need a second set of inks for dark
mode, and a copied figure would be unreadable on the other ground; a white card reads the same in both and in print.
Lines and letters are vectors (SVG, letters as outlines, so no font is needed), and the same data give the same bytes.
Each function writes what it drew into the figure's label, in words and numbers: `show` takes it as alternative text.
"""

from mergekit_lite.figures.accuracy import accuracy_bars, accuracy_heatmap, adaptation_curve, agreement, agreement_frame
from mergekit_lite.figures.costs import cost_scatter, spread_dots
from mergekit_lite.figures.curves import arrows, lines, rank_correlation, scatter
from mergekit_lite.figures.frank_wolfe import (
    choice_frame,
    choice_map,
    descent_bars,
    descents,
    frank_wolfe_trace,
    most_chosen,
    variant_bars,
)
from mergekit_lite.figures.groups import group_dots
from mergekit_lite.figures.pictures import corrupted_pictures, gallery
from mergekit_lite.figures.pools import memory_curves, pool_curves, pool_dots
from mergekit_lite.figures.style import LOOKS, SPARE, figure_html, look, show
from mergekit_lite.figures.vectors import (
    by_block,
    coefficient_map,
    coefficients,
    cosine_heatmap,
    pair_heatmap,
    transfer,
    transfer_heatmap,
)

__all__ = [
    "LOOKS",
    "SPARE",
    "accuracy_bars",
    "accuracy_heatmap",
    "adaptation_curve",
    "agreement",
    "agreement_frame",
    "arrows",
    "by_block",
    "choice_frame",
    "choice_map",
    "coefficient_map",
    "coefficients",
    "corrupted_pictures",
    "cosine_heatmap",
    "cost_scatter",
    "descent_bars",
    "descents",
    "figure_html",
    "frank_wolfe_trace",
    "gallery",
    "group_dots",
    "lines",
    "look",
    "memory_curves",
    "most_chosen",
    "pair_heatmap",
    "pool_curves",
    "pool_dots",
    "rank_correlation",
    "scatter",
    "show",
    "spread_dots",
    "transfer",
    "transfer_heatmap",
    "variant_bars",
]
