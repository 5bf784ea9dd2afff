"""Published accuracies, read from the package's ``reference/`` folder (the README there explains its files)."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from mergekit_lite.errors import KitError

SPELLING = {
    "pretrained": "Pre-trained",
    "individual": "Fine-tuned",
    "simple_average": "Weight Averaging",
    "task_arithmetic": "Task Arithmetic",
    "ties_merging": "Ties-Merging",
    "task_wise_adamerging": "Task-wise AdaMerging",
    "task_wise_adamerging_plus": "Task-wise AdaMerging++",
    "layer_wise_adamerging": "Layer-wise AdaMerging",
    "layer_wise_adamerging_plus": "Layer-wise AdaMerging++",
    "fisher_merging": "Fisher Merging",
    "regmean": "RegMean",
    "multi_task_training": "Traditional MTL",
    "dare": "DARE",
    "consensus": "Consensus TA",
    "tsv_merging": "TSV-M",
    "iso_c": "Iso-C",
    "iso_cts": "Iso-CTS",
    "hard_frank_wolfe": "FW-Merging (hard)",
    "soft_frank_wolfe": "FW-Merging (soft)",
}
"""Our method names and how the file spells the same method."""

CURVES = {"FW-Merging": "soft_frank_wolfe"}
"""What the scaling figures call a method where tables say more; the authors' scripts for these figures run this one."""

MAIN_TABLE = {
    ("AdaMerging", "ViT-B-32", "eight"): "Table 1",
    ("AdaMerging", "ViT-B-16", "eight"): "appendix ViT-B/16",
    ("AdaMerging", "ViT-L-14", "eight"): "Table 2",
}
"""Which table is meant when a paper has several for one model and setting and none is asked for."""

OURS = {theirs: name for name, theirs in SPELLING.items()} | CURVES
"""Our name of each method by the file's."""

DOUBTFUL = {"note": "; from a third-party note", "figure": "; read off a figure"}
"""What a label adds for numbers that were not read where the authors, or a checked re-print, printed them."""


@cache
def reference(name: str) -> pd.DataFrame:
    """Return the package's table ``reference/<name>.csv``."""
    with files("mergekit_lite").joinpath(f"reference/{name}.csv").open(encoding="utf-8") as stream:
        return pd.read_csv(stream)


def accuracies(
    model: str = "ViT-B-32",
    setting: str = "eight",
    paper: str = "AdaMerging",
    table: str | None = None,
    family: str | None = None,
) -> pd.DataFrame:
    """Return the rows of one published table, and so of one family of checkpoints.

    Args:
        model: ``ViT-B-32``, ``ViT-B-16`` or ``ViT-L-14``.
        setting: what was merged and evaluated, for instance ``eight`` or ``twenty``.
        paper: short name of the work, as in the file.
        table: table of that paper; None takes its main table, or its only one.
        family: take the rows of this family only, where a paper printed rows of several into one table.

    Returns:
        A frame with the columns of the file (accuracy in percent) and ``name``: our name of the method, or missing.

    Raises:
        KitError: the file has no such rows, or they belong to several tables; the message lists what there is.
    """
    reported = reference("reported")
    rows = reported[(reported["paper"] == paper) & (reported["model"] == model) & (reported["setting"] == setting)]
    if rows.empty:
        known = reported.loc[reported["paper"] == paper, ["model", "setting"]].drop_duplicates()
        there = "; ".join(f"{m} {s}" for m, s in known.itertuples(index=False))
        hint = f"{paper} has: {there}." if there else f"Papers there are: {', '.join(sorted(set(reported['paper'])))}."
        raise KitError(f"Nothing published for paper {paper!r}, model {model!r}, setting {setting!r}. {hint}")
    tables = list(dict.fromkeys(rows["table"]))
    wanted = table or MAIN_TABLE.get((paper, model, setting)) or (tables[0] if len(tables) == 1 else None)
    if wanted not in tables:
        raise KitError(f"{paper} has no table {wanted!r} for {model}, {setting}. Name one of: {'; '.join(tables)}.")
    rows = rows[rows["table"] == wanted]
    if family is not None:
        there = ", ".join(sorted(set(rows["family"])))
        rows = rows[rows["family"] == family]
        if rows.empty:
            raise KitError(f"{paper}'s {wanted} has no rows of the family {family!r}. Families there are: {there}.")
    rows = rows.reset_index(drop=True)
    rows.insert(0, "name", [OURS.get(method) for method in rows["method"]])
    label(rows)  # refuses rows of two families
    return rows


