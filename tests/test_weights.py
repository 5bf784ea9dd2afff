"""Weights: strict checks, files read lazily and written whole, hashes."""

import math
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mergekit_lite import weight_files
from mergekit_lite.analysis.geometry import lengths_and_angles
from mergekit_lite.cache import file_digest, intact
from mergekit_lite.errors import KitError
from mergekit_lite.weight_files import LazyWeights, read, write
from mergekit_lite.weights import (
    all_finite,
    check_finite,
    check_floating,
    check_same,
    pieces,
    task_vector,
    weights_hash,
)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 3, generator=generator) for name in ("a", "b", "c", "d", "e")}


def test_task_vector_is_expert_minus_base_in_float32(weights: dict[str, Tensor]) -> None:
    base = {name: tensor.half() for name, tensor in weights.items()}
    expert = {name: (tensor + 1).half() for name, tensor in weights.items()}
    vector = task_vector(expert, base)
    assert list(vector) == list(base)
    assert vector["b"].dtype == torch.float32
    assert torch.equal(vector["b"], expert["b"].float() - base["b"].float())


def test_a_mismatch_names_the_first_three_offenders_and_counts_the_rest(weights: dict[str, Tensor]) -> None:
    other = dict(weights, b=torch.zeros(3, 2), c=torch.zeros(2, 3, dtype=torch.float16), extra=torch.zeros(1))
    del other["a"]
    message = (
        r"The weights of expert 'signs' do not fit the base weights: 'a' is missing; 'b' has shape \(3, 2\), the base "
        r"\(2, 3\); 'c' is torch.float16, the base torch.float32; and 1 more\. Only models"
    )
    with pytest.raises(KitError, match=message):
        check_same(weights, other, name="expert 'signs'")
    with pytest.raises(KitError, match=r"the expert .* 'a' is missing"):
        task_vector(other, weights)
    check_same(weights, dict(reversed(weights.items())), name="the same in another order")


def test_a_name_that_the_base_lacks_is_a_mismatch(weights: dict[str, Tensor]) -> None:
    with pytest.raises(KitError, match=r"weights: 'extra' is not in the base\."):
        check_same(weights, dict(weights, extra=torch.zeros(1)), name="x")


