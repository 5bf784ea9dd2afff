"""Parts of the book's pages that are written while it is built: the command line's commands, exercises, schedules.

A page holds one line, such as ``<!-- the commands -->``, and the build puts Markdown in its place. So a page that lists
what exists elsewhere cannot fall behind it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mergekit_lite.pipeline.book import EXECUTED, toc_pages
from mergekit_lite.pipeline.profiles import load
from mergekit_lite.pipeline.runner import check_parameters, notebook_parameters

if TYPE_CHECKING:
    from sphinx.application import Sphinx

COMMANDS = "<!-- the commands -->"
EXERCISES = "<!-- the exercises of {folder} -->"
SCHEDULES = "<!-- the schedules -->"
MEMORY = "<!-- the peak memory -->"
RECIPES = "<!-- the recipes that were tried -->"

_FOLDERS = {"the notebooks": EXECUTED, "the methods": "book/methods/"}
_RANGE = re.compile(r"~?(?:typing\.)?Annotated\[([\w.~]+(?:\[.*?\])?), ~?[\w.]+\((?:[^()]*|annotation=.*?\])\)\]")
_TITLE = re.compile(r"^\*\*(?:\d+\. )?(.+?)\.?\*\*", flags=re.MULTILINE)
_DROPDOWN = re.compile(r"^(:{3,})\{dropdown\} .*?^\1$", flags=re.MULTILINE | re.DOTALL)
_EFFORT = re.compile(r"^\*(Easy|Medium|Hard), (\d+) minutes\.\*$", flags=re.MULTILINE)


def setup(app: "Sphinx") -> dict[str, bool]:
    """Make this module a Sphinx extension; `_config.yml` lists it."""
    app.connect("source-read", _fill_in)
    app.connect("autodoc-process-signature", _plain_types)
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)  # before napoleon, which has 500,
    app.connect("autodoc-process-docstring", _keep_colons, priority=600)  # and after it
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _plain_types(
    app: "Sphinx", what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write signatures as a reader would: no ranges in them, which pydantic checks, and none that Python made up."""
    if signature is None or (what == "class" and signature.startswith(("(*args", "(value, names="))):
        return "", returns  # a protocol, or the values of an enumeration
    if name.startswith("mergekit_lite.course.plan."):  # nobody calls these: they are read from a file
        return "", returns
    while (plain := _RANGE.sub(r"\1", signature)) != signature:  # a range may stand inside another
        signature = plain
    return signature.replace("<factory>", "..."), returns


_kept: dict[str, list[str]] = {}


