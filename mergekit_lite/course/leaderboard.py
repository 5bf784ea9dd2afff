"""The leaderboard: methods ranked among those that see the same data, with the kit's own as baselines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from mergekit_lite.analysis.accuracy import normalised
from mergekit_lite.analysis.uncertainty import image_spread, interval
from mergekit_lite.cache import written_whole
from mergekit_lite.errors import KitError
from mergekit_lite.methods import Access, all_methods

if TYPE_CHECKING:
    from mergekit_lite.study.records import Cell, Record
    from mergekit_lite.suites.suite import Suite

BASELINES = tuple(
    info.name
    for info in all_methods()
    if info.function.__module__.startswith("mergekit_lite.methods.")
    and info.access is Access.NONE
    and not info.reference
    and info.name != "fixed_coefficients"  # which needs coefficients: alone it is Task Arithmetic
)
"""The kit's methods that see no data: seconds each. Those that learn from images take minutes: name them yourself."""


@dataclass(frozen=True)
class Row:
    """One method on the leaderboard.

    Attributes:
        name: of who handed it in, or of the kit's method.
        title: of the method.
        access: what data it sees.
        accuracy: pool -> average accuracy over its tasks, in percent.
        normalised: the share of the individual experts' accuracy that the merge keeps, in percent: the mean over tasks,
            then over pools.
        interval: 95 % interval of the average of `accuracy` with other test images (percent); None if it is not known.
        seconds: of merging, the mean over the pools.
        baseline: whether it is one of the kit's methods.
        note: what a reader should know.
    """

    name: str
    title: str
    access: str
    accuracy: Mapping[str, float]
    normalised: float
    interval: tuple[float, float] | None
    seconds: float
    baseline: bool = False
    note: str = ""

    @property
    def average(self) -> float:
        """The mean over the pools, in percent."""
        return fmean(self.accuracy.values())


def row(
    name: str,
    records: Mapping[str, "Record"],
    individual: Mapping[str, "Record"],
    sizes: Mapping[str, int],
    *,
    baseline: bool = False,
    note: str = "",
) -> Row:
    """Return the row of one method.

    Args:
        name: of who handed it in, or of the kit's method.
        records: pool -> the method's record; title and access are those of the first.
        individual: pool -> the record of the individual experts on the same question.
        sizes: task -> number of test images, for the interval.
        baseline: whether it is one of the kit's methods.
        note: what a reader should know.

    Raises:
        KitError: there is no record, or one that has none to compare with.
    """
    missing = [pool for pool in records if pool not in individual]
    if missing or not records:
        raise KitError(f"Records of the individual experts are missing: {', '.join(missing) or 'all'}.")
    first = next(iter(records.values()))
    return row_of(
        name,
        (first.title, first.access),
        {pool: one.accuracy for pool, one in records.items()},
        {pool: individual[pool].accuracy for pool in records},
        [one.seconds["merge"] for one in records.values()],
        sizes,
        baseline=baseline,
        note=note,
    )


def row_of(
    name: str,
    method: tuple[str, str],
    accuracy: Mapping[str, Mapping[str, float]],
    individual: Mapping[str, Mapping[str, float]],
    seconds: Sequence[float],
    sizes: Mapping[str, int],
    *,
    baseline: bool = False,
    note: str = "",
) -> Row:
    """Return the row of a method that was measured outside a study, or whose records were opened.

    Args:
        name: of who handed it in, or of the kit's method.
        method: its title and data access.
        accuracy: pool -> task -> accuracy in percent.
        individual: the same of the individual experts.
        seconds: of merging, one for each pool.
        sizes: task -> number of test images, for the interval.
        baseline: whether it is one of the kit's methods.
        note: what a reader should know.
    """
    from mergekit_lite.study.records import Record

    records = {pool: Record.model_construct(accuracy=dict(one)) for pool, one in accuracy.items()}
    # Pools may share images, so their spreads must not be averaged out: the ends are averaged, not the draws.
    ends = [interval(image_spread(record, sizes)) for record in records.values()]
    return Row(
        name=name,
        title=method[0],
        access=method[1],
        accuracy={pool: record.average for pool, record in records.items()},
        normalised=fmean(normalised(one, individual[pool]) for pool, one in accuracy.items()),
        interval=(fmean(low for low, _ in ends), fmean(high for _, high in ends)),
        seconds=fmean(seconds),
        baseline=baseline,
        note=note,
    )


def kit_rows(
    suite: "Suite",
    questions: Mapping[str, "Cell"],
    methods: Sequence[str] = BASELINES,
    *,
    workers: int | None = None,
    folder: Path | None = None,
) -> list[Row]:
    """Return the rows of the kit's own methods, with their default parameters; what is recorded is not computed again.

    Args:
        suite: of the pools.
        questions: pool -> a cell that asks for the individual experts on it; the other methods are asked the same.
        methods: of the kit, by name.
        workers: as for `study.run`.
        folder: as for `study.run`.

    Raises:
        KitError: a cell does not fit the suite, or a method failed.
    """
    from mergekit_lite import study

    cells = {
        (method, pool): cell.model_copy(update={"method": method, "parameters": {}})
        for method in ("individual", *methods)
        for pool, cell in questions.items()
    }
    records = study.run(suite, cells, workers=workers, folder=folder)
    by_method = {name: {pool: records[name, pool] for pool in questions} for name in ("individual", *methods)}
    sizes = {task: count for task, (_, count) in suite.sizes.items()}
    return [row(name, by_method[name], by_method["individual"], sizes, baseline=True) for name in methods]


