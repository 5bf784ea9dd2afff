"""An expert of one's own: the image encoder fine-tuned on one task by FusionBench's recipe, and how a run resumes."""

import json
import math
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from mergekit_lite.cache import check_writable, content_hash, sweep_dead, written_whole
from mergekit_lite.errors import KitError, shown
from mergekit_lite.suites.clip.benchmark import MODELS
from mergekit_lite.suites.clip.half import computes_in_bfloat16
from mergekit_lite.suites.clip.transformers_format import to_transformers
from mergekit_lite.suites.scoring import accuracy
from mergekit_lite.suites.suite import Suite
from mergekit_lite.weight_files import LazyWeights, read, write
from mergekit_lite.weights import Weights, first_three, is_finite

RESULT, CHECKPOINT = "encoder.safetensors", "checkpoint.safetensors"
RANGES: dict[str, tuple[type, float, float]] = {
    "steps": (int, 1, 10**6),
    "learning_rate": (float, 1e-12, 1.0),
    "batch_size": (int, 1, 4096),
    "seed": (int, 0, 2**32 - 1),
    "checkpoint_every": (int, 1, 10**6),
}
"""The numbers of a run: their type, the smallest and the largest."""

LOOK = 100  # steps after which the loss is looked at: each look waits for the GPU
MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps per tensor, by torch's names


def make_expert(
    suite: Suite,
    task: str,
    *,
    output: Path,
    steps: int = 4000,
    learning_rate: float = 1e-5,
    batch_size: int = 32,
    seed: int = 0,
    checkpoint_every: int = 500,
) -> Path:
    """Fine-tune the image encoder of `suite` on the training images of `task` and return the file of the result.

    FusionBench's recipe: Adam (no weight decay), a learning rate that falls to zero along a cosine, no augmentation,
    cross-entropy through the frozen zero-shot head. The projection and the text encoder stay as they are. On a GPU the
    encoder computes in bfloat16, its weights stay float32.

    The folder `output` gets ``encoder.safetensors`` with open_clip's names and, for CLIP, a folder ``transformers`` for
    `CLIPVisionModel.from_pretrained`. Every `checkpoint_every` steps all that the run consists of is stored there too:
    the same call resumes from it, and on a CPU ends with the very numbers of a run that was never interrupted.

    Raises:
        KitError: there is no such task, a number is out of range, `output` cannot be written to or holds another run
            (all of that is noticed first), or the loss or a weight became NaN or infinite (then nothing is written).
    """
    (task,) = suite.names((task,))
    recipe = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}
    _check_numbers(suite, task, {**recipe, "checkpoint_every": checkpoint_every})
    result, checkpoint = Path(output) / RESULT, Path(output) / CHECKPOINT
    if not os.path.exists(result):
        check_writable(Path(output))
        sweep_dead(Path(output))
    run = content_hash([suite.fingerprint((), (task,), (task,)), task, recipe])
    if result.exists():
        _check_run(result, run)
        print(f"{result} is there already.", flush=True)
        return result

    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in suite.base.items()}
    optimiser = torch.optim.Adam(weights.values(), lr=learning_rate, fused=True)
    begun = _resume(checkpoint, run, weights, optimiser) if checkpoint.exists() else 0
    split, head = suite.split(task, "train"), suite.heads[task].to(suite.device)
    losses: list[Tensor] = []
    right: list[Tensor] = []
    clock = time.perf_counter()
    for step in range(begun, steps):
        rows = _rows(len(split.labels), batch_size, step, seed)
        images = torch.from_numpy(split.images[rows]).to(suite.device)
        labels = torch.from_numpy(split.labels[rows]).to(suite.device)
        optimiser.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.enable_grad():
            with torch.autocast(suite.device.type, torch.bfloat16, enabled=computes_in_bfloat16(suite.device)):
                features = suite.encode(weights, images)
            logits = features.to(head.dtype) @ head.T
            loss = cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
        right.append((logits.argmax(dim=1) == labels).float().mean())
        done = step + 1
        if done % LOOK == 0 or done % checkpoint_every == 0 or done == steps:
            _check_sound(task, done, {"loss": torch.stack(losses)})
        if done % checkpoint_every == 0 or done == steps:
            print(
                f"step {done}/{steps}: loss {torch.stack(losses).mean():.4f}, "
                f"{100 * torch.stack(right).mean():.1f} % of the training images classified correctly, "
                f"{time.perf_counter() - clock:.0f} s",
                flush=True,
            )
            losses.clear()
            right.clear()
        if done % checkpoint_every == 0 and done < steps:
            _store(checkpoint, run, done, weights, optimiser)

    tuned = {name: tensor.detach() for name, tensor in weights.items()}
    _check_sound(task, steps, tuned)  # the last step comes after the last loss
    print(f"{accuracy(suite, tuned, task):.2f} % of the test images of {task} are classified correctly", flush=True)
    if suite.name in MODELS:
        _write_for_transformers(Path(output) / "transformers", tuned, head.shape[1])
    facts = {"suite": suite.name, "task": task, "recipe": json.dumps(recipe), "run": run}
    write(result, tuned, facts)  # last: it says that all is there
    checkpoint.unlink(missing_ok=True)
    return result