def label(rows: pd.DataFrame) -> str:
    """Return where published rows come from, for a column head or a legend: ``AdaMerging Table 1, ViT-B/32 (OC-8)``.

    Raises:
        KitError: the rows mix tables, models or families, which must never stand under one head.
    """
    origins = rows[["paper", "table", "model", "family"]].drop_duplicates()
    if len(origins) != 1:
        found = "; ".join(" ".join(origin) for origin in origins.itertuples(index=False))
        raise KitError(f"Published numbers of one table and one checkpoint family are needed, but these are: {found}.")
    paper, table, model, family = (str(value) for value in origins.iloc[0])
    name = "/".join(model.rsplit("-", 1))
    where = table if name in table else f"{table}, {name}"
    doubt = DOUBTFUL.get(rows["trust"].iloc[0], "") if rows["trust"].nunique() == 1 else ""
    return f"{paper} {where} ({family}{doubt})"


def scaling(setting: str, model: str = "ViT-B-32", paper: str = "FW-Merging") -> pd.DataFrame:
    """Return published averages against the number of models added to a pool, read off a figure.

    Args:
        setting: ``irrelevant`` or ``relevant``: the file's settings are these with the number of models behind them.
        model: as for `accuracies`.
        paper: as for `accuracies`.

    Returns:
        Columns ``line`` (our name of the method, where it has one), ``x`` (models added) and ``y`` (accuracy in
        percent), sorted by x. ``frame.attrs["label"]`` says whose numbers these are.

    Raises:
        KitError: nothing of that kind was published.
    """
    reported = reference("reported")
    found = reported["setting"].str.extract(rf"^{setting}-(\d+)$")[0]
    rows = reported[(reported["paper"] == paper) & (reported["model"] == model) & found.notna()]
    if rows.empty:
        raise KitError(
            f"{paper} published no curve {setting!r} for {model}. Take 'irrelevant' or 'relevant', ViT-B-32."
        )
    lines = [OURS.get(method, method) for method in rows["method"]]
    frame = pd.DataFrame({"line": lines, "x": found[rows.index].astype(int), "y": rows["accuracy"]})
    frame = frame.sort_values(["x", "line"], ignore_index=True)
    frame.attrs["label"] = label(rows)
    return frame


def beside(methods: Sequence[str], model: str, setting: str, family: str) -> pd.DataFrame:
    """Return every published average of our `methods` in one setting and family, whichever paper it stands in.

    Args:
        methods: our names.
        model: as for `accuracies`.
        setting: as for `accuracies`; the settings ``relevant-16`` and ``twenty`` are the same question, and both count.
        family: of checkpoints: numbers of two families never stand in one column.

    Returns:
        One row per number: ``name``, ``accuracy``, ``where`` (paper and table, with the doubt of its source).
    """
    same = {"twenty": ["twenty", "relevant-16"]}.get(setting, [setting])
    reported = reference("reported")
    rows = reported[(reported["model"] == model) & reported["setting"].isin(same) & (reported["family"] == family)]
    rows = rows[rows["task"] == "average"]
    texts = rows[["method", "paper", "table", "trust"]].itertuples(index=False)
    named = [
        (OURS[method], accuracy, f"{paper}, {table}{DOUBTFUL.get(trust, '')}")
        for (method, paper, table, trust), accuracy in zip(texts, rows["accuracy"], strict=True)
        if OURS.get(method) in methods
    ]
    named.sort(key=lambda found: methods.index(found[0]))
    return pd.DataFrame(named, columns=["name", "accuracy", "where"])


def average(rows: pd.DataFrame, method: str) -> float | None:
    """Return the published average accuracy of our method `method` in percent; None when these rows do not hold it."""
    found = rows.loc[(rows["name"] == method) & (rows["task"] == "average"), "accuracy"]
    return None if found.empty else float(found.iloc[0])


