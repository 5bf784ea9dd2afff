"""The page "Run it on a cluster" names commands, options and messages that exist, and its hours are the budgets'."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from mergekit_lite import cli
from mergekit_lite.pipeline.profiles import load
from mergekit_lite.study import engines

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book/cluster.md").read_text(encoding="utf-8")
TABLES = [block for block in re.split(r"\n\n", PAGE) if block.startswith("| Option")]
MESSAGES = [
    part
    for line in re.findall(r"^(\".*)\n: ", PAGE, flags=re.MULTILINE)
    for quoted in re.findall(r'"(.+?)"', line)
    for part in quoted.split(" ...")
    if part.strip(" ,.") not in ("", "not")
]


def test_the_commands_are_ones_of_the_kit() -> None:
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    found = [shlex.split(line[line.index("mergekit-lite ") :], comments=True)[1:] for line in blocks.splitlines()
             if re.search(r"(^| )mergekit-lite ", line)]  # fmt: skip
    assert len(found) >= 8
    for words in found:
        command: Any = typer.main.get_command(cli.app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        context = command.make_context("mergekit-lite", list(words), resilient_parsing=False)
        if context.params.get("profile"):
            load(str(context.params["profile"]), ROOT)
        if context.params.get("engine"):
            engines.check_named(str(context.params["engine"]))


@pytest.mark.parametrize(("table", "name"), list(enumerate(("ray", "slurm"))))
def test_the_tables_have_every_option_of_an_engine(table: int, name: str) -> None:
    first = "".join(line.split("|")[1] for line in TABLES[table].splitlines()[2:])
    options = re.findall(r"`(\w+)", first)
    assert sorted(options) == sorted(engines._KNOWN[name].options)


@pytest.mark.parametrize("words", MESSAGES)
def test_the_messages_that_it_explains_exist(words: str) -> None:
    texts = [
        one.value
        for folder in ("study", "pipeline")
        for path in (ROOT / "mergekit_lite" / folder).rglob("*.py")
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]
    assert any(words.strip(" ,.") in text for text in texts)


def test_the_hours_of_one_gpu_are_those_of_the_budgets() -> None:
    (row,) = re.findall(r"^\| 1 \| (.+) \|$", PAGE, flags=re.MULTILINE)
    for hours, profile in zip(row.split(" | "), ("clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14"), strict=True):
        budget = load(profile, ROOT).budget
        assert budget
        assert budget.time.startswith(f"{hours} on an H100")


def test_its_code_is_python() -> None:
    for code in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL):
        ast.parse(code)
