"""A profile is found from anywhere in the project, and what is wrong with one is said in words."""

import ast
import re
from pathlib import Path

import papermill
import pytest

from mergekit_lite.errors import KitError
from mergekit_lite.pipeline import profiles
from mergekit_lite.suites.clip.benchmark import hub_tasks

GOOD = "suite: miniature\ndescription: short\nnotebooks:\n  eight_tasks:\n    steps: 3\n  other:\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "smoke.yaml").write_text(GOOD)
    return tmp_path


def test_a_profile_is_named_after_its_file(root: Path) -> None:
    profile = profiles.load("smoke", root)
    assert (profile.name, profile.suite, profile.description) == ("smoke", "miniature", "short")
    assert profile.notebooks == {"eight_tasks": {"steps": 3}, "other": {}}


def test_the_root_is_found_from_a_folder_below(root: Path) -> None:
    below = root / "notebooks" / "deep"
    below.mkdir()
    assert profiles.find_root(below) == root
    assert profiles.find_root(root) == root


def test_no_root_is_worded(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"Neither .* holds `profiles/` and `notebooks/`\. Change into a clone"):
        profiles.find_root(tmp_path)


def test_an_unknown_profile_lists_those_there_are(root: Path) -> None:
    (root / "profiles" / "miniature.yaml").write_text(GOOD)
    with pytest.raises(KitError, match=r"no profile 'smok'\. Did you mean 'smoke'\? Profiles: miniature, smoke\."):
        profiles.load("smok", root)


@pytest.mark.parametrize("name", ["../profiles/smoke", "", "smoke.yaml"])
def test_a_path_is_no_name_of_a_profile(root: Path, name: str) -> None:
    with pytest.raises(KitError, match="There is no profile"):
        profiles.load(name, root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("suite: [", r"profiles/smoke.yaml is not valid YAML"),
        ("- suite", r"must hold `suite:` and `notebooks:`; it holds list"),
        ("", r"it holds NoneType"),
        (GOOD + "workers: 3\n", r"may hold name, suite, description, budget, engine, notebooks\):\n  workers: Extra"),
        ("notebooks: {a: {}}", r"\n  suite: Field required"),
        ("suite: 3\nnotebooks: {}", r"\n  suite: .*string\n  notebooks: .*at least 1"),
        (GOOD + "name: other\n", r"calls itself 'other'"),
        ("suite: x\nnotebooks: {a: [1]}", r"\n  notebooks.a: .*dictionary"),
        (GOOD + "engine: slrum\n", r"\n  engine: .*There is no engine 'slrum'\. Did you mean 'slurm'\?"),
        (GOOD + "engine: ray adress=auto\n", r"\n  engine: .*no option 'adress'\. Did you mean 'address'\?"),
    ],
)
def test_a_bad_profile_is_worded(root: Path, text: str, words: str) -> None:
    (root / "profiles" / "smoke.yaml").write_text(text)
    with pytest.raises(KitError, match=words):
        profiles.load("smoke", root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("suite: a\nnotebooks: {/etc/passwd: {}}", "notebooks./etc/passwd"),
        ("suite: a\nnotebooks: {../notebooks/one: {}}", "notebooks.../notebooks/one"),
        ("suite: a\nnotebooks: {one/two: {}}", "notebooks.one/two"),
        (f"suite: a\nnotebooks: {{{'x' * 300}: {{}}}}", "should match pattern"),
        ("suite: a\nnotebooks: {2020-01-01: {}}", "valid string"),
        (f"suite: a\nnotebooks: {{one: {{steps: {'9' * 5000}}}}}", "not valid YAML"),
        ("suite: a\nnotebooks: " + "{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("suite: a\nnotebooks: &again [*again]", "not a valid profile"),
        ("!!set {suite, notebooks}", "it holds set"),
        ("!!binary aGVsbG8=", "it holds bytes"),
        ("suite: 2020-01-01\nnotebooks: {one: {}}", "suite"),
        ("suite:\t a\n\tb: c", "not valid YAML"),
    ],
)
def test_a_strange_profile_is_worded(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "odd.yaml").write_text(text)
    with pytest.raises(KitError, match=re.escape(words)):
        profiles.load("odd", tmp_path)


def test_a_folder_in_a_profiles_place_is_worded(tmp_path: Path) -> None:
    (tmp_path / "profiles" / "odd.yaml").mkdir(parents=True)
    with pytest.raises(KitError, match="cannot be read"):
        profiles.load("odd", tmp_path)


SCHEDULE = (
    *("steps", "learning_rate", "task_wise_learning_rate", "images_per_task", "curve_images", "inner_steps"),
    *("inner_learning_rate", "simplex_learning_rate", "samples", "multi_task_steps", "multi_task_learning_rate"),
)


@pytest.mark.parametrize("parameter", SCHEDULE)
def test_the_miniature_has_one_schedule_in_all_its_notebooks(parameter: str) -> None:
    """So that the book's comparisons are of one budget, and notebooks share records."""
    root = Path(__file__).parents[1]
    values: dict[str, set[str]] = {}
    for profile in ("miniature", "miniature-seeds"):
        for name, chosen in profiles.load(profile, root).notebooks.items():
            known = papermill.inspect_notebook(root / "notebooks" / f"{name}.ipynb")
            if parameter in known:
                value = chosen.get(parameter, ast.literal_eval(known[parameter]["default"]))
                values.setdefault(str(value), set()).add(name)
    assert len(values) == 1, values


REAL = ("clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "clip-vit-b-32-pilot")


@pytest.mark.parametrize("name", REAL)
def test_the_budget_of_a_real_profile_says_where_each_number_is_from(name: str) -> None:
    budget = profiles.load(name, Path(__file__).parents[1]).budget
    assert budget
    assert budget.images
    for words in (budget.download, budget.disk, budget.memory, budget.ram, budget.time):
        assert re.search(r"\((computed|measured on|estimated)", words or ""), words
    assert "images:" not in str(budget)  # a number for doctor
    assert len(str(budget).splitlines()) == 5


def test_the_pilots_budget_counts_its_images() -> None:
    """Five cells and the check of the experts see all test images, the check of the base those of the two smallest."""
    root = Path(__file__).parents[1]
    profile = profiles.load("clip-vit-b-32-pilot", root)
    sizes = [hub_tasks()[task].test_images for task in profile.notebooks["pilot"]["tasks"].split(",")]
    assert profile.budget
    assert profile.budget.images == pytest.approx(6 * sum(sizes) + sum(sorted(sizes)[:2]), rel=0.01)


def test_the_real_profiles_ask_the_same() -> None:
    """So that what was computed for one holds for all: they differ in what was published for them only."""
    root = Path(__file__).parents[1]
    asked = [
        {
            notebook: {key: value for key, value in given.items() if not key.startswith(("published_", "multi_task"))}
            for notebook, given in profiles.load(name, root).notebooks.items()
        }
        for name in REAL[:3]
    ]
    assert asked[0] == asked[1] == asked[2]
    assert asked[0]["scaling"]["added"].count(",") == 4


def test_the_notebooks_own_values_are_those_of_the_book() -> None:
    # Run All in Jupyter is the book's own run then. What is longer than a line of a notebook may stand in the profile.
    root = Path(__file__).parents[1]
    for name in ("miniature", "miniature-seeds", "solutions"):
        profile = profiles.load(name, root)
        assert profile.suite == "miniature"
        given = {
            f"{notebook}.{key}": value for notebook, some in profile.notebooks.items() for key, value in some.items()
        }
        assert all(len(f'{key}: str = "{value}"') > 88 for key, value in given.items()), given
