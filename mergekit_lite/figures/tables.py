"""Tables of records as plain HTML, and `glue`, which lets the book's pages quote a notebook's results."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from IPython.core.formatters import format_display_data
from IPython.display import HTML, display

from mergekit_lite.analysis.accuracy import KNOWLEDGE, accuracy_frame, marked, shared_tasks
from mergekit_lite.errors import KitError
from mergekit_lite.methods import registry

if TYPE_CHECKING:
    from mergekit_lite.study.records import Record
    from mergekit_lite.suites.suite import Suite

REFERENCES = frozenset({"pretrained", "individual", "multi_task_training"})
"""Methods that merge nothing: where merging starts from and what it could reach. They are never called the best."""


_CELL = "padding:0.3em 0.45em;text-align:left"  # narrow: twelve columns have to fit a page


def title(name: str) -> str:
    """Return the title of the method called `name`, or the name itself if no method is called so."""
    return next((info.title for info in registry.all_methods() if info.name == name), name)


def accuracy_table(
    records: Iterable["Record"], published: pd.DataFrame | None = None, caption: str | None = None
) -> HTML:
    """Return the table of `accuracy.accuracy_frame` as plain HTML: no script, the same bytes for the same records.

    The best merged value of each column is bold, in the published column too; the references do not compete. A dagger
    marks what had not converged, and the caption says so.
    """
    records = list(records)
    frame = accuracy_frame(records, published)
    numbers = list(frame.columns[1 + len(KNOWLEDGE) :])
    tasks = numbers[: numbers.index("average")]
    merged = frame[~frame.index.isin(REFERENCES)]
    best = {column: merged[column].round(1).max() for column in numbers}  # rounded as shown: equal looks, equally bold
    if caption is None:
        caption = (
            f"Top-1 accuracy in percent on {len(tasks)} tasks. Bold: the best merged model of a column. Images and "
            "labels: how many were shown, one that was seen twice counts twice."
        )
        if published is not None:
            caption += (
                f" The published average is that of {numbers[-1]}: other models, and on a drawn suite"
                " other images, so compare the order and the gaps."
            )
    if any(record.converged is False for record in records):
        caption += " †: not converged, the objective was still falling when the steps ended."
    rows = []
    for record, name, row in zip(records, frame.index, frame.itertuples(index=False), strict=True):
        competes = name not in REFERENCES
        title, access, images, labels, told, *values = row
        title = marked(title, record) + ("" if competes else " (reference)")
        cells = [_title(title), _text(access), _count(images), _count(labels), _text(told)]
        for column, value in zip(numbers, values, strict=True):
            cells.append(_number(value, bold=competes and round(value, 1) == best[column]))
        rows.append(cells)
    head = [_head("method"), *(_head(text, width=5) for text in KNOWLEDGE)]
    head += [*(_head(task, upright=True) for task in tasks), _head("average")]
    # What is printed where has a long name, which would make the whole head tall: the caption says it.
    return _table(head if published is None else [*head, _head("published average", width=5)], rows, caption)


def task_table(suite: "Suite", tasks: Sequence[str]) -> HTML:
    """Return a table of `tasks`: what each stands for, how many classes and test images it has, and a prompt."""
    heads = [_head(text) for text in ("task", "stands for", "classes", "test images", "a prompt")]
    rows = []
    for name in tasks:
        task = suite.tasks[name]
        prompt = task.templates[0].format(task.classnames[0])
        sizes = [_number(size, digits=0) for size in (len(task.classnames), suite.sizes[name][1])]
        rows.append([_title(f"{task.title} ({name})"), _text(task.counterpart), *sizes, _text(prompt)])
    return _table(heads, rows, f"The {len(tasks)} tasks of this page, from the suite {suite.title}.")


def regime_table(
    suite: "Suite",
    tasks: Sequence[str],
    zero_shot: "Record",
    experts: "Record",
    theirs: pd.DataFrame,
    caption: str | None = None,
) -> HTML:
    """Return a table of tasks: what each stands for, its size, and what we and CLIP reach without and with an expert.

    Args:
        suite: where the tasks come from.
        tasks: one row each.
        zero_shot: the pre-trained model on these tasks, or on more.
        experts: the expert of each task on its own task.
        theirs: `published.counterparts` of the tasks, in the same order.
        caption: None says what is seen.
    """
    label = theirs.attrs["label"]
    texts = ("task", "stands for", "classes", "training images", "test images")
    heads = [_head(text) for text in (*texts, "zero-shot", "expert", f"zero-shot, {label}", f"fine-tuned, {label}")]
    rows = []
    for name, (_, real) in zip(tasks, theirs.iterrows(), strict=True):
        task = suite.tasks[name]
        sizes = [_number(size, digits=0) for size in (len(task.classnames), *suite.sizes[name])]
        ours = [_number(record.accuracy[name]) for record in (zero_shot, experts)]
        real_numbers = [_number(real[column]) for column in ("pretrained", "finetuned")]
        rows.append([_title(f"{task.title} ({name})"), _text(task.counterpart), *sizes, *ours, *real_numbers])
    means = [_number(sum(record.accuracy[name] for name in tasks) / len(tasks)) for record in (zero_shot, experts)]
    means += [_number(theirs[column].mean(skipna=False)) for column in ("pretrained", "finetuned")]
    rows.append([_title("average"), *[_text("")] * 4, *means])
    if caption is None:
        caption = (
            f"The {len(tasks)} tasks of this page, from the suite {suite.title}; top-1 accuracy in percent. The last "
            f"two columns are {label} on the real data sets, published by FusionBench."
        )
    return _table(heads, rows, caption)


class Link(NamedTuple):
    """A cell of `plain_table` that leads to another page; `target` is relative to the page in the built book."""

    text: str
    target: str


def plain_table(
    heads: Sequence[str], rows: Sequence[Sequence[str | float | Link]], caption: str, digits: int = 1
) -> HTML:
    """Return a table of texts and numbers as plain HTML; a book shows a Markdown table that code made as mere text.

    Args:
        heads: one for each column.
        rows: the first cell of each is its title; texts and links are left-aligned, numbers right-aligned, NaN is a
            dash.
        caption: what is seen, with units.
        digits: decimals of the numbers.

    Raises:
        KitError: a row has not as many cells as there are heads.
    """
    body = []
    for first, *rest in rows:
        if 1 + len(rest) != len(heads):
            raise KitError(f"The row of {first!r} has {1 + len(rest)} cells, but there are {len(heads)} columns.")
        body.append([_title(str(first)), *(_cell(one, digits) for one in rest)])
    return _table([_head(head) for head in heads], body, caption)


def sources_table(records: Iterable["Record"], theirs: pd.DataFrame, family: str) -> HTML:
    """Return a table of published averages beside ours, each with the place where it stands.

    Args:
        records: ours, all on the same tasks.
        theirs: `published.beside` of their methods.
        family: of the published checkpoints.
    """
    records = list(records)
    rows = []
    for record in records:
        found = theirs[theirs["name"] == record.cell.method]
        for value, where in zip(found["accuracy"], found["where"], strict=True):
            numbers = [_number(record.average), _number(value)]
            rows.append([_title(record.title), _text(record.access), *numbers, _text(where)])
    heads = [_head(text) for text in ("method", "data access", "here", f"published ({family})", "where")]
    caption = f"Averages over {len(shared_tasks(records))} tasks in percent, with every published one of the family "
    return _table(heads, rows, f"{caption}{family}.")


def deviations(
    records: "Iterable[Record] | Mapping[Any, Record]", recipes: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """Return a list in Markdown of the parameters in which records differ from their methods' defaults.

    Args:
        records: what ran; each line begins with the record's title, or with the name in a mapping (a method's name is
            written as its title, the parts of a tuple are joined by commas). Equal lines appear once.
        recipes: a method's name, or the name in a mapping, which goes first -> values to compare with instead.
    """
    recipes, lines = recipes or {}, []
    named = list(records.items()) if isinstance(records, Mapping) else [(record.title, record) for record in records]
    for name, record in named:
        method = record.cell.method
        usual = registry.resolve(method, recipes.get(name, recipes.get(method, {})))
        given = registry.resolve(method, record.cell.parameters)
        changes = [f"{key} {given[key]} instead of {value}" for key, value in usual.items() if given[key] != value]
        if changes:
            parts = name if isinstance(name, tuple) else (name,)
            lines.append(f"* {', '.join(title(str(part)) for part in parts)}: {', '.join(changes)}")
    return "\n".join(dict.fromkeys(lines)) or "* All methods ran with their defaults."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> HTML:
    # "dataframe" is the class by which Jupyter and the book's theme know a table, in light and in dark mode.
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return HTML(
        f'<div role="region" tabindex="0" aria-label="{escape(caption)}" style="overflow-x:auto">\n'
        '<table class="dataframe kit-table">\n'
        f'<caption style="caption-side:top;text-align:left">{escape(caption)}</caption>\n'
        f"<thead><tr>{''.join(head)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _head(text: str, *, upright: bool = False, width: int = 9) -> str:
    """Return a column head, at most `width` em wide; `upright` turns it, so that a column of numbers stays narrow."""
    wide = f"display:inline-block;max-width:{width}em"
    inner = f'<span style="{"writing-mode:vertical-rl;transform:rotate(180deg)" if upright else wide}">{escape(text)}'
    return f'<th scope="col" style="vertical-align:bottom;{_CELL}">{inner}</span></th>'


def _title(text: str) -> str:
    return f'<th scope="row" style="{_CELL}">{escape(text)}</th>'


def _cell(content: str | float | Link, digits: int) -> str:
    if isinstance(content, Link):
        return f'<td style="{_CELL}"><a href="{escape(content.target)}">{escape(content.text)}</a></td>'
    return _text(content) if isinstance(content, str) else _number(content, digits=digits)


def _text(text: str) -> str:
    return f'<td style="{_CELL}">{escape(text)}</td>'


def _number(value: float, *, bold: bool = False, digits: int = 1) -> str:
    text = "–" if pd.isna(value) else f"{value:.{digits}f}"
    return f'<td style="{_CELL};text-align:right">{f"<strong>{text}</strong>" if bold else text}</td>'


def _count(count: int) -> str:
    """Return a cell with `count` in three digits: 640, 12.8k, 1.02M; a dash for none."""
    text = f"{count}" if count < 1000 else f"{count / 1e3:.3g}k" if count < 999_500 else f"{count / 1e6:.3g}M"
    return f'<td style="{_CELL};text-align:right">{text if count else "–"}</td>'


def glue(key: str, value: Any, *, show: bool = False) -> None:
    """Store `value` in the executed notebook under `key`, so that a page of the book can quote it.

    It writes what ``myst_nb.glue`` writes. It is here so that a notebook runs where the book's tools are not installed.

    Args:
        key: name by which pages quote the value.
        value: text or anything that a notebook can display.
        show: also display it here.
    """
    bundle, metadata = format_display_data(value)
    prefix = "" if show else "application/papermill.record/"
    stored = {prefix + kind: content for kind, content in bundle.items()}
    display(stored, raw=True, metadata={**metadata, "scrapbook": {"name": key, "mime_prefix": prefix}})
