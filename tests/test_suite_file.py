"""Suite files: what they may say, what is refused and in which words, and that the shipped suites are such files."""

import json
from pathlib import Path
from typing import Any

import pytest
from own_suite_files import write_suite
from PIL import Image
from projects import write_notebook, write_profile
from typer.testing import CliRunner

from mergekit_lite.cli import app
from mergekit_lite.errors import KitError
from mergekit_lite.pipeline import runner
from mergekit_lite.suites import SUITES, check_name, suite_path
from mergekit_lite.suites.clip.benchmark import KEYS, hub_tasks
from mergekit_lite.suites.own import reading, schema
from mergekit_lite.suites.own.reading import read_suite_file
from mergekit_lite.suites.suite import PREFIXES
from mergekit_lite.yaml_files import read_yaml

OWN = Path(schema.__file__).parent

PLAIN = """\
model: ViT-B-32-quickgelu
base: openai
tasks:
  birds:
    classnames: [robin, wren]
    images: {folder: images}
    expert: expert.safetensors
"""


def written(folder: Path, text: str, name: str = "birds.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_suite_file_may_be_short(tmp_path: Path) -> None:
    file = read_suite_file(written(tmp_path, PLAIN))
    assert (file.name, file.title, file.crop, list(file.tasks)) == ("birds", None, "open_clip", ["birds"])
    task = file.tasks["birds"]
    assert task.templates == ["a photo of a {}."]
    assert task.expert == str(tmp_path / "expert.safetensors")
    assert task.images.folder == str(tmp_path / "images")
    assert task.images.kind == "folder"


def changed(old: str, new: str) -> str:
    assert old in PLAIN
    return PLAIN.replace(old, new)


BAD = {
    "a tab": (changed("  birds:", "\tbirds:"), "is not valid YAML: .*Indent with spaces: YAML takes no tabs"),
    "no mapping": ("- a\n- b\n", "must hold `model:`, `base:` and `tasks:`; it holds list"),
    "a key twice": (PLAIN + "base: openai\n", "'base' is there twice"),
    "an unknown key": (PLAIN + "tittle: x\n", r"tittle: there is no such key\. Did you mean 'title'\?"),
    "an unknown key of a task": (
        changed("    expert:", "    experts:"), r"tasks\.birds\.experts: there is no such key\. Did you mean 'expert'\?"
    ),
    "an unknown key of images": (changed("folder: i", "folders: i"), r"images\.folders: there is no such key"),
    "no model": (changed("model: ViT-B-32-quickgelu\n", ""), "model: it is missing"),
    "no tasks": ("model: a\nbase: b\ntasks: {}\n", "tasks: Dictionary should have at least 1 item"),
    "no expert": (changed("    expert: expert.safetensors\n", ""), "tasks.birds.expert: it is missing"),
    "no images": (changed("    images: {folder: images}\n", ""), "tasks.birds.images: it is missing"),
    "two kinds of images": (changed("folder: images", "folder: a, npz: b"), "name one of folder, npz and dataset, not"),
    "none of them": (changed("folder: images", "image: x"), "name one of folder, npz and dataset, not none of them"),
    "a column of a folder": (changed("folder: images", "folder: a, label: b"), "`label` says nothing of a folder"),
    "a path that climbs out": (changed("folder: images", "folder: ../x"), r"climbs out of the folder of the suite"),
    "an expert that climbs out": (changed("expert.safetensors", "a/../../b"), r"birds\.expert is 'a/\.\./\.\./b'"),
    "lost class names": (changed("[robin, wren]", "names.txt"), r"names the file names\.txt, which cannot be read \("),
    "a number as a class": (changed("wren", "7"), r"tasks\.birds\.classnames\.1: Input should be a valid string"),
    "a template without a place": (
        changed("    images", "    templates: [a photo]\n    images"), r"the template 'a photo' has no \{\} for the"
    ),
    "a template with other braces": (
        changed("    images", "    templates: ['a {x} {}']\n    images"), "has no {} for the class name, or other"
    ),
    "a set of nobody": (PLAIN + "sets: {all: [birds, bees]}\n", "the set 'all' has a task 'bees' that there is not"),
    "a set called as a task": (PLAIN + "sets: {birds: [birds]}\n", "'birds' is a task and a set"),
    "a task called as a set": (changed("  birds:", "  eight:"), "'eight' is the name of a set"),
    "a name that is a path": (changed("  birds:", "  a/b:"), "set cannot be called 'a/b'"),
    "a name of the suite that is a path": (PLAIN + "name: ../x\n", r"cannot be called '\.\./x'"),
    "a model of transformers": (changed("ViT-B-32-quickgelu", "transformers:x"), "open_clip has no vision encoders"),
    "a model of timm without heads": (changed("ViT-B-32-quickgelu", "timm:vit_tiny"), "give task 'birds' a `head`"),
    "another crop": (PLAIN + "crop: middle\n", "crop: Input should be 'open_clip' or 'transformers'"),
    "like nobody": ("like: clip-vit-b-23\n", "there is no suite 'clip-vit-b-23' to be like. Did you mean"),
    "like a lost file": ("like: other.yaml\n", r"it is to be like .*other\.yaml, but there is no such file"),
    "like itself": ("like: birds.yaml\n", "is like a file that is like a file .* Break the circle"),
    "one class": (changed(", wren", ""), r"tasks\.birds\.classnames: a task needs two classes or more, and here is 1"),
    "no class": (changed("robin, wren", ""), "a task needs two classes or more, and here is none"),
    "a class twice": (changed("wren", "robin"), "the class 'robin' is there more than once: rename one of them"),
    "a class without a name": (changed("wren", "''"), "the class name 2 of 2 is empty"),
    "a word that is none to YAML": (changed("wren", "yes"), "not True; put it into quotes"),
    "a number as a task": (changed("  birds:", "  7:"), "a valid string, not 7; put it"),
    "a task that is a word": ("model: a\nbase: b\ntasks: {birds: x}\n", "should be keys with values, not 'x'"),
    "an empty set": (PLAIN + "sets: {none: []}\n", "sets.none: List should have at least 1 item"),
    "a split that climbs out": (changed("images}", "images, test: ../x}"), r"images\.test is '\.\./x', which"),
    "a path that is none": (changed("expert.safetensors", "''"), "tasks.birds.expert is '', which is no path"),
    "a path with a zero": (changed("expert.safetensors", '"a\\0"'), r"expert is 'a\\x00', which is no path"),
    "a key twice beside a merge": ("a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}\n", "'y' is there twice"),
    "a folder of its own": (PLAIN + "folder: /tmp\n", "folder: there is no such key"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_words(case: str, tmp_path: Path) -> None:
    text, words = BAD[case]
    with pytest.raises(KitError, match=f"(?s){words}"):
        read_suite_file(written(tmp_path, text))


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    text = changed("    expert: expert.safetensors\n", "").replace("base: openai\n", "crop: x\n")
    with pytest.raises(KitError) as caught:
        read_suite_file(written(tmp_path, text))
    told = str(caught.value)
    assert "base: it is missing" in told
    assert "tasks.birds.expert: it is missing" in told
    assert "crop: Input should be" in told


def test_class_names_may_lie_in_a_file_one_in_each_line(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("robin\n blue tit \n\n")
    file = read_suite_file(written(tmp_path, changed("[robin, wren]", "names.txt")))
    assert file.tasks["birds"].classnames == ["robin", "blue tit"]


def test_an_empty_line_between_class_names_is_told(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("robin\n\nwren\n")
    with pytest.raises(KitError, match="the class name 2 of 3 is empty"):
        read_suite_file(written(tmp_path, changed("[robin, wren]", "names.txt")))


def test_a_file_of_class_names_may_begin_with_the_mark_of_utf_8(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("robin\nwren\n", encoding="utf-8-sig")
    file = read_suite_file(written(tmp_path, changed("[robin, wren]", "names.txt")))
    assert file.tasks["birds"].classnames == ["robin", "wren"]


@pytest.mark.parametrize("base", ["~nobody-of-this-name/base", "x" * 5000])
def test_a_base_that_no_system_has_is_a_name_like_others(base: str, tmp_path: Path) -> None:
    assert read_suite_file(written(tmp_path, changed("openai", base))).base.endswith(base)


@pytest.mark.parametrize(
    "other", ["tasks: [1]\nsets: [2]\n", "tasks: {birds: 3}\nsets: {a: 3}\n", "sets: {a: [[1]]}\n"]
)
def test_what_is_wrong_in_the_other_file_is_told_too(other: str, tmp_path: Path) -> None:
    written(tmp_path, "model: a\nbase: b\n" + other, "other.yaml")
    with pytest.raises(KitError, match="is not a valid suite file"):
        read_suite_file(written(tmp_path, "like: other.yaml\ntasks:\n  birds:\n"))


def test_what_is_merged_in_may_be_given_again_at_any_depth(tmp_path: Path) -> None:
    path = written(tmp_path, "a: &a {x: 1}\nd: {e: {b: &b {<<: *a, x: 2}}}\nc: {<<: *b, y: 1}\n")
    assert read_yaml(path, "it")["d"] == {"e": {"b": {"x": 2}}}


def test_whole_paths_lead_anywhere(tmp_path: Path) -> None:
    file = read_suite_file(written(tmp_path, changed("folder: images", "folder: /data/birds")))
    assert file.tasks["birds"].images.folder == "/data/birds"


def test_a_suite_like_another_takes_what_it_does_not_say(tmp_path: Path) -> None:
    text = "like: clip-vit-b-32\ntasks:\n  dtd: {expert: mine/dtd}\n  mnist:\n  svhn: {templates: ['{}']}\n"
    file = read_suite_file(written(tmp_path, text, "mine.yaml"))
    shipped = read_suite_file(reading.SHIPPED / "clip-vit-b-32.yaml")
    assert (file.name, file.model, file.base, file.crop) == ("mine", "ViT-B-32-quickgelu", "openai", "transformers")
    assert list(file.tasks) == ["dtd", "mnist", "svhn"]
    assert file.tasks["dtd"].expert == str(tmp_path / "mine" / "dtd")
    assert file.tasks["dtd"].classnames == shipped.tasks["dtd"].classnames
    assert file.tasks["mnist"] == shipped.tasks["mnist"]
    assert file.tasks["svhn"].templates == ["{}"]
    assert not file.sets  # none of the benchmark's sets is whole any more


def test_the_paths_of_the_other_file_begin_at_the_other_file(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    written(tmp_path / "far", PLAIN)
    file = read_suite_file(written(tmp_path, "like: far/birds.yaml\nname: near\n", "near.yaml"))
    assert file.tasks["birds"].expert == str(tmp_path / "far" / "expert.safetensors")


# What ships


def test_the_shipped_suites_are_suite_files() -> None:
    assert reading.shipped() == tuple(sorted(KEYS))
    assert set(KEYS) < set(SUITES)
    files = {name: read_suite_file(reading.SHIPPED / f"{name}.yaml") for name in KEYS}
    for name, file in files.items():
        assert file.name == name
        assert tuple(file.tasks) == tuple(hub_tasks())
        assert {which: tuple(file.tasks)[:count] for which, count in PREFIXES.items()} == {
            which: tuple(members) for which, members in file.sets.items()
        }
    experts = {file.tasks["dtd"].expert for file in files.values()}
    assert len(experts) == len(files)


def test_the_schema_for_editors_is_the_one_that_is_checked() -> None:
    stored = json.loads((OWN / "suite.schema.json").read_text(encoding="utf-8"))
    assert stored == schema.json_schema(), "write it again: python -m mergekit_lite.suites.own.schema"


def test_every_field_is_described_to_editors() -> None:
    def described(part: Any) -> bool:
        return all("description" in one for one in part["properties"].values())

    stored = schema.json_schema()
    assert described(stored)
    assert all(described(part) for part in stored["$defs"].values())
    assert "folder" not in stored["properties"]


def test_the_example_is_a_suite_file(tmp_path: Path) -> None:
    text = (OWN / "example.yaml").read_text(encoding="utf-8")
    for name in ("eggs", "textures"):
        (tmp_path / f"{name}.txt").write_text("one\ntwo\n")
    file = read_suite_file(written(tmp_path, text, "birds.yaml"))
    assert [task.images.kind for task in file.tasks.values()] == ["folder", "npz", "dataset"]
    assert file.sets == {"garden": ["garden-birds", "eggs"]}


# From commands


def test_a_suite_file_is_found_from_the_folders_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, PLAIN)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert suite_path("birds.yaml") == path
    assert check_name("birds.yaml") == "mergekit_lite.suites.own"
    with pytest.raises(KitError, match=r"There is no suite file 'bees\.yaml' in .*notebooks or above it"):
        check_name("bees.yaml")


def test_a_notebook_is_run_again_when_its_suite_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, template = written(tmp_path, PLAIN), written(tmp_path, "{}", "x.ipynb")
    monkeypatch.chdir(tmp_path)
    before = runner.stamp(template, {"suite": "birds.yaml"}, "library")
    assert runner.stamp(template, {"suite": "birds.yaml"}, "library") == before
    path.write_text(PLAIN + "title: Birds\n")
    assert runner.stamp(template, {"suite": "birds.yaml"}, "library") != before


def test_a_notebook_is_run_again_when_the_class_names_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "names.txt").write_text("robin\nwren\n")
    written(tmp_path, changed("[robin, wren]", "names.txt"), "far.yaml")
    written(tmp_path, "like: far.yaml\n")
    template = written(tmp_path, "{}", "x.ipynb")
    monkeypatch.chdir(tmp_path)
    before = runner.stamp(template, {"suite": "birds.yaml"}, "library")
    (tmp_path / "names.txt").write_text("robin\ncrow\n")
    assert runner.stamp(template, {"suite": "birds.yaml"}, "library") != before


def test_where_a_project_lies_is_no_reason_to_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        written(tmp_path / place, PLAIN)
        monkeypatch.chdir(tmp_path / place)
        stamps.append(runner.stamp(written(tmp_path, "{}", "x.ipynb"), {"suite": "birds.yaml"}, "library"))
    assert stamps[0] == stamps[1]


def test_doctor_and_fetch_look_into_a_suite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.chdir(write_suite(tmp_path).parent)
    first = CliRunner().invoke(app, ["doctor", "tiny.yaml"])
    assert first.exit_code == 0, first.output
    assert "not yet" in first.output
    assert "All is there and fits." in first.output
    brought = CliRunner().invoke(app, ["fetch", "tiny.yaml", "--tasks", "both"])
    assert brought.exit_code == 0, brought.output
    assert "sides: 12 train images" in brought.output
    assert "not yet" not in CliRunner().invoke(app, ["doctor", "tiny.yaml"]).output


def test_doctor_lists_all_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.chdir(write_suite(tmp_path).parent)
    (tmp_path / "experts" / "shades.safetensors").unlink()
    (tmp_path / "images" / "sides" / "test" / "left").rename(tmp_path / "images" / "sides" / "test" / "port")
    told = CliRunner().invoke(app, ["doctor", "tiny.yaml"])
    assert told.exit_code == 1
    assert "There is no checkpoint" in told.output
    assert "Classes without a folder: left. Folders that are no class: port." in told.output


UNFETCHED = """\
name: birds
model: ViT-B-32
base: hf:somebody/birds
tasks:
  garden: {classnames: [robin, crow], images: {folder: images}, expert: "hf:somebody/garden"}
  harbour: {classnames: [gull, tern], images: {dataset: somebody/harbour}, expert: "hf:somebody/harbour@refs/pr/1"}
"""


def test_doctor_lists_the_tasks_of_a_suite_of_which_nothing_is_fetched_and_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    for split in ("train", "test"):
        for name in ("robin", "crow"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 30)).save(tmp_path / "images" / split / name / "1.png")
    (tmp_path / "birds.yaml").write_text(UNFETCHED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", asked)
    told = CliRunner().invoke(app, ["doctor", "birds.yaml"])
    assert told.exit_code == 0, told.output
    words = " ".join(told.output.split())
    assert "garden" in words
    assert "harbour: test images, somebody/harbour" in words
    assert "the base, hf:somebody/birds" in words
    assert "harbour: the expert, hf:somebody/harbour@refs/pr/1" in words
    assert "To bring it, `mergekit-lite fetch birds.yaml`" in words
    assert "HF_HUB_OFFLINE" not in words
    dry = CliRunner().invoke(app, ["fetch", "birds.yaml", "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "the base, hf:somebody/birds" in " ".join(dry.output.split())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = " ".join(CliRunner().invoke(app, ["doctor", "birds.yaml"]).output.split())
    assert "To bring it, unset HF_HUB_OFFLINE and run `mergekit-lite fetch birds.yaml`" in offline


def test_doctor_of_a_profile_says_what_its_suite_file_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "birds.yaml").write_text(UNFETCHED.replace("folder: images", "dataset: somebody/garden"))
    write_notebook(tmp_path, "one", "1")
    write_profile(tmp_path, suite="birds.yaml", one={"name": "harbour"})
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["doctor", "short"])
    assert told.exit_code == 0, told.output
    words = " ".join(told.output.split())
    assert "harbour: the expert, hf:somebody/harbour@refs/pr/1" in words
    assert "garden: the expert" not in words  # no notebook is about it
    assert "To bring it, `mergekit-lite fetch birds.yaml --tasks harbour`" in words
    assert "Without the base weights no encoder can be timed." in words
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "profiles" / "short.yaml").unlink()
    (tmp_path / "profiles").rmdir()
    assert "mergekit-lite init" in " ".join(CliRunner().invoke(app, ["doctor"]).output.split())
