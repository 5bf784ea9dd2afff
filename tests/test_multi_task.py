"""Traditional multi-task training against plain torch, in float64."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from conftest import Pico
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.methods.multi_task import multi_task_training

Batch = dict[str, tuple[Tensor, Tensor]]


@dataclass
class LabelledData:
    """The same labelled images in the same order for everyone."""

    heads: Mapping[str, Tensor]
    encode: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    given: list[Batch]

    def batches(
        self, *, images_per_task: int, steps: int, seed: int, keep: int | float | None = None
    ) -> Iterator[Mapping[str, tuple[Tensor, Tensor]]]:
        return iter(self.given)


def labelled(pico: Pico, steps: int) -> LabelledData:
    """Batches of different sizes; labels are those of an expert, so that they can be learnt."""
    given: list[Batch] = []
    for images in pico.data(steps).given:
        goals = {
            task: (pico.encode(pico.experts["signs"], one) @ pico.heads[task].T).argmax(1)
            for task, one in images.items()
        }
        given.append({task: (images[task], goals[task]) for task in images})
    return LabelledData(pico.heads, pico.encode, given)


def test_it_is_plain_adam_on_the_sum_of_mean_cross_entropies(pico: Pico) -> None:
    data = labelled(pico, steps=8)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in pico.base.items()}
    optimiser = torch.optim.Adam(weights.values(), lr=0.01)
    losses = []
    for batch in data.given:
        optimiser.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for task, (images, labels) in batch.items():
            logits = pico.encode(weights, images) @ pico.heads[task].T
            loss = loss - logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    merged = multi_task_training(pico.base, {}, data, steps=8, learning_rate=0.01)
    torch.testing.assert_close(merged.weights, {k: v.detach() for k, v in weights.items()}, rtol=0, atol=1e-10)
    assert merged.trace["loss"] == pytest.approx(losses, abs=1e-10)
    assert not any(tensor.requires_grad for tensor in merged.weights.values())


def test_the_loss_falls_and_the_base_stays(pico: Pico) -> None:
    before = {name: tensor.clone() for name, tensor in pico.base.items()}
    data = labelled(pico, steps=1)
    data.given *= 60
    trace = multi_task_training(pico.base, pico.experts, data, steps=60, learning_rate=0.01).trace
    assert trace["loss"][-1] < 0.7 * trace["loss"][0]
    assert "stopped" not in trace
    assert all(torch.equal(before[name], pico.base[name]) for name in before)


def test_a_watcher_sees_the_base_and_the_weights_after_each_step(pico: Pico) -> None:
    seen: list[tuple[int, Tensor]] = []
    merged = multi_task_training(
        pico.base,
        {},
        labelled(pico, 3),
        steps=3,
        learning_rate=0.1,
        watch=lambda step, weights: seen.append((step, weights["proj"].clone())),
    )
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[0][1], pico.base["proj"])
    assert torch.equal(seen[-1][1], merged.weights["proj"])


def test_no_steps_give_the_base(pico: Pico) -> None:
    merged = multi_task_training(pico.base, {}, labelled(pico, 1), steps=0).weights
    assert all(torch.equal(merged[name], pico.base[name]) for name in pico.base)


@pytest.mark.parametrize("broken", [0, 3])
def test_nan_stops_with_the_weights_of_the_lowest_loss(broken: int, pico: Pico) -> None:
    data = labelled(pico, 5)
    data.given[broken]["signs"][0][0] = float("nan")
    with pytest.warns(RuntimeWarning, match=f"Stopped at step {broken + 1}: the loss became nan") as caught:
        merged = multi_task_training(pico.base, {}, data, steps=5, learning_rate=0.01)
    assert caught[0].filename == __file__
    assert len(merged.trace["loss"]) == broken
    losses = merged.trace["loss"]
    best = losses.index(min(losses)) if losses else 0  # so many steps were taken before it was measured
    assert (f"state of step {best + 1}, " if losses else "state of the start.") in merged.trace["stopped"]
    kept = multi_task_training(pico.base, {}, labelled_again(data), steps=best, learning_rate=0.01)
    assert all(torch.equal(merged.weights[name], kept.weights[name]) for name in pico.base)


def labelled_again(data: LabelledData) -> LabelledData:
    return LabelledData(data.heads, data.encode, list(data.given))


def test_half_precision_is_trained_in_float32_and_returned_as_half(pico: Pico) -> None:
    data = labelled(pico, 2)
    data.given = [{task: (images.float(), labels) for task, (images, labels) in one.items()} for one in data.given]
    halves = {name: tensor.half() for name, tensor in pico.base.items()}
    singles = {name: tensor.float() for name, tensor in halves.items()}
    merged, exact = (
        multi_task_training(start, {}, data, steps=2, learning_rate=0.01).weights for start in (halves, singles)
    )
    assert all(torch.equal(merged[name], exact[name].half()) for name in halves)


def test_too_few_batches_and_missing_tasks_are_errors(pico: Pico) -> None:
    with pytest.raises(KitError, match="The data gave 2 batches for 3 steps"):
        multi_task_training(pico.base, {}, labelled(pico, 2), steps=3)
    data = labelled(pico, 1)
    del data.given[0]["signs"]
    with pytest.raises(KitError, match="Without images: signs"):
        multi_task_training(pico.base, {}, data, steps=1)