def test_integer_tensors_are_refused_by_name() -> None:
    with pytest.raises(KitError, match=r"^The base weights must be floating-point, but 'n' is torch.int64\. Leave"):
        check_floating({"a": torch.zeros(1), "n": torch.zeros(1, dtype=torch.int64)}, name="the base weights")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_name(weights: dict[str, Tensor], value: float) -> None:
    weights["d"][1, 2] = value
    with pytest.raises(KitError, match=r"NaN or infinite values in expert 'x': 'd'\. Such a model"):
        check_finite(weights, name="expert 'x'")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_is_read_bit_for_bit(weights: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "folder" / "w.safetensors"
    stored = {name: tensor.to(dtype) for name, tensor in weights.items()}
    write(path, stored, {"recipe": "x"})
    back = read(path)
    assert weights_hash(back) == weights_hash(stored)
    lazy = LazyWeights(path)
    assert lazy.layout("c") == ((2, 3), dtype)
    check_same(stored, lazy, name="what was written")
    assert [one.name for one in path.parent.iterdir()] == ["w.safetensors"]


def test_equal_weights_and_facts_give_equal_files(weights: dict[str, Tensor], tmp_path: Path) -> None:
    facts = {name: str(number) for number, name in enumerate("abcdefgh")}
    for number in range(5):
        write(tmp_path / f"{number}.safetensors", weights, dict(sorted(facts.items(), reverse=bool(number % 2))))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert LazyWeights(tmp_path / "0.safetensors").metadata == facts


def test_metadata_of_others_stay_as_they_are(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for metadata in ({}, {"format": "pt"}, {"mergekit_lite": "[1]"}, {"mergekit_lite": "["}):
        save_file(weights, tmp_path / "w.safetensors", metadata=metadata)
        assert LazyWeights(tmp_path / "w.safetensors").metadata == metadata


def test_a_sealed_file_is_known_by_its_hash(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write(path, weights, seal=True)
    assert (tmp_path / "w.safetensors.sha256").read_text() == f"{file_digest(path)}  w.safetensors\n"
    assert intact(path)


def test_views_of_one_vector_and_transposed_tensors_can_be_written(tmp_path: Path) -> None:
    flat = torch.arange(10.0)
    stored = {"a": flat[:4].view(2, 2), "b": flat[4:].view(2, 3).T}
    write(tmp_path / "w.safetensors", stored)
    assert weights_hash(read(tmp_path / "w.safetensors")) == weights_hash(stored)


def test_a_failed_write_leaves_the_old_file(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    write(path, weights)

    def half(tensors: Any, temporary: Path, **metadata: Any) -> None:
        temporary.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(weight_files, "save_file", half)
    with pytest.raises(KitError, match=r"w\.safetensors cannot be written: I/O error: No space left"):
        write(path, dict(weights, a=weights["b"]))
    assert weights_hash(read(path)) == weights_hash(weights)
    assert [one.name for one in tmp_path.iterdir()] == ["w.safetensors"]


def test_writing_below_a_file_is_a_clear_error(weights: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KitError, match=r"w\.safetensors cannot be written \(File exists: .*/file\)\. Free some"):
        write(tmp_path / "file" / "w.safetensors", weights)


def test_lazy_weights_are_a_mapping_that_travels_to_other_processes(weights: dict[str, Tensor], tmp_path: Path) -> None:
    write(tmp_path / "w.safetensors", weights)
    lazy = LazyWeights(tmp_path / "w.safetensors")
    assert len(lazy) == 5
    assert set(lazy) == set(weights)
    assert "a" in lazy
    assert "z" not in lazy
    with pytest.raises(KeyError):
        lazy["z"]
    assert torch.equal(pickle.loads(pickle.dumps(lazy))["e"], weights["e"])


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"There is no weights file .*nowhere\.safetensors"):
        LazyWeights(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_a_clear_error(weights: dict[str, Tensor], tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w.safetensors"
    write(path, weights)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(KitError, match=r"w\.safetensors is not a whole safetensors file .* Delete it"):
        read(path)


def test_a_foreign_file_is_a_clear_error(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(KitError, match=r"w\.pt is not a whole safetensors file"):
        read(tmp_path / "w.pt")
    with pytest.raises(KitError, match="is not a whole safetensors file"):
        read(tmp_path)


def test_the_hash_sees_every_bit_and_no_order(weights: dict[str, Tensor]) -> None:
    first = weights_hash(weights)
    assert len(first) == 16
    assert weights_hash(dict(reversed(weights.items()))) == first
    changed = {
        "name": {("z" if name == "a" else name): tensor for name, tensor in weights.items()},
        "shape": dict(weights, a=weights["a"].T.reshape(3, 2)),
        "dtype": dict(weights, a=weights["a"].view(torch.int32)),
        "bit": dict(weights, a=torch.nextafter(weights["a"], torch.tensor(torch.inf))),
    }
    assert first not in {weights_hash(one) for one in changed.values()}
    assert len(weights_hash({"scalar": torch.tensor(1.0), "none": torch.zeros(0)})) == 16


def test_geometry_of_vectors_known_by_hand(tmp_path: Path) -> None:
    base = {"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([4.0, 0.0])}  # of length 5
    moves = {"first": ([[1.0, 0.0]], [0.0, 0.0]), "second": ([[0.0, 0.0]], [0.0, 2.0]), "third": ([[-3.0, 0]], [0, 3])}
    experts = {}
    for name, (a, b) in moves.items():
        expert = {"a": base["a"] + torch.tensor(a), "b": base["b"] + torch.tensor(b)}
        write(tmp_path / f"{name}.safetensors", expert)
        experts[name] = LazyWeights(tmp_path / f"{name}.safetensors")
    names, norms, cosines = lengths_and_angles(base, experts)
    half = 0.5**0.5
    assert names == ("first", "second", "third")
    assert norms.tolist() == pytest.approx([0.2, 0.4, 0.6 * 2**0.5])
    assert cosines.flatten().tolist() == pytest.approx([1, 0, -half, 0, 1, half, -half, half, 1])


def test_geometry_is_that_of_all_parameters_in_one_row(weights: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    experts = {
        name: {key: one + 0.01 * torch.randn(one.shape, generator=generator) for key, one in weights.items()}
        for name in ("x", "y")
    }
    rows = [
        torch.cat([(expert[key] - weights[key]).double().flatten() for key in weights]) for expert in experts.values()
    ]
    _, norms, cosines = lengths_and_angles(weights, experts)
    length = torch.cat([one.double().flatten() for one in weights.values()]).norm()
    assert torch.allclose(norms, torch.stack([row.norm() for row in rows]) / length)
    assert torch.allclose(cosines[0, 1], torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0))
    assert torch.equal(cosines, cosines.T)


def test_geometry_reads_one_tensor_of_every_expert_at_a_time(weights: dict[str, Tensor]) -> None:
    asked: list[str] = []

    class Watched(dict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            if sys._getframe(1).f_code.co_name != "_layout":
                asked.append(key)
            return super().__getitem__(key)

    lengths_and_angles(weights, {"x": Watched(weights), "y": Watched(weights)})
    assert asked == [key for key in weights for _ in range(2)]


def test_geometry_of_an_expert_that_did_not_move_has_no_angle(weights: dict[str, Tensor]) -> None:
    moved = {key: one + 1 for key, one in weights.items()}
    _, norms, cosines = lengths_and_angles(weights, {"still": weights, "moved": moved})
    assert norms[0] == 0
    assert cosines.isnan().tolist() == [[True, True], [True, False]]


def test_geometry_refuses_what_does_not_fit_and_names_the_expert(weights: dict[str, Tensor]) -> None:
    with pytest.raises(KitError, match=r"weights of the expert 'x' do not fit the base weights: 'e' is missing"):
        lengths_and_angles(weights, {"x": {key: one for key, one in weights.items() if key != "e"}})
    with pytest.raises(KitError, match=r"NaN or infinite values in the expert 'y'\. Fetch or train it again"):
        lengths_and_angles(weights, {"x": weights, "y": {**weights, "a": weights["a"] * torch.nan}})


def test_pieces_cover_every_entry_once_and_can_be_written_through() -> None:
    whole, source = torch.zeros(3, 5), torch.arange(15.0).view(3, 5)
    sizes = []
    for written, read_from in pieces([whole, source.T.contiguous().T], 4):
        written += read_from
        sizes.append(len(read_from))
    assert torch.equal(whole, source)
    assert sizes == [4, 4, 4, 3]
    assert [tuple(one.shape) for (one,) in pieces([torch.tensor(7.0)])] == [(1,)]


@pytest.mark.parametrize(
    ("values", "finite"),
    [([], True), ([[1.0], []], True), ([[0.0, 2.0], [math.nan, 1.0]], False), ([[-math.inf]], False)],
)
def test_nan_and_infinity_are_found_in_any_of_several_tensors(values: list[list[float]], finite: bool) -> None:
    assert all_finite(torch.tensor(one) for one in values) is finite
