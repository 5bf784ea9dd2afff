"""Hard FW-Merging: in each iteration one step towards the one vertex that the gradient favours (Chen et al. 2025)."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from mergekit_lite.methods.frank_wolfe.gradient import (
    Sampling,
    Start,
    chosen,
    drawn,
    iteration_seed,
    mean_gradient,
    starting_point,
    vertex_pool,
)
from mergekit_lite.methods.frank_wolfe.oracle import (
    Comparison,
    Granularity,
    Oracle,
    Patchwork,
    Pick,
    compare,
    duality_gap,
    norms,
)
from mergekit_lite.methods.registry import Access, Count, Merged, Objective, Positive, Steps, TaskData, Watch, method
from mergekit_lite.methods.shared.stopping import Kept, unsound, warn_if_stopped
from mergekit_lite.methods.ties import cutoff
from mergekit_lite.weights import Pool, Weights, difference, in_dtypes_of

MergeFunction = Literal["task_arithmetic", "ties_merging"]

DENSITY = 0.2
"""Share of a step's entries that TIES keeps, as in `ties_merging`."""

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "oracle": "inner product",
        "granularity": "tensor",
        "iterations": 3,
        "step_size": 0.3,  # 1 times a scaling of 0.3
        "include_start": False,
        "start": "task_arithmetic",
        "sampling": "fixed",
    },
    "released": {
        "oracle": "cosine",
        "granularity": "tensor",
        "iterations": 3,
        "step_size": 0.003,  # 0.01 times 0.3
        "include_start": True,
        "start": "layer_wise_adamerging",
        "sampling": "fresh",
    },
    "fusionbench": {
        "oracle": "cosine",
        "granularity": "model",
        "iterations": 10,
        "step_size": 0.03,  # 0.1 times 0.3
        "include_start": True,
        "start": "task_arithmetic",
        "sampling": "fresh",
    },
}
"""Parameters by source: the paper, the commands in the authors' repository, the configuration of FusionBench 0.2.33.

The sources have two factors, the step size and the scaling of the merge function, which act as one product: the step
size here. The paper's image experiments take 3 iterations from the task-arithmetic merge (10 for language), and
layer-wise choice suits the hard variant. Not stated, as far as known, are its two factors: 1 is what the authors'
language code has, with a scaling of 0.29 for task arithmetic. With the authors' commands for images all three steps
together go 0.65 % of the way to a vertex, so that the result hardly differs from its AdaMerging start. That start was
adapted to unlabelled test images; here it sees what the objective allows, by default labelled training images.
FusionBench's recipe is FusionBench's choice of vertices on its layout of the tensors only, see `oracle.compare`.
"""


def hard_step(
    theta: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    vertices: Pool,
    *,
    rate: float,
    granularity: Granularity = "tensor",
    merge: MergeFunction = "task_arithmetic",
    lengths: Tensor | None = None,
) -> tuple[Weights, Pick, Comparison]:
    r"""Return :math:`\theta + \gamma\,\phi(s - \theta)`, the vertex s that was picked, and what the oracle compared.

    Args:
        theta: the current weights.
        gradient: of the loss there, for every tensor.
        vertices: V models; of vertices with equal scores the first one is picked.
        rate: :math:`\gamma`; up to 1, a step from inside the hull ends inside, and one from outside comes nearer; into
            the hull it surely gets only at 1.
        granularity: whether all tensors go to the same vertex.
        merge: :math:`\phi` is the identity for "task_arithmetic" and trims for "ties_merging".
        lengths: (V, L) from `norms`: compare vertices by cosines, not by inner products.
    """
    answer = compare(theta, gradient, vertices, lengths)
    (pick,) = answer.lowest(granularity)
    return towards(theta, Patchwork(pick, vertices, theta), rate, merge), pick, answer


def towards(
    theta: Mapping[str, Tensor], vertex: Mapping[str, Tensor], rate: float, merge: MergeFunction = "task_arithmetic"
) -> Weights:
    """Return theta moved towards a vertex by `rate`, in new memory; see `hard_step`.

    TIES has only one vector to merge here, so that there is nothing to elect a sign against: what is left of it is to
    keep the largest entries of the difference. As a rule such a step leaves the hull of the models.
    """
    least = cutoff(theta, vertex, DENSITY) if merge == "ties_merging" else 0.0
    moved: Weights = {}
    for name, start in theta.items():
        change = difference(vertex[name], start)
        moved[name] = start + rate * (change * (change.abs() >= least) if least else change)
    return moved


