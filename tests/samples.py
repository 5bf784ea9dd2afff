"""Records and a suite with known contents, for what notebooks show."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mergekit_lite.analysis.geometry import Geometry
from mergekit_lite.study.records import Cell, CurvePoint, Provenance, Record

TASKS = ("scenes", "signs", "digits")
TENSORS = (
    ["class_embedding", "conv1.weight"]
    + [f"transformer.resblocks.{block}.{part}" for block in range(2) for part in ("ln_1.weight", "attn.in_proj_weight")]
    + ["ln_post.weight"]
)


def record(method: str, title: str, accuracy: tuple[float, ...], **more: Any) -> Record:
    """Return a record of `method` with accuracy in percent for each of `TASKS`."""
    pool = more.pop("pool", TASKS)
    cell = Cell(
        method=method,
        parameters=more.pop("parameters", {}),
        pool=pool,
        evaluate=TASKS,
        adapt=more.pop("adapt", ()),
        split=more.pop("split", "test"),
    )
    return Record(
        key="0" * 16,
        suite="fake",
        cell=cell,
        title=title,
        access=more.pop("access", "none"),
        cite="",
        accuracy=dict(zip(TASKS, accuracy, strict=True)),
        seconds={"merge": 1.0, "evaluate": 1.0},
        peak_memory_mib=1.0,
        provenance=Provenance.model_validate(
            dict.fromkeys(("python", "torch", "open_clip", "mergekit_lite", "device", "dtype", "code"), "-")
            | {"commit": None, "suite": {}, "started": "2026-01-01T00:00:00Z"}
        ),
        **more,
    )


def records() -> list[Record]:
    """Return five rows: both references, two merges without data, and layer-wise AdaMerging with trace and curve."""
    values = [[0.1 * expert + 0.05 * tensor for tensor in range(len(TENSORS))] for expert in range(3)]
    adapted = record(
        "layer_wise_adamerging",
        "Layer-wise AdaMerging",
        (70.0, 80.0, 96.0),
        access="unlabelled test",
        parameters={"initial": 0.3},
        trace={
            "loss": [3.0, 2.4, 1.5],
            "coefficients": {"experts": list(TASKS), "tensors": TENSORS, "values": values},
        },
        curve=[
            CurvePoint(step=0, accuracy=dict.fromkeys(TASKS, 70.0)),
            CurvePoint(step=3, accuracy=dict.fromkeys(TASKS, 82.0)),
        ],
    )
    return [
        record("pretrained", "Pre-trained", (40.0, 30.0, 50.0)),
        record("simple_average", "Simple average", (60.0, 50.0, 70.0)),
        record("task_arithmetic", "Task Arithmetic", (71.0, 62.0, 77.0)),
        adapted,
        record("individual", "Individual experts", (90.0, 95.0, 99.0)),
    ]


def hard() -> Record:
    """Return a hard Frank-Wolfe run over whole models: two tasks in the loss, two iterations, three vertices."""
    return record(
        "hard_frank_wolfe",
        "FW-Merging (hard)",
        (60.0, 66.0, 30.0),
        adapt=("signs", "scenes"),
        parameters={"oracle": "inner product", "granularity": "model"},
        trace={
            "vertices": ["digits", "scenes", "signs"],
            "tensors": TENSORS,
            "loss": [4.0, 2.0],
            "gap": [3.0, 0.5],
            "chosen": ["scenes", "signs"],
            "scores": [{"digits": 1.5, "scenes": -2.0, "signs": 0.0}, {"digits": 1.0, "scenes": 0.2, "signs": 0.0}],
        },
        curve=[CurvePoint(step=step, accuracy=dict.fromkeys(TASKS, 40.0 + 6 * step)) for step in range(3)],
    )


def soft() -> Record:
    """Return a soft run that picks tensor by tensor: two picks an iteration, one of them with tensors that stay."""
    half = [*["scenes"] * 4, *["digits"] * (len(TENSORS) - 5), None]
    return record(
        "soft_frank_wolfe",
        "FW-Merging (soft)",
        (70.0, 80.0, 50.0),
        adapt=("signs", "scenes"),
        parameters={"oracle": "cosine", "granularity": "tensor"},
        trace={
            "vertices": ["digits", "scenes", "signs"],
            "tensors": TENSORS,
            "loss": [4.0],
            "gap": [-0.5],
            "chosen": [[["signs"] * len(TENSORS), half]],
            "scores": [[{"digits": 1.0, "scenes": 0.0, "signs": -1.0}]],
            "inner": [{"loss": [2.0], "coefficients": [[0.5], [0.7] * len(TENSORS)]}],
        },
    )


def experts() -> list[Record]:
    """Return two single experts, tested on all three tasks."""
    return [
        record("task_arithmetic", "Task Arithmetic", (90.0, 20.0, 50.0), pool=("scenes",)),
        record("task_arithmetic", "Task Arithmetic", (20.0, 90.0, 55.0), pool=("signs",)),
    ]


def geometry(count: int = 3) -> Geometry:
    """Return lengths from 3 % on and cosines, of which the first three experts' are 0.4, -0.1 and hardly below 0."""
    names = tuple([*TASKS, *(f"another-{number}" for number in range(count - 3))][:count])
    cosines = torch.full((count, count), 0.05, dtype=torch.float64)
    for (row, column), value in {(0, 1): 0.4, (0, 2): -0.1, (1, 2): -0.001}.items():
        if column < count:
            cosines[row, column] = cosines[column, row] = value
    return Geometry(names, 0.03 + 0.01 * torch.arange(count, dtype=torch.float64), cosines.fill_diagonal_(1))


def suite(side: int = 8) -> Any:
    """Return a suite of three tasks, ten classes; image i is shade i of 31 all over and of class (i + 3) modulo 10."""
    tasks = {
        name: SimpleNamespace(
            name=name,
            title=name.title(),
            counterpart=name.upper(),
            classnames=tuple(f"{name} <{label}>" for label in range(10)),
            templates=("a drawing of {}.",),
        )
        for name in TASKS
    }
    shades = np.round(np.arange(30) * 255 / 31).astype(np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (30, 3, side, side))
    split = SimpleNamespace(images=images, labels=(np.arange(30) + 3) % 10)
    return SimpleNamespace(
        name="fake",
        title="a <fake>",
        tasks=tasks,
        sizes=dict.fromkeys(TASKS, (60, 1234)),
        split=lambda task, which: split,
    )
