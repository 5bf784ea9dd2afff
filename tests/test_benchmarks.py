"""The benchmark scripts at toy size: they run, what they compare agrees, and their records say what was measured."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the scripts are no part of the installed package

from benchmarks import (  # noqa: E402
    adamerging_step,
    evaluation_throughput,
    expected_times,
    frank_wolfe_step,
    fw_memory,
    gpu,
    measuring,
    merge_memory,
    merge_throughput,
    models,
    regmean_merge,
)

TOY: dict[str, Any] = {"blocks": 1, "width": 64}

Script = tuple[Callable[..., None], dict[str, Any]]
SCRIPTS: dict[str, Script] = {
    "adamerging_step": (adamerging_step.main, {"pool": 2, "images": 2, "steps": 2}),
    "fw_memory": (fw_memory.main, {"pools": "2,3", "distinct": 2}),
    "merge_memory": (merge_memory.main, {"pool": 3}),
    "merge_throughput": (merge_throughput.main, {"pool": 2, "repeats": 1}),
    "frank_wolfe_step": (frank_wolfe_step.main, {"pools": "2", "tasks": 2, "images": 4, "iterations": 1}),
    "regmean_merge": (regmean_merge.main, {"pool": 2, "rows": 64, "repeats": 1}),
    "evaluation_throughput": (evaluation_throughput.main, {"only": "ViT-B-32", "images": 6, "repeats": 1}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process (starting one takes seconds), and without FusionBench (so does importing it)."""

    def call(work: Callable[..., dict[str, Any]], **options: Any) -> measuring.Measured:
        result = json.loads(json.dumps(work(**json.loads(json.dumps(options)))))
        return measuring.Measured(result, measuring.peak_resident(), None)

    monkeypatch.setattr(measuring, "in_own_process", call)
    monkeypatch.setattr(models, "peer", lambda name: None)


