"""The miniature suite: drawn images, heads, experts, and the regime that the book's figures rest on."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import pytest
import torch
from torch.nn.functional import normalize

import mergekit_lite
from mergekit_lite.errors import KitError
from mergekit_lite.methods import task_arithmetic
from mergekit_lite.suites import Suite, Task, load_suite, miniature
from mergekit_lite.suites.miniature import BASE, SIZES
from mergekit_lite.suites.miniature.canvas import Canvas
from mergekit_lite.suites.miniature.captions import everyday
from mergekit_lite.suites.miniature.drawing import DrawnTask, draw, pictures
from mergekit_lite.suites.miniature.naming import targets
from mergekit_lite.suites.miniature.pretraining import PretrainingRecipe, pretrain
from mergekit_lite.suites.miniature.tasks import TASKS
from mergekit_lite.suites.scoring import accuracy
from mergekit_lite.suites.suite import check_tasks, checked_split
from mergekit_lite.weight_files import LazyWeights, read

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@pytest.fixture(scope="session")
def suite() -> Suite:
    """The real suite on the user's own cache: images and experts are made once and stay valid."""
    return load_suite("miniature", "cpu")


def test_the_tasks_stand_for_the_benchmarks_twenty_in_order(suite: Suite) -> None:
    real = json.loads((Path(mergekit_lite.__file__).parent / "reference" / "tasks.json").read_text())["tasks"]
    assert [task.zero_shot for task in TASKS.values()] == [task["accuracy"]["b32"]["pretrained"] for task in real]
    for task, data_set in zip(TASKS.values(), real, strict=True):
        assert plain(task.counterpart) in {plain(data_set["title"]), plain(data_set["name"])}


def plain(title: str) -> str:
    return "".join(letter for letter in title.lower() if letter.isalnum())


def test_eight_and_fourteen_are_the_first_of_the_twenty(suite: Suite) -> None:
    assert suite.names("twenty") == tuple(TASKS)
    assert suite.names("fourteen") == tuple(TASKS)[:14]
    assert suite.names("eight") == tuple(TASKS)[:8]


def test_a_set_larger_than_the_suite_is_refused(suite: Suite) -> None:
    small = copy(suite)
    small.tasks = {name: suite.tasks[name] for name in suite.names("eight")}
    with pytest.raises(KitError, match="Suite 'miniature' has 8 tasks, too few for the set 'twenty'"):
        small.names("twenty")


@every_task
def test_the_same_seed_draws_the_same_bytes(task: DrawnTask) -> None:
    first, again = draw(task, "train", 60), draw(task, "train", 60)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@every_task
def test_splits_and_seeds_share_no_picture(task: DrawnTask) -> None:
    splits = [
        draw(task, "train", 200),
        draw(task, "test", 200),
        draw(task, "pretrain", 200),
        draw(task, "pretrain", 200, seed=1),
    ]
    pictures = [picture.numpy().tobytes() for images, _ in splits for picture in images]
    assert len(set(pictures)) == len(pictures)


@every_task
def test_classes_are_balanced_named_and_many(task: DrawnTask) -> None:
    images, labels = draw(task, "test", 500)
    counts = labels.bincount(minlength=len(task.classes))
    assert images.dtype == torch.uint8
    assert images.shape == (500, 3, 32, 32)
    assert len(task.classes) >= 2
    assert counts.max() - counts.min() <= 1
    assert (
        len({entry.name for entry in task.classes})
        == len({entry.caption for entry in task.classes})
        == len(task.classes)
    )
    assert all("{}" in template for template in task.templates)


@every_task
def test_every_picture_shows_something(task: DrawnTask) -> None:
    images, _ = draw(task, "test", 300)
    assert (
        images.float().flatten(1).std(dim=1).min() > 4
    )  # grey levels; a blank picture with grain alone has about 5 x 0.02


def test_the_digits_beside_a_house_number_tell_nothing_of_it() -> None:
    """With the same random numbers, another digit in the middle leaves the edges as they are."""
    edges = []
    for digit in (3, 8):
        canvas = Canvas(64, np.random.default_rng(0))
        TASKS["numbers"].classes[digit].draw(canvas)
        edges.append(canvas.pixels[:, :, :, [0, 31]])
    assert (edges[0] - edges[1]).abs().mean() < 0.002
    assert edges[0].std() > 0.1


