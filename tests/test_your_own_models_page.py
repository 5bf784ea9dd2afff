"""The page "Merge your own models" can be followed: its commands run as they are written, and it names what exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mergekit_lite import cli
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.own import reading

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book/your-own-models.md").read_text(encoding="utf-8")
TUTORIAL = PAGE.partition("## In ten minutes")[2].partition("\n## ")[0]
ROW = re.compile(r"^(\w+) +(\d+\.\d) +(\d+\.\d) +(\d+\.\d) +(\d+\.\d) +(\d+\.\d)", flags=re.MULTILINE)


def commands(text: str) -> list[str]:
    """Return the commands in the page's blocks, each on one line."""
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    return [re.sub(r" +#.*", "", line).strip() for line in blocks.replace("\\\n", " ").splitlines() if line]


def rows(text: str) -> list[list[float]]:
    return [[float(number) for number in row[1:]] for row in ROW.findall(text)]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the tutorial's commands print, in an empty folder; the miniature's experts are those of the user's cache."""
    suite = load_suite("miniature", "cpu")
    suite.prepare(("signs", "digits", "textures"), 2)
    folder = tmp_path_factory.mktemp("newcomer")
    (code,) = re.findall(r"^```python\n(.*?)^```", TUTORIAL, flags=re.MULTILINE | re.DOTALL)
    (folder / "files.py").write_text(code, encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    told = ""
    for command in commands(TUTORIAL):
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        told += done.stdout
    assert {path.name for path in (folder / "merged").iterdir()} == {"model.safetensors", "README.md"}
    return told


def test_the_tutorial_runs_as_it_is_written_and_its_tables_are_those_that_come_out(said: str) -> None:
    found, shown = rows(said), rows(TUTORIAL)
    assert len(shown) == 6
    assert len(found) == len(shown)
    for one, other in zip(found, shown, strict=True):
        # Other processors round otherwise, and some images lie close to a border between classes.
        assert all(abs(left - right) < 1.5 for left, right in zip(one, other, strict=True)), (one, other)


def test_the_tutorial_shows_what_the_command_says(said: str) -> None:
    block = TUTORIAL.partition("```text\n")[2].partition("```")[0]
    told = " ".join(said.split())
    for line in [" ".join(line.split()) for line in block.splitlines() if "memory" not in line]:
        assert line in told


def test_every_command_of_the_page_has_the_options_that_it_is_given() -> None:
    helps: dict[str, str] = {}
    listed = commands(PAGE)
    assert len(listed) > 8
    for command in listed:
        if not command.startswith("mergekit-lite "):
            continue
        name = command.split()[1]
        if name not in helps:
            shown = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
            assert shown.exit_code == 0, name
            helps[name] = shown.stdout
        for option in re.findall(r"(?<= )--?[a-z][a-z-]*", command):
            assert re.search(rf"(?<![\w-]){option}\b", helps[name]), (command, option)


def test_the_suite_files_of_the_page_are_suite_files(tmp_path: Path) -> None:
    whole, short = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    for name in ("eggs", "textures"):
        (tmp_path / f"{name}.txt").write_text("one\ntwo\n")
    (tmp_path / "birds.yaml").write_text(whole)
    (tmp_path / "mine.yaml").write_text(short)
    assert list(reading.read_suite_file(tmp_path / "birds.yaml").tasks) == ["garden-birds", "eggs", "textures"]
    mine = reading.read_suite_file(tmp_path / "mine.yaml")
    assert list(mine.tasks) == ["dtd", "eurosat"]
    assert mine.tasks["eurosat"].images.dataset == "tanganke/eurosat"
