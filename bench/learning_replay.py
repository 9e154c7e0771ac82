"""Segments of training replayed in new processes: how often other bits come out.

    python -m bench.learning --only replay --tries 1000

A first process trains a round and keeps its checkpoints. Others, a few tries each, replay its
segments in turn, with one thread and two: in the native profile set up as a worker is, in the exact
one under every instruction set that the environment can ask the libraries for and this processor
has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.measure import Row, at_most
from learning.profile import KINDS, environment

TRIES_A_PROCESS = 25
_TIMEOUT_S = 600.0
_HELD = ("MKL_", "ATEN_", "ONEDNN_", "DNNL_", "OMP_")  # of the environment, unless we set it
_ROOT = Path(__file__).resolve().parent.parent

FREE: Mapping[str, str] = {}
INSTRUCTION_SETS: tuple[Mapping[str, str], ...] = (
    FREE,
    {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "DNNL_MAX_CPU_ISA": "SSE41"},
    {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX", "DNNL_MAX_CPU_ISA": "AVX"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2,STRICT"},
    {"ATEN_CPU_CAPABILITY": "avx512", "MKL_CBWR": "AVX512", "DNNL_MAX_CPU_ISA": "AVX512_CORE"},
    {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
)
_LADDER = ("default", "avx2", "avx512")  # ATen's classes of x86; each has what is before it


@dataclass(frozen=True, slots=True)
class Tally:
    """Of one profile. `seen`: different ways in which torch says that it computes."""

    tries: int
    wrong: int
    processes: int
    seen: int


def replay_rows(tries: int) -> Iterator[Row]:
    """Replays that ended in another state hash, of `tries` in each profile."""
    for kind in KINDS:
        found = tally(kind, tries)
        yield at_most(f"replay_{kind}_wrong", found.wrong, f"of {found.tries}", 0.0)
        yield at_most(f"replay_{kind}_processes", found.processes, "", None)
        yield at_most(f"replay_{kind}_variants", found.seen, "", None)


def tally(kind: str, tries: int) -> Tally:
    """Train once, replay `tries` times."""
    done, wrong, processes, seen = 0, 0, 0, set[str]()
    with tempfile.TemporaryDirectory() as directory:
        first = _child(kind, directory, FREE if kind == "exact" else environment(), 0, 0)
        expected = first["states"]
        variants = instruction_sets(first["class"]) if kind == "exact" else (environment(),)
        # both thread counts at least
        each = min(TRIES_A_PROCESS, max(2, -(-tries // len(variants))))
        while done < tries:
            count = min(each, tries - done)
            processes += 1
            found = _child(kind, directory, variants[processes % len(variants)], done, count)
            seen |= {f"{found['class']} {threads}" for threads in found["threads"]}
            for i, state in enumerate(found["states"], done):
                wrong += state != expected[1 + i % (len(expected) - 1)]
            done += count
    return Tally(done, wrong, processes, len(seen))


def instruction_sets(has: str) -> tuple[Mapping[str, str], ...]:
    """Those that a processor of ATen's class `has` can be asked for; more would end the process."""
    rank = _LADDER.index(has.lower()) if has.lower() in _LADDER else 0
    return tuple(
        variant
        for variant in INSTRUCTION_SETS
        if _LADDER.index(variant.get("ATEN_CPU_CAPABILITY", "default")) <= rank
    )


def _child(
    kind: str, directory: str, variant: Mapping[str, str], first: int, count: int
) -> dict[str, Any]:
    """What a new process found: it trains if `count` is 0, else it replays."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_HELD)}
    command = [sys.executable, "-m", "bench.learning_replay", kind, directory]
    done = subprocess.run(
        [*command, str(first), str(count)],
        cwd=_ROOT,
        env={**kept, "OMP_WAIT_POLICY": "PASSIVE", **variant},  # two threads need not spin
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a replay under {dict(variant)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


# --- in the new process ------------------------------------------------------------------


def main(kind: str, directory: str, first: int, count: int) -> None:
    import torch

    from learning import profile
    from learning.conformance import MODEL, TRAINING, conformance_batches, ops_of
    from learning.init import initial_shards
    from learning.state import TrainState, deserialize_state, serialize_state
    from learning.train import train_segment

    if kind != "exact":
        profile.configure()
    else:
        profile.make_deterministic()
    rule = replace(TRAINING, steps=8, segment_steps=2, batch=4)
    batches, ops = conformance_batches(MODEL, rule), ops_of(profile.KINDS[KINDS.index(kind)])
    threads, states = set[int](), list[str]()

    def run(state: TrainState, segment: int) -> TrainState:
        last = rule.segment_range(segment)[1]
        return train_segment(MODEL, rule, state, batches.__getitem__, last, ops=ops)

    def place(segment: int) -> Path:
        return Path(directory) / f"{segment}.state"

    if not count:
        state = TrainState.fresh(initial_shards(MODEL))
        for segment in range(rule.segments):
            states.append(state.hash().hex())
            place(segment).write_bytes(serialize_state(state))
            state = run(state, segment)
        states.append(state.hash().hex())
    for i in range(first, first + count):
        number = 1 + (i // rule.segments + i) % 2  # each segment meets both
        torch.set_num_threads(number)
        threads.add(torch.get_num_threads())
        segment = i % rule.segments
        states.append(
            run(deserialize_state(MODEL, place(segment).read_bytes()), segment).hash().hex()
        )
    told = torch.backends.cpu.get_cpu_capability()
    print(json.dumps({"states": states, "threads": sorted(threads), "class": told}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
