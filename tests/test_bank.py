"""The task vectors lie where there is room for them, and the merge is the same everywhere."""

import errno
import gc
import os
import shutil
import tempfile
import weakref
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from conftest import Pico
from torch import Tensor

from mergekit_lite import study, workers
from mergekit_lite.errors import KitError
from mergekit_lite.methods import ties
from mergekit_lite.methods.shared import adapting, places
from mergekit_lite.methods.shared.bank import Bank
from mergekit_lite.methods.ties import agreeing, cutoff, elect_signs, keep_agreeing, trim
from mergekit_lite.study import Cell

FILE = "a file that is mapped into memory"
Single = tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> Path:
    return cache


@pytest.fixture
def single(pico: Pico) -> Single:
    """The base and experts in float32."""
    base = {name: tensor.float() for name, tensor in pico.base.items()}
    return base, {task: {name: tensor.float() for name, tensor in one.items()} for task, one in pico.experts.items()}


def ask_for(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv(places.VARIABLE, place)


def bytes_free(monkeypatch: pytest.MonkeyPatch, memory: int | None = None, disk: int | None = None) -> None:
    """Pretend that so much is free."""
    if memory is not None:
        monkeypatch.setattr(places, "available_memory", lambda device: memory)
    if disk is not None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(2**50, 2**50 - disk, disk))


def files_of_banks(folder: Path) -> list[str]:
    """Return what this process has mapped of the folder, whether its name is gone or not."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    opened = [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return [one for one in (*lines, *opened) if str(folder / "bank") in one]


on_linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")


def answers(bank: Bank, base: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Return a merge and a gradient."""
    generator = torch.Generator().manual_seed(5)
    layers = torch.rand(len(bank.experts), len(bank.shapes), generator=generator).to(bank.base)
    slopes = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    return bank.merged(layers), bank.gradient(slopes)


# --- the same merge everywhere ----------------------------------------------------------------------------------------


def test_a_file_gives_the_same_merge_and_gradient_to_the_bit(single: Single, monkeypatch: pytest.MonkeyPatch) -> None:
    base, experts = single
    merged, gradient = answers(Bank.of(base, experts), base)
    ask_for(monkeypatch, "mapped")
    bank = Bank.of(base, experts)
    assert bank.place == FILE
    on_file, its_gradient = answers(bank, base)
    assert all(torch.equal(merged[name], on_file[name]) for name in base)
    assert torch.equal(gradient, its_gradient)


