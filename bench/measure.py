"""What benchmarks share: rows beside their floors, samples in turns, cold files, memory."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")
MIB = 1 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `met`: whether it reaches its target; true where there is none."""

    name: str
    value: float
    unit: str
    target: float | None
    floor: float | None
    met: bool
    is_more_better: bool = False

    def as_json(self) -> dict[str, Any]:
        """The keys of all benchmarks."""
        fields = asdict(self)
        del fields["is_more_better"]
        return fields

    def as_text(self) -> str:
        sign = "≥" if self.is_more_better else "≤"
        target = "" if self.target is None else f"target {sign} {self.target:.4g}"
        floor = "" if self.floor is None else f"floor {self.floor:.4g}"
        mark = "" if self.met else "  MISSED"
        return f"{self.name:26}{self.value:10.4g} {self.unit:8} {target:18} {floor:14}{mark}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much the rows move."""

    directory: Path
    shard_mib: int = 512
    checkpoint_mib: int = 2048
    transfer_mib: int = 512
    samples: int = 200
    servers: int = 4  # of which one lies
    repeats: int = 3  # of what takes seconds and processes of its own

    @property
    def few(self) -> int:
        """Samples of what takes a second."""
        return max(3, self.samples // 40)


def at_most(
    name: str, value: float, unit: str, target: float | None, floor: float | None = None
) -> Row:
    """A row whose value should be small."""
    return Row(name, value, unit, target, floor, target is None or value <= target)


def at_least(
    name: str, value: float, unit: str, target: float | None, floor: float | None = None
) -> Row:
    """A row whose value should be large."""
    return Row(name, value, unit, target, floor, target is None or value >= target, True)


def report(rows: Iterable[Row], *, as_json: bool) -> int:
    """Print rows as they come, or all of them as JSON; the exit code of a benchmark."""
    found = []
    for row in rows:
        found.append(row)
        if not as_json:
            print(row.as_text(), flush=True)
    if as_json:
        print(json.dumps([row.as_json() for row in found], indent=1))
    return 0 if all(row.met for row in found) else 1


def run_groups(
    text: str | None,
    groups: Mapping[str, Callable[[T], Iterator[Row]]],
    whole: T,
    small: T,
    fields: Mapping[str, Callable[[str], object]] = MappingProxyType({}),
) -> int:
    """The program of a benchmark whose rows come in groups; `text` is its module's docstring.
    `fields`: those of the amounts that an option may set, and how it is read."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    parser.add_argument("--only", action="append", choices=groups, help="one group")
    parser.add_argument("--small", action="store_true", help="do little: figures mean nothing")
    for name, kind in fields.items():
        parser.add_argument(f"--{name}", type=kind)
    options = parser.parse_args()
    amount = small if options.small else whole
    told = {name: value for name in fields if (value := getattr(options, name)) is not None}
    amount = replace(amount, **told) if told else amount
    rows = (row for group in options.only or groups for row in groups[group](amount))
    return report(rows, as_json=options.json)


def quantile(samples: list[float], q: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def in_turns(
    count: int, *acts: Callable[[], object], before: Callable[[], object] | None = None
) -> list[list[float]]:
    """Seconds of each of `count` runs of each act, by act. They take turns, so that what else the
    machine does meets all of them alike; `before` runs untimed before each."""
    samples: list[list[float]] = [[] for _ in acts]
    gc.collect()
    gc.disable()
    try:
        for _ in range(count):
            for act, taken in zip(acts, samples, strict=True):
                if before is not None:
                    before()
                taken.append(seconds(act))
    finally:
        gc.enable()
    return samples


def make_cold(path: Path) -> None:
    """Have the kernel forget a file's pages. What is below the kernel (a disk's own cache, or
    that of a virtual machine's host) keeps what it has. Raises RuntimeError if pages stay."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        for _ in range(20):  # pages that are being written, or were read a moment ago, take longer
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not (left := resident_pages(file.fileno())):
                return
            os.sched_yield()
    raise RuntimeError(f"{path}: {left} pages are still in memory")


def resident_pages(descriptor: int) -> int:
    """Pages of a file that the kernel has in memory."""
    size = os.fstat(descriptor).st_size
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) as mapping:
        flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = (ctypes.c_char * size).from_buffer(mapping)
        failed = _LIBC.mincore(ctypes.byref(start), ctypes.c_size_t(size), flags)
        del start
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(flag & 1 for flag in flags)


def memory_mib(*fields: str) -> list[float]:
    """MiB of this process by the names that /proc/self/status has: RssAnon is private memory,
    RssFile mapped files, VmHWM the most of all since the process began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return [int(found[f].split()[0]) / 1024 for f in fields]
