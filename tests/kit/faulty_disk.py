"""A disk on which a process is killed, or the power fails, at a numbered step.

Every change goes to the real file system, so whoever reads sees what a killed process leaves in
the page cache. Beside it stands an image of what is durable: contents of files as of their last
sync, names of a folder as of its last sync. A power failure leaves that image, with an arbitrary
beginning of the unsynced changes of names (a journal keeps their order) and an arbitrary part of
the unsynced writes to each file, some torn.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from tiles.store.disk import Buffer, Disk

SECTOR_BYTES = 512


class Crash(BaseException):
    """The process is gone: nothing may catch it, and nothing runs afterwards."""


@dataclass(eq=False)
class Inode:
    """What a file holds durably, and what was done to it since."""

    content: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: cut to a size


class FaultyDisk(Disk):
    """Counts steps; at number `stop_at` it raises Crash, a write after half of its bytes."""

    def __init__(self, root: Path, stop_at: int | None = None) -> None:
        self.root, self.stop_at = root, stop_at
        self.steps, self.is_dead = 0, False
        self._live: dict[Path, Inode] = {}
        self._folders = {p for p in root.iterdir() if p.is_dir()}
        for path in root.glob("*/*"):
            self._live[path] = Inode(path.read_bytes())
        self._names = dict(self._live)
        self._renames: dict[Path, list[tuple[Path, Path | None, Inode | None]]] = {}
        self._open: dict[int, Inode] = {}

    def _step(self) -> bool:
        """Count; True if the process dies in this step."""
        if self.is_dead:
            raise Crash
        self.steps += 1
        self.is_dead = self.steps == self.stop_at
        return self.is_dead

    def _survive(self) -> None:
        if self._step():
            raise Crash

    # --- steps ---------------------------------------------------------------------------

    def open(self, path: Path | str, *, write: bool = False) -> int:
        fd = super().open(path, write=write)
        self._open[fd] = self._live[Path(path)]
        return fd

    def create(self, path: Path) -> int:
        self._survive()
        fd = super().create(path)
        self._live[path] = self._open[fd] = Inode()
        self._log(path, None, self._live[path])
        return fd

    def write(self, fd: int, offset: int, data: Buffer) -> None:
        dies = self._step()
        raw = bytes(memoryview(data).cast("B"))
        raw = raw[: len(raw) // 2] if dies else raw
        super().write(fd, offset, raw)
        self._open[fd].pending.append((offset, raw))
        if dies:
            raise Crash

    def truncate(self, fd: int, size_bytes: int) -> None:
        self._survive()
        super().truncate(fd, size_bytes)
        self._open[fd].pending.append((size_bytes, None))

    def sync(self, fd: int) -> None:
        self._survive()
        inode = self._open[fd]
        inode.content = os.pread(fd, os.fstat(fd).st_size, 0)
        inode.pending.clear()

    def punch(self, fd: int, offset: int, size_bytes: int) -> bool:
        self._survive()
        done = super().punch(fd, offset, size_bytes)
        if done:
            self._open[fd].pending.append((offset, bytes(size_bytes)))
        return done

    def rename(self, old: Path, new: Path) -> None:
        self._survive()
        super().rename(old, new)
        self._live[new] = self._live.pop(old)
        self._log(old, new, None)

    def unlink(self, path: Path) -> None:
        if not path.exists():
            return
        self._survive()
        super().unlink(path)
        self._live.pop(path)
        self._log(path, None, None)

    def make_folder(self, path: Path) -> None:
        self._survive()
        super().make_folder(path)

    def sync_folder(self, path: Path) -> None:
        self._survive()
        if path == self.root:
            self._folders |= {p for p in self.root.iterdir() if p.is_dir()}
        for change in self._renames.pop(path, []):
            _change(self._names, *change)

    def _log(self, old: Path, new: Path | None, inode: Inode | None) -> None:
        self._renames.setdefault(old.parent, []).append((old, new, inode))

    # --- what is left --------------------------------------------------------------------

    def lose_power(self, seed: int, into: Path) -> None:
        """Write what is durable, and some of what is not, to an empty directory."""
        draw = random.Random(seed)
        names = dict(self._names)
        for _, changes in sorted(self._renames.items()):
            for change in changes[: draw.randint(0, len(changes))]:
                _change(names, *change)
        for folder in sorted(self._folders):
            (into / folder.name).mkdir()
        for path, inode in sorted(names.items()):
            if path.parent in self._folders:
                (into / path.relative_to(self.root)).write_bytes(_survivor(inode, draw))


def _change(names: dict[Path, Inode], old: Path, new: Path | None, inode: Inode | None) -> None:
    """A file came, got another name, or went."""
    if inode is not None:
        names[old] = inode
    elif new is not None:
        names[new] = names.pop(old)
    else:
        names.pop(old)


def _survivor(inode: Inode, draw: random.Random) -> bytes:
    """A file's durable content with a part of what was written since."""
    content = bytearray(inode.content)
    for offset, data in inode.pending:
        fate = draw.randrange(3)
        if data is None:
            if fate:
                content = content[:offset].ljust(offset, b"\0")
            continue
        sectors = len(data) // SECTOR_BYTES
        part = (b"", data, data[: SECTOR_BYTES * draw.randint(0, sectors)])[fate]
        if part:
            content = content.ljust(offset, b"\0")
            content[offset : offset + len(part)] = part
    return bytes(content)
