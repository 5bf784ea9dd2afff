"""`mergekit-lite merge`: what a user can mend is said in words, before anything is written."""

import shutil
from pathlib import Path

import pytest
import torch
from own_suite_files import write_suite
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.methods import get, registry
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.checkpoints.encoders import as_encoder
from mergekit_lite.suites.checkpoints.opening import opened

BASE = ("--base", "base")
TWO = (*BASE, "--expert", "a=a", "--expert", "b=b")
MINE = """
from mergekit_lite.methods import Access, Merged, method, simple_average
from mergekit_lite.methods.registry import TaskData

@method(title="Mine", cite="", access=Access.NONE)
def mine(base, experts, *, scaling: float = 0.5):
    def moved(name, start):
        return start + scaling * sum(one[name] - start for one in experts.values())

    return Merged({name: moved(name, start) for name, start in base.items()})

@method(title="Looking", cite="", access=Access.UNLABELLED)
def looking(base, experts, data: TaskData):
    assert set(data.heads) == set(experts)
    (batch,) = data.batches(images_per_task=2, steps=1, seed=0)
    assert all(images.shape[:2] == (2, 3) for images in batch.values())
    return simple_average(base, experts)
"""


def weights(seed: int, **more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.0.weight": (8, 6), "layer.0.bias": (8,), "layer.1.weight": (5, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | {
        name.replace("__", "."): tensor for name, tensor in more.items()
    }