def _check_numbers(suite: Suite, task: str, numbers: Mapping[str, float]) -> None:
    """Check that every number is of its kind and in its range, before any work."""
    images = suite.sizes[task][0]
    for name, number in numbers.items():
        kind, lowest, highest = RANGES[name]
        highest = min(highest, images) if name == "batch_size" else highest
        if type(number) not in (kind, int) or not lowest <= number <= highest:
            raise KitError(
                f"Fine-tuning on '{task}': {name} must be {kind.__name__} from {lowest} to {highest}, not "
                f"{shown(number)}." + (f" There are {images} training images." if name == "batch_size" else "")
            )


def _check_sound(task: str, step: int, tensors: Weights) -> None:
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise KitError(
            f"Fine-tuning on '{task}': by step {step} the {first_three(broken)} became NaN or infinite, so nothing is "
            "written. Choose a smaller learning rate, and another output folder."
        )


def _rows(count: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Return which of `count` images step number `step` sees: shuffled epochs, one after another, cut into batches.

    They follow from the numbers alone, so that a resumed run needs no state of a random generator.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_epoch(count, int(place) // count, seed)[place % count] for place in places])


@lru_cache(maxsize=2)
def _epoch(count: int, number: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, number]).permutation(count)


def _store(path: Path, run: str, step: int, weights: Mapping[str, Tensor], optimiser: torch.optim.Adam) -> None:
    """Write weights and Adam's moments; the rest of a run's state is the number of steps done."""
    tensors = {f"weights {name}": tensor for name, tensor in weights.items()}
    for name, tensor in weights.items():
        tensors |= {f"{moment} {name}": optimiser.state[tensor][moment] for moment in MOMENTS}
    write(path, tensors, {"run": run, "step": str(step)})


def _resume(path: Path, run: str, weights: Mapping[str, Tensor], optimiser: torch.optim.Adam) -> int:
    """Fill `weights` and `optimiser` with what `path` holds; return how many steps were done."""
    step = int(_check_run(path, run)["step"])
    stored = read(path)
    state: dict[int, dict[str, Any]] = {}
    with torch.no_grad():
        for place, (name, tensor) in enumerate(weights.items()):
            tensor.copy_(stored[f"weights {name}"])
            state[place] = {moment: stored[f"{moment} {name}"] for moment in MOMENTS}
            state[place]["step"] = torch.tensor(float(step))
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    print(f"Resuming after step {step}, from {path}.", flush=True)
    return step


def _check_run(path: Path, run: str) -> Mapping[str, str]:
    metadata = LazyWeights(path).metadata
    if metadata.get("run") != run:
        raise KitError(
            f"{path} is of a run with another suite, task, recipe or seed. Delete it, or choose another output folder."
        )
    return metadata


def _write_for_transformers(folder: Path, weights: Weights, projection: int) -> None:
    write(folder / "model.safetensors", to_transformers(weights), {"format": "pt"})  # transformers asks for this entry
    with written_whole(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(transformers_config(weights, projection), indent=2) + "\n", encoding="utf-8")


def transformers_config(weights: Mapping[str, Tensor], projection: int) -> dict[str, Any]:
    """Return what transformers must know of one of OpenAI's encoders, read off its tensors; D is `projection`."""
    width, patch = weights["conv1.weight"].shape[0], weights["conv1.weight"].shape[-1]
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "image_size": patch * math.isqrt(weights["positional_embedding"].shape[0] - 1),
        "intermediate_size": weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_attention_heads": width // 64,  # so in all of OpenAI's CLIPs
        "num_hidden_layers": sum(name.endswith(".ln_1.weight") for name in weights),
        "patch_size": patch,
        "projection_dim": projection,
    }