def test_captions_use_everyday_names_and_never_the_benchmarks() -> None:
    task = TASKS["signs"]
    _, labels = draw(task, "pretrain", 500)
    captions = everyday(task, labels, np.random.default_rng(0))
    vague = [caption for caption in captions if not any(entry.caption in caption for entry in task.classes)]
    assert not [caption for caption in captions if any(entry.name in caption for entry in task.classes)]
    assert 0.08 < len(vague) / len(captions) < 0.22
    assert captions == everyday(task, labels, np.random.default_rng(0))


def test_a_name_is_taught_as_badly_as_its_task_asks_for() -> None:
    """With features that tell classes apart for certain, only the random vector can lower the accuracy."""
    rng = np.random.default_rng(0)
    tasks = {name: TASKS[name] for name in ("textures", "digits", "numbers")}
    known = {}
    for name, task in tasks.items():
        labels = torch.arange(50 * len(task.classes)) % len(task.classes)
        centres = normalize(torch.from_numpy(rng.standard_normal((len(task.classes), 64))).float(), dim=1)
        noise = torch.from_numpy(rng.standard_normal((len(labels), 64))).float() / 20
        known[name] = normalize(centres[labels] + noise, dim=1), labels
    taught = targets(tasks, known, rng)
    task, (features, labels) = tasks["textures"], known["textures"]
    head = torch.stack([taught[task.templates[0].format(entry.name)] for entry in task.classes])
    accuracy = 100 * ((features @ head.T).argmax(1) == labels).float().mean()
    assert abs(accuracy - task.zero_shot) < 5
    prompts = {one.format(entry.name) for task in tasks.values() for entry in task.classes for one in task.templates}
    assert set(taught) == prompts
    assert sum("number" in prompt for prompt in taught) == 10  # digits and house numbers share theirs


def test_real_digits_are_split_once_and_for_all() -> None:
    train, held, test = (pictures(TASKS["digits"], which, SIZES) for which in ("train", "held-out", "test"))
    stored, kept, asked = ({picture.numpy().tobytes() for picture in split[0]} for split in (train, held, test))
    assert (len(train[1]), len(held[1]), len(test[1])) == (1268, 106, 423)
    assert not stored & asked
    assert not kept & (stored | asked)
    counts = test[1].bincount().float()
    assert (counts.max() - counts.mean()) / counts.mean() < 0.2
    assert torch.equal(test[0], pictures(TASKS["digits"], "test", SIZES)[0])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_can_be_learnt(task: DrawnTask, suite: Suite) -> None:
    """A linear probe on the base's features, fitted to 400 drawn pictures, is far better than chance on 200 others."""
    features, goals = [], []
    for seed in (7, 8):
        images, labels = draw(task, "pretrain", 400 if seed == 7 else 200, seed=seed)
        with torch.no_grad():
            features.append(suite.encode(suite.base, images))
        goals.append(labels)
    goal = torch.nn.functional.one_hot(goals[0], len(task.classes)).float()
    weights = torch.linalg.lstsq(features[0].T @ features[0] + 0.01 * torch.eye(64), features[0].T @ goal).solution
    accuracy = ((features[1] @ weights).argmax(1) == goals[1]).float().mean()
    chance = 1 / len(task.classes)
    assert accuracy > chance + 0.25 * (1 - chance)


def test_bad_tasks_are_named_with_what_to_do() -> None:
    fine = Task("cats", "Cats", "none", ("tabby", "siamese"), ("a photo of a {}.",))
    with pytest.raises(KitError, match=r"2 tasks called 'cats'. Give each its own name"):
        check_tasks([fine, fine])
    with pytest.raises(KitError, match=r"Task 'cats' has 1 class. Give it two classes or more"):
        check_tasks([replace(fine, classnames=("tabby",))])
    with pytest.raises(KitError, match=r"Task 'cats' has the class 'tabby' more than once. Rename one"):
        check_tasks([replace(fine, classnames=("tabby", "tabby"))])
    for name in ("../cats", "", "a/b", "cats\n", "x" * 101, ".cats"):
        with pytest.raises(KitError, match=r"A task cannot be called '.*', as files bear its name"):
            check_tasks([replace(fine, name=name)])


def test_no_name_is_no_task(suite: Suite) -> None:
    assert suite.names("digits, ,signs,") == ("digits", "signs")  # a text may end with a comma
    with pytest.raises(KitError, match="has no task ''"):
        suite.names(("digits", ""))


