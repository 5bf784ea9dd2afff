"""What students hand in, for the tests of grading: honest methods, and eight ways to cheat with what each deserves."""

import json
from pathlib import Path

HEAD = "import torch\n\nfrom mergekit_lite.methods import Access, Merged, method\n\n\n"
AVERAGE = "{name: torch.stack([one[name] for one in experts.values()]).mean(dim=0) for name in base}"


def merging(body: str, *, top: str = "", title: str = "A merge", access: str = "NONE", arguments: str = "") -> str:
    """Return the source of a method with this body; `top` comes before it."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    return (
        f'{HEAD}{top}@method(title={title!r}, cite="", access=Access.{access})\n'
        f'def merge(base, experts{arguments}) -> Merged:\n    """Merge."""\n{lines}\n'
    )


HONEST = {
    "file": merging(f"return Merged({AVERAGE})"),
    # One step down the entropy from the average, by the gradient at it.
    "images": merging(
        f"""
weights = {{name: tensor.requires_grad_() for name, tensor in {AVERAGE}.items()}}
with torch.enable_grad():
    loss = 0
    for batch in data.batches(images_per_task=8, steps=2, seed=seed):
        for task, images in batch.items():
            logs = (data.encode(weights, images) @ data.heads[task].T).log_softmax(1)
            loss = loss - (logs.exp() * logs).sum(1).mean()
    steps = torch.autograd.grad(loss, list(weights.values()))
return Merged({{name: (one - 1e-3 * step).detach() for (name, one), step in zip(weights.items(), steps)}})
""",
        access="UNLABELLED",
        arguments=", data, *, seed: int = 0",
    ),
}

BASE = "return Merged(dict(base))"
"""What a cheat falls back on: it earns nothing, so that points would show that the cheat worked."""

CHEATS = {
    "own": merging("return Merged(dict(base), own=dict(experts))", title="=1+1<script>alert(1)</script>"),
    "labels": merging(
        f"""
import gc, sys
found = []
waiting, seen = [data, *(getattr(data, name) for name in dir(data))], set()
frame = sys._getframe()
while frame:
    waiting.extend(frame.f_locals.values())
    frame = frame.f_back
try:
    waiting.extend(gc.get_objects())
except PermissionError:
    pass
while waiting and len(seen) < 20000:
    one = waiting.pop()
    if id(one) in seen:
        continue
    seen.add(id(one))
    try:
        if (hasattr(one, "split") and hasattr(one, "experts")) or (hasattr(one, "labels") and hasattr(one, "images")):
            found.append(one)
        waiting.extend(cell.cell_contents for cell in getattr(one, "__func__", one).__closure__ or ())
    except Exception:
        pass
    waiting.extend(getattr(one, "__dict__", {{}}).values())
if [one for one in found if type(one).__name__ != "Handed"]:
    return Merged({AVERAGE})
{BASE}
""",
        access="UNLABELLED",
        arguments=", data, *, seed: int = 0",
    ),
    "suite": merging(
        f"""
try:
    from mergekit_lite.suites import load_suite
    suite = load_suite("mergekit_lite.course.pico_suite")
except ImportError:
    {BASE}
return Merged({AVERAGE})
"""
    ),
    "patch": merging(
        BASE,
        top=(
            "try:\n    from mergekit_lite.study import evaluation\n"
            "    evaluation.accuracies = lambda suite, merged, tasks, **more: dict.fromkeys(tasks, 100.0)\n"
            "except ImportError:\n    pass\n\n\n"
        ),
    ),
    "names": merging(
        """
known = {"circles": 0.4, "squares": 0.3, "stripes": 0.3}
weights = {}
for name, start in base.items():
    weights[name] = start + sum(known.get(task, 0.0) * (one[name] - start) for task, one in experts.items())
return Merged(weights)
"""
    ),
    "place": merging(
        f"""
average = {AVERAGE}
for name, tensor in base.items():
    tensor.copy_(average[name])
for expert in experts.values():
    for tensor in expert.values():
        tensor.zero_()
{BASE}
"""
    ),
    "cache": merging(
        f"""
import os, shutil
from pathlib import Path
for folder in (Path(os.environ["MERGEKIT_LITE_CACHE"]), Path("CACHE")):
    try:
        folder.mkdir(exist_ok=True)
        (folder / "planted.txt").write_text("planted")
    except OSError:
        pass
{BASE}
"""
    ),
    "never": merging("while True:\n    pass"),
}
"""CACHE stands for the grader's own cache."""

CRASHES = {
    "exit": merging("import os\nos._exit(0)"),
    "forge": merging(
        f"import os\nfor number in range(3, 20):\n    try:\n        os.write(number, b'x' * 99)\n"
        f"    except OSError:\n        pass\n{BASE}"
    ),
}


def hand_in(folder: Path, cache: Path) -> None:
    """Write all of them to `folder`, one a student."""
    folder.mkdir(parents=True)
    for name, source in {**HONEST, **CHEATS, **CRASHES}.items():
        (folder / f"{name}.py").write_text(source.replace('Path("CACHE")', f"Path({str(cache)!r})"), encoding="utf-8")
    student = folder / "with helpers"
    student.mkdir()
    (student / "means.py").write_text(
        "import torch\n\n\ndef mean(tensors):\n    return torch.stack(tensors).mean(dim=0)\n"
    )
    body = "return Merged({name: mean([one[name] for one in experts.values()]) for name in base})"
    (student / "method.py").write_text(merging(body, top="from means import mean\n\n\n"))
    cells = [
        "from mergekit_lite import study\nfrom mergekit_lite.suites import load_suite",
        "suite = load_suite('miniature')",
        merging(f"return Merged({AVERAGE})"),
        "%matplotlib inline\nstudy.run(suite, {})",
    ]
    write_notebook(folder / "notebook.ipynb", cells)


def write_notebook(path: Path, cells: list[str]) -> None:
    """Write a notebook with these cells of code."""
    code: dict[str, object] = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    written = [{**code, "id": f"c{place}", "source": source} for place, source in enumerate(cells)]
    content = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": written}
    path.write_text(json.dumps(content), encoding="utf-8")
