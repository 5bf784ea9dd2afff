"""Fisher merging: each parameter averaged with the weight that its expert's predictions put on it (Matena & Raffel)."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import MILLION, Access, Count, Merged, TaskData, method
from mergekit_lite.methods.shared.calibration import calibration_images
from mergekit_lite.weights import Pool, Weights, check_finite, difference, is_finite, working_dtype

Classes = Literal["drawn", "all"]
Floor = Annotated[float, Field(ge=1e-30, le=MILLION)]  # in float32 a smaller one would vanish


@method(title="Fisher merging", cite="matena2022merging", access=Access.CALIBRATION)
def fisher_merging(
    base: Mapping[str, Tensor],
    experts: Pool,
    data: TaskData,
    *,
    images: Count = 256,
    classes: Classes = "drawn",
    normalise: bool = True,
    floor: Floor = 1e-6,
    seed: int = 0,
) -> Merged:
    r"""Average with the diagonal Fisher information: :math:`\theta_j = \sum_k F_{kj} \theta_{kj} / \sum_k F_{kj}`.

    Matena & Raffel 2022, section 3, with equal coefficients for all experts; they search for better ones with labels.
    In memory are one expert, its Fisher information and two sums of their size, however large the pool.

    Args:
        base: the pre-trained weights; the merge does not depend on them.
        experts: K fine-tuned weights by task name.
        data: heads, encoder and calibration images of the experts' tasks.
        images: how many images of its own task an expert's Fisher information is estimated from.
        classes: see `diagonal_fisher`; "all" is exact but takes as many backward passes per image as there are classes.
        normalise: divide each expert's Fisher information by its Euclidean norm over all parameters, as the authors'
            code and FusionBench do by default. Otherwise an expert that is less sure of itself counts for more.
        floor: added to every (normalised) entry, so that parameters no expert cares about become the plain average.
            The authors and FusionBench put their floor, of the same 1e-6, under the entries before normalisation.
        seed: which images, and which classes, are drawn.

    Raises:
        KitError: an empty pool, experts that do not fit the base, NaN or infinite weights, a parameter out of range, or
            an expert whose task has no images or no head.
    """
    calibration = calibration_images(data, experts, images=images, seed=seed)
    fishers = (
        diagonal_fisher(data, expert, task, calibration[task], classes=classes, seed=seed)
        for task, expert in experts.items()
    )
    return Merged(merge_with_fishers(base, experts, map(unit_norm, fishers) if normalise else fishers, floor=floor))


def diagonal_fisher(
    data: TaskData,
    weights: Mapping[str, Tensor],
    task: str,
    images: Tensor,
    *,
    classes: Classes = "drawn",
    seed: int = 0,
) -> Weights:
    r"""Return the diagonal of the Fisher information by tensor name, in the shapes of `weights`.

    Matena & Raffel 2022, section 3: :math:`F_j = \frac1N \sum_i E_{y \sim p(y|x_i)} (\partial \log p(y|x_i) / \partial
    \theta_j)^2`. Gradients are squared image by image and class by class. FusionBench squares the gradient of a sum
    over all classes and images of a batch, so there the batch size matters; here there is none.

    Args:
        data: head and encoder.
        weights: of the encoder.
        task: whose head predicts.
        images: N calibration images (N, 3, H, W) of the task.
        classes: "drawn" takes one class per image from the model's own predictions, an unbiased estimate at one
            backward pass; "all" takes the expectation over the C classes at C backward passes, as the authors' code
            does.
        seed: which classes are drawn.

    Raises:
        KitError: NaN or infinite weights, or NaN predictions.
    """
    check_finite(weights, name=f"expert '{task}'")
    # Squared gradients underflow in half precision. Copies, because tensors of a file may start at any address, and
    # products of such tensors round differently.
    copies = {name: tensor.detach().to(working_dtype(tensor), copy=True) for name, tensor in weights.items()}
    leaves = {name: tensor.requires_grad_() for name, tensor in copies.items()}
    fisher = {name: torch.zeros_like(leaf, requires_grad=False) for name, leaf in leaves.items()}
    generator = torch.Generator().manual_seed(seed)  # the same on every device, whichever experts came before
    for image in images:
        with torch.enable_grad():
            features = data.encode(leaves, image[None])
            logs = torch.log_softmax(features @ data.heads[task].to(features).T, dim=1)[0].unbind()
        probabilities = torch.stack(logs).detach().exp().cpu()
        if not is_finite(probabilities):
            raise KitError(f"Expert '{task}' predicts NaN for an image of its own task. Check the images.")
        for label, share in _labels(probabilities, classes, generator):
            gradients = torch.autograd.grad(logs[label], list(leaves.values()), retain_graph=True, allow_unused=True)
            for total, gradient in zip(fisher.values(), gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient, gradient, value=share / len(images))
    return fisher


def _labels(probabilities: Tensor, classes: Classes, generator: torch.Generator) -> list[tuple[int, float]]:
    """Return the classes to take gradients for, and the share of each in the expectation."""
    if classes == "all":
        return list(enumerate(probabilities.tolist()))
    return [(int(torch.multinomial(probabilities, 1, generator=generator)), 1.0)]


def unit_norm(fisher: Mapping[str, Tensor]) -> Weights:
    """Return the Fisher information divided by its Euclidean norm over all parameters; zeros stay zeros."""
    # sorted, since weights in a file have an order of their own, and sums round differently in another order
    norm = torch.stack([fisher[name].norm() for name in sorted(fisher)]).norm()
    return {name: entries / norm if norm > 0 else entries for name, entries in fisher.items()}


def merge_with_fishers(
    base: Mapping[str, Tensor],
    experts: Pool,
    fishers: Iterable[Mapping[str, Tensor]],
    *,
    floor: float,
) -> Weights:
    """Return the average of `experts` with the weights ``fisher + floor``, in the dtypes of `base`.

    The averages are taken of the task vectors, which is the same and rounds less.

    Args:
        base: weights that all experts started from.
        experts: K fine-tuned weights by task name; they are read tensor by tensor.
        fishers: for each expert, in the same order, name -> non-negative weights in the shape of the tensor. They are
            asked for one after another: a generator has to hold one at a time only.
        floor: with 0, parameters that no expert cares about would become NaN.

    Raises:
        ValueError: more or fewer Fishers than experts.
    """
    totals = {name: torch.zeros_like(start, dtype=working_dtype(start)) for name, start in base.items()}
    weighted = {name: torch.zeros_like(total) for name, total in totals.items()}
    for expert, fisher in zip(experts.values(), fishers, strict=True):
        for name, start in base.items():
            weight = fisher[name].to(totals[name]) + floor
            totals[name] += weight
            weighted[name] += weight * difference(expert[name], start)
    return {name: (start + weighted[name] / totals[name]).to(start.dtype) for name, start in base.items()}