def test_bad_images_and_labels_are_named_with_what_to_do() -> None:
    task = Task("cats", "Cats", "none", ("tabby", "siamese"), ("a photo of a {}.",))
    images, labels = np.zeros((4, 3, 32, 32), np.uint8), np.array([0, 1, 0, 1])
    assert checked_split(task, 32, images, labels).images is images
    with pytest.raises(KitError, match=r"Task 'cats': images must be \(N, 3, 32, 32\) uint8, but are .* float64"):
        checked_split(task, 32, images.astype(float), labels)
    with pytest.raises(KitError, match=r"Task 'cats': images must be .* but are \(4, 3, 28, 28\) uint8. Resize"):
        checked_split(task, 32, images[..., :28, :28], labels)
    with pytest.raises(KitError, match="Task 'cats': labels must be one int64 from 0 to 1 for each of 4 images"):
        checked_split(task, 32, images, np.array([0, 1, 2, 1]))


def test_a_class_name_that_the_tokenizer_cuts_off_is_named(suite: Suite) -> None:
    long = Task("cats", "Cats", "none", ("tabby", "very " * 40 + "fluffy"), ("a photo of a {}.",))
    other = copy(suite)
    other.tasks = {"cats": long}
    with pytest.raises(
        KitError, match=r"Task 'cats': the prompt for class 'very .* is cut off. Shorten the class name"
    ):
        other._head("cats")


def test_experts_of_another_seed_are_others(suite: Suite) -> None:
    other = suite.with_expert_seed(1)
    assert other.fingerprint(("digits",), ("digits",)) != suite.fingerprint(("digits",), ("digits",))
    assert suite.with_expert_seed(0).fingerprint(("digits",), ("digits",)) == suite.fingerprint(
        ("digits",), ("digits",)
    )


def test_pretraining_writes_a_base_that_loads_with_its_recipe(tmp_path: Path) -> None:
    recipe = PretrainingRecipe(images=1000, batch_size=100, shard=50, naming_images=100, naming_steps=3)
    path = pretrain(tmp_path / "base.safetensors", recipe, "cpu")
    model = open_clip.create_model("mergekit-lite-miniature", pretrained=str(path))
    assert json.loads(LazyWeights(path).metadata["recipe"])["images"] == 1000
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_the_base_ships_small_and_as_float16() -> None:
    assert BASE.stat().st_size <= 8 * 2**20
    assert {tensor.dtype for tensor in read(BASE).values()} == {torch.float16}


def test_no_prompt_is_cut_off_by_the_tokenizer(suite: Suite) -> None:
    tokenizer = open_clip.get_tokenizer("mergekit-lite-miniature")
    for task in suite.tasks.values():
        texts = [template.format(name) for name in task.classnames for template in task.templates]
        assert (tokenizer(texts)[:, -1] == 0).all(), task.name  # the last place is still padding


def test_heads_are_open_clips_own_zero_shot_classifier_times_the_logit_scale(suite: Suite) -> None:
    model = open_clip.create_model("mergekit-lite-miniature", pretrained=str(BASE)).eval()
    task = suite.tasks["signs"]
    tokenizer = open_clip.get_tokenizer("mergekit-lite-miniature")
    rows = open_clip.build_zero_shot_classifier(model, tokenizer, task.classnames, task.templates).T
    assert torch.allclose(suite.heads["signs"], rows * model.logit_scale.exp(), atol=1e-5)


def test_features_are_open_clips_own(suite: Suite) -> None:
    model = open_clip.create_model("mergekit-lite-miniature", pretrained=str(BASE)).eval()
    images = torch.from_numpy(np.array(suite.split("signs", "test").images[:8]))
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.visual.image_mean, model.visual.image_std))
    with torch.no_grad():
        expected = model.encode_image((images.float() / 255 - mean) / std, normalize=True)
    assert torch.allclose(suite.encode(suite.base, images), expected, atol=1e-6)


def test_the_projection_is_not_among_the_weights(suite: Suite) -> None:
    assert "proj" not in suite.base
    assert set(suite.experts["digits"]) == set(suite.base)


def test_an_unknown_task_is_named_with_the_tasks_there_are(suite: Suite) -> None:
    with pytest.raises(KitError, match=r"no task 'digit'. Did you mean 'digits'\? Tasks: scenes, vehicles"):
        suite.names(["digit"])


