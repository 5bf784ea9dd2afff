"""What readers contributed to the leaderboard: a folder has a card, and its method passes what `course check` asks."""

from pathlib import Path

import pytest
import yaml

from mergekit_lite.course import checks, pico
from mergekit_lite.methods import load_method

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path for path in (ROOT / "book/leaderboard").iterdir() if path.is_dir())
CARD = ("title", "author", "idea", "knows", "check", "run")

folders = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def test_there_is_an_example() -> None:
    assert FOLDERS


@folders
def test_the_card_says_whose_and_what_it_is_and_how_to_check_it(folder: Path) -> None:
    card = yaml.safe_load((folder / "card.yaml").read_text(encoding="utf-8"))
    assert tuple(card) == CARD
    assert all(isinstance(value, str) and value for value in card.values())
    (info,) = load_method(folder / "method.py")
    assert card["title"] == info.title
    assert card["check"].endswith(f"book/leaderboard/{folder.name}/method.py")


@folders
def test_the_method_passes_every_check(folder: Path) -> None:
    (info,) = load_method(folder / "method.py")
    assert [one for one in checks.run_checks(info, pico.make()) if one.passed is False] == []
