"""Rows of `bench.tiles` about importing a checkpoint; each sample is a process of its own.

    python -m bench.tile_import import|copy SOURCE TARGET

prints the seconds and the peak memory of one sample as JSON. The floor reads the file once, hashes
it with BLAKE3 and writes it to a new, synced file: what an import cannot do without.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from blake3 import blake3

from bench.measure import MIB, Row, Sizes, at_least, at_most, memory_mib, quantile

EXPERTS = 8  # in each layer, three tensors each, as Mixtral names them
ROOT = Path(__file__).resolve().parent.parent


def checkpoint(path: Path, size_mib: int) -> None:
    """A checkpoint of about `size_mib` MiB in BF16 with Mixtral's names, written as it goes."""
    expert_mib = max(1, min(64, size_mib // EXPERTS))
    layers = max(1, size_mib // (expert_mib * EXPERTS))
    count = expert_mib * MIB // 2 // 4  # elements of one of an expert's four parts
    header, at = {}, 0
    for layer in range(layers):
        for expert in range(EXPERTS):
            for part in ("w1", "w2", "w3", "w4"):
                name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight"
                span = [at, at + 2 * count]
                header[name] = {"dtype": "BF16", "shape": [count], "data_offsets": span}
                at += 2 * count
    text = json.dumps(header).encode()
    block = np.random.default_rng(4).bytes(16 * MIB)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while at:
            at -= file.write(block[: min(at, len(block))])
        file.flush()
        os.fsync(file.fileno())


def copy(source: Path, target: Path) -> None:
    """The floor."""
    hasher, buffer = blake3(), bytearray(4 * MIB)
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as write:
        while count := read.readinto(buffer):
            part = memoryview(buffer)[:count]
            hasher.update(part)
            write.write(part)
        os.fsync(write.fileno())


def sample(what: str, source: Path, target: Path) -> None:
    """One sample, in this process; prints what it took."""
    from node.checkpoint.imports import import_checkpoint
    from node.checkpoint.models import Models
    from node.home import Home

    began = time.perf_counter()
    if what == "copy":
        copy(source, target)
    else:
        import_checkpoint(Models(Home(target)), [source], "bench", 0, lambda done, total: None)
    seconds = time.perf_counter() - began
    peak = memory_mib("VmHWM")[0]
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


def imported(sizes: Sizes) -> Iterator[Row]:
    """Import a checkpoint, its file in the kernel's memory."""
    source, target = sizes.directory / "model.safetensors", sizes.directory / "import"
    checkpoint(source, sizes.checkpoint_mib)
    size = source.stat().st_size
    taken: dict[str, list[dict[str, float]]] = {"import": [], "copy": []}
    for _ in range(sizes.repeats):
        for what, samples in taken.items():
            command = [sys.executable, "-m", "bench.tile_import", what, str(source), str(target)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{what} failed: {done.stderr.strip()[-500:]}")
            samples.append(json.loads(done.stdout))
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            os.sync()
    source.unlink()
    speed, floor = (
        size / 1e6 / quantile([s["seconds"] for s in taken[what]], 0.5) for what in taken
    )
    yield at_least("import_speed", speed, "MB/s", 0.7 * floor, floor)
    peak = max(s["peak_mib"] for s in taken["import"])
    yield at_most("import_memory", peak, "MiB", 200.0)


if __name__ == "__main__":
    sample(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
