"""How much memory a training step takes: whole batches, pieces of them, layers computed again.

Each way trains in a process of its own, whose largest resident set is told: in the steps, and with
the state that comes out; and the processor time of a step. Floor: what the process had before
(torch, and the state that goes in), and weights, moments and gradient.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.learning_process import told
from bench.measure import Row, at_most
from learning.memory import activation_bytes, recomputed_bytes
from learning.sizes import SIZES
from learning.spec import TrainingSpec

_MB = 1_000_000
_NEVER, _ALWAYS = 1 << 62, 0


@dataclass(frozen=True, slots=True)
class Way:
    """`pieces`: of a batch; `most_bytes`: kept before layers are computed again."""

    pieces: int
    most_bytes: int


WAYS = {
    "whole": Way(1, _NEVER),
    "pieces": Way(8, _NEVER),
    "again": Way(1, _ALWAYS),
    "pieces_again": Way(8, _ALWAYS),
}


def memory_rows(size: str, batch: int, steps: int) -> Iterator[Row]:
    """`size`: a model with a name."""
    model, rule = SIZES[size].model, _rule(size, batch, WAYS["whole"], steps)
    yield at_most(f"estimate_{size}", activation_bytes(model, rule) / _MB, "MB", None)
    yield at_most(f"estimate_{size}_again", recomputed_bytes(model, rule) / _MB, "MB", None)
    for name in WAYS:
        out = told("bench.learning_memory", size, name, str(batch), str(steps))
        step, peak, base, spent = (float(word) for word in out.split())
        floor = (base + _held_bytes(size)) / _MB
        yield at_most(f"memory_{size}_{name}", step / _MB, "MB", None, floor)
        yield at_most(f"memory_{size}_{name}_with_state", peak / _MB, "MB", None, floor)
        yield at_most(f"step_{size}_{name}", spent, "s", None)


def _held_bytes(size: str) -> int:
    """Weights, both moments and the gradient."""
    return 4 * 4 * SIZES[size].model.parameters


def _rule(size: str, batch: int, way: Way, steps: int) -> TrainingSpec:
    rule = replace(SIZES[size].training, steps=steps, segment_steps=steps, batch=batch)
    return replace(rule, micro_batch=batch // way.pieces)


def main(size: str, way: Way, batch: int, steps: int) -> None:
    from learning.conformance import conformance_batches
    from learning.init import initial_shards
    from learning.profile import configure
    from learning.state import TrainState
    from learning.train import train_segment

    configure()
    model, rule = SIZES[size].model, _rule(size, batch, way, steps)
    state = TrainState.fresh(initial_shards(model))
    batches = conformance_batches(model, rule)
    base = _resident()
    began = time.process_time()
    done = list[tuple[float, int]]()
    train_segment(
        model,
        rule,
        state,
        batches.__getitem__,
        steps,
        lambda _: done.append((time.process_time() - began, _peak())),
        most_bytes=way.most_bytes,
    )
    spent, step = done[-1]
    print(step, _peak(), base, spent / steps)


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident() -> int:
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


if __name__ == "__main__":
    main(sys.argv[1], WAYS[sys.argv[2]], int(sys.argv[3]), int(sys.argv[4]))
