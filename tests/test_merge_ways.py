"""Seen in pieces, tensor by tensor or whole: the outcome of each method is the same to the last bit."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mergekit_lite.errors import KitError
from mergekit_lite.merge import ways
from mergekit_lite.merge.target import like_base, plain
from mergekit_lite.methods.registry import Access, Merged, all_methods, get
from mergekit_lite.suites.checkpoints.layouts import Names, View, viewed
from mergekit_lite.suites.checkpoints.opening import opened
from mergekit_lite.weight_files import write

SHAPES = {
    "q_proj.weight": (6, 5),
    "k_proj.weight": (6, 5),
    "v_proj.weight": (6, 5),
    "attn.in_proj_weight": (12, 4),
    "conv": (3, 2, 2, 2),
    "bias": (7,),
    "scale": (),
}


def models(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found = {"base": base}
    for name in "abc":
        found[name] = {key: start + 0.1 * torch.randn(start.shape, generator=generator) for key, start in base.items()}
    found = {name: {key: one.to(dtype) for key, one in weights.items()} for name, weights in found.items()}
    for name, weights in found.items():
        write(folder / f"{name}.safetensors", weights)
    return found


def run(method: str, way: ways.Way, folder: Path, names: Names, **parameters: float) -> dict[str, Tensor]:
    """Return what is stored after a merge of the three experts in `folder`."""
    base, *experts = (viewed(opened(folder / f"{name}.safetensors"), names=names) for name in ("base", *"abc"))
    target = like_base(base)
    stored = {
        name: torch.full(shape, torch.nan, dtype=dtype)
        for name, (shape, dtype) in target.files["model.safetensors"].items()
    }

    def put(name: str, values: Tensor, at: int) -> None:
        assert stored[name].reshape(-1)[at : at + values.numel()].isnan().all()  # nothing is written twice
        stored[name].view(-1)[at : at + values.numel()] = values

    kinds = {name: base.layout(name)[1] for name in base}
    merge = partial(get(method).function, **parameters)
    ways.run(merge, way, base, dict(zip("abc", experts, strict=True)), kinds, target, put)
    return stored


@pytest.mark.parametrize("names", ["fused", "split"])
@pytest.mark.parametrize("method", ways.WAYS)
def test_every_way_gives_the_same_bits(
    method: str, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "PIECE", 11)
    given = models(tmp_path)
    found = run(method, ways.WAYS[method], tmp_path, names)
    whole = run(method, "whole", tmp_path, names)
    assert set(found) == set(SHAPES)
    assert all(torch.equal(found[name], whole[name]) for name in SHAPES)
    assert not any(torch.equal(found[name], given["base"][name]) for name in ("attn.in_proj_weight", "q_proj.weight"))


def test_half_precision_stays_and_is_summed_in_float32(tmp_path: Path) -> None:
    given = models(tmp_path, torch.bfloat16)
    found = run("task_arithmetic", "pieces", tmp_path, "fused", scaling=0.3)
    for name, start in given["base"].items():
        total = sum(given[one][name].float() - start.float() for one in "abc")
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name], (start.float() + 0.3 * total).to(torch.bfloat16))


def test_methods_that_see_no_data_and_are_not_named_see_whole_models() -> None:
    known = {
        info.name
        for info in all_methods()
        if info.function.__module__.startswith("mergekit_lite.")  # not those that other tests register
        and info.access is Access.NONE
        and not info.reference
        and not info.source
    }
    assert set(ways.WAYS) | {"fixed_coefficients"} == known


def test_pieces_cover_every_entry_once() -> None:
    spans = ways.spans_of({"a": 25, "b": 10, "c": 0}, 10)
    assert spans == {
        "a[0:10]": ("a", 0, 10),
        "a[10:20]": ("a", 10, 20),
        "a[20:25]": ("a", 20, 25),
        "b": ("b", 0, 10),
        "c": ("c", 0, 0),
    }
    assert list(ways.grouped({"a": 4, "b": 4, "c": 9, "d": 1}, 8)) == [["a", "b"], ["c"], ["d"]]


def test_values_too_large_for_the_bases_dtype_are_refused() -> None:
    base = {"a": torch.ones(3)}
    target = plain({"a": ((3,), torch.float16)})

    def merge(*models: object) -> Merged:
        return Merged({"a": torch.full((3,), 1e6)})

    with pytest.raises(
        KitError, match=r"'a' that are too large for torch.float16, in which the base stores it\. Choose"
    ):
        ways.run(merge, "whole", base, {}, {"a": torch.float32}, target, lambda *some: None)


def test_only_what_is_needed_of_a_piece_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models(tmp_path)
    view = viewed(opened(tmp_path / "a.safetensors"), names="fused")
    cut = ways.Cut(view, {"x": ("query_key_value.weight", 28, 32)}, {"query_key_value.weight": torch.float32})
    whole = view["query_key_value.weight"].reshape(-1)
    monkeypatch.setattr(View, "__getitem__", lambda *some: pytest.fail("the whole tensor was read"))
    assert torch.equal(cut["x"], whole[28:32])
    assert cut.layout("x") == ((4,), torch.float32)
