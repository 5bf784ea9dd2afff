"""Reading decoded images from the cache against decoding them again: the cache must be ten times faster or more.

    python -m benchmarks.decode_cache [--images 1000]

JPEG pictures of 500 by 375 pixels, as photographs in the real data sets are, served by a small hub on this machine. One
process, one thread. "Decode again" is what each evaluation would do without a cache: read the data set's files through
the `datasets` library, decode, scale and cut. "Read the cache" opens the memory-mapped file and copies all pixels. The
cache is read from memory, as in a second evaluation; from a disk it cannot be faster than the disk.
"""

import argparse
import io
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from loopback_data import connect, parquet
from loopback_hub import loopback_hub

from mergekit_lite.suites.clip import decoded, hub_data
from mergekit_lite.suites.clip.benchmark import hub_tasks
from mergekit_lite.suites.clip.pixels import preprocessing

SIDE = 224
BATCH = 128


def photograph(seed: int) -> dict[str, bytes | None]:
    """Return a JPEG with the smooth areas and fine grain of a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    grained = np.clip(np.asarray(coarse) + rng.normal(0, 8, (375, 500, 3)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grained).save(stream, "JPEG", quality=90)
    return {"bytes": stream.getvalue(), "path": None}


def main() -> None:
    """Print the seconds of both ways and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    count = parser.parse_args().images
    import datasets

    task = replace(hub_tasks()["pcam"], test_images=count)
    with tempfile.TemporaryDirectory() as folder, loopback_hub() as hub, pytest.MonkeyPatch.context() as patch:
        connect(hub, patch, Path(folder))
        columns: dict[str, list[Any]] = {"image": [photograph(seed) for seed in range(count)]}
        columns["label"] = [seed % 2 == 1 for seed in range(count)]
        content = parquet(columns, {"image": datasets.Image(), "label": datasets.Value("bool")})
        hub.put("dataset", task.dataset, {"data/test-0.parquet": content})
        dataset = hub_data.labelled(task, "test")
        decoded.decoded_split(task, "test", SIDE)  # imports, and the cache that is read below

        begun = time.perf_counter()
        pixels, checksum = preprocessing(SIDE, "transformers"), 0
        for first in range(0, count, BATCH):
            batch = np.stack([pixels(dataset[place]["image"]) for place in range(first, min(first + BATCH, count))])
            checksum += int(batch.sum())
        again = time.perf_counter() - begun

        begun = time.perf_counter()
        split, same = decoded.decoded_split(task, "test", SIDE), 0
        for first in range(0, count, BATCH):
            same += int(np.array(split.images[first : first + BATCH]).sum())
        cached = time.perf_counter() - begun
        assert checksum == same
    print(f"decode again: {again:.2f} s, {count / again:.0f} images/s")
    print(f"read the cache: {cached:.2f} s, {count / cached:.0f} images/s")
    print(f"ratio: {again / cached:.1f}")


if __name__ == "__main__":
    main()
