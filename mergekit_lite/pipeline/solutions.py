"""The book without the solutions of its exercises, for teachers whose students read it, too.

A solution is a drop-down titled "A solution", the answer of a quiz one titled "Answer", and a notebook of solutions is
one whose name ends in ``_solutions``. All three are in the book unless it is built without them.
"""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SWITCH = "MERGEKIT_LITE_SOLUTIONS"
"""The environment variable that a build without solutions finds at 0."""

SUFFIX = "_solutions"

# The closing colons are as many as the opening ones, so that a solution may hold boxes of fewer.
_ANSWER = re.compile(r"^(:{3,})\{dropdown\} (?:A solution|Answer)$.*?^\1$\n*", flags=re.MULTILINE | re.DOTALL)


def without_answers(text: str) -> str:
    """Return a page's Markdown without the drop-downs that hold solutions and answers."""
    return _ANSWER.sub("", text)


def notebook_without_answers(text: str) -> str:
    """Return a notebook, as JSON, without those drop-downs in its Markdown cells."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = without_answers("".join(cell["source"]))
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def toc_without_solutions(text: str) -> str:
    """Return a table of contents without the notebooks of solutions, and without parts that then hold nothing."""

    def kept(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: kept(value) for key, value in node.items()}
        if isinstance(node, list):
            wanted = [kept(one) for one in node if not str(one.get("file", "")).endswith(SUFFIX)]
            return [one for one in wanted if one.get("chapters", True)]
        return node

    return yaml.safe_dump(kept(yaml.safe_load(text)), sort_keys=False)


def strip_sources(pages: Path) -> None:
    """Take the answers out of the sources below `pages` that a built book offers for download."""
    for path in pages.rglob("*"):
        if path.suffix in (".md", ".ipynb"):
            text = path.read_text(encoding="utf-8")
            strip = without_answers if path.suffix == ".md" else notebook_without_answers
            path.write_text(strip(text), encoding="utf-8")


def setup(app: "Sphinx") -> dict[str, bool]:
    """Make this module a Sphinx extension; `_config.yml` lists it."""
    app.connect("source-read", _strip, priority=400)  # before parts of a page are written that may quote others
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _strip(app: "Sphinx", docname: str, source: list[str]) -> None:
    if os.environ.get(SWITCH) == "0":
        strip = notebook_without_answers if app.env.doc2path(docname).endswith(".ipynb") else without_answers
        source[0] = strip(source[0])
