"""Tables of an evaluation, in the form that fits: models as rows, or tasks as rows where there are many."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mergekit_lite.evaluate.confusing import Confusion, pairs
from mergekit_lite.evaluate.measuring import Average, Difference, Evaluation, Score
from mergekit_lite.suites.words import spelt

WIDTH = 100
"""Columns where the output is no terminal, which would say how many it has."""

LONG = 9
"""A task's name of more letters is broken at its hyphens and underscores."""


def show(evaluation: Evaluation, console: Console) -> None:
    """Print accuracies with intervals, averages, normalised accuracy and differences to the first model."""
    suite = evaluation.suite
    console.print(Text(f"{spelt(suite.title)}: accuracy in percent, with 95 % intervals over test images."))
    wide = _models_as_rows(evaluation)
    tables = [wide] if _fits(wide, console) else _tasks_as_rows(evaluation, console)
    for table in tables:
        console.print()
        console.print(table)
    console.print()
    for line in _legend(evaluation, short=tables == [wide]):
        console.print(Text(line), style="dim")


def show_confusion(confused: Confusion, evaluation: Evaluation, console: Console) -> None:
    """Print the pairs of classes of one task that a model confuses most often."""
    accuracy = evaluation.scores[confused.model, confused.task].accuracy
    head = f"{confused.model} is least accurate on {confused.task} ({accuracy:.1f} %)."
    found = pairs(confused)
    if not found:
        console.print(Text(f"\n{spelt(head)} It confuses no classes."))
        return
    console.print(Text(f"\n{spelt(head)} What it confuses most often:\n"))
    table = Table(box=None, pad_edge=False)
    for name in ("true class", "taken for"):
        table.add_column(name)
    for name in ("of the class, %", "images"):
        table.add_column(name, justify="right")
    for pair in found:
        table.add_row(Text(spelt(pair.true)), Text(spelt(pair.predicted)), f"{pair.share:.1f}", str(pair.count))
    console.print(table)


def _fits(table: Table, console: Console) -> bool:
    # Measured where there is room enough: a table never asks for more than its console has.
    return Console(width=10_000).measure(table).maximum <= console.width


def _models_as_rows(evaluation: Evaluation) -> Table:
    several = len(evaluation.models) > 1
    table = Table(box=None, pad_edge=False, collapse_padding=True, padding=(0, 1, 1, 0))
    table.add_column("", overflow="fold", max_width=24)
    heads = [_broken(task) for task in evaluation.tasks] + ["average", "normal-\nised"]
    for head in [*heads, *(["to the\nfirst"] if several else [])]:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for model in evaluation.models:
        cells = [
            Text.assemble(f"{one.accuracy:.1f}\n", (f"±{_reach(one):.1f}", "dim"))
            for one in (evaluation.scores[model.name, task] for task in evaluation.tasks)
        ]
        average = evaluation.averages[model.name]
        cells += [Text.assemble((f"{average.accuracy:.1f}", "bold"), (f"\n±{_reach(average):.1f}", "dim"))]
        cells += [Text(_normalised(average))]
        cells += [_short(average.difference)] if several else []
        table.add_row(Text(spelt(model.name)), *cells)
    return table


def _tasks_as_rows(evaluation: Evaluation, console: Console) -> list[Table]:
    """Return tables with as many models each as fit; at least one."""
    names, tables = [model.name for model in evaluation.models], []
    while names:
        some = next(
            (names[:count] for count in range(len(names), 1, -1) if _fits(_tall(evaluation, names[:count]), console)),
            names[:1],
        )
        tables.append(_tall(evaluation, some))
        names = names[len(some) :]
    return tables


def _tall(evaluation: Evaluation, names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in names:
        table.add_column(Text(spelt(name)), justify="right", overflow="fold", max_width=24)
    for task in evaluation.tasks:
        scores = [evaluation.scores[name, task] for name in names]
        table.add_row(task, *(f"{one.accuracy:.1f} ({one.low:.1f} to {one.high:.1f})" for one in scores))
    averages = [evaluation.averages[name] for name in names]
    table.add_section()
    table.add_row(
        "average", *(f"{one.accuracy:.1f} ({one.low:.1f} to {one.high:.1f})" for one in averages), style="bold"
    )
    table.add_row("normalised", *map(_normalised, averages))
    if any(one.difference for one in averages):
        table.add_row("to the first", *(_long(one.difference) for one in averages))
        if not all(one.difference is None or one.difference.decided for one in averages):
            table.add_row(
                "", *("undecided" if one.difference and not one.difference.decided else "" for one in averages)
            )
    return table


def _reach(one: Score | Average) -> float:
    """Return how far the farther end of an interval is away."""
    return max(one.high - one.accuracy, one.accuracy - one.low)


def _normalised(average: Average) -> str:
    return "–" if average.normalised is None else f"{average.normalised:.1f}"


def _short(apart: Difference | None) -> Text:
    if apart is None:
        return Text()
    reach = max(apart.high - apart.points, apart.points - apart.low)
    return Text.assemble(f"{apart.points:+.1f}\n", (f"±{reach:.1f}", "dim"), "" if apart.decided else "\nundecided")


def _long(apart: Difference | None) -> str:
    return "" if apart is None else f"{apart.points:+.1f} ({apart.low:+.1f} to {apart.high:+.1f})"


def _broken(task: str) -> str:
    return task.replace("-", "-\n").replace("_", "_\n") if len(task) > LONG else task


def _legend(evaluation: Evaluation, *, short: bool) -> Iterator[str]:
    """Yield what the rows and columns mean; in short tables an interval is what lies on both sides."""
    counted = {one.images for one in evaluation.scores.values()}
    images = f"{min(counted):,}" if len(counted) == 1 else f"{min(counted):,} to {max(counted):,}"
    yield f"Each task: {images} test images.{' ± is how far the farther end of the interval is away.' if short else ''}"
    yield "normalised: accuracy in percent of what the task's own expert reaches, averaged over tasks."
    if len(evaluation.models) > 1:
        yield (
            f"to the first: points of the average above '{spelt(evaluation.first)}', on the same images; undecided if "
            "the interval holds zero."
        )
    if any(one.normalised is None for one in evaluation.averages.values()):
        wrong = [task for task in evaluation.tasks if not evaluation.scores[evaluation.first, task].expert]
        yield f"– : the expert of {', '.join(wrong)} has no image right, so nothing is normalised by it."
