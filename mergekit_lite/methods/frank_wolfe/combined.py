"""FW-Merging with other methods: one to start from, and one that merges the chosen models (Chen et al. 2025)."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.frank_wolfe.gradient import (
    Sampling,
    Start,
    chosen,
    drawn,
    iteration_seed,
    mean_gradient,
    vertex_pool,
)
from mergekit_lite.methods.frank_wolfe.oracle import Granularity, Oracle, Patchwork, compare, duality_gap, norms
from mergekit_lite.methods.frank_wolfe.others import Inside, merged_by, started
from mergekit_lite.methods.registry import Access, Count, Merged, Objective, Positive, Steps, TaskData, Watch, method
from mergekit_lite.methods.shared.stopping import Kept, unsound, warn_if_stopped
from mergekit_lite.weights import Pool, Weights, difference, in_dtypes_of


def combined_step(theta: Mapping[str, Tensor], vertices: Pool, *, rate: float, inside: str, seed: int = 0) -> Weights:
    r"""Return :math:`\theta + \gamma\,(M(\theta; s_1, \dots, s_k) - \theta)`, where the method M merges the vertices.

    Args:
        theta: the current weights, the base of M.
        vertices: the k chosen ones.
        rate: :math:`\gamma`.
        inside: the name of M, a registered method that sees no data.
        seed: of M, if it draws anything.
    """
    merged = merged_by(inside, theta, vertices, seed)
    return {name: start + rate * difference(merged[name], start) for name, start in theta.items()}


@method(title="FW-Merging with others", cite="chen2025fwmerging", access=Access.LABELLED)
def combined_frank_wolfe(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: TaskData,
    *,
    start: Start = "task_arithmetic",
    inside: Inside = "ties_merging",
    selection: Count | Literal["top-k"] = 1,
    iterations: Steps = 3,
    step_size: Positive = 1.0,
    oracle: Oracle = "inner product",
    granularity: Granularity = "tensor",
    include_start: bool = False,
    samples: Count = 100,
    sampling: Sampling = "fixed",
    objective: Objective = "cross-entropy",
    seed: int = 0,
    watch: Watch | None = None,
) -> Merged:
    r"""Let another method M merge the best vertices: :math:`\theta_{t+1} = \theta_t + \gamma_t (M_t - \theta_t)`.

    Chen et al. 2025, abstract: orthogonal to other methods, which it improves. :math:`M_t = M(\theta_t; S_t)` is what M
    makes of the chosen vertices :math:`S_t` with :math:`\theta_t` as its base and its own default parameters. Another
    method may lead to the start. As in the hard variant :math:`\gamma_t = 2/(t+2)` times the step size, and M's own
    scaling comes on top: with task arithmetic inside (0.3) and one vertex, this is `hard_frank_wolfe` with 0.3 times
    the step size. Arguments that are not described here are those of `hard_frank_wolfe`, which has the same defaults.

    In the authors' language code one vertex is chosen, so that TIES inside has nothing to elect a sign against and only
    trims; that is the default. With more, it has. TIES and the like may leave the hull of the models, and what is known
    of Frank-Wolfe's convergence does not hold for them.

    Args:
        base: the pre-trained weights.
        experts: K fine-tuned weights by task name.
        data: heads, encoder and images.
        start: "base", or any registered method, run with its default parameters; one that looks at calibration inputs
            sees the labelled training images without their labels.
        inside: M, any registered method that sees no data.
        selection: how many vertices M merges; "top-k" takes as many as there are tasks, or all if the pool is smaller.
        iterations: how many steps.
        step_size: factor of :math:`2/(t+2)`. A method that adds task vectors adds k of them, each :math:`s_j -
            \theta_t`: with a scaling of 0.3 and more than three vertices, a full step goes past all of them, and
            :math:`\theta_t` itself gets a negative weight. Divide by 0.3 k there.
        oracle: how vertices are compared.
        granularity: choose whole models, or for each "tensor".
        include_start: make the starting point a vertex.
        samples: images of each task that a gradient is measured on.
        sampling: measure every gradient on the same images, or on others.
        objective: which loss, and so what `data` holds.
        seed: which images are drawn, and what M draws.
        watch: called with iteration and weights before the first and after each.

    Returns:
        The merged weights; the trace is that of `hard_frank_wolfe` without "descent", and "chosen" holds a list of
        picks per iteration.

    Raises:
        KitError: as `hard_frank_wolfe`, and if `inside` looks at data or more vertices are selected than there are.

    Warns:
        RuntimeWarning: loss or gradient became NaN or infinite; the weights of the lowest loss so far are kept.
    """
    theta, note = started(start, base, experts, data, objective=objective, seed=seed)
    vertices = vertex_pool(experts, theta if include_start else None)
    count = min(len(data.heads), len(vertices)) if selection == "top-k" else selection
    if count > len(vertices):
        raise KitError(f"{count} vertices cannot be chosen from {len(vertices)}: {', '.join(vertices)}. Choose fewer.")
    lengths = norms(vertices, tuple(base)) if oracle == "cosine" else None
    trace: dict[str, Any] = {"vertices": list(vertices), "tensors": list(base), "start": note}
    trace |= {key: [] for key in ("loss", "gap", "step", "chosen", "scores")}
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
        answer = compare(theta, gradient, vertices, lengths)
        picks = answer.lowest(granularity, count)
        models = {f"pick {place}": Patchwork(pick, vertices, theta) for place, pick in enumerate(picks, 1)}
        rate = 2 / (t + 2) * step_size
        theta = combined_step(theta, models, rate=rate, inside=inside, seed=iteration_seed(seed, t, "fresh"))
        trace["loss"].append(loss)
        trace["gap"].append(duality_gap(answer.own, answer.products, granularity))
        trace["step"].append(rate)
        trace["chosen"].append([chosen(pick, granularity) for pick in picks])
        trace["scores"].append(answer.totals())
        if watch:
            watch(t + 1, theta)
    warn_if_stopped(trace)
    return Merged(in_dtypes_of(base, theta), trace=trace)