def test_bfloat16_rounds_the_task_vectors_and_sums_in_float32(single: Single, monkeypatch: pytest.MonkeyPatch) -> None:
    base, experts = single
    exact = Bank.of(base, experts)
    ask_for(monkeypatch, "bfloat16")
    bank = Bank.of(base, experts)
    assert (bank.vectors.dtype, bank.base.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(bank.vectors, exact.vectors.bfloat16())

    rounded = Bank(
        exact.experts, exact.shapes, exact.columns, exact.base, bank.vectors.float(), exact.write, exact.place
    )
    (merged, gradient), (expected, its_gradient) = answers(bank, base), answers(rounded, base)
    assert all(torch.equal(merged[name], expected[name]) for name in base)
    assert torch.equal(gradient, its_gradient)

    # Eight bits: each entry is off by at most 2^-9 of itself, so a sum of K by at most that of their magnitudes.
    most = 2**-9 * len(experts) * float(exact.vectors.abs().max())
    before, _ = answers(exact, base)
    assert all(float((merged[name] - before[name]).abs().max()) < most for name in base)


def test_float64_stays_float64_in_every_place(pico: Pico, monkeypatch: pytest.MonkeyPatch) -> None:
    merged, gradient = answers(Bank.of(pico.base, pico.experts), pico.base)
    for place in ("device", "mapped", "bfloat16"):
        ask_for(monkeypatch, place)
        bank = Bank.of(pico.base, pico.experts)
        assert bank.vectors.dtype == torch.float64
        assert bank.place == (FILE if place == "mapped" else "")
        again, its_gradient = answers(bank, pico.base)
        assert all(torch.equal(merged[name], again[name]) for name in pico.base)
        assert torch.equal(gradient, its_gradient)


class Elsewhere(Tensor):
    """A tensor that says it lies on a GPU."""

    device = property(lambda self: torch.device("cuda:0"))
    is_cuda = True


def test_task_vectors_on_another_device_come_over(pico: Pico) -> None:
    bank = Bank.of(pico.base, pico.experts)
    there = bank.vectors.as_subclass(Elsewhere)
    other = Bank(bank.experts, bank.shapes, bank.columns, bank.base, there, bank.write, "elsewhere")
    part = other._at(slice(1, 4))
    assert type(part) is Tensor
    assert torch.equal(part, bank.vectors[:, 1:4])
    assert part.data_ptr() != bank.vectors[:, 1:4].data_ptr()
    (merged, gradient), (expected, its_gradient) = answers(other, pico.base), answers(bank, pico.base)
    assert all(torch.equal(merged[name], expected[name]) for name in pico.base)
    assert torch.equal(gradient, its_gradient)


# --- AdaMerging and soft FW-Merging -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["layer_wise_adamerging", "layer_wise_adamerging_plus"])
def test_adamerging_gives_the_same_from_a_file_and_says_so(
    method: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tasks = ("digits", "signs")
    cell = Cell(method=method, parameters={"steps": 4, "images_per_task": 4}, pool=tasks, evaluate=tasks)
    suite = fakes.fake_suite()
    found = {}
    for place in ("", "mapped", "bfloat16"):
        ask_for(monkeypatch, place)
        (found[place],) = study.run(suite, [cell], workers=1, folder=tmp_path / f"in {place}")
    plain, mapped, rounded = found.values()
    assert "bank" not in plain.trace
    assert mapped.trace == plain.trace | {"bank": FILE}
    assert mapped.accuracy == plain.accuracy
    assert mapped.key == plain.key  # the same answer
    assert rounded.trace["bank"] == "the device, rounded to bfloat16"
    assert rounded.key != plain.key
    assert rounded.trace["loss"] == pytest.approx(plain.trace["loss"], rel=1e-2)


def test_soft_fw_merging_mixes_vertices_from_a_file_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tasks = ("digits", "signs")
    given = {"iterations": 2, "inner_steps": 2, "samples": 8, "images_per_task": 4}
    cell = Cell(method="soft_frank_wolfe", parameters=given, pool=tasks, evaluate=tasks)
    (plain,) = study.run(fakes.fake_suite(), [cell], workers=1, folder=tmp_path / "plain")
    ask_for(monkeypatch, "mapped")
    (mapped,) = study.run(fakes.fake_suite(), [cell], workers=1, folder=tmp_path / "mapped")
    assert mapped.trace == plain.trace | {"bank": FILE}
    assert mapped.accuracy == plain.accuracy


@pytest.mark.parametrize("place", ["device", "mapped", "bfloat16"])
@pytest.mark.parametrize("piece", [2**19, 7])
def test_ties_keeps_the_same_of_task_vectors_wherever_they_lie(
    place: str, piece: int, single: Single, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, experts = single
    ask_for(monkeypatch, place)
    monkeypatch.setattr(ties, "PIECE", piece)
    bank = Bank.of(base, experts)
    vectors = torch.cat([bank.vectors.clone(), -bank.vectors[:1]])[:3]  # in memory, all at once
    cutoffs = torch.tensor([[cutoff({"": 0 * one}, {"": one}, 0.4)] for one in vectors])
    trimmed = trim(vectors, cutoffs)
    signs = elect_signs(trimmed)
    majority = signs.sum().sign()
    expected = agreeing(trimmed, torch.where(signs == 0, majority, signs))
    keep_agreeing(bank.vectors, 0.4, bank.write)
    assert torch.equal(bank.vectors, expected)
    assert 0 < int((expected != 0).sum()) < int((trimmed != 0).sum())


# --- which place ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_into_memory_goes_to_a_file(single: Single, monkeypatch: pytest.MonkeyPatch) -> None:
    base, experts = single
    model = sum(tensor.nbytes for tensor in base.values())
    bytes_free(monkeypatch, memory=(3 + places.BESIDES) * model)
    assert Bank.of(base, experts).place == ""
    bytes_free(monkeypatch, memory=(3 + places.BESIDES) * model - 1)
    assert Bank.of(base, experts).place == FILE


def test_workers_share_the_memory_that_is_free(single: Single, monkeypatch: pytest.MonkeyPatch) -> None:
    base, experts = single
    model = sum(tensor.nbytes for tensor in base.values())
    bytes_free(monkeypatch, memory=2 * (3 + places.BESIDES) * model)
    monkeypatch.setattr(workers, "_beside", 2)
    assert Bank.of(base, experts).place == ""
    monkeypatch.setattr(workers, "_beside", 3)
    assert Bank.of(base, experts).place == FILE


def beside(_: None, item: int) -> int:
    return workers.beside()


def nothing() -> None:
    return None


def test_a_worker_knows_how_many_work_beside_it() -> None:
    assert [outcome() for _, outcome in workers.side_by_side(nothing, beside, [1, 2, 3], 1)] == [1, 1, 1]
    assert [outcome() for _, outcome in workers.side_by_side(nothing, beside, [1, 2, 3], 2)] == [2, 2, 2]


class Cuda:
    """Stands for CUDA's part in pinning memory."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.calls: list[tuple[Any, ...]] = []

    def cudaHostRegister(self, *given: int) -> int:
        self.calls.append(("pin", *given))
        return self.answer

    def cudaHostUnregister(self, *given: int) -> int:
        self.calls.append(("unpin", *given))
        return 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Pretend that there is a GPU; what is asked for on it lies in ordinary memory."""
    cuda = Cuda()
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *given, device=None, **more: empty(*given, **more))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: cuda.calls.append(("wait", str(device))))
    bytes_free(monkeypatch, memory=2**40, disk=2**40)
    return cuda


def laid(fill: Callable[[places.Write], None] | None = None) -> places.Table:
    """Return the table of two task vectors of three entries for a base that is on a GPU."""

    def numbers(write: places.Write) -> None:
        write(0, slice(0, 3), torch.tensor([1.0, 2, 3]))
        write(1, slice(0, 2), torch.tensor([4.0, 5]))
        write(1, slice(2, 3), torch.tensor([6.0]))

    table = places.filled_table(2, torch.zeros(3).as_subclass(Elsewhere), fill or numbers)
    if fill is None:
        assert table.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]
    return table


