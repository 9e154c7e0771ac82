"""The files of a checkpoint as others wrote them: their headers, and the index that joins them
(docs/spec/checkpoints.md).

What `safetensors` accepts is accepted, but for what would let two readers see different models:
names that repeat, within a file or across files, holes, overlaps and trailing bytes are refused.
Headers of up to 100 MB are read through a window; what is kept costs about 300 bytes a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chain.errors import DecodeError, InputError
from tiles.checkpoint import Piece
from tiles.json_scan import JsonScanner
from tiles.layout import DTYPE_BITS, TensorSpec

LENGTH_BYTES = 8  # of the header's length, little-endian, at the beginning of a file
MAX_SOURCE_HEADER_BYTES = 100_000_000  # `safetensors` itself refuses more
MAX_INDEX_BYTES = 100_000_000
MAX_MODEL_TENSORS = 1 << 18  # of all files together: more than the largest open models have
MAX_NAMES_BYTES = 20 << 20  # of all tensor names and long shapes together, as Python holds them
MAX_FILES = 4096  # of one checkpoint
MAX_FILE_NAME = 255  # bytes, as file systems have it
_MAX_METADATA_KEYS = 4096
_METADATA_KEY_BYTES = 1024
_ENTRY_BYTES = 8192  # one tensor's entry as it stands in the text
_NAME_BYTES = 8192  # a name as it stands in the text, where an escape takes six times its bytes
_SIZE_BYTES, _USUAL_DIMS = 16, 4  # of a dimension in memory; those that are not counted
_SHAPES_KEPT = 4096  # as one object each; most models have few
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_PART = re.compile(r"(.*[-_.])(\d{5})-of-(\d{5})(\.safetensors)")

Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed file: where its data section starts, its size, its tensors in order of place."""

    data_start: int
    data_bytes: int
    tensors: tuple[Piece, ...]


class SourceParser:
    """Parses the files of one checkpoint one after another, within limits for all together."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._owners: dict[str, int] = {}
        self._name_bytes = 0
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}

    @property
    def owners(self) -> Mapping[str, int]:
        """The number of the file in which each tensor stands."""
        return self._owners

    def parse(self, file: str, read: Read, file_bytes: int) -> Source:
        """Parse the header of a file; `read(n)` gives its next n bytes from the beginning.

        Raises DecodeError, which does not name the file.
        """
        number = len(self._files)
        self._files.append(file)
        header_bytes = _header_length(read(LENGTH_BYTES), file_bytes)
        scanner = JsonScanner(read, header_bytes)
        tensors: list[Piece] = []
        metadata = 0
        for name in scanner.members(_NAME_BYTES):
            if name == _METADATA:
                metadata += 1
                _pass_metadata(scanner)
            else:
                self._claim(name, number)
                tensors.append(self._piece(name, number, scanner.flat_object(_ENTRY_BYTES)))
        scanner.end()
        if metadata > 1:
            raise DecodeError("__metadata__ stands in the header twice")
        data_start = LENGTH_BYTES + header_bytes
        tensors.sort(key=lambda piece: piece.end)  # twice, as pairs of keys would cost too much
        tensors.sort(key=lambda piece: piece.start)
        _check_cover(tensors, file_bytes - data_start)
        return Source(data_start, file_bytes - data_start, tuple(tensors))

    def _claim(self, name: str, number: int) -> None:
        """Take a name for a file. DecodeError if it is taken or one too many."""
        owner = self._owners.get(name)
        if owner == number:
            raise DecodeError(f"tensor {shown(name)} stands in the header twice")
        if owner is not None:
            raise DecodeError(f"tensor {shown(name)} stands in {self._files[owner]} as well")
        self._owners[name] = number
        self._spend(len(name) * (1 if name.isascii() else 4))

    def _spend(self, size_bytes: int) -> None:
        """Count what a tensor's name or shape takes in memory. DecodeError if it is too much."""
        self._name_bytes += size_bytes
        if len(self._owners) > MAX_MODEL_TENSORS or self._name_bytes > MAX_NAMES_BYTES:
            raise DecodeError(
                f"the checkpoint has more than {MAX_MODEL_TENSORS} tensors, or more than "
                f"{MAX_NAMES_BYTES >> 20} MiB of names, and cannot be imported in bounded memory"
            )

    def _piece(self, name: str, number: int, entry: dict[str, Any]) -> Piece:
        if set(entry) != _FIELDS:
            raise DecodeError(f"tensor {shown(name)}: expected dtype, shape and data_offsets")
        dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(dtype) is not str or dtype not in DTYPE_BITS:
            raise DecodeError(f"tensor {shown(name)}: unknown dtype {shown(str(dtype))}")
        if not _is_sizes(shape) or not _is_sizes(span) or len(span) != 2:
            raise DecodeError(f"tensor {shown(name)}: shape and offsets must be lists of sizes")
        sizes = tuple(shape)
        self._spend(_SIZE_BYTES * max(0, len(sizes) - _USUAL_DIMS))
        if len(self._shapes) < _SHAPES_KEPT:
            self._shapes.setdefault(sizes, sizes)
        try:
            spec = TensorSpec(name, _DTYPES[dtype], self._shapes.get(sizes, sizes))
        except (InputError, UnicodeEncodeError) as error:  # a lone surrogate has no UTF-8
            raise DecodeError(str(error)) from None
        if span[1] - span[0] != spec.data_bytes:
            raise DecodeError(
                f"tensor {shown(name)}: {span[1] - span[0]} bytes where its shape and dtype "
                f"take {spec.data_bytes}"
            )
        return Piece(spec, number, span[0])