def _keep_colons(app: "Sphinx", what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give the words below a constant back as they were: napoleon takes words before a colon for a type."""
    if what in ("data", "attribute", "property") and "Raises:" not in lines:
        if name in _kept:
            lines[:] = _kept.pop(name)
        else:
            _kept[name] = list(lines)


def _fill_in(app: "Sphinx", docname: str, source: list[str]) -> None:
    if COMMANDS in source[0]:
        for path in sorted((Path(__file__).parents[1] / "cli").glob("*.py")):
            app.env.note_dependency(str(path))
        source[0] = source[0].replace(COMMANDS, commands())
    root = Path(app.srcdir)
    if SCHEDULES in source[0]:
        for path in sorted((root / "profiles").glob("miniature*.yaml")):
            app.env.note_dependency(str(path))
        source[0] = source[0].replace(SCHEDULES, schedule_table(schedules(root)))
    if MEMORY in source[0]:
        (measured,) = _results(app, root, "fw_memory")
        source[0] = source[0].replace(MEMORY, memory_table(measured))
    if RECIPES in source[0]:
        source[0] = source[0].replace(RECIPES, recipe_table(_results(app, root, "expert_recipes")))
    for words, folder in _FOLDERS.items():
        mark = EXERCISES.format(folder=words)
        if mark in source[0]:
            names = [root / name for name in toc_pages(root) if name.startswith(folder)]
            pages = [path.with_name(path.name + (".ipynb" if folder == EXECUTED else ".md")) for path in names]
            for path in pages:
                app.env.note_dependency(str(path))
            source[0] = source[0].replace(mark, exercise_list(pages, (root / docname).parent))


def _results(app: "Sphinx", root: Path, script: str) -> list[dict[str, Any]]:
    """Return what a script of `benchmarks` measured, a report per file; the page is made anew when one changes."""
    paths = sorted((root / "benchmarks" / "results").glob(f"{script}-*.json"))
    for path in paths:
        app.env.note_dependency(str(path))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def commands() -> str:
    """Return the commands of the command line as Markdown, a section each, as typer writes them."""
    typer = [sys.executable, "-m", "typer", "mergekit_lite.cli", "utils", "docs", "--name", "mergekit-lite"]
    whole = subprocess.run(typer, capture_output=True, check=True, encoding="utf-8").stdout
    return whole[whole.index("\n## ") :]  # without a title: the page has its own


class Schedule(NamedTuple):
    """How long a notebook lets an adaptive method adapt."""

    notebook: str
    method: str
    iterations: int | None  # of Frank-Wolfe
    steps: int | None  # optimiser steps, in each iteration where there are any
    rate: float | None
    images: int  # of each task in a step
    samples: int = 0  # of each task for the gradient of an iteration

    @property
    def travel(self) -> float | None:
        """Steps times learning rate: how far the optimiser can move one coefficient."""
        return None if self.steps is None or self.rate is None else (self.iterations or 1) * self.steps * self.rate

    @property
    def seen(self) -> int:
        """Images of each task in all."""
        return (self.iterations or 1) * ((self.steps or 0) * self.images + self.samples)


_STEPS = (
    ("AdaMerging, layer-wise", "steps", "learning_rate", "images_per_task"),
    ("AdaMerging, task-wise", "steps", "task_wise_learning_rate", "images_per_task"),
    ("AdaMerging, one setting changed", "ablation_steps", "ablation_learning_rate", "ablation_images"),
    ("Multi-task training", "multi_task_steps", "multi_task_learning_rate", "images_per_task"),
)
"""What notebooks call the steps, learning rate and images of each kind of run."""

_INNER = (("inner_learning_rate", ""), ("adam_learning_rate", ", free"), ("simplex_learning_rate", ", simplex"))


def schedules(root: Path, profiles: str = "miniature*") -> list[Schedule]:
    """Return the schedules of the adaptive methods, from the parameters of all notebooks of the book's profiles."""
    found: list[Schedule] = []
    for path in sorted((root / "profiles").glob(f"{profiles}.yaml"), key=lambda path: path.stem):
        profile = load(path.stem, root)
        for notebook in profile.notebooks:
            usual = notebook_parameters(root / "notebooks" / f"{notebook}.ipynb")
            given = {name: one.default for name, one in usual.items()} | check_parameters(profile, notebook, root)
            found += _schedules(notebook, given)
    return found


def _schedules(notebook: str, given: Mapping[str, Any]) -> Iterator[Schedule]:
    for method, *names in _STEPS:
        if all(name in given for name in names):
            yield Schedule(notebook, method, None, *(given[name] for name in names))
    outer = given.get("soft_iterations", given.get("iterations"))
    for name, which in _INNER:
        if name in given:
            images = given.get("inner_images", given.get("images_per_task"))
            steps, samples = given["inner_steps"], given["samples"]
            yield Schedule(notebook, f"Soft FW-Merging{which}", outer, steps, given[name], images, samples)
    hard = given.get("hard_iterations", given["iterations"] if "soft_iterations" in given else None)
    if hard is not None:
        yield Schedule(notebook, "Hard FW-Merging", hard, None, None, 0, given["samples"])


def schedule_table(found: Sequence[Schedule]) -> str:
    """Return the schedules as a Markdown table; titles of notebooks are links."""
    heads = ["Notebook", "Method", "Iterations", "Steps", "Learning rate", "Travel"]
    heads += ["Images a step", "For a gradient", "In all"]
    lines = [f"| {' | '.join(heads)} |", f"| :-- | :-- |{' --: |' * (len(heads) - 2)}"]
    for one in found:
        numbers = (one.iterations, one.steps, one.rate, one.travel, one.images or None, one.samples or None, one.seen)
        texts = ("–" if number is None else f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
                 for number in numbers)  # fmt: skip
        lines.append(f"| [](/{EXECUTED}{one.notebook}.ipynb) | {one.method} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n" if found else "There are none.\n"


def exercise_list(pages: list[Path], folder: Path) -> str:
    """Return the exercises of `pages` as Markdown: a link to each page that has some, and below it their titles.

    Args:
        pages: notebooks and Markdown files, in the order of the list.
        folder: of the page that will hold the list; links are relative to it.
    """
    found = []
    for one in pages:
        text = _text(one)
        titles = exercises(text)
        if titles:
            heading = "exercises" if "\n## Exercises" in text else "exercise"
            link = one.relative_to(folder).as_posix()
            name = next(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
            found.append(f"[{name}]({link}#{heading})\n" + _listed(titles))
    return "\n".join(found) or "There are none.\n"


def _listed(titles: list[str]) -> str:
    return "".join(f"{':' if place == 0 else ' '} * {title}\n" for place, title in enumerate(titles))


def _text(path: Path) -> str:
    """Return the Markdown of a page: of a notebook, that of its Markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join(one if isinstance(one, str) else "".join(one) for one in cells)


def exercises(text: str) -> list[str]:
    """Return the titles of the exercises in a page's Markdown, with level and time where the page gives them.

    A title is the bold words that begin a paragraph outside the drop-downs, an effort a line ``*Easy, 20 minutes.*``.
    """
    section = re.search(r"^## Exercises?$(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    tasks = _DROPDOWN.sub("", section[1]) if section else ""
    parts = _TITLE.split(tasks)[1:]  # a title, what follows it, the next title, ...
    found = []
    for title, words in zip(parts[::2], parts[1::2], strict=True):
        effort = _EFFORT.search(words)
        found.append(title + (f" ({effort[1].lower()}, {effort[2]} minutes)" if effort else ""))
    return found


def recipe_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Return as a Markdown table what `benchmarks/expert_recipes.py` measured: a row per number of tasks and recipe."""
    heads = ["Tasks", "Steps, learning rate", "Length", "Cosine", "Largest fifth", "Simple average"]
    heads += ["Task Arithmetic at 0.3; best", "TIES at 0.3; best", "Fisher, RegMean", "TSV-M, Iso-C", "AdaMerging, ++"]
    lines = [f"| {' | '.join(heads)} |", "| ---: | :--- |" + " ---: |" * (len(heads) - 2)]
    for pool in ("8 tasks", "20 tasks"):
        for report in reports:
            recipe, found = report["recipe"], report[pool]
            held: dict[str, float] = found["held-out"]
            cells = [pool.split()[0], f"{recipe['steps']}, {recipe['learning_rate']:g}"]
            cells += [f"{found['length in percent of the base']:.1f} %", f"{found['mean cosine']:.3f}"]
            cells += [f"{100 * found['share of the largest fifth']:.0f} %", f"{held['simple_average']:.1f}"]
            for method in ("task_arithmetic", "ties_merging"):
                best = max((name for name in held if name.startswith(f"{method} at")), key=lambda name: held[name])
                cells.append(f"{held[f'{method} at 0.3']:.1f}; {held[best]:.1f} ({best.split()[-1]})")
            for pair in (
                ("fisher_merging", "regmean"),
                ("tsv_merging", "iso_c"),
                ("layer_wise_adamerging", "layer_wise_adamerging_plus"),
            ):
                cells.append(", ".join(f"{held[name]:.1f}" for name in pair))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def memory_table(measured: Mapping[str, Any]) -> str:
    """Return as a Markdown table what `benchmarks/fw_memory.py` measured: GiB by method and size of the pool.

    The memory is that of the process without mapped files, before which there was only Python and its libraries.
    """
    pools = measured["options"]["pools"]
    peaks: dict[str, dict[int, float]] = {}
    for name, one in measured["details"].items():
        method, _, pool = name.rpartition(" ")
        peaks.setdefault(method, {})[int(pool)] = one["anonymous"] / 2**30
    lines = [
        f"| Method | {' | '.join(f'{pool} experts' for pool in pools)} | last / first |",
        "| :--- |" + " ---: |" * (len(pools) + 1),
    ]
    for method, found in peaks.items():
        cells = [f"{found[pool]:.2f}" if pool in found else "–" for pool in pools]
        lines.append(f"| `{method}` | {' | '.join(cells)} | {found[max(found)] / found[min(found)]:.2f} |")
    machine = measured["machine"]
    where = f"{machine['processor']}, {machine['threads']} thread, torch {machine['torch']}, {machine['date']}"
    return "\n".join(lines) + f"\n\nGiB at the peak. Measured on {where}.\n"