def save(name: str, content: dict[str, Tensor]) -> None:
    Path(name).mkdir()
    save_file(content, Path(name) / "model.safetensors")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # what a file defines is known here only
    for seed, name in enumerate(("base", "a", "b")):
        save(name, weights(seed))
    return tmp_path


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["merge", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def complaint(*arguments: str, output: str = "merged") -> str:
    """Return the error of a command that fails and leaves nothing."""
    before = sorted(Path().rglob("*"))
    code, _, said = call(*arguments, "-o", output)
    assert code == 1
    assert said.startswith("Error: ")
    assert sorted(Path().rglob("*")) == before
    return said


CASES = {
    "one expert where two are needed": (
        ("consensus", *BASE, "--expert", "a=a"),
        "the pool has 1 experts: no entry would be merged. Choose a smaller agreement or add experts.",
    ),
    "no expert": (("dare", *BASE), "Name the models to merge: --expert NAME=PLACE for each of them."),
    "no base": (("dare", "--expert", "a=a"), "Name the model before fine-tuning: --base PLACE."),
    "two experts of one name": (
        ("dare", *TWO, "--expert", "a=b"),
        "Two experts are called 'a' (a and b). Give each a name of its own.",
    ),
    "an expert without a name": (
        ("dare", *BASE, "--expert", "a"),
        "--expert 'a' is not NAME=PLACE. Give each expert a name, such as --expert birds=runs/birds.",
    ),
    "an expert without a place": (("dare", *BASE, "--expert", "a="), "--expert 'a=' is not NAME=PLACE."),
    "two bases": (
        ("dare", *TWO, "--base", "a"),
        "--base is given 2 times (base, a). Models are merged from one: leave the others out.",
    ),
    "a place where nothing is": (("dare", *BASE, "--expert", "a=nowhere"), "There is no checkpoint nowhere."),
    "no such method": (("tise_merging", *TWO), "There is no method 'tise_merging'. Did you mean 'ties_merging'?"),
    "no such parameter": (
        ("ties_merging", *TWO, "-p", "densty=0.1"),
        "Method 'ties_merging' has no parameter 'densty'. Did you mean 'density'?",
    ),
    "a parameter of another type": (
        ("ties_merging", *TWO, "-p", "density=half"),
        "Parameter 'density' of method 'ties_merging' cannot be 'half' (str)",
    ),
    "a parameter out of its range": (("ties_merging", *TWO, "-p", "density=2"), "'density' of method 'ties_merging'"),
    "a parameter without a value": (
        ("dare", *TWO, "-p", "drop"),
        "-p 'drop' has no '='. Write -p NAME=VALUE, such as -p scaling=0.3.",
    ),
    "a parameter that is no YAML": (("dare", *TWO, "-p", "drop=["), "-p 'drop=[': the value is no YAML."),
    "a parameter twice": (
        ("dare", *TWO, "-p", "drop=0.1", "-p", "drop=0.2"),
        "Parameter 'drop' is given twice. Give it once.",
    ),
    "a seed as a parameter": (("dare", *TWO, "-p", "seed=1"), "Write --seed instead of -p seed=."),
    "a seed where nothing is drawn": (
        ("ties_merging", *TWO, "--seed", "1"),
        "'ties_merging' draws nothing at random. Leave --seed out.",
    ),
    "a seed that is none": (
        ("dare", *TWO, "--seed", "-1"),
        "A seed must be a whole number from 0 to 4294967295, not -1.",
    ),
    "a reference": (
        ("individual", *TWO),
        "'individual' is no merge but a row that merges are compared with. `mergekit-lite evaluate` measures",
    ),
    "a method that looks at data": (
        ("layer_wise_adamerging", *TWO),
        "'layer_wise_adamerging' looks at test images without labels. Add --suite with the name of a suite, or with a "
        "file that describes your tasks and their images",
    ),
    "tasks without a suite": (("dare", *TWO, "--tasks", "eight"), "--tasks names tasks of a suite. Add --suite"),
    "a pattern that matches nothing": (
        ("dare", *TWO, "--exclude", "layr.*"),
        "--exclude 'layr.*' matches no tensor of any of the models. Did you mean 'layer.*'? Patterns are as a shell's",
    ),
    "all excluded": (("dare", *TWO, "--exclude", "*"), "--exclude '*' leaves nothing of base to merge. Exclude less."),
    "no such device": (("dare", *TWO, "--device", "tpu9"), "Device 'tpu9' cannot be used here"),
    "no such file of methods": (("other.py:mine", *TWO), "There is no Python file"),
    "no such suite": (("dare", *TWO, "--suite", "minature"), "There is no suite 'minature'. Did you mean 'miniature'?"),
    "a mergekit file and experts": (
        ("mine.yaml", *TWO),
        "A mergekit file says itself what is merged, and how. Leave --base out.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_user_can_mend_is_said(case: str) -> None:
    arguments, words = CASES[case]
    assert words in complaint(*arguments)


def test_a_head_that_one_expert_has_alone_can_be_left_out() -> None:
    save("c", weights(3, classifier__weight=torch.ones(3, 5), classifier__bias=torch.ones(3)))
    said = complaint("dare", *TWO, "--expert", "c=c")
    assert "The weights of expert 'c' do not fit the base: 'classifier.bias' is not in the base; 'classifier" in said
    assert said.endswith("leave them out of the merge, and the base's stay: --exclude 'classifier.*'.\n")
    code, said, _ = call("dare", *TWO, "--expert", "c=c", "--exclude", "classifier.*", "-o", "merged")
    assert code == 0
    assert (
        "Of expert 'c' is left out, and the base has nothing like it: 'classifier.bias'; 'classifier.weight'." in said
    )
    assert set(load_file("merged/model.safetensors")) == set(weights(0))


def test_heads_of_other_sizes_can_be_left_out_and_the_bases_stays() -> None:
    for seed, name in enumerate(("base", "a", "b")):
        shutil.rmtree(name)
        save(name, weights(seed, head__fc__weight=torch.full((2 + seed, 5), float(seed))))
    said = complaint("dare", *TWO)
    assert "'head.fc.weight' has shape (3, 5), the base (2, 5). If they belong to a head" in said
    assert "--exclude 'head.*'" in said
    code, said, _ = call("dare", *TWO, "--exclude", "head.*", "-o", "merged")
    assert code == 0
    assert "1 more is copied from the base" in said
    assert load_file("merged/model.safetensors")["head.fc.weight"].tolist() == [[0.0] * 5] * 2
    assert "Copied from the base (--exclude 'head.*'): `head.fc.weight`." in Path("merged/README.md").read_text()


def test_a_proposed_pattern_matches_nothing_that_is_shared() -> None:
    save("c", weights(3, layer__2__weight=torch.ones(3, 5)))
    assert "--exclude 'layer.2.*'" in complaint("dare", *TWO, "--expert", "c=c")


def test_another_architecture_is_no_matter_of_a_head() -> None:
    save("c", {f"{name}.x": one for name, one in weights(3).items()} | {"y": torch.ones(1)})
    said = complaint("dare", *TWO, "--expert", "c=c")
    assert (
        "is missing; and 4 more. Only models of one architecture, fine-tuned from the same base, can be merged." in said
    )
    assert "--exclude" not in said


@pytest.mark.parametrize("method", ["task_arithmetic", "ties_merging", "dare", "consensus", "tsv_merging", "iso_c"])
def test_a_nan_is_traced_to_its_expert(method: str) -> None:
    save("c", weights(3) | {"layer.0.bias": torch.tensor([1.0] * 7 + [torch.nan])})
    assert "NaN or infinite values in expert 'c': 'layer.0.bias'." in complaint(method, *TWO, "--expert", "c=c")


def test_whole_numbers_alone_are_no_model() -> None:
    save("c", {"positions": torch.arange(3)})
    said = complaint("dare", "--base", "c", "--expert", "a=a")
    assert "c holds no floating-point numbers: 'positions' is torch.int64. There is nothing to merge" in said


@pytest.mark.parametrize("copied", [False, True])
def test_an_expert_that_is_the_base_is_named(copied: bool) -> None:
    if copied:
        shutil.copytree("base", "c")
    else:
        Path("c").symlink_to("base")
    code, said, _ = call("task_arithmetic", *TWO, "--expert", "c=c", "-o", "merged")
    assert code == 0
    same = "has the same weights as" if copied else "is the same file as"
    assert f"Expert 'c' {same} the base: its task vector is zero." in said
    assert said.count("its task vector is zero") == 1


def test_an_expert_that_comes_twice_is_named() -> None:
    _, said, _ = call("task_arithmetic", *TWO, "--expert", "c=./a", "--dry-run")
    assert "Expert 'c' is the same file as expert 'a': its task vector counts" in said


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("full", "The folder full exists and is not empty. Choose another one; nothing is written over."),
        ("file", "file is a file or a link. Name a folder that does not exist yet."),
        ("a", "The output a lies inside the folder of expert 'a', a. Choose a folder elsewhere"),
        ("base/merged", "The output base/merged lies inside the folder of the base, base."),
        (".", "The folder . exists and is not empty."),
        (
            "file/merged",
            "file/merged cannot be made, since ",
        ),
    ],
)
def test_an_output_that_cannot_be_made_is_refused(output: str, words: str) -> None:
    Path("full").mkdir()
    Path("full/x").write_text("")
    Path("file").write_text("")
    assert words in complaint("dare", *TWO, output=output)


def test_without_an_output_nothing_is_done() -> None:
    assert call("dare", *TWO) == (
        1,
        "",
        "Error: Say where the merged model goes: -o FOLDER. With --dry-run nothing is written.\n",
    )


def test_a_dry_run_prints_the_plan_and_writes_nothing() -> None:
    before = sorted(Path().rglob("*"))
    code, said, _ = call("tsv_merging", *TWO, "--dry-run", "--exclude", "layer.1.*", "--names", "split")
    words = " ".join(said.replace("│", " ").split())
    assert code == 0
    assert "method TSV-M (tsv_merging): scaling = 1.0" in words
    assert "merged 2 tensors, 56 numbers" in words
    assert "names split (queries, keys and values as three matrices; this changes the outcome of spectral" in words
    assert "dtypes 2 float32" in words
    assert "copied from the base layer.1.weight: --exclude 'layer.1.*'" in words
    assert "written 0 kB in 1 file, model.safetensors" in words
    assert "memory about" in words
    assert "time less than a second" in words
    assert sorted(Path().rglob("*")) == before


def test_a_method_of_ones_own_file_is_run() -> None:
    Path("mine.py").write_text(MINE)
    assert call("mine.py:mine", *TWO, "-p", "scaling=0.25", "-o", "merged")[0] == 0
    found = load_file("merged/model.safetensors")
    base, *experts = (load_file(f"{name}/model.safetensors") for name in ("base", "a", "b"))
    assert all(
        torch.equal(one, base[key] + 0.25 * sum(e[key] - base[key] for e in experts)) for key, one in found.items()
    )
    card = Path("merged/README.md").read_text()
    assert "| method | `" in card
    assert "| defined in | mine.py (SHA-256 " in card
    assert "mergekit-lite merge mine.py:mine --base base" in card
    assert "mine.py defines no method 'other'. Methods there: mine, looking." in complaint(
        "mine.py:other", *TWO, output="o"
    )
    assert "mine.py defines several methods. Say which one: mine.py:mine." in complaint("mine.py", *TWO, output="o")


@pytest.fixture
def tiny(here: Path, cache: Path) -> Path:
    """A suite file beside the models."""
    return write_suite(here / "tiny")


def test_a_method_that_looks_at_data_sees_the_suites(tiny: Path) -> None:
    Path("mine.py").write_text(MINE)
    code, said, complained = call("mine.py:looking", "--suite", str(tiny), "--device", "cpu", "-o", "merged")
    assert code == 0, complained
    assert "Looking of 2 experts" in said
    suite = load_suite(str(tiny), "cpu")
    expected = get("simple_average").function(suite.base, suite.experts).weights
    found = as_encoder(opened("merged"), suite.base)
    assert all(torch.equal(found[name], expected[name]) for name in suite.base)
    whole, base = load_file("merged/open_clip_model.safetensors"), load_file(tiny.parent / "base.safetensors")
    assert set(whole) == set(base)
    assert torch.equal(whole["token_embedding.weight"], base["token_embedding.weight"])
    card = Path("merged/README.md").read_text()
    assert "| suite | tiny (A tiny suite) |" in card
    assert "| looks at | test images without labels |" in card
    assert "| tasks | shades, sides |" in card
    assert str(tiny.parent) not in card


def test_experts_of_ones_own_take_the_place_of_the_suites(tiny: Path) -> None:
    place = tiny.parent / "experts"
    suite = ("--suite", str(tiny), "--device", "cpu")
    given = ("--base", str(tiny.parent / "base.safetensors"), "--expert", f"sides={place / 'shades.safetensors'}")
    assert (
        call("layer_wise_adamerging", *suite, *given, "-p", "steps=1", "-p", "images_per_task=2", "-o", "merged")[0]
        == 0
    )
    assert call("task_arithmetic", *suite, "--tasks", "shades", "-o", "plain")[0] == 0
    assert call("task_arithmetic", *suite, *given, "-o", "same")[0] == 0
    plain, same = load_file("plain/open_clip_model.safetensors"), load_file("same/open_clip_model.safetensors")
    assert all(torch.equal(plain[name], same[name]) for name in plain)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ("--expert", "side=a"),
            "Suite 'tiny' has no task 'side'. Did you mean 'sides'? With --suite an expert is called",
        ),
        (("--expert", "sides=a"), "Expert 'sides' is not the image encoder that is wanted here"),
        (("--base", "a"), "The base is not the image encoder that is wanted here"),
        (("--tasks", "shades", "--expert", "sides=a"), "--tasks names shades, but there are --expert of sides."),
        (("--names", "split"), "--names split is for merges without --suite: on a suite the image encoder is merged"),
        (("--exclude", "x"), "--exclude is for merges without --suite"),
        (("--whole",), "--whole is for merges without --suite"),
        (("--tasks", "shade"), "has no task 'shade'. Did you mean 'shades'?"),
    ],
)
def test_what_does_not_fit_a_suite_is_said(more: tuple[str, ...], words: str, tiny: Path) -> None:
    assert words in complaint("task_arithmetic", "--suite", str(tiny), "--device", "cpu", *more)