def place(new: Row, rows: Iterable[Row]) -> tuple[int, int]:
    """Return the place of `new` by normalised accuracy among `rows` of the same data access, and how many these are.

    `new` counts, whether it is among `rows` or not. Equal values share the better place.
    """
    others = [one for one in rows if one.access == new.access and one is not new]
    return 1 + sum(one.normalised > new.normalised for one in others), 1 + len(others)


def ranked(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return data access -> its rows, the best first; accesses in the order of what they show a method."""
    rows = sorted(rows, key=lambda one: -one.normalised)
    known = [*map(str, Access), *sorted({one.access for one in rows} - set(map(str, Access)))]
    groups = {access: [one for one in rows if one.access == access] for access in known}
    return {access: group for access, group in groups.items() if group}


def write_html(rows: Sequence[Row], path: Path, title: str = "Leaderboard") -> None:
    """Write the leaderboard as one file that needs no network: a table for each data access, sorted by a click.

    Raises:
        KitError: there are no rows, or the file cannot be written.
    """
    if not rows:
        raise KitError("There is no row to show on the leaderboard. Grade a submission first.")
    pools = list(dict.fromkeys(pool for one in rows for pool in one.accuracy))
    tables = "\n".join(_table(access, group, pools) for access, group in ranked(rows).items())
    # No script but the one below, and nothing from any host: names are those that students chose.
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';\
 script-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>Compare methods that see the same data. Accuracy is top-1 in percent, the mean over a pool's tasks; normalised is the
share of the individual experts' accuracy that a merge keeps. The interval (95 %) says how far the average accuracy
would move with other test images. Seconds are those of merging. Rows of the kit's own methods are marked. Click a
heading to sort.</p>
{tables}
<script>{_SCRIPT}</script>
</body>
</html>
"""
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _table(access: str, rows: Sequence[Row], pools: Sequence[str]) -> str:
    texts = ("place", "name", "method", "note")
    noted = any(one.note for one in rows)
    heads = [*texts[:3], *pools, *(["average"] if len(pools) > 1 else []), "interval", "normalised", "seconds"]
    heads += ["note"] if noted else []
    body = "\n".join(_line(place(one, rows)[0], one, pools, noted=noted) for one in rows)
    kinds = ["text" if one in texts else "number" for one in heads]
    head = "".join(
        f'<th scope="col" class={kind}><button type="button">{escape(one)}</button></th>'
        for kind, one in zip(kinds, heads, strict=True)
    )
    return (
        f'<h2>Data access: {escape(access)}</h2>\n<div class="wide" tabindex="0" role="region" '
        f'aria-label="Methods with data access {escape(access)}"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _line(place: int, one: Row, pools: Sequence[str], *, noted: bool) -> str:
    low, high = one.interval or (None, None)
    span = f"{low:.1f} – {high:.1f}" if low is not None else "–"
    averages = [one.accuracy.get(pool) for pool in pools] + ([one.average] if len(pools) > 1 else [])
    kit = " <span>kit</span>" if one.baseline else ""
    cells = [
        f"<td>{place}</td>",
        f'<th scope="row">{escape(one.name)}{kit}</th>',
        f"<td>{escape(one.title)}</td>",
        *(_number(value) for value in averages),
        f'<td class="number" data-value="{"" if low is None else low}">{span}</td>',
        _number(one.normalised),
        _number(one.seconds, 2),
        *([f"<td>{escape(one.note)}</td>"] if noted else []),
    ]
    return f"<tr class={'kit' if one.baseline else 'own'}>{''.join(cells)}</tr>"


def _number(value: float | None, digits: int = 1) -> str:
    """Return a cell; what sorts is the number before it was rounded."""
    if value is None:
        return '<td class="number" data-value="">–</td>'
    return f'<td class="number" data-value="{value}">{value:.{digits}f}</td>'


_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#c8ccd0, #4a4f55); --kit: light-dark(#eef2f6, #22282f);
  --quiet: light-dark(#57606a, #9da7b1); }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  background: light-dark(#fff, #14181c); color: light-dark(#1f2328, #e6e8ea); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; min-width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: 0.35em 0.6em; text-align: left; font-weight: normal; }
tbody th { font-weight: 600; }
tr.kit { background: var(--kit); }
tr.kit th { font-weight: normal; }
th span { border: 1px solid var(--line); border-radius: 0.3em; color: var(--quiet); font-size: 0.8em;
  padding: 0 0.3em; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead button { background: none; border: 0; color: inherit; cursor: pointer; font: inherit; font-weight: 600;
  padding: 0; text-align: inherit; white-space: nowrap; }
thead th[aria-sort=ascending] button::after { content: " \\2191"; }
thead th[aria-sort=descending] button::after { content: " \\2193"; }
"""

_SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const rows = [...table.tBodies[0].rows];
    const text = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const numeric = rows.every((row) => text(row) === "" || !Number.isNaN(Number(text(row))));
    // Accuracies begin with the best; names, places and seconds with the first.
    const ways = numeric && !["place", "seconds"].includes(head.textContent) ? ["descending", "ascending"]
      : ["ascending", "descending"];
    const way = ways[(ways.indexOf(head.getAttribute("aria-sort")) + 1) % 2];
    table.querySelectorAll("thead th").forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way);
    rows.sort((a, b) => {
      const [x, y] = [text(a), text(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what has no value is always last
      const order = numeric ? x - y : x.localeCompare(y);
      return way === "ascending" ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}
"""