@method(title="FW-Merging (hard)", cite="chen2025fwmerging", access=Access.LABELLED)
def hard_frank_wolfe(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: TaskData,
    *,
    iterations: Steps = 3,
    oracle: Oracle = "inner product",
    granularity: Granularity = "tensor",
    step_size: Positive = 0.3,
    merge: MergeFunction = "task_arithmetic",
    start: Start = "task_arithmetic",
    include_start: bool = False,
    samples: Count = 100,
    sampling: Sampling = "fixed",
    objective: Objective = "cross-entropy",
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    r"""Step towards one vertex at a time: :math:`\theta_{t+1} = \theta_t + \gamma_t\,(s_t - \theta_t)`.

    Chen et al. 2025, the hard variant: :math:`s_t = \arg\min_{s \in \{\theta_1, \dots, \theta_K\}} \langle g_t, s
    \rangle`, where :math:`g_t` is the gradient of the sum over tasks of the mean loss, and :math:`\gamma_t = 2/(t+2)`
    times the step size, t from 0. Defaults are the paper's as far as they are known; see `RECIPES` for these, for the
    released code and for FusionBench. In memory are three sets of weights (current, next and best so far), one gradient
    and one tensor of one expert.

    Args:
        base: the pre-trained weights.
        experts: K fine-tuned weights by task name.
        data: heads, encoder and images. The tasks of the loss are those of `data.heads`; the pool may be another.
        iterations: how many steps.
        oracle: compare vertices by "inner product" with the gradient (paper), or by the "cosine" of each tensor with
            its gradient, summed (released code). Both look at the models themselves, not at their task vectors.
        granularity: go to one "model" as a whole, or choose for each "tensor" (the paper's layer-wise variant). There a
            tensor stays if its gradient is zero but for rounding.
        step_size: factor of :math:`2/(t+2)`: the sources' step size times the scaling :math:`\lambda` of their merge
            function; 1 is Frank-Wolfe proper. At most 1, steps from inside the hull end inside. The default start is
            outside: its coefficients sum to 0.3 K, 2.4 for eight experts. Each step brings that sum nearer to 1, but
            one with a factor below 1 never there.
        merge: "task_arithmetic" adds the scaled difference; "ties_merging" adds its largest entries only, see
            `towards`.
        start: "base", or a registered method that is run with its default parameters on the same pool and data.
        include_start: make the starting point a vertex, so that the hull contains it.
        samples: images of each task that a gradient is measured on.
        sampling: "fixed" measures every gradient on the same images (100 per task in total, as the paper counts them);
            "fresh" draws others for each, as the released code does.
        objective: "cross-entropy" on labelled training images, or "entropy" of predictions on unlabelled test images.
            It decides what `data` holds.
        seed: which images are drawn.
        watch: called with iteration and weights before the first and after each.

    Returns:
        The merged weights. The trace has "vertices" and "tensors" (their names), "start", and a value per iteration,
        all measured before its step, of: "loss"; "gap", the duality gap, negative only outside the hull (for a convex
        loss, no point of the hull is then better); "descent",
        :math:`\langle g, \theta - s \rangle` of the chosen vertex, which is the gap if that was chosen by inner
        product; "step", the whole factor; "chosen", a vertex, or for each tensor a vertex or None where it stayed; and
        "scores" by vertex, summed over tensors. "stopped" says why it ended early.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights, a parameter out of range,
            images that do not match the heads or the objective, or a start that is unknown or needs other data.

    Warns:
        RuntimeWarning: loss or gradient became NaN or infinite; the weights of the lowest loss so far are kept.
    """
    theta, note = starting_point(start, base, experts, data, objective=objective, seed=seed)
    vertices = vertex_pool(experts, theta if include_start else None)
    lengths = norms(vertices, tuple(base)) if oracle == "cosine" else None
    trace: dict[str, Any] = {"vertices": list(vertices), "tensors": list(base), "start": note}
    trace |= {key: [] for key in ("loss", "gap", "descent", "step", "chosen", "scores")}
    kept = Kept(theta)
    if watch:
        watch(0, theta)
    for t in range(iterations):
        batch = drawn(data, samples, iteration_seed(seed, t, sampling))
        loss, gradient = mean_gradient(data, theta, batch, objective)
        if reason := unsound(loss, gradient.values()):
            theta, trace["stopped"] = kept.state, kept.stopped(f"iteration {t + 1}", reason)
            break
        if loss < kept.loss:
            kept = Kept(theta, loss, f"iteration {t + 1}")
        rate = 2 / (t + 2) * step_size
        theta, pick, answer = hard_step(
            theta, gradient, vertices, rate=rate, granularity=granularity, merge=merge, lengths=lengths
        )
        trace["loss"].append(loss)
        trace["gap"].append(duality_gap(answer.own, answer.products, granularity))
        trace["descent"].append(answer.descent(pick))
        trace["step"].append(rate)
        trace["chosen"].append(chosen(pick, granularity))
        trace["scores"].append(answer.totals())
        if watch:
            watch(t + 1, theta)
    warn_if_stopped(trace)
    return Merged(in_dtypes_of(base, theta), trace=trace)
