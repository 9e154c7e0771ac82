"""A training step in each numeric profile, beside torch left to itself: same model, one thread.

Each computes in a process of its own, since what differs is set before torch is loaded; steps take
turns. Times are processor time, which is what a step takes on a machine that does nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from bench.measure import Row, at_most, quantile
from learning.profile import KINDS, environment
from learning.spec import NANO_MODEL, NANO_TRAINING, ModelSpec, TrainingSpec

_ROOT = Path(__file__).resolve().parent.parent
_HELD = ("MKL_", "ATEN_", "ONEDNN_", "DNNL_")
WAYS = {"free": 1.0, "native": 1.3, "exact": 3.0, "bf16": None}  # times free's, at most


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and a batch."""

    model: ModelSpec
    batch: int

    @property
    def training(self) -> TrainingSpec:
        return replace(NANO_TRAINING, batch=self.batch)


SHAPES = {
    "nano": Shape(NANO_MODEL, 16),
    "wide": Shape(
        replace(NANO_MODEL, width=256, heads=8, experts=8, expert_width=512, context=128), 8
    ),
}


def profile_rows(shapes: tuple[str, ...], samples: int) -> Iterator[Row]:
    """Medians of the steps, and of the quotients with the free step of the same turn."""
    for shape in shapes:
        with ExitStack() as stack:
            steps = {way: stack.enter_context(_Child(shape, way)) for way in WAYS}
            turns = [{way: step() for way, step in steps.items()} for _ in range(samples)]
        free = quantile([turn["free"] for turn in turns], 0.5) * 1000
        for way, most in list(WAYS.items())[1:]:
            spent = quantile([turn[way] for turn in turns], 0.5) * 1000
            times = quantile([turn[way] / turn["free"] for turn in turns], 0.5)
            yield at_most(f"step_{shape}_{way}", spent, "ms", None, free)
            yield at_most(f"step_{shape}_{way}_cost", times, "x", most)


class _Child:
    """A process that makes a step for each line."""

    def __init__(self, shape: str, way: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_HELD)}
        free = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.learning_profiles", shape, way],
            cwd=_ROOT,
            env={**kept, **(free if way == "free" else environment())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self()  # the first step finds caches empty

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def __call__(self) -> float:
        """Seconds of processor time of one step."""
        ends: tuple[IO[str] | None, IO[str] | None] = self._process.stdin, self._process.stdout
        if ends[0] is None or ends[1] is None:
            raise RuntimeError("a process without pipes")
        ends[0].write("\n")
        ends[0].flush()
        return float(ends[1].readline())


# --- in the process ----------------------------------------------------------------------


def main(shape: Shape, way: str) -> None:
    if way == "free":
        _free(shape)
    else:
        _ours(shape, way)


def _begin() -> float:
    """Wait for a line; the processor time then."""
    if not sys.stdin.readline():
        sys.exit(0)
    return time.process_time()


def _end(began: float) -> None:
    print(time.process_time() - began, flush=True)


def _ours(shape: Shape, way: str) -> None:
    from learning.conformance import conformance_batches, ops_of
    from learning.init import initial_shards
    from learning.profile import configure
    from learning.spec import MAX_STEPS
    from learning.state import TrainState
    from learning.train import train_segment

    configure()
    model, rule, began = shape.model, shape.training, [0.0]
    batch = conformance_batches(model, replace(rule, steps=1))[0]

    def next_batch(step: int) -> npt.NDArray[np.uint8]:
        began[0] = _begin()
        return batch

    train_segment(
        model,
        rule,
        TrainState.fresh(initial_shards(model)),
        next_batch,
        MAX_STEPS,
        lambda progress: _end(began[0]),
        ops_of(KINDS[KINDS.index(way)]),
    )


def _free(shape: Shape) -> None:
    """The same model as a torch program has it: torch's AdamW, clipping and loss."""
    import torch

    from learning.conformance import conformance_batches
    from learning.init import initial_shards
    from learning.model import forward, weights_from_shards

    torch.set_num_threads(1)
    model = shape.model
    batch = torch.from_numpy(conformance_batches(model, replace(shape.training, steps=1))[0])
    tokens = batch.long()
    weights = weights_from_shards(model, initial_shards(model))
    learned = [w.requires_grad_() for name, w in weights.items() if not name.endswith(".bias")]
    optimizer = torch.optim.AdamW(learned, lr=1e-3, betas=(0.9, 0.95), fused=True)

    while True:
        began = _begin()
        optimizer.zero_grad()
        logits = forward(model, weights, tokens[:, :-1]).logits
        target = tokens[:, 1:].flatten()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), target).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        _end(began)


if __name__ == "__main__":
    main(SHAPES[sys.argv[1]], sys.argv[2])