def run(name: str, folder: Path, results: Path) -> dict[str, Any]:
    main, options = SCRIPTS[name]
    main(**options, **TOY, folder=folder, results=results)
    (record,) = results.glob(f"{name}-*.json")
    return json.loads(record.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_prints_ratios_and_keeps_them(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(name, folder, tmp_path)
    printed = capsys.readouterr().out
    assert record["ratios"]
    for ratio in record["ratios"]:
        assert f"ratio {ratio['what']}: {ratio['value']:.3g}" in printed
        assert ratio["value"] >= 0
    assert record["machine"]["torch"] == torch.__version__
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["options"]["blocks"] == 1
    assert str(folder) not in json.dumps(record)  # records are published


def test_gradients_agree_at_toy_size(folder: Path, tmp_path: Path) -> None:
    details = run("adamerging_step", folder, tmp_path)["details"]
    assert 0 < details["plain"]["difference"] < 1e-4
    assert set(details) == {"floor", "ours", "plain"}


def test_merges_agree_at_toy_size(folder: Path, tmp_path: Path) -> None:
    details = run("merge_throughput", folder, tmp_path)["details"]
    assert all(0 < details[name]["difference"] < 1e-4 for name in ("tsv_merging", "iso_c", "iso_cts"))
    assert 0 < run("regmean_merge", folder, tmp_path)["details"]["plain"]["difference"] < 1e-4


def test_scores_agree_at_toy_size(folder: Path, tmp_path: Path) -> None:
    details = run("frank_wolfe_step", folder, tmp_path)["details"]
    ours, plain = details["ours 2"]["scores"], details["plain 2"]["scores"]
    assert set(ours) == {"task00", "task01", "start"}
    assert ours == pytest.approx(plain, rel=1e-4, abs=1e-6)  # sums of cosines


def test_what_differs_is_not_compared(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = adamerging_step.plain

    def wrong(*args: Any) -> None:
        monkeypatch.setattr(adamerging_step, "INITIAL", 0.6)
        plain(*args)

    monkeypatch.setitem(adamerging_step.IMPLEMENTATIONS, "plain", wrong)
    with pytest.raises(RuntimeError, match="nothing to compare"):
        run("adamerging_step", folder, tmp_path)
    with pytest.raises(RuntimeError, match="nothing to compare"):
        frank_wolfe_step.difference({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.1})


def test_autocast_computes_the_gradient_in_float32_first(folder: Path) -> None:
    place = str(models.write_models(folder, 2, **TOY))
    options = {"pool": 2, "images": 2, "steps": 2, "device": "cpu", "autocast": True, "model": "ViT-B-32", **TOY}
    adamerging_step.measure("ours", place, **options)
    assert adamerging_step.measure("plain", place, **options)["difference"] < 1e-4


def test_a_step_is_measured_in_every_place_and_of_other_models(folder: Path, tmp_path: Path) -> None:
    toy = {**TOY, "pool": 3, "images": 2, "steps": 2, "distinct": 2, "folder": folder, "results": tmp_path}
    adamerging_step.main(**toy, model="ViT-L-14", only="ours", places="pinned,mapped,bfloat16")
    (record,) = tmp_path.glob("adamerging_step-vit-l-14-pool-3-*.json")
    details = json.loads(record.read_text(encoding="utf-8"))["details"]
    assert [one["place"] for one in details.values()] == [
        "the device",
        "a file that is mapped into memory",
        "the device, rounded to bfloat16",
    ]
    assert details["ours, mapped"]["bank bytes"] == 2 * details["ours, bfloat16"]["bank bytes"]
    assert 0 < details["ours, bfloat16"]["difference"] < 1e-2
    assert os.environ.get("MERGEKIT_LITE_BANK") is None


def test_evaluations_agree_at_toy_size(folder: Path, tmp_path: Path) -> None:
    found = run("evaluation_throughput", folder, tmp_path)["details"]["ViT-B-32"]
    assert found["images"] == 6
    assert found["ways"]["ours"]["accuracy"] == found["ways"]["plain"]["accuracy"]
    assert found["images a second"]["ours"] == pytest.approx(6 / found["ways"]["ours"]["seconds"])


def test_expected_times_follow_from_the_records_of_this_machine(tmp_path: Path) -> None:
    def record(script: str, name: str, **contents: Any) -> None:
        path = tmp_path / f"{script}-{name}.json"
        path.write_text(json.dumps({"machine": models.machine(), **contents}), encoding="utf-8")

    elsewhere = {**models.machine(), "gpu": "another"}
    record("evaluation_throughput", "a", details={"ViT-B-32": {"images a second": {"ours": 5000.0}}})
    for name, pool, seconds in (("a", 8, 0.1), ("b", 20, 0.3)):
        options = {"pool": pool, "images": 16, "model": "ViT-B-32"}
        record("adamerging_step", name, options=options, details={"ours": {"seconds": seconds}})
    record("adamerging_step", "c", machine=elsewhere, options=options, details={"ours": {"seconds": 9.0}})
    expected_times.main(results=tmp_path)
    (found,) = tmp_path.glob("expected_times-*.json")
    details = json.loads(found.read_text(encoding="utf-8"))["details"]
    assert set(details) == {"clip-vit-b-32"}
    evaluating = expected_times.EVALUATIONS / 5000 / 3600
    steps = expected_times.STEPS / 3600
    assert details["clip-vit-b-32"]["hours"] == pytest.approx([evaluating + 0.1 * steps, evaluating + 0.3 * steps])


def test_what_fails_or_takes_too_long_stops_no_other_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = ("fails", "lasts", "works", "comes too late")
    code = {
        "fails": "raise SystemExit(3)",
        "lasts": "import subprocess, time; subprocess.Popen(['sleep', '77']); time.sleep(77)",
        "works": "print('it did')",
    }
    monkeypatch.setattr(gpu, "PARTS", [gpu.Part(name, "", seconds=1 if name == "lasts" else 60) for name in parts])
    monkeypatch.setattr(gpu, "command", lambda part, *others: [sys.executable, "-c", code[part.name]])
    clock = iter([0, 0, 0, 5, 5, 5, 6, 6, 6, 7, 100, 100, 100])
    monkeypatch.setattr("benchmarks.gpu.time.monotonic", lambda: next(clock))
    with pytest.raises(SystemExit) as ended:
        gpu.main(device="cpu", seconds=90, results=tmp_path, folder=tmp_path)
    assert ended.value.code == 1
    printed = capfd.readouterr().out
    assert "it did" in printed
    lines = {line.partition("  ")[0]: line.rpartition(" s  ")[2] for line in printed.splitlines() if " s  " in line}
    assert lines == {
        "fails": "failed with exit status 3",
        "lasts": "cut off after 1 s",
        "works": "done",
        "comes too late": "not run: no time was left",
    }


@pytest.mark.parametrize("part", [part for part in gpu.PARTS if part.script != gpu.TESTS], ids=lambda part: part.name)
def test_every_part_is_given_what_its_script_knows(part: gpu.Part, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(importlib.import_module(f"benchmarks.{part.script}").main)
    for trial in ((1, 64), None):
        words = gpu.command(part, "cuda", trial, tmp_path, tmp_path)
        asked = typer.main.get_command(app).make_context(part.name, words[3:]).params
        assert asked["device"] == "cuda"
        assert asked.get("model", "ViT-B-32") == (part.model or "ViT-B-32")
        if trial and "blocks" in asked:
            assert (asked["blocks"], asked["width"]) == trial
        elif part.model:
            assert (asked["blocks"], asked["width"]) == models.shape_of(part.model)


def test_every_data_free_method_is_measured() -> None:
    expected = {"simple_average", "task_arithmetic", "ties_merging", "dare", "consensus", "tsv_merging", "iso_c"}
    assert expected < set(fw_memory.data_free())
    assert not fw_memory.REFERENCES & set(fw_memory.data_free())


def test_task_vectors_are_as_long_as_said_and_have_a_falling_spectrum() -> None:
    start = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    change = models.synthetic_change(start, torch.Generator().manual_seed(0))
    torch.testing.assert_close(change.norm(), 0.03 * start.norm())
    values = torch.linalg.svdvals(change)
    assert values[0] > 3 * values[10] > 30 * values[-1] > 0
    bias = models.synthetic_change(torch.zeros(64), torch.Generator().manual_seed(0))
    torch.testing.assert_close(bias.norm(), torch.tensor(0.03 * 0.01 * 8))


def test_larger_pools_take_no_disk(folder: Path) -> None:
    place = models.write_models(folder, 2, **TOY)
    models.link_models(place, 2, 5)
    base, experts = models.load(place, 5)
    first, *_, last = experts.values()
    assert first.path.samefile(last.path)
    assert set(first) == set(base)


def test_a_script_in_processes_of_its_own(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.regmean_merge", "--pool", "2", "--rows", "64", "--repeats", "1"]
    toy = ["--blocks", "1", "--width", "64", "--folder", str(folder), "--results", str(tmp_path)]
    done = subprocess.run([*command, *toy], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ratio time, plain / ours" in done.stdout
    (record,) = tmp_path.glob("regmean_merge-*.json")
    memory = json.loads(record.read_text(encoding="utf-8"))["details"]["ours"]
    assert memory["resident"] > (memory["anonymous"] or 2**20) >= 2**20


def test_the_page_cache_does_not_count(tmp_path: Path) -> None:
    if measuring.anonymous_memory() is None:
        pytest.skip("this system does not tell anonymous memory")
    # In a process of its own: this one gives back what earlier tests held at moments of its choice.
    code = f"""
import torch
from benchmarks.measuring import anonymous_memory
before = anonymous_memory()
held = torch.ones(2**24)
print(anonymous_memory() - before)
torch.save(held, {str(tmp_path / "ones.pt")!r})
del held
before = anonymous_memory()
torch.from_file({str(tmp_path / "ones.pt")!r}, size=2**24, dtype=torch.float32).sum()
print(anonymous_memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    held, mapped = map(int, done.stdout.split())
    assert 2**26 <= held + 2**20 < 2**27
    assert mapped < 2**24


def test_every_script_is_in_the_table() -> None:
    table = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {
        "__init__",
        "models",
        "measuring",
        "same_answers",
        "same_records",
        "killed",
        "killing",
    }
    others = {"decode_cache", "kills", "expert_recipes"}  # these take minutes
    others |= {"engine_simulation"}  # it has tests of its own
    another_python = {"against_mergekit"}
    assert scripts == {*SCRIPTS, *others, *another_python, "expected_times", "gpu"}
    for script in scripts:
        assert f"| `{script}" in table
        assert f"python -m benchmarks.{script}" in table
