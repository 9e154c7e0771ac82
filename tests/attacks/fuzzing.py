"""What the fuzz programs have in common: cases by number, their time and memory, and the words.

Every case is made by a random generator that its number seeds, so that any case can be replayed
alone. A case must end in a result within CASE_S seconds of processor time and CASE_BYTES of memory
and a little for each byte of its input (traced for one in TRACED), and the process must not grow.
What fails prints one line that replays it.
"""

from __future__ import annotations

import argparse
import resource
import signal
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Protocol

CASE_S = 1.0  # of processor time; a typical case takes 0.1 ms
CASE_BYTES = 8 * 1024 * 1024  # allocated at once in one case,
PER_BYTE = 8  # and for each byte of its input: given, made, decoded by two, encoded again
TRACED, TRACED_RUN = 32, 64  # one run of 64 cases in so many is traced, which makes it slower
GROWTH_BYTES = 32 * 1024 * 1024  # of the process, from the first thousand cases to the last
WARM_UP = 1000  # cases after which caches are full


class Target(Protocol):
    name: str
    size: int  # bytes that the last case decoded, if they may be many

    def run(self, random: Random) -> str: ...


@dataclass(slots=True)
class Outcome:
    """What became of a target's cases."""

    target: str
    cases: int = 0
    wall_s: float = 0.0
    grown_bytes: int = 0  # of the process, since it was warm
    results: Counter[str] = field(default_factory=Counter)
    failure: str | None = None  # with the line that replays it


class Hung(Exception):
    """A case took more than its time."""


def seeded(target: str, seed: int, number: int) -> Random:
    """All choices of one case."""
    return Random(f"{target} {seed} {number}")


def fuzz(target: Target, seed: int, first: int, cases: int, program: str = "") -> Outcome:
    """Run cases [first, first + cases) of a target of a program, up to the first failure."""
    outcome = Outcome(target.name)
    began = time.perf_counter()
    resident = 0
    for number in range(first, first + cases):
        try:
            with traced(number, target), limited_time(10 if tracemalloc.is_tracing() else 1):
                result = target.run(seeded(target.name, seed, number))
        except Exception as error:
            replay = f"python -m {program} --only {target.name} --seed {seed}"
            kind = type(error).__name__
            outcome.failure = f"{kind}: {error}\n  {replay} --first {number} --cases 1"
            break
        outcome.results[result] += 1
        outcome.cases += 1
        if outcome.cases == WARM_UP:
            resident = resident_bytes()
    tracemalloc.stop()
    outcome.grown_bytes = resident_bytes() - resident if resident else 0
    if outcome.grown_bytes > GROWTH_BYTES and outcome.failure is None:
        outcome.failure = f"grew by {outcome.grown_bytes >> 20} MiB in {outcome.cases} cases"
    outcome.wall_s = time.perf_counter() - began
    return outcome


@contextmanager
def traced(number: int, target: Target) -> Iterator[None]:
    """Raises MemoryError after a target's case that took too much, if its memory is traced.

    Traced are runs of cases, since each start of the tracing costs the process 4 KiB for good.
    """
    if number // TRACED_RUN % TRACED:
        tracemalloc.stop()
        yield
        return
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    yield
    taken = tracemalloc.get_traced_memory()[1] - before
    most = CASE_BYTES + PER_BYTE * target.size
    if taken > most:
        raise MemoryError(f"{taken} bytes at once, at most {most} are allowed")


@contextmanager
def limited_time(factor: int) -> Iterator[None]:
    """Raises Hung in whatever takes more than its processor time."""
    signal.setitimer(signal.ITIMER_VIRTUAL, CASE_S * factor)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@contextmanager
def alarm() -> Iterator[None]:
    """Have the timer's signal raise Hung."""

    def ring(_: int, frame: FrameType | None) -> None:
        where = f"{frame.f_code.co_qualname}:{frame.f_lineno}" if frame else "nowhere"
        raise Hung(f"still in {where} after {CASE_S} s")

    before = signal.signal(signal.SIGVTALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGVTALRM, before)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def run(program: str, says: str, targets: Mapping[str, Callable[[], Target]]) -> int:
    """The command line of a fuzz program; its exit code."""
    parser = argparse.ArgumentParser(description=says.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="of each target [20000]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case [0]")
    parser.add_argument("--only", choices=list(targets), help="one target")
    options = parser.parse_args()
    failed = False
    for name, make in targets.items():
        if options.only in (None, name):
            with alarm():
                outcome = fuzz(make(), options.seed, options.first, options.cases, program)
            rate = outcome.cases / outcome.wall_s
            grown = f"grew by {outcome.grown_bytes / 2**20:.1f} MiB"
            print(f"{name}: {outcome.cases} cases, {rate:.0f}/s, {grown}, {dict(outcome.results)}")
            if outcome.failure is not None:
                print(f"  FAILED {outcome.failure}", flush=True)
                failed = True
    return 1 if failed else 0
