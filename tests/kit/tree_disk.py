"""A disk under a tree of folders on which the process dies at a numbered step, and the image that
a power failure leaves: contents as of their last sync, names of a folder as of its last sync.

With a seed some of what was not synced survives as well: any folder's later names, any later
writes of a file, as journals and caches happen to have them.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from tiles.store.disk import Buffer, Disk


class Crash(BaseException):
    """The process is gone: nothing may catch it, and nothing runs afterwards."""


@dataclass(eq=False)
class _File:
    content: bytes = b""  # durable
    later: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass(eq=False)
class _Folder:
    names: dict[str, _File | _Folder] = field(default_factory=dict)
    durable: dict[str, _File | _Folder] = field(default_factory=dict)


class TreeDisk(Disk):
    """Counts what changes the disk; at number `stop_at` raises Crash, a write after its half."""

    def __init__(self, root: Path, stop_at: int | None = None) -> None:
        self.root, self.stop_at, self.steps, self.is_dead = root, stop_at, 0, False
        self._top = _Folder()
        self._open: dict[int, _File] = {}

    def check_alive(self) -> None:
        if self.is_dead:
            raise Crash

    def _step(self, *, half: bool = False) -> bool:
        self.check_alive()
        self.steps += 1
        self.is_dead = self.steps == self.stop_at
        if self.is_dead and not half:
            raise Crash
        return self.is_dead

    def _folder(self, path: Path) -> _Folder:
        """Folders that were made without us are as good as not synced."""
        at = self._top
        for name in path.relative_to(self.root).parts:
            found = at.names.setdefault(name, _Folder())
            assert isinstance(found, _Folder)
            at = found
        return at

    def create(self, path: Path) -> int:
        self._step()
        fd = super().create(path)
        file = self._folder(path.parent).names[path.name] = self._open[fd] = _File()
        assert not file.content
        return fd

    def write(self, fd: int, offset: int, data: Buffer) -> None:
        dies = self._step(half=True)
        raw = bytes(memoryview(data).cast("B"))
        raw = raw[: len(raw) // 2] if dies else raw
        super().write(fd, offset, raw)
        self._open[fd].later.append((offset, raw))
        if dies:
            raise Crash

    def sync(self, fd: int) -> None:
        self._step()
        file = self._open[fd]
        file.content, file.later = os.pread(fd, os.fstat(fd).st_size, 0), []

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        super().rename(old, new)
        moved = self._folder(old.parent).names.pop(old.name, _Folder())
        self._folder(new.parent).names[new.name] = moved

    def unlink(self, path: Path) -> None:
        if path.exists():
            self._step()
            super().unlink(path)
            self._folder(path.parent).names.pop(path.name)

    def make_folder(self, path: Path) -> None:
        self._step()
        super().make_folder(path)
        self._folder(path)

    def sync_folder(self, path: Path) -> None:
        self._step()
        if path.is_relative_to(self.root):
            folder = self._folder(path)
            folder.durable = dict(folder.names)

    def lose_power(self, into: Path, seed: int | None) -> None:
        """Write to an empty directory what a power failure leaves."""
        _restore(self._top, into, None if seed is None else random.Random(seed))


def _restore(folder: _Folder, into: Path, rng: random.Random | None) -> None:
    later = rng is not None and rng.random() < 0.5
    for name, entry in sorted((folder.names if later else folder.durable).items()):
        if isinstance(entry, _Folder):
            (into / name).mkdir()
            _restore(entry, into / name, rng)
            continue
        content = bytearray(entry.content)
        for offset, data in entry.later if rng is not None else []:
            if rng is not None and rng.random() < 0.5:
                content.extend(bytes(max(0, offset + len(data) - len(content))))
                content[offset : offset + len(data)] = data
        (into / name).write_bytes(content)
