"""Merged folders are what the base's own library loads, and no format changes the outcome of a merge."""

from pathlib import Path

import pytest
import torch
from library_models import LIBRARIES, Library, changed, open_clip_library, transformers_library
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.suites.clip.transformers_format import from_transformers, to_transformers

pytest.importorskip("transformers")
METHODS = ("task_arithmetic", "ties_merging", "dare", "consensus", "tsv_merging", "iso_c", "iso_cts")


def merged(method: str, folder: Path, *more: str, output: str = "merged") -> Path:
    """Merge the folders a and b, fine-tuned from the folder base."""
    models = ["--base", str(folder / "base"), "--expert", f"a={folder / 'a'}", "--expert", f"b={folder / 'b'}"]
    result = CliRunner().invoke(app, ["merge", method, *models, "-o", str(folder / output), *more])
    assert result.exit_code == 0, result.stderr
    return folder / output


def written(library: Library, folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Write a base and two experts with their own library; return their weights."""
    torch.manual_seed(0)
    module = library.make().eval()
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    library.save(module, folder / "base")
    experts = [changed(module, seed) for seed in (1, 2)]
    for name, expert in zip("ab", experts, strict=True):
        module.load_state_dict(expert)
        library.save(module, folder / name)
    return base, experts


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_merged_folder_gives_the_features_of_weights_merged_by_hand(name: str, tmp_path: Path) -> None:
    library = LIBRARIES[name]()
    base, experts = written(library, tmp_path)
    by_hand = {
        name: start + 0.5 * sum((expert[name] - start) for expert in experts)
        if library.merged(name) and start.is_floating_point()
        else start
        for name, start in base.items()
    }
    expected = library.make().eval()
    expected.load_state_dict(by_hand)
    with torch.no_grad():
        before = library.features(library.load(tmp_path / "base").eval())
        found = library.features(library.load(merged("task_arithmetic", tmp_path, "-p", "scaling=0.5")).eval())
        torch.testing.assert_close(found, library.features(expected), rtol=1e-5, atol=1e-6)
    assert (found - before).norm() > 0.01 * before.norm()


def written_twice(folder: Path) -> None:
    """Write image encoders with random weights, each in open_clip's and in transformers' format."""
    torch.manual_seed(0)
    encoder = open_clip_library().make().get_submodule("visual")
    start = {name: tensor.detach() for name, tensor in encoder.named_parameters() if name != "proj"}
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        weights = {
            key: one + 0.02 * bool(seed) * torch.randn(one.shape, generator=generator) for key, one in start.items()
        }
        for kind in ("open_clip", "transformers"):
            (folder / kind / name).mkdir(parents=True)
        save_file(weights, folder / "open_clip" / name / "model.safetensors")
        save_file(to_transformers(weights), folder / "transformers" / name / "model.safetensors")


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twice")
    written_twice(folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("names", ["fused", "split"])
def test_a_merge_is_the_same_to_the_last_bit_in_both_formats(method: str, names: str, twice: Path) -> None:
    output = f"{method}-{names}"
    ours = load_file(merged(method, twice / "open_clip", "--names", names, output=output) / "model.safetensors")
    theirs = merged(method, twice / "transformers", "--names", names, output=output) / "model.safetensors"
    again = from_transformers(load_file(theirs))
    assert set(ours) == set(again)
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_an_expert_may_be_of_another_library_than_the_base(twice: Path, tmp_path: Path) -> None:
    for name, kind in (("base", "open_clip"), ("a", "transformers"), ("b", "open_clip")):
        (tmp_path / name).symlink_to(twice / kind / name)
    mixed = merged("tsv_merging", tmp_path)
    plain = merged("tsv_merging", twice / "open_clip", output="plain")
    assert (mixed / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("method", "differ"), [("tsv_merging", True), ("iso_c", True), ("task_arithmetic", False)])
def test_names_change_spectral_methods_and_no_others(method: str, differ: bool, twice: Path) -> None:
    found = [
        load_file(
            merged(method, twice / "open_clip", "--names", names, output=f"names-{method}-{names}")
            / "model.safetensors"
        )
        for names in ("fused", "split")
    ]
    base = load_file(twice / "open_clip" / "base" / "model.safetensors")
    for name, start in base.items():
        lengths = [float((one[name] - start).norm()) for one in found]
        apart = float((found[0][name] - found[1][name]).norm())
        if name.endswith("in_proj_weight") and differ:
            assert apart > 0.05 * max(lengths)
        else:
            assert apart == 0


@pytest.mark.parametrize("headless", ["base", "experts"])
def test_a_prefix_before_all_names_is_no_other_architecture(headless: str, tmp_path: Path) -> None:
    bare, headed = LIBRARIES["BertModel"](), transformers_library("BertForSequenceClassification")
    torch.manual_seed(0)
    base = bare.make().state_dict()
    for seed, name in enumerate(("base", "a", "b")):
        weights = {key: one + 0.02 * bool(seed) * torch.randn(one.shape) for key, one in base.items()}
        library, prefix = (bare, "") if (name == "base") == (headless == "base") else (headed, "bert.")
        module = library.make()
        module.load_state_dict({prefix + key: one for key, one in weights.items()}, strict=not prefix)
        library.save(module, tmp_path / name)
    found = bare.load(merged("task_arithmetic", tmp_path, "--exclude", "classifier.*", "--exclude", "*pooler*"))
    ends = [bare.load(tmp_path / name).state_dict() for name in "ab"]
    for name, start in base.items():
        expected = start if "pooler" in name else start + 0.3 * sum(end[name] - start for end in ends)
        torch.testing.assert_close(found.state_dict()[name], expected)


@pytest.mark.parametrize("name", ["CLIPModel", "open_clip"])
def test_the_text_tower_is_merged_if_it_is_asked_for(name: str, tmp_path: Path) -> None:
    library = LIBRARIES[name]()
    base, experts = written(library, tmp_path)
    found = library.load(merged("task_arithmetic", tmp_path, "--whole", "-p", "scaling=0.5")).state_dict()
    for key, start in base.items():
        if start.is_floating_point() and not start.isinf().any():  # an attention mask is a constant
            torch.testing.assert_close(found[key], start + 0.5 * sum(expert[key] - start for expert in experts))