def test_an_unknown_suite_is_named_with_the_suites_there_are() -> None:
    with pytest.raises(KitError, match=r"no suite 'minature'. Did you mean 'miniature'\?"):
        load_suite("minature")


def test_names_may_stand_in_one_text(suite: Suite) -> None:
    assert suite.names("scenes, signs") == suite.names(["scenes", "signs"]) == ("scenes", "signs")
    assert suite.names("digits") == ("digits",)
    with pytest.raises(KitError, match=r"no task 'sings'. Did you mean 'signs'\?"):
        suite.names("scenes,sings")
    with pytest.raises(KitError, match=r"no task 'eigth'. Did you mean 'eight'\?"):
        suite.names("eigth")
    with pytest.raises(KitError, match="No task is named"):
        suite.names(" ")


def test_a_module_anywhere_can_make_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "my_suite.py").write_text("def load(name, device):\n    return name, device.type\n")
    (package / "empty.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert cast(Any, load_suite("my_package.my_suite", "cpu")) == ("my_package.my_suite", "cpu")
    assert cast(Any, load_suite("my_package.my_suite@OC-8", "cpu")) == ("my_package.my_suite@OC-8", "cpu")
    with pytest.raises(KitError, match=r"The module my_package.empty has no function `load\(name, device\)`"):
        load_suite("my_package.empty", "cpu")
    for wrong in ("my_package.nothing", "nothing.at_all", "my_package", "../my_package.my_suite"):
        with pytest.raises(KitError, match=r"There is no suite .* or the dotted path of a module"):
            load_suite(wrong, "cpu")


def test_a_fingerprint_holds_hashes_and_no_class_names(suite: Suite) -> None:
    known = suite.fingerprint(("digits",), ("signs",), ("faces",))
    assert {name: list(known[name]) for name in ("experts", "heads", "data", "training data")} == {
        "experts": ["digits"],
        "heads": ["signs"],
        "data": ["digits", "signs"],
        "training data": ["faces"],
    }
    hashes = [known["base"], *(one for name in ("experts", "heads", "data") for one in known[name].values())]
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in hashes)
    other = copy(suite)
    other.tasks = {**suite.tasks, "signs": replace(suite.tasks["signs"], templates=("a {}.",))}
    assert other.fingerprint((), ("signs",))["heads"] != suite.fingerprint((), ("signs",))["heads"]


def test_an_unusable_device_is_refused() -> None:
    with pytest.raises(KitError, match="Device 'no-such-device' cannot be used here"):
        load_suite("miniature", "no-such-device")
    with pytest.raises(KitError, match="Device 'meta' cannot be used here"):  # its tensors hold nothing
        load_suite("miniature", "meta")


def test_a_suite_that_cannot_be_imported_is_worded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for package, broken in (("own_suites", "suite.py"), ("own_broken", "__init__.py")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / broken).write_text("1 / 0")
        with pytest.raises(KitError, match=rf"'{package}.suite' cannot be imported: ZeroDivisionError: division by z"):
            load_suite(f"{package}.suite")


def test_the_regime_is_that_of_clip_merging(suite: Suite) -> None:
    """Good features under badly fitting heads, strong experts, and a sum of task vectors in between."""
    names = suite.names("eight")
    suite.prepare(names, workers=1)
    merged = task_arithmetic(suite.base, {name: suite.experts[name] for name in names})
    zero_shot = [accuracy(suite, suite.base, name) for name in names]
    experts = [accuracy(suite, suite.experts[name], name) for name in names]
    sums = [accuracy(suite, merged.for_task(name), name) for name in names]
    assert 40 <= np.mean(zero_shot) <= 56
    assert np.mean(experts) >= 88
    assert min(experts) >= 70
    assert np.mean(sums) >= np.mean(zero_shot) + 12


def test_a_worker_that_ends_while_it_makes_an_expert_is_worded(
    suite: Suite, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: Any) -> Iterator[tuple[str, Callable[[], None]]]:
        def outcome() -> None:
            raise BrokenProcessPool("A process in the process pool was terminated abruptly")

        yield "signs", outcome

    monkeypatch.setattr(miniature, "side_by_side", ended)
    with pytest.raises(KitError, match=r"the expert of 'signs' ended abruptly.* Finished experts are kept"):
        suite.prepare(("signs",), workers=2)