def test_on_a_gpu_the_places_are_taken_in_order_of_speed(gpu: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda": 2**40, "cpu": 2**40}
    monkeypatch.setattr(places, "available_memory", lambda device: free[device.type])
    assert laid().place == ""
    assert not gpu.calls
    free["cuda"] = 10 * 12 - 1  # two task vectors and eight models more, of three numbers each
    assert laid().place == "pinned memory of the host"
    free["cpu"] = 2 * 12 + places.SPARE - 1
    assert laid().place == FILE


def test_pinned_memory_is_exact_in_size_and_let_go_with_its_tensor(gpu: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_for(monkeypatch, "pinned")
    table = laid()
    where = table.vectors.data_ptr()
    assert gpu.calls == [("pin", where, 24, 0)]
    del table
    gc.collect()
    assert gpu.calls == [("pin", where, 24, 0), ("wait", "cuda:0"), ("unpin", where)]


def test_memory_that_runs_out_while_a_place_is_filled_leads_to_the_next(
    gpu: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.answer = 2  # CUDA cannot pin
    tries: list[int] = []

    def fill(write: places.Write) -> None:
        tries.append(len(tries))
        write(0, slice(0, 3), torch.ones(3))
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        write(1, slice(0, 3), torch.ones(3))

    table = laid(fill)
    assert table.place == FILE
    assert tries == [0, 1]  # on the device, and in the file; pinned memory was not even filled
    assert table.vectors.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_what_a_failed_place_took_is_free_before_the_next_is_tried(gpu: Cuda) -> None:
    parts: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def fill(write: places.Write) -> None:
        alive.append(sum(part() is not None for part in parts))
        part = torch.ones(3)
        parts.append(weakref.ref(part))
        if len(parts) < 3:
            raise torch.OutOfMemoryError

    assert laid(fill).place == FILE
    assert alive == [0, 0, 0]


def test_an_error_that_is_not_about_memory_is_not_hidden(gpu: Cuda) -> None:
    def fill(write: places.Write) -> None:
        raise ZeroDivisionError("nothing to divide by")

    with pytest.raises(ZeroDivisionError):
        laid(fill)


# --- where nothing holds it -------------------------------------------------------------------------------------------


def test_where_nothing_holds_the_task_vectors_the_error_says_what_each_place_has(
    gpu: Cuda, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_free(monkeypatch, memory=2**26, disk=2**31)
    with pytest.raises(KitError) as caught:
        places.filled_table(20, torch.zeros(2**24).as_subclass(Elsewhere), lambda write: None)
    assert str(caught.value) == (
        "The task vectors of 20 models take 1.2 GiB, and nothing here holds them: "
        "on 'cuda:0' 0.1 GiB are free of 1.8 GiB that it takes with all else; "
        "in pinned memory 0.1 GiB are free of 3.2 GiB that it takes with all else; "
        f"in a file in {cache / 'bank'} 2.0 GiB are free of 3.2 GiB that it takes with all else. "
        "End other programs or free some space, put the cache on a larger disk (MERGEKIT_LITE_CACHE), merge fewer "
        "models, or set MERGEKIT_LITE_BANK=bfloat16, which halves what they take of the device's memory and rounds "
        "them."
    )
    assert not (cache / "bank").exists()


def test_memory_that_runs_out_everywhere_is_worded(gpu: Cuda) -> None:
    def fill(write: places.Write) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(KitError, match=r"on 'cuda:0' the memory ran out, although 1024\.0 GiB seemed free; in pinned"):
        laid(fill)


def test_a_disk_that_fills_up_meanwhile_is_an_error_in_words(
    single: Single, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_for(monkeypatch, "mapped")
    make = tempfile.TemporaryFile

    class Full:
        """A file on a full disk."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full(make(dir=dir)))
    with pytest.raises(KitError, match="No space left on device") as caught:
        Bank.of(*single)
    assert f"the task vectors cannot be written to {cache / 'bank'}" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_an_error_in_words(
    single: Single, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_for(monkeypatch, "mapped")
    cache.write_text("a file where the cache belongs", encoding="utf-8")
    with pytest.raises(KitError, match="the task vectors cannot be written to"):
        Bank.of(*single)


@pytest.mark.parametrize("place", ["device", "mapped", "bfloat16"])
def test_a_place_that_is_asked_for_is_the_only_one(place: str, single: Single, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_for(monkeypatch, place)
    if place == "mapped":
        bytes_free(monkeypatch, memory=2**40, disk=0)
    else:
        bytes_free(monkeypatch, memory=0, disk=2**40)
    with pytest.raises(
        KitError, match=r"0\.0 GiB are free of [^;]*, or unset MERGEKIT_LITE_BANK, which allows no other"
    ):
        Bank.of(*single)


def test_what_is_no_place_is_said_before_anything_is_computed(single: Single, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_for(monkeypatch, "tape")
    with pytest.raises(KitError, match=r"is 'tape', which is no place .* device, pinned, mapped, bfloat16"):
        study.cell_key(fakes.fake_suite(), Cell(method="simple_average", pool=("digits",), evaluate=("digits",)))
    ask_for(monkeypatch, "pinned")
    with pytest.raises(KitError, match="only a GPU reads from pinned memory"):
        Bank.of(*single)


# --- nothing is left behind -------------------------------------------------------------------------------------------


@on_linux
def test_the_file_goes_with_the_bank(single: Single, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_for(monkeypatch, "mapped")
    bank = Bank.of(*single)
    assert files_of_banks(cache)
    assert list((cache / "bank").iterdir()) == []  # it has no name: also a process that is killed leaves nothing
    del bank
    assert not files_of_banks(cache)


@on_linux
def test_the_file_goes_with_a_cell_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask_for(monkeypatch, "mapped")
    held: list[bool] = []

    def broken(*given: Any, **more: Any) -> Any:
        held.append(bool(files_of_banks(cache)))
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(adapting, "loss_and_gradient", broken)
    tasks = ("digits", "signs")
    cell = Cell(method="layer_wise_adamerging", parameters={"steps": 1}, pool=tasks, evaluate=tasks)
    with pytest.raises(KitError, match="ZeroDivisionError: nothing to divide by"):
        study.run(fakes.fake_suite(), [cell], workers=1, folder=tmp_path / "records")
    assert held == [True]
    assert not files_of_banks(cache)