_DTYPES = {name: name for name in DTYPE_BITS}  # one object a dtype


def _header_length(prefix: bytes, file_bytes: int) -> int:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES or length > file_bytes - LENGTH_BYTES:
        raise DecodeError(
            f"no safetensors file, or its end is missing: {file_bytes} bytes"
            + (f", of which the header alone takes {length}" if len(prefix) == LENGTH_BYTES else "")
        )
    if length > MAX_SOURCE_HEADER_BYTES:
        raise DecodeError(f"a header of {length} bytes, at most {MAX_SOURCE_HEADER_BYTES}")
    return length


def _pass_metadata(scanner: JsonScanner) -> None:
    """Pass over the metadata, which must be text by name, each name once."""
    if scanner.is_null():
        return
    names = set()
    for name in scanner.members(_NAME_BYTES):
        if name in names:
            raise DecodeError(f"__metadata__ names {shown(name)} twice")
        names.add(name)
        if len(names) > _MAX_METADATA_KEYS or len(name.encode()) > _METADATA_KEY_BYTES:
            raise DecodeError(
                f"__metadata__ has more than {_MAX_METADATA_KEYS} names, or one of more than "
                f"{_METADATA_KEY_BYTES} bytes"
            )
        scanner.skip_text()


def _check_cover(tensors: Sequence[Piece], data_bytes: int) -> None:
    """The tensors, in order of place, must cover the data section without holes or overlaps."""
    at = 0
    for piece in tensors:
        if piece.start != at:
            kind = "overlaps its neighbour" if piece.start < at else "leaves a hole before it"
            name = shown(piece.spec.name)
            raise DecodeError(f"tensor {name} at byte {piece.start} {kind}, which ends at {at}")
        at = piece.end
    if at < data_bytes:
        raise DecodeError(f"{data_bytes - at} bytes after the last tensor")
    if at > data_bytes:
        raise DecodeError(f"the end is missing: {data_bytes} bytes of data, tensors take {at}")


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def shown(name: str) -> str:
    """A name of a stranger in a message: short, and without what would disturb a terminal."""
    return ascii(name) if len(name) <= 160 else ascii(name[:160]) + "…"


# --- the index of a sharded checkpoint ------------------------------------------------


def indexed_files(read: Read, index_bytes: int) -> tuple[str, ...]:
    """The files that an index names, in ascending order. Raises DecodeError."""
    files = set()
    for _, file in _weight_map(read, index_bytes):
        if file not in files:
            files.add(_plain(file))
        if len(files) > MAX_FILES:
            raise DecodeError(f"more than {MAX_FILES} files")
    return tuple(sorted(files))


def check_index(
    read: Read, index_bytes: int, files: Sequence[str], owners: Mapping[str, int]
) -> None:
    """Check that an index tells for each tensor the file it is in. Raises DecodeError.

    `owners`: the number in `files` of the file where each tensor was found.
    """
    missing = set(owners)
    for name, file in _weight_map(read, index_bytes):
        if name not in owners:
            raise DecodeError(f"tensor {shown(name)} should be in {shown(file)} and is not")
        if name not in missing:
            raise DecodeError(f"tensor {shown(name)} is named twice")
        if files[owners[name]] != file:
            raise DecodeError(
                f"tensor {shown(name)} should be in {shown(file)} and is in {files[owners[name]]}"
            )
        missing.remove(name)
    if missing:
        name = min(missing)
        raise DecodeError(f"tensor {shown(name)} of {files[owners[name]]} is not named")


def _weight_map(read: Read, index_bytes: int) -> Iterator[tuple[str, str]]:
    """(tensor, file) pairs of an index in their order."""
    if index_bytes > MAX_INDEX_BYTES:
        raise DecodeError(f"an index of {index_bytes} bytes, at most {MAX_INDEX_BYTES}")
    scanner = JsonScanner(read, index_bytes)
    found = count = 0
    for key in scanner.members(_NAME_BYTES):
        if key != "weight_map":
            scanner.skip()
            continue
        found += 1
        for name in scanner.members(_NAME_BYTES):
            count += 1
            if count > MAX_MODEL_TENSORS:
                raise DecodeError(f"more than {MAX_MODEL_TENSORS} tensors")
            yield name, scanner.text(_NAME_BYTES)
    scanner.end()
    if found != 1:
        raise DecodeError(f"expected one weight_map, found {found}")


def _plain(file: str) -> str:
    """A name of a file beside the index; never a way to another directory."""
    plain = 0 < len(file.encode("utf-8", "replace")) <= MAX_FILE_NAME and file.isprintable()
    if not plain or "/" in file or "\\" in file or file.startswith("."):
        raise DecodeError(f"{shown(file)} is no name of a file beside it")
    return file


def missing_parts(files: Sequence[str]) -> tuple[str, ...]:
    """Names that `model-00001-of-00003.safetensors` and its like promise and that are not here."""
    here = set(files)
    missing = []
    for stem, count, end in sorted(
        {(m[1], m[3], m[4]) for f in files if (m := _PART.fullmatch(f))}
    ):
        wanted = (
            f"{stem}{i:05d}-of-{count}{end}" for i in range(1, min(int(count), MAX_FILES) + 1)
        )
        missing += [name for name in wanted if name not in here]
    return tuple(missing)
