"""What a home keeps of an imported model beside its tiles (docs/spec/checkpoints.md).

    model.json      what it is; written last
    shards.jsonl    one line a shard: name, root, and where each tensor stood in the sources
    headers         the header bytes of all sources, one after another
    index           the index as it came, if one came

`model.json` holds the hash of each of the others, and the root that the tiles lead to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from chain.errors import InputError, StorageError
from chain.hashes import Hash32
from tiles.checkpoint import CODING, Piece
from tiles.layout import ShardSpec, TensorSpec

FORMAT = 1
MANIFEST, SHARDS, HEADERS, INDEX, TILES = "model.json", "shards.jsonl", "headers", "index", "tiles"
_MAX_MANIFEST_BYTES = 4 << 20  # 4,096 files of 600 bytes each fit


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One source file. `hash`: BLAKE3 of all its bytes, as `b3sum` prints it.

    `data_start`: bytes of its header with the 8 of the length, which is how many of the file
    `headers` are its. `header_hash`: BLAKE3 of these.
    """

    name: str
    bytes: int
    data_start: int
    hash: str
    header_hash: str


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """The index of a sharded checkpoint, which `index` holds whole."""

    name: str
    bytes: int
    hash: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """`model.json`. Counts are for readers; `root` (hex) is the root over all shards, or none."""

    name: str
    root: str | None
    imported_ms: int  # since 1970
    tensors: int
    shards: int
    experts: int
    tiles: int
    data_bytes: int
    shards_hash: str
    files: tuple[FileRecord, ...]
    index: IndexRecord | None

    @property
    def is_one_file(self) -> bool:
        """Whether an export is a file, and not a directory of files."""
        return len(self.files) == 1 and self.index is None

    @property
    def file_bytes(self) -> int:
        """Bytes of all files that an export writes."""
        return sum(f.bytes for f in self.files) + (self.index.bytes if self.index else 0)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def encode(self) -> bytes:
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False).encode() + b"\n"


def read_manifest(path: Path) -> Manifest:
    """Read `model.json`. StorageError if it is damaged or of a newer version."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_MANIFEST_BYTES + 1)
        found = json.loads(raw) if len(raw) <= _MAX_MANIFEST_BYTES else None
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        files = tuple(FileRecord(**f) for f in found.pop("files"))
        index = found.pop("index")
        return Manifest(**found, files=files, index=IndexRecord(**index) if index else None)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{path} is damaged ({error}); remove the model with `blyan model remove` and import "
            "it again"
        ) from None


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One line of `shards.jsonl`."""

    name: str
    root: Hash32
    pieces: tuple[Piece, ...]

    def spec(self, index: int) -> ShardSpec:
        return ShardSpec(index, self.name, CODING, tuple(p.spec for p in self.pieces))

    def encode(self) -> bytes:
        tensors = [[p.spec.name, p.spec.dtype, p.spec.shape, p.file, p.start] for p in self.pieces]
        line = {"name": self.name, "root": self.root.hex(), "tensors": tensors}
        return json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def decode_shard(line: bytes) -> ShardRecord:
    """A line of `shards.jsonl`. Raises StorageError."""
    try:
        found = json.loads(line)
        pieces = tuple(
            Piece(TensorSpec(name, dtype, tuple(shape)), int(file), int(start))
            for name, dtype, shape, file, start in found["tensors"]
        )
        return ShardRecord(found["name"], Hash32(bytes.fromhex(found["root"])), pieces)
    except (ValueError, TypeError, KeyError, InputError) as error:
        raise StorageError(f"{SHARDS} is damaged: {error}") from None


class HashedLines:
    """Lines as they are written or read, and the BLAKE3 of all that went by."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines, self._hasher = lines, blake3()

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self._hasher.update(line)
            yield line

    @property
    def hash(self) -> str:
        return self._hasher.hexdigest()
