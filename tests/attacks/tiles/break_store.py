"""Random programs on a store that are cut short: by a crash, a power failure, a disk that refuses,
and `kill -9` of a real process while another one reads.

    python -m tests.attacks.tiles.break_store [--runs N] [--seed S] [--only crash|full|kill]

A run begins with an empty store and goes on with what the run before it left, for a number of
cuts; after each, the store must open, be sound, and have all that was acknowledged
(store_walk.py). What fails prints one line that replays it.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from chain.errors import BlyanError, StorageError
from tests.attacks.tiles.store_walk import SPEC, Entry, Ledger, Walk
from tests.kit.faulty_disk import Crash, FaultyDisk
from tests.kit.small_tiles import PATCHES
from tiles import merkle
from tiles.store import Disk, TileReader, TileStore
from tiles.store.disk import Buffer

CUTS = 20  # of one run
ACTS = 30  # before a cut that has not come by itself
KEPT_MAPPINGS = 4  # of the reader, beside the newest
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class FastDisk(Disk):
    """Where nothing is going to fail any more."""

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class RefusingDisk(FastDisk):
    """Refuses a share of all steps, of a write after a part of its bytes."""

    def __init__(self, random: Random) -> None:
        self._random, self.share = random, 0.0

    def _may(self) -> None:
        if self._random.random() < self.share:
            raise OSError(self._random.choice(_REFUSALS), "refused")

    def create(self, path: Path) -> int:
        self._may()
        return super().create(path)

    def write(self, fd: int, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        if self._random.random() < self.share:
            super().write(fd, offset, view[: self._random.randint(0, len(view))])
            raise OSError(errno.ENOSPC, "refused")
        super().write(fd, offset, view)

    def truncate(self, fd: int, size_bytes: int) -> None:
        self._may()
        super().truncate(fd, size_bytes)

    def sync(self, fd: int) -> None:
        self._may()

    def rename(self, old: Path, new: Path) -> None:
        self._may()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._may()
        super().unlink(path)

    def make_folder(self, path: Path) -> None:
        self._may()
        super().make_folder(path)

    def sync_folder(self, path: Path) -> None:
        self._may()


# --- the ways to be cut short ---------------------------------------------------------------


def crash(directory: Path, ledger: Ledger, random: Random) -> Path:
    """Killed at some step, or the power fails there; where the store is then."""
    disk = FaultyDisk(directory, random.choice((None, random.randint(1, 60))))
    with suppress(Crash), TileStore(directory, [SPEC], disk=disk) as store:
        walk = Walk(store, random, ledger.note)
        for _ in range(ACTS):
            walk.step()
    if not disk.is_dead or random.random() < 0.4:
        return directory
    left = directory.with_name(f"{directory.name}-")
    left.mkdir()
    disk.lose_power(random.randrange(1 << 30), left)
    return left


def full(directory: Path, ledger: Ledger, random: Random) -> Path:
    """The disk refuses now and then; the store that met it lives on and keeps its word."""
    disk = RefusingDisk(random)
    with TileStore(directory, [SPEC], disk=disk) as store:
        walk = Walk(store, random, ledger.note)
        disk.share = random.choice((0.01, 0.05, 0.2))
        for _ in range(ACTS):
            with suppress(StorageError):
                walk.step()
        disk.share = 0
        ledger.check_open(store)
    return directory


def kill(directory: Path, ledger: Ledger, random: Random) -> Path:
    """A process of its own, killed after some acts and a moment more."""
    command = [*_PROGRAM, "--walk", str(directory), "--seed", str(random.randrange(1 << 30))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(random.randint(1, 40))]
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL, "it ended by itself"
    for line in lines:
        if line.endswith(b"\n"):
            ledger.note(*json.loads(line))
    return directory


Cut = Callable[[Path, Ledger, Random], Path]
CUT: dict[str, Cut] = {"crash": crash, "full": full, "kill": kill}
_PROGRAM = (sys.executable, "-m", "tests.attacks.tiles.break_store")


def run(name: str, seed: int, cuts: int = CUTS) -> None:
    """One run. Raises AssertionError, or whatever else the store should not have raised."""
    shared = Path("/dev/shm")
    where = shared if os.access(shared, os.W_OK) else None
    with TemporaryDirectory(dir=where) as top:
        directory, ledger = Path(top) / "store", Ledger()
        directory.mkdir()
        with reader(directory) if name == "kill" else nullcontext():
            for number in range(cuts):
                random = Random(f"{name} {seed} {number}")
                directory = CUT[name](directory, ledger, random)
                ledger.check(directory, FastDisk(), alone=name != "kill")


# --- processes ------------------------------------------------------------------------------


def walk_until_killed(directory: Path, seed: int) -> None:
    """Act for ever, telling each act on stdout."""

    def note(entry: Entry, done: bool) -> None:
        os.write(1, json.dumps([entry, done]).encode() + b"\n")

    with TileStore(directory, [SPEC]) as store:
        walk = Walk(store, Random(seed), note)
        while True:
            walk.step()


@contextmanager
def reader(directory: Path) -> Iterator[None]:
    """A process that maps what is there, and looks at it, while others write."""
    command = [*_PROGRAM, "--read", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield
        finally:
            output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, f"the reader ended with {process.returncode}"
    assert int(output) > 0, "the reader has seen nothing"


def read_until_told(directory: Path) -> int:
    """Map versions and compare all bytes, and those of older mappings again, until stdin ends."""
    os.set_blocking(0, False)
    random, seen = Random(1), 0
    held: list[tuple[bytes, memoryview]] = []
    tiles = TileReader(directory, [SPEC])
    while sys.stdin.buffer.read(1) != b"":
        try:
            root = random.choice(tiles.versions(0) or [None])  # type: ignore[list-item]
            if root is None:
                continue
            held.append((root, tiles.open(0, root, verify=random.random() < 0.5).data))
        except BlyanError:  # it changes all the time
            continue
        held = held[-KEPT_MAPPINGS:]
        for expected, data in held:
            seen += 1
            if merkle.shard_root(merkle.tile_roots(data), len(data)) != expected:
                sys.exit("a mapping holds other bytes")
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help=f"of {CUTS} cuts each [100]")
    parser.add_argument("--seed", type=int, default=1, help="of the first run [1]")
    parser.add_argument("--only", choices=CUT, help="one way to be cut short")
    parser.add_argument("--walk", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for patch in PATCHES:
        setattr(*patch)
    if options.walk:
        walk_until_killed(options.walk, options.seed)
    if options.read:
        print(read_until_told(options.read))
        return 0
    for name in CUT:
        for seed in range(options.seed, options.seed + options.runs):
            if options.only in (None, name):
                try:
                    run(name, seed)
                except BaseException:
                    print(f"FAILED: {' '.join(_PROGRAM[1:])} --only {name} --seed {seed} --runs 1")
                    raise
        if options.only in (None, name):
            print(f"{name}: {options.runs} runs of {CUTS} cuts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
