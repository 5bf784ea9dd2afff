"""What only a GPU would show: every path that runs there, with tiny random weights, against the CPU in float64.

Each test is a function of the device and runs on the CPU too, so that a slip does not wait for a machine with a GPU. To
run them on one: ``python -m benchmarks.gpu``, or ``python -m pytest -n 0 tests/test_gpu.py``.
"""

import gc
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peer import apart
from tiny_clip import TASKS, TINY
from torch import Tensor

from mergekit_lite import machine, study
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, Merged, method, registry
from mergekit_lite.methods.shared import places
from mergekit_lite.methods.shared.bank import Bank
from mergekit_lite.methods.shared.objectives import loss_and_gradient
from mergekit_lite.study import task_data
from mergekit_lite.study.records import Cell
from mergekit_lite.suites.broken import Broken
from mergekit_lite.suites.clip import ClipSuite, check, decoded, finetune
from mergekit_lite.suites.scoring import accuracy
from mergekit_lite.suites.suite import Lazy, Split, Suite
from mergekit_lite.weight_files import read
from mergekit_lite.weights import Pool

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use (CUDA)")
MIB = 2**20
ROOM = 100 * MIB
"""What is left to a test that is to run out of memory."""


class Exact(ClipSuite):
    """The tiny CLIP in float32 on a GPU, too, where the suite itself works in half precision."""

    def encode(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return Suite.encode(self, weights, images)


class Reference(Exact):
    """The same numbers in float64 on the CPU: two devices that are right are near it, whichever way they round."""

    def __init__(self) -> None:
        super().__init__(TINY, torch.device("cpu"))
        self.base = {name: tensor.double() for name, tensor in self.base.items()}
        self._model.double()
        self.experts = Lazy(TASKS, lambda task: {k: v.double() for k, v in self.expert(task).items()}, keep=True)

    def _normalised(self, images: Tensor) -> Tensor:
        return super()._normalised(images).double()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def tf32(convolutions: bool, products: bool) -> tuple[bool, bool]:
    """Say what may round to TF32, ten bits of mantissa; return what might before."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
    return before


@pytest.fixture
def plain_float32() -> Iterator[None]:
    """Multiply in float32 proper: by default torch lets convolutions on a GPU round to TF32."""
    before = tf32(False, False)
    yield
    tf32(*before)


@pytest.fixture
def exact(suite: ClipSuite, device: torch.device, plain_float32: None) -> Exact:
    return Exact(TINY, device)


@pytest.fixture
def reference(suite: ClipSuite) -> Reference:
    return Reference()


def merge(suite: Suite, name: str, **parameters: Any) -> Merged:
    """Merge the experts of `TASKS` as a study does."""
    info = registry.get(name)
    cell = study.checks.resolved(suite, Cell(method=name, parameters=parameters, pool=TASKS, evaluate=TASKS))
    data = task_data.shown(suite, TASKS, info.access_with(cell.parameters))
    offered = {"data": data, "seed": 0, "watch": None}
    resources = {key: value for key, value in offered.items() if key in info.resources}
    return info.function(suite.base, {task: suite.experts[task] for task in TASKS}, **resources, **cell.parameters)


def on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().double() for name, tensor in weights.items()}


# Experts and data are random, so nothing is near a tie; Adam and the choice of vertices would enlarge errors there.
LEARNING: dict[str, tuple[str, dict[str, Any]]] = {
    "layer-wise AdaMerging": ("layer_wise_adamerging", {"steps": 5, "images_per_task": 8}),
    "task-wise AdaMerging++": ("task_wise_adamerging_plus", {"steps": 3, "images_per_task": 8}),
    "hard FW, paper": ("hard_frank_wolfe", {"samples": 8}),
    "hard FW, cosines": (
        "hard_frank_wolfe",
        {"samples": 8, "oracle": "cosine", "granularity": "model", "include_start": True, "sampling": "fresh"},
    ),
    "hard FW, TIES": ("hard_frank_wolfe", {"samples": 8, "merge": "ties_merging", "objective": "entropy"}),
    "soft FW, paper": (
        "soft_frank_wolfe",
        {"iterations": 2, "inner_steps": 3, "images_per_task": 4, "samples": 8},
    ),
    "soft FW, released": (
        "soft_frank_wolfe",
        {
            "iterations": 2,
            "inner_steps": 3,
            "images_per_task": 4,
            "samples": 8,
            "oracle": "cosine",
            "inner": "adam",
            "selection": "per task",
            "coefficients": "tensor",
            "later_initial": 1e-2,
            "sampling": "fresh",
        },
    ),
    "multi-task": ("multi_task_training", {"steps": 2, "images_per_task": 8}),
}
LOOKING: dict[str, tuple[str, dict[str, Any]]] = {
    "RegMean": ("regmean", {"images": 40, "batch_size": 16}),
    "Fisher": ("fisher_merging", {"images": 2, "classes": "all"}),
}


@pytest.mark.parametrize("case", [*LEARNING, *LOOKING])
def test_a_method_that_sees_data_gives_what_it_gives_on_the_cpu(case: str, exact: Exact, reference: Reference) -> None:
    name, parameters = (LEARNING | LOOKING)[case]
    found, expected = merge(exact, name, **parameters), merge(reference, name, **parameters)
    assert all(tensor.device.type == exact.device.type for tensor in found.weights.values())
    # A step of multi-task training changes a weight by a few units of float32's own rounding, and Adam enlarges what is
    # rounding in a gradient that should be zero.
    assert apart(on_cpu(found.weights), expected.weights, reference.base) < (0.1 if case == "multi-task" else 1e-4)
    assert found.trace.get("loss", []) == pytest.approx(expected.trace.get("loss", []), rel=1e-4)
    assert found.trace.get("chosen") == expected.trace.get("chosen")


@pytest.mark.parametrize("name", [info.name for info in registry.all_methods() if info.access is Access.NONE])
def test_a_method_that_sees_no_data_gives_what_it_gives_on_the_cpu(
    name: str, exact: Exact, reference: Reference
) -> None:
    if not registry.get(name).reference:
        found, expected = merge(exact, name), merge(reference, name)
        assert apart(on_cpu(found.weights), expected.weights, reference.base) < 1e-4


def test_classes_are_drawn_alike_on_every_device(exact: Exact, suite: ClipSuite) -> None:
    parameters = {"images": 4, "classes": "drawn"}
    found = merge(exact, "fisher_merging", **parameters)
    expected = merge(Exact(TINY, torch.device("cpu")), "fisher_merging", **parameters)
    assert apart(on_cpu(found.weights), on_cpu(expected.weights), on_cpu(suite.base)) < 1e-3


@pytest.mark.parametrize("how", ["noise", "shuffled"])
def test_broken_experts_are_the_same_on_every_device(how: Any, exact: Exact, suite: ClipSuite) -> None:
    found = dict(Broken(exact.base, exact.experts["mnist"], how, "mnist"))
    expected = dict(Broken(suite.base, suite.experts["mnist"], how, "mnist"))
    assert apart(on_cpu(found), on_cpu(expected), on_cpu(suite.base)) < 1e-5


def test_with_tf32_the_losses_are_near(exact: Exact, reference: Reference) -> None:
    tf32(True, True)  # `plain_float32`, which `exact` asks for, undoes it
    name, parameters = LEARNING["layer-wise AdaMerging"]
    found, expected = (merge(one, name, **parameters).trace["loss"] for one in (exact, reference))
    assert found == pytest.approx(expected, rel=1e-2)


def test_half_precision_encodes_nearly_the_same(suite: ClipSuite, device: torch.device, reference: Reference) -> None:
    there, images = ClipSuite(TINY, device), torch.from_numpy(suite.split("mnist", "test").images)
    features = there.encode(there.base, images.to(device))
    assert features.dtype == torch.float32
    cosines = (features.cpu().double() * reference.encode(reference.base, images)).sum(dim=1)
    assert cosines.min() > 0.999
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        assert there.working_dtype == torch.bfloat16
        assert cosines.mean() < 1 - 1e-6  # it is not float32


def test_half_precision_keeps_the_direction_of_a_gradient(
    suite: ClipSuite, device: torch.device, reference: Reference
) -> None:
    gradients = []
    for one in (ClipSuite(TINY, device), reference):
        data = task_data.shown(one, TASKS, Access.UNLABELLED)
        (batch,) = data.batches(images_per_task=32, steps=1, seed=0)
        _, gradient = loss_and_gradient(data, one.base, batch, "entropy")
        assert all(gradient[name].dtype == tensor.dtype for name, tensor in one.base.items())
        gradients.append(torch.cat([gradient[name].cpu().double().flatten() for name in one.base]))
    found, expected = gradients
    assert found @ expected / (found.norm() * expected.norm()) > 0.98


def test_layer_inputs_are_float32_on_a_gpu_too(
    suite: ClipSuite, device: torch.device, reference: Reference, plain_float32: None
) -> None:
    there, images = ClipSuite(TINY, device), torch.from_numpy(suite.split("mnist", "test").images)
    found = there.layer_inputs(there.base, images.to(device))
    for name, expected in reference.layer_inputs(reference.base, images).items():
        torch.testing.assert_close(found[name].cpu().double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [7, 60, None])
def test_the_accuracy_is_that_of_one_batch_of_all(
    batch_size: int | None, exact: Exact, reference: Reference, suite: ClipSuite
) -> None:
    """Batches that are copied ahead of time must not be overwritten while the GPU still reads them."""
    for task in TASKS:
        split = reference.split(task, "test")
        logits = reference.encode(reference.base, torch.from_numpy(split.images)) @ reference.heads[task].T
        expected = 100 * float((logits.argmax(dim=1).numpy() == split.labels).mean())
        for _ in range(3):
            assert accuracy(exact, exact.base, task, batch_size) == pytest.approx(expected, abs=100 / 60 + 1e-9)


def test_images_of_a_step_are_those_of_the_cpu(exact: Exact, suite: ClipSuite) -> None:
    """Several steps are asked for before one is looked at: pinned memory that is filled anew too early would show."""
    options = {"images_per_task": 16, "steps": 6, "seed": 3}
    there, here = (task_data.shown(one, TASKS, Access.LABELLED) for one in (exact, suite))
    for found, expected in zip(list(there.batches(**options)), list(here.batches(**options)), strict=True):
        for task in TASKS:
            for tensor, known in zip(found[task], expected[task], strict=True):
                assert tensor.device.type == exact.device.type
                assert torch.equal(tensor.cpu(), known)


@pytest.fixture
def many(suite: ClipSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every split have 4,000 images."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(4000, 3, 32, 32), dtype=np.uint8), rng.integers(10, size=4000)
    monkeypatch.setattr(decoded, "decoded_split", lambda *args, **kwargs: Split(images, labels))


@pytest.fixture
def scarce(exact: Exact, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Leave `ROOM` to what follows on a GPU; on a CPU let 1,000 images be too many. Yield how many were encoded."""
    encode, sizes = exact.encode, list[int]()
    monkeypatch.setattr(machine, "_fitting", {})
    # the libraries take their working memory at the first product, whatever its size
    loss_and_gradient(*first_step(exact, 4))

    def watched(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        sizes.append(len(images))
        if exact.device.type == "cpu" and len(images) > 1000:
            raise torch.OutOfMemoryError
        return encode(weights, images)

    monkeypatch.setattr(exact, "encode", watched)
    if exact.device.type == "cpu":
        yield sizes
        return
    machine.collect()
    allowed = torch.cuda.memory_reserved() + ROOM
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(exact.device).total_memory)
    try:
        yield sizes
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        machine.collect()


def first_step(suite: Suite, images: int) -> tuple[Any, Mapping[str, Tensor], Any, Any]:
    """Return the arguments of `loss_and_gradient` for one step with `images` images of each task."""
    data = task_data.shown(suite, TASKS, Access.UNLABELLED)
    return data, suite.base, next(iter(data.batches(images_per_task=images, steps=1, seed=0))), "entropy"


def test_a_batch_that_does_not_fit_is_halved(many: None, exact: Exact, scarce: list[int], suite: ClipSuite) -> None:
    found = accuracy(exact, exact.base, "mnist", 4000)
    assert max(scarce) == 4000
    assert scarce[-1] < 4000
    assert found == pytest.approx(accuracy(suite, suite.base, "mnist"), abs=0.1)


def test_a_step_that_does_not_fit_is_taken_in_parts(
    many: None, exact: Exact, scarce: list[int], suite: ClipSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, known = loss_and_gradient(*first_step(suite, 1000))
    monkeypatch.setattr("mergekit_lite.methods.shared.objectives._first_size", lambda image: 10**9)
    loss, gradient = loss_and_gradient(*first_step(exact, 1000))
    assert max(scarce) == 2000
    assert scarce[-1] < 2000
    assert loss == pytest.approx(expected, rel=1e-4)
    assert apart(on_cpu(gradient), on_cpu(known), {name: torch.zeros(()) for name in known}) < 1e-3


WORDS = {
    "device": None,
    "pinned": "pinned memory of the host",
    "mapped": "a file that is mapped into memory",
    "bfloat16": "the device, rounded to bfloat16",
}


@pytest.fixture(params=WORDS)
def place(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the task vectors are asked to lie."""
    if request.param == "pinned" and device.type == "cpu":
        pytest.skip("only a GPU reads from pinned memory")
    monkeypatch.setenv(places.VARIABLE, request.param)
    return str(request.param)


@pytest.mark.parametrize("case", ["layer-wise AdaMerging", "task-wise AdaMerging++", "soft FW, released"])
def test_a_bank_gives_the_same_merge_in_every_place(case: str, place: str, exact: Exact, reference: Reference) -> None:
    name, parameters = LEARNING[case]
    found = merge(exact, name, **parameters)
    assert found.trace.get("bank") == WORDS[place]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(places.VARIABLE, "device")
        expected = merge(reference, name, **parameters)
    rounded = place == "bfloat16"
    assert apart(on_cpu(found.weights), expected.weights, reference.base) < (0.1 if rounded else 1e-4)
    assert found.trace.get("loss", []) == pytest.approx(expected.trace.get("loss", []), rel=1e-2 if rounded else 1e-4)


def large_models(device: torch.device) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Return a base of 16 MiB on the device, and four experts of which each differs from it by a constant."""
    base = {f"layer {number}": torch.ones(2**20, device=device) for number in range(4)}
    return base, {f"expert {k}": {name: one.cpu() + 0.25 * k for name, one in base.items()} for k in range(4)}


def test_the_gpu_holds_no_more_than_the_place_says(place: str, device: torch.device, cache: Path) -> None:
    base, experts = large_models(device)
    torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)  # a library takes memory at its first product
    for _ in range(2):  # pinned memory that was not let go of could not be had a second time
        machine.reset_peak_memory(device)
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        bank = Bank.of(base, experts)
        merged = bank.merged(torch.ones(4, 4, device=device))
        gradient = bank.gradient(base)
        assert all(torch.equal(one, torch.full_like(one, 1 + 0.25 * 6)) for one in merged.values())
        assert torch.allclose(gradient.cpu(), 0.25 * 2**20 * torch.arange(4.0)[:, None].expand(4, 4))
        if device.type == "cuda":
            taken = {"device": 64, "bfloat16": 32, "pinned": 0, "mapped": 0}[place] * MIB
            # beside them the flat base, the merge, and one tensor of all experts: 16 MiB each
            assert taken <= torch.cuda.max_memory_allocated() - before < taken + 64 * MIB
        del bank, merged
    if device.type == "cuda":
        machine.collect()
        assert torch.cuda.memory_allocated() - before < MIB


_held: list[weakref.ref[Tensor]] = []
_alive: list[bool] = []
_allocated: list[int] = []


@method(title="Holds and fails", cite="", access=Access.NONE)
def holds_and_fails(base: Mapping[str, Tensor], experts: Pool, *, fail: bool = False) -> Merged:
    """Take 64 MiB and fail, or note what is left of that."""
    if fail:
        held = next(iter(base.values())).new_zeros(16 * MIB)
        _held.append(weakref.ref(held))
        raise torch.OutOfMemoryError("there is no more")
    _alive.extend(one() is not None for one in _held)
    _allocated.append(torch.cuda.memory_allocated() if torch.cuda.is_available() else 0)
    return Merged({name: tensor.clone() for name, tensor in base.items()})


def test_a_failed_cell_gives_its_memory_back(exact: Exact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(check.VARIABLE, "1")
    for notes in (_held, _alive, _allocated):
        notes.clear()
    exact.heads["mnist"], exact.heads["eurosat"]  # made once and kept, on the GPU too
    gc.collect()
    before = torch.cuda.memory_allocated() if exact.device.type == "cuda" else 0
    asked = [
        Cell(method="holds_and_fails", parameters={"fail": fail}, pool=TASKS, evaluate=TASKS) for fail in (True, False)
    ]
    with pytest.raises(KitError, match="1 of 2 cells failed"):
        study.run(exact, asked, workers=1, folder=tmp_path)
    assert _alive == [False]
    if exact.device.type == "cuda":
        assert _allocated[0] - before < 48 * MIB  # less than what was held; a library takes some at its first product
        machine.collect()
        assert torch.cuda.memory_allocated() - before < 48 * MIB


def test_a_record_tells_the_peak_of_the_gpu(exact: Exact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(check.VARIABLE, "1")
    name, parameters = LEARNING["layer-wise AdaMerging"]
    cell = Cell(method=name, parameters=parameters, pool=TASKS, evaluate=TASKS, adapt=TASKS)
    (record,) = study.run(exact, [cell], workers=1, folder=tmp_path)
    assert record.images == 5 * 8 * len(TASKS)
    assert set(record.accuracy) == set(TASKS)
    if exact.device.type == "cuda":
        held = sum(tensor.nbytes for tensor in exact.base.values()) * (len(TASKS) + 2)
        assert held / MIB < record.peak_memory_mib < torch.cuda.get_device_properties(0).total_memory / MIB
        assert record.peak_memory_mib == pytest.approx(torch.cuda.max_memory_allocated() / MIB, abs=0.1)
        assert record.provenance.device == torch.cuda.get_device_name()
    else:
        assert record.peak_memory_mib > 50  # Python and torch
        assert record.provenance.device == "cpu"


def test_fine_tuning_resumes(exact: Exact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe: dict[str, Any] = {"steps": 4, "learning_rate": 1e-3, "batch_size": 8, "checkpoint_every": 2}
    whole = finetune.make_expert(exact, "mnist", output=tmp_path / "whole", **recipe)
    store = finetune._store

    def interrupted(*args: Any) -> None:
        store(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "_store", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune.make_expert(exact, "mnist", output=tmp_path / "parts", **recipe)
    monkeypatch.setattr(finetune, "_store", store)
    parts = finetune.make_expert(exact, "mnist", output=tmp_path / "parts", **recipe)
    found, expected = read(parts), read(whole)
    assert apart(on_cpu(found), on_cpu(expected), on_cpu(exact.base)) < 0.2  # in half precision, on a GPU
