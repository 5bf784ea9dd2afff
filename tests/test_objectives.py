"""The loss of many tasks and its gradient: however many images go through the encoder together, they are the same."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from conftest import Pico
from torch import Tensor

from mergekit_lite import machine
from mergekit_lite.errors import KitError
from mergekit_lite.methods.registry import Objective
from mergekit_lite.methods.shared import objectives
from mergekit_lite.methods.shared.objectives import loss_and_gradient


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what was found to fit."""
    monkeypatch.setattr(machine, "_fitting", {})


class Small:
    """Data whose encoder has room for so many images at a time, and which notes how many it was given."""

    def __init__(self, pico: Pico, room: int = 10**6) -> None:
        self.heads, self.pico, self.room = pico.heads, pico, room
        self.given: list[int] = []

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        self.given.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError
        return self.pico.encode(weights, images)


def labelled(pico: Pico, sizes: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
    return {task: (pico.images(count), torch.arange(count) % 3) for task, count in sizes.items()}


SIZES = {"digits": 4, "signs": 5, "textures": 6}


@pytest.mark.parametrize("size", [1, 2, 4, 5, 9, 14, 15])
@pytest.mark.parametrize("with_labels", [True, False])
def test_the_gradient_does_not_depend_on_how_many_images_go_together(
    pico: Pico, monkeypatch: pytest.MonkeyPatch, size: int, with_labels: bool
) -> None:
    pairs = labelled(pico, SIZES)
    batch: Any = pairs if with_labels else {task: images for task, (images, _) in pairs.items()}
    objective: Objective = "cross-entropy" if with_labels else "entropy"
    whole_loss, whole = loss_and_gradient(Small(pico), pico.base, batch, objective)  # type: ignore[arg-type]
    monkeypatch.setattr(objectives, "_first_size", lambda image: size)
    data = Small(pico)
    loss, gradient = loss_and_gradient(data, pico.base, batch, objective)  # type: ignore[arg-type]
    assert loss == pytest.approx(whole_loss, rel=1e-12)
    assert gradient.keys() == whole.keys()
    assert all(torch.allclose(gradient[name], whole[name], rtol=1e-10, atol=1e-14) for name in whole)
    assert sum(data.given) == 15
    assert max(data.given) <= size


@pytest.mark.parametrize(("size", "given"), [(15, [15]), (9, [9, 6]), (6, [4, 5, 6]), (4, [4, 4, 1, 4, 2])])
def test_images_of_a_task_stay_together_if_they_fit(
    pico: Pico, monkeypatch: pytest.MonkeyPatch, size: int, given: list[int]
) -> None:
    monkeypatch.setattr(objectives, "_first_size", lambda image: size)
    data = Small(pico)
    loss_and_gradient(data, pico.base, labelled(pico, SIZES), "cross-entropy")  # type: ignore[arg-type]
    assert data.given == given


def test_small_images_go_together_on_a_cpu_and_large_ones_do_not() -> None:
    assert objectives._first_size(torch.empty(3, 32, 32)) > 20 * 32
    assert 16 <= objectives._first_size(torch.empty(3, 224, 224)) < 32
    assert objectives._first_size(torch.empty(3, 4096, 4096)) == 1


def test_what_does_not_fit_is_halved_until_it_does_and_that_is_remembered(pico: Pico) -> None:
    batch = labelled(pico, SIZES)
    expected, whole = loss_and_gradient(Small(pico), pico.base, batch, "cross-entropy")  # type: ignore[arg-type]
    data = Small(pico, room=4)
    loss, gradient = loss_and_gradient(data, pico.base, batch, "cross-entropy")  # type: ignore[arg-type]
    assert loss == pytest.approx(expected, rel=1e-12)
    assert all(torch.allclose(gradient[name], whole[name], rtol=1e-10, atol=1e-14) for name in whole)
    assert data.given[:2] == [15, 4]  # all of them, then 7 at most, of which 4 are those of the first task
    data.given.clear()
    loss_and_gradient(data, pico.base, batch, "cross-entropy")  # type: ignore[arg-type]
    assert max(data.given) <= 4


@pytest.mark.parametrize("sizes", [SIZES, {"digits": 1}])
def test_a_single_image_that_does_not_fit_is_worded(pico: Pico, sizes: dict[str, int]) -> None:
    batch = labelled(pico, sizes)
    with pytest.raises(KitError, match="not enough memory on 'cpu' for the gradient of a single image"):
        loss_and_gradient(Small(pico, room=0), pico.base, batch, "cross-entropy", tasks=sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("together", [1, 2, 4, 5])
def test_tasks_take_turns_with_few_images_each_and_weigh_the_same(pico: Pico, together: int) -> None:
    batch = labelled(pico, SIZES)
    whole_loss, whole = loss_and_gradient(Small(pico), pico.base, batch, "cross-entropy")  # type: ignore[arg-type]
    data = Small(pico)
    loss, gradient = loss_and_gradient(data, pico.base, batch, "cross-entropy", together=together)  # type: ignore[arg-type]
    assert loss == pytest.approx(whole_loss, rel=1e-12)
    assert all(torch.allclose(gradient[name], whole[name], rtol=1e-10, atol=1e-14) for name in whole)
    passes = {1: [3, 3, 3, 3, 2, 1], 2: [6, 6, 3], 4: [12, 3], 5: [14, 1]}
    assert data.given == passes[together]


@pytest.mark.parametrize(
    ("objective", "has", "kind"), [("entropy", "labels", "unlabelled test"), ("cross-entropy", "no labels", "labelled")]
)
def test_an_objective_that_the_data_does_not_go_with_is_refused(
    pico: Pico, objective: Objective, has: str, kind: str
) -> None:
    pairs = labelled(pico, SIZES)
    batch: Any = pairs if objective == "entropy" else {task: images for task, (images, _) in pairs.items()}
    message = rf"images of 'digits' have {has}, which does not go with the objective '{objective}'.*kind '{kind}"
    with pytest.raises(KitError, match=message):
        loss_and_gradient(Small(pico), pico.base, batch, objective)  # type: ignore[arg-type]