def agreement(ours: Mapping[str, tuple[float, float]], rows: pd.DataFrame) -> pd.DataFrame:
    """Return our averages beside the published ones, for `figures.scatter`: one row per method that both have.

    Args:
        ours: method name -> mean and standard deviation over seeds, in percent.
        rows: of `accuracies`.

    Returns:
        Columns ``group`` (the method), ``x`` (published), ``y`` (our mean), ``low`` and ``high`` (a standard deviation
        less and more), in percent. ``frame.attrs["label"]`` says whose numbers the published ones are.
    """
    found = [(name, average(rows, name), mean, mean - std, mean + std) for name, (mean, std) in ours.items()]
    frame = pd.DataFrame(found, columns=["group", "x", "y", "low", "high"]).dropna()
    frame.attrs["label"] = label(rows)
    return frame


def by_task(rows: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """Return published accuracies in percent task by task: one row per method of ours, in the table's order.

    Args:
        rows: of `accuracies`.
        tasks: the columns: data sets as a suite's tasks call their counterparts, or averages as the file names them
            (``average``, ``average-seen``, ``average-unseen``). What the rows do not hold is missing.
    """
    known = rows.dropna(subset=["name"])
    table = known.pivot(index="name", columns="task", values="accuracy")
    theirs = [_data_sets().get(_plain(task), {}).get("name", task) for task in tasks]
    return table.reindex(index=list(dict.fromkeys(known["name"])), columns=theirs).set_axis(list(tasks), axis=1)


def coefficients(model: str, variant: str, tasks: Sequence[str], tensors: Sequence[str]) -> list[list[float]]:
    """Return merging coefficients that AdaMerging's authors released, as `fixed_coefficients` takes them.

    Args:
        model: ``ViT-B-32``, ``ViT-B-16`` or ``ViT-L-14``.
        variant: ``Task-wise AdaMerging``, ``Layer-wise AdaMerging``, or one of these with ``++``.
        tasks: data sets as a suite's tasks call their counterparts, K of the benchmark's eight, in the pool's order.
        tensors: names of the image encoder's tensors in open_clip's spelling, in the order of the base weights.

    Returns:
        K rows of one coefficient for each of `tensors`, or of one for all of them in the task-wise variants.

    Raises:
        KitError: nothing was released for that model, variant, task or tensor.
    """
    released = reference("coefficients")
    rows = released[(released["model"] == model) & (released["variant"] == variant)]
    if rows.empty:
        there = "; ".join(
            f"{m} {v}" for m, v in released[["model", "variant"]].drop_duplicates().itertuples(index=False)
        )
        raise KitError(f"No coefficients were released for {model!r}, {variant!r}. There are: {there}.")
    table = rows.pivot(index="row", columns="task", values="coefficient")
    names = [_data_sets().get(_plain(task), {}).get("name") for task in tasks]
    if unknown := [task for task, name in zip(tasks, names, strict=True) if name not in table.columns]:
        there = ", ".join(map(str, table.columns))
        raise KitError(f"No coefficients were released for the data set {unknown[0]!r}. There are: {there}.")
    if len(table) == 1:
        return [[float(table[name].iloc[0])] for name in names]
    order = {name: place for place, name in enumerate(_released_tensors(_blocks(model)))}
    strange = [name for name in tensors if name not in order]
    if strange:
        raise KitError(f"No coefficient was released for the tensor {strange[0]!r} of {model}. Merge that model's own.")
    places = [order[name] for name in tensors]
    return [[float(value) for value in table[name].iloc[places]] for name in names]


def released_tensors(model: str) -> list[str]:
    """Return the names of the image encoder's tensors that coefficients were released for, from input to output.

    Raises:
        KitError: no layer-wise coefficients were released for that model.
    """
    return [name for name in _released_tensors(_blocks(model)) if not name.startswith(".")]


def _blocks(model: str) -> int:
    """Return the number of transformer blocks of a model, from the number of its released rows."""
    released = reference("coefficients")
    rows = released[(released["model"] == model) & (released["variant"] == "Layer-wise AdaMerging")]["row"].nunique()
    if not rows:
        there = ", ".join(dict.fromkeys(released["model"]))
        raise KitError(f"No coefficients were released for the model {model!r}. There are: {there}.")
    return int((rows - 14) // 12)


def _released_tensors(blocks: int) -> list[str]:
    """Return the tensors of the released rows in order: open_clip 2.0's own order, without the text transformer.

    Names with a dot in front are outside the image encoder; no gradient reached them and they stayed at 0.3.
    """
    parts = (
        *("ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias"),
        *("attn.out_proj.weight", "attn.out_proj.bias", "ln_2.weight", "ln_2.bias"),
        *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
    )
    return [
        *(".positional_embedding", ".text_projection", ".logit_scale"),
        *("class_embedding", "positional_embedding", "proj", "conv1.weight", "ln_pre.weight", "ln_pre.bias"),
        *(f"transformer.resblocks.{block}.{part}" for block in range(blocks) for part in parts),
        *("ln_post.weight", "ln_post.bias", ".token_embedding.weight", ".ln_final.weight", ".ln_final.bias"),
    ]


def curves(task: str = "average") -> pd.DataFrame:
    """Return the accuracy of AdaMerging's ViT-B/32 while it adapts, from the authors' logs.

    Args:
        task: one of the eight data sets as the file spells them, or their ``average``.

    Returns:
        One row per method and logged step, in order: columns ``method`` (our name), ``step`` (optimiser steps with a
        learning rate of 0.001) and ``accuracy`` in percent. ``frame.attrs["label"]`` says whose numbers these are.

    Raises:
        KitError: the file has no such task.
    """
    logged = reference("curves")
    rows = logged[logged["task"] == task]
    if rows.empty:
        raise KitError(
            f"No curve was logged for the task {task!r}. There are: {', '.join(sorted(set(logged['task'])))}."
        )
    frame = rows.assign(method=rows["variant"].map(OURS)).sort_values(["method", "step"], kind="stable")
    frame = frame[["method", "step", "accuracy"]].reset_index(drop=True)
    frame.attrs["label"] = "AdaMerging logs, ViT-B/32 (OC-8)"
    return frame


@cache
def _tasks() -> dict[str, Any]:
    with files("mergekit_lite").joinpath("reference/tasks.json").open(encoding="utf-8") as stream:
        found: dict[str, Any] = json.load(stream)
    return found


def _data_sets() -> dict[str, dict[str, Any]]:
    """Return what is known of each data set by each spelling of it."""
    return {_plain(key): task for task in _tasks()["tasks"] for key in (task["title"], task["name"])}


def counterparts(names: Sequence[str], model: str = "ViT-B-32") -> pd.DataFrame:
    """Return what CLIP itself reaches on real data sets, all of one family of checkpoints.

    Args:
        names: data sets as a suite's tasks call their counterparts; case, blanks and hyphens do not matter.
        model: ``ViT-B-32``, ``ViT-B-16`` or ``ViT-L-14``.

    Returns:
        A frame with one row per name, in the given order, and the columns ``title``, ``classes``, ``test images``,
        ``pretrained`` and ``finetuned`` (accuracy in percent); missing where the data set is not one of the twenty.
        ``frame.attrs["label"]`` says whose numbers these are: ``CLIP ViT-B/32 (FB)``.

    Raises:
        KitError: nothing is known for that model.
    """
    short = {"ViT-B-32": "b32", "ViT-B-16": "b16", "ViT-L-14": "l14"}
    if model not in short:
        raise KitError(f"No accuracies of single tasks are known for the model {model!r}. Known: {', '.join(short)}.")
    known = _data_sets()
    rows = []
    for name in names:
        task = known.get(_plain(name), {})
        accuracy = task.get("accuracy", {}).get(short[model], {})
        rows.append(
            {"title": task.get("title"), "classes": task.get("n_classes"), "test images": task.get("n_test")}
            | {column: accuracy.get(column) for column in ("pretrained", "finetuned")}
        )
    columns = ["title", "classes", "test images", "pretrained", "finetuned"]
    frame = pd.DataFrame(rows, columns=columns, index=list(names))
    frame = frame.astype(dict.fromkeys(columns[1:], float))
    frame.attrs["label"] = f"CLIP {'/'.join(model.rsplit('-', 1))} ({_tasks()['family']})"
    return frame


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
