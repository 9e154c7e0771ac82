"""The files that an import is given: which they are, and that they do not change meanwhile."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chain.errors import DecodeError, InputError
from tiles.source import (
    MAX_FILES,
    Source,
    SourceParser,
    check_index,
    indexed_files,
    missing_parts,
)

INDEX_END, FILE_END = ".safetensors.index.json", ".safetensors"
MAX_OPEN = 32  # source files open at once
_NAMED = 5  # of missing files, before "and so many more"
_OTHER = re.compile(r"[^A-Za-z0-9._-]+")
_Identity = tuple[int, int, int, int]  # device, inode, bytes, time of change in nanoseconds


@dataclass(frozen=True, slots=True)
class Found:
    """The files of one checkpoint in ascending order of their names, and its index if it has one.

    `title` is what the model is called where nobody says otherwise.
    """

    files: tuple[Path, ...]
    index: Path | None
    title: str


@contextmanager
def _refusals() -> Iterator[None]:
    """Put into words why the operating system does not let something be looked at."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None


@_refusals()
def find(paths: Sequence[Path]) -> Found:
    """The checkpoint that a user names: files, an index, or a directory with either.

    Raises InputError, DecodeError where something is missing or stands twice.
    """
    if len(paths) == 1 and paths[0].is_dir():
        index, files = _in_directory(paths[0])
    else:
        indexes = [p for p in paths if p.name.endswith(".json")]
        files = [p for p in paths if not p.name.endswith(".json")]
        if len(indexes) > 1:
            raise InputError(f"{indexes[0]} and {indexes[1]} are two checkpoints: one at a time")
        index = indexes[0] if indexes else None
    if index is not None:
        files = _of_index(index, files)
    names = [path.name for path in files]
    if foreign := [n for n in [*names, *([index.name] if index else [])] if not _is_text(n)]:
        raise InputError(f"{foreign[0]!a}: a file's name must be UTF-8; rename it")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"two files are called {twice[0]}; a checkpoint needs distinct names")
    if absent := missing_parts(names):
        raise InputError(_missing(absent, "the names of the others say that there are"))
    if len(files) > MAX_FILES:
        raise InputError(f"{len(files)} files, at most {MAX_FILES} make a checkpoint")
    title = _title(index, files)
    return Found(tuple(sorted(files, key=lambda path: path.name)), index, title)


def _is_text(name: str) -> bool:
    """False for a name of bytes that are no UTF-8, which Python holds as halves of surrogates."""
    return not any(0xD800 <= ord(character) < 0xE000 for character in name)


def _title(index: Path | None, files: Sequence[Path]) -> str:
    """A file is called after itself, several after their directory.

    In the Hugging Face cache that is `models--<owner>--<name>/snapshots/<commit>/`.
    """
    title = files[0].name.removesuffix(FILE_END)
    if index is not None or len(files) > 1 or title == "model":
        directory = (index or files[0]).parent.resolve()
        title = directory.name
        if directory.parent.name == "snapshots":
            title = directory.parent.parent.name.rpartition("--")[2]
    return _OTHER.sub("-", title)[:64]


def _in_directory(path: Path) -> tuple[Path | None, list[Path]]:
    """The index in a directory, or else all checkpoint files in it."""
    entries = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    indexes = [p for p in entries if p.name.endswith(INDEX_END)]
    if len(indexes) > 1:
        names = ", ".join(p.name for p in indexes)
        raise InputError(f"{path} holds several checkpoints ({names}): name one of these")
    if indexes:
        return indexes[0], []
    files = [p for p in entries if p.name.endswith(FILE_END)]
    if not files:
        raise InputError(f"{path} holds no file that ends with {FILE_END}")
    return None, files


def _of_index(index: Path, given: Sequence[Path]) -> list[Path]:
    """All parts that an index names; those not given stand beside it."""
    with opened(index) as (read, size), naming(index):
        names = indexed_files(read, size)
    places = {path.name: path for path in given}
    for name, path in places.items():
        if name not in names:
            raise InputError(f"{path} is no part of {index.name}")
    files = [places.get(name, index.parent / name) for name in names]
    if not files:
        raise InputError(f"{index} names no file")
    if absent := [p.name for p in files if not p.exists()]:
        raise InputError(_missing(absent, f"{index.name} names"))
    return files


def _missing(names: Sequence[str], why: str) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"a part is missing: {why} {', '.join(names[:_NAMED])}{more}"


# --- reading --------------------------------------------------------------------------


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in what is wrong with its content, or where it cannot be read."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except DecodeError as error:
        raise DecodeError(f"{path}: {error}") from None


@contextmanager
def opened(path: Path) -> Iterator[tuple[Callable[[int], bytes], int]]:
    """A file to read from its beginning, and its size."""
    descriptor, identity = _open(path)
    with open(descriptor, "rb", buffering=0) as file:
        yield file.read, identity[2]


def _open(path: Path) -> tuple[int, _Identity]:
    """A descriptor of a regular file. InputError if it is none or cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        kind = (
            "does not exist" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
        )
        raise InputError(f"{path} {kind}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is no regular file")
    return descriptor, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class Sources:
    """The files of one checkpoint, open as they are needed. Close it."""

    def __init__(self, found: Found) -> None:
        """Parse all headers and check them against the index. Raises InputError, DecodeError."""
        self.found = found
        self._identities: list[_Identity] = []
        self._open: dict[int, int] = {}
        parser = SourceParser()
        self.parsed: tuple[Source, ...] = tuple(self._parsed(parser, p) for p in found.files)
        if found.index is not None:
            names = [path.name for path in found.files]
            with opened(found.index) as (read, size), naming(found.index):
                check_index(read, size, names, parser.owners)

    def _parsed(self, parser: SourceParser, path: Path) -> Source:
        descriptor, identity = _open(path)
        self._identities.append(identity)
        with open(descriptor, "rb", buffering=0) as file, naming(path):
            return parser.parse(path.name, file.read, identity[2])

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, without the index."""
        return sum(identity[2] for identity in self._identities)

    def size(self, file: int) -> int:
        """Bytes of a whole file."""
        return self._identities[file][2]

    def read_into(self, file: int, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of a file from `offset`. InputError if it has changed."""
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._descriptor(file), [buffer[done:]], offset + done)
                if not count:
                    raise _changed(self.found.files[file])
                done += count
        except OSError as error:
            raise InputError(f"{self.found.files[file]} cannot be read: {error.strerror}") from None

    def _descriptor(self, file: int) -> int:
        descriptor = self._open.get(file)
        if descriptor is None:
            if len(self._open) >= MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor, identity = _open(self.found.files[file])
            self._open[file] = descriptor
            if identity != self._identities[file]:
                raise _changed(self.found.files[file])
        return descriptor

    def check_unchanged(self) -> None:
        """Raise InputError if any file is not the one it was when its header was read."""
        for path, expected in zip(self.found.files, self._identities, strict=True):
            descriptor, identity = _open(path)
            os.close(descriptor)
            if identity != expected:
                raise _changed(path)


def _changed(path: Path) -> InputError:
    return InputError(
        f"{path} changed while it was read, and nothing was imported; try again when nothing "
        "writes to it"
    )
