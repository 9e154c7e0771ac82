"""The tiles on disk: shard versions, whole or in part (docs/spec/tiles.md).

    <directory>/<shard index>/<shard root>.safetensors   a whole version
    <directory>/<shard index>/<shard root>.partial       the same, tiles still missing
    <directory>/<shard index>/<shard root>.roots         tile roots, then subtile hashes

`.roots` has a fixed size. A tile is present when its 16 subtile hashes there lead to its tile
root; the tile roots lead to the shard root, which is the file's name. Bytes are synced before
their hashes are, so whatever a crash tears is simply not present, and no other flag can lie.
Tiles are verified when they enter from the network and again whenever they are read from disk.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from chain import limits
from chain.errors import InputError, StorageError, VerifyError, invariant
from chain.hashes import ZERO_HASH, Hash32
from tiles import merkle
from tiles.layout import SUBTILES_PER_TILE, ShardSpec, subtile_count
from tiles.shardfile import ShardFile, open_shard, shard_header

Buffer = bytes | bytearray | memoryview
_WHOLE, _PARTIAL, _ROOTS, _TEMP = ".safetensors", ".partial", ".roots", ".tmp"


@dataclass(frozen=True, slots=True)
class Damage:
    """One bad subtile found on disk. The tile it stands in is no longer present."""

    shard: int
    shard_root: Hash32
    tile: int
    subtile: int


@dataclass(slots=True)
class _Version:
    """What is known of one version on disk. `hashes[t]` is None while tile t is missing."""

    spec: ShardSpec
    root: Hash32
    stem: Path
    data_start: int
    tile_roots: tuple[Hash32, ...]
    hashes: list[tuple[Hash32, ...] | None] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return all(h is not None for h in self.hashes)

    def path(self, suffix: str) -> Path:
        return self.stem.with_name(self.stem.name + suffix)

    @property
    def data_path(self) -> Path:
        return self.path(_WHOLE if self.whole else _PARTIAL)

    def record(self, tile: int) -> tuple[int, int]:
        """Offset and count of a tile's subtile hashes in the `.roots` file."""
        at = 32 * (len(self.tile_roots) + tile * SUBTILES_PER_TILE)
        return at, subtile_count(self.spec.tile_bytes(tile))


class TileStore:
    """Shard versions by shard root. Safe to call from several threads of one process."""

    def __init__(self, directory: Path, specs: Sequence[ShardSpec]) -> None:
        """Open or make the store; what a crash left unfinished is removed or still partial."""
        self._directory = directory
        self._specs = {spec.index: spec for spec in specs}
        self._lock = threading.RLock()
        self._versions: dict[tuple[int, Hash32], _Version] = {}
        for spec in specs:
            folder = self._folder(spec.index)
            with _disk(f"open {folder}"):
                folder.mkdir(parents=True, exist_ok=True)
                self._load(spec, folder)

    def close(self) -> None:
        """Let another writer open the directory. What was mapped stays mapped."""

    def __enter__(self) -> TileStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- entering ------------------------------------------------------------------

    def writer(self, shard: int) -> ShardWriter:
        """Take a shard's data section in sequential parts, as an import reads it."""
        return ShardWriter(self, self._spec(shard))

    def apply(self, shard: int, base_root: Hash32, tiles: Mapping[int, Buffer]) -> Hash32:
        """The base version with these whole tiles replaced, as a new version; its root."""
        spec, data = self._spec(shard), bytearray(self.read_shard(shard, base_root))
        for tile, new in tiles.items():
            start, end = spec.tile_range(tile)
            if len(new) != end - start:
                raise VerifyError(f"tile {tile}: {len(new)} bytes, expected {end - start}")
            data[start:end] = new
        root = merkle.shard_root(merkle.tile_roots(data), spec.data_bytes)
        self.put_shard(shard, data, root)
        return root

    def put_shard(self, shard: int, data: Buffer, expected_root: Hash32) -> None:
        """Store a whole version, atomically. Raises VerifyError if `data` is not `expected_root`.

        `data` is the data section. Putting what is there already does nothing.
        """
        spec = self._spec(shard)
        if len(data) != spec.data_bytes:
            raise VerifyError(f"shard {spec.name}: {len(data)} bytes, expected {spec.data_bytes}")
        view = memoryview(data).cast("B")
        hashes = [merkle.subtile_hashes(view[slice(*r)]) for r in _tile_ranges(spec)]
        roots = tuple(merkle.tile_root_of(h, spec.tile_bytes(i)) for i, h in enumerate(hashes))
        if merkle.shard_root(roots, spec.data_bytes) != expected_root:
            raise VerifyError(
                f"shard {spec.name}: its bytes do not have the root {expected_root.hex()}"
            )
        with self._lock:
            version = self._version_or_none(shard, expected_root)
            if version is not None and version.whole:
                return
            version = self._new_version(spec, expected_root, roots)
            version.hashes = list(hashes)
            with _disk(f"write shard {spec.name}"):
                _write_file(version.path(_WHOLE), [shard_header(spec), view])
                _write_file(version.path(_ROOTS), [_roots_file(version)])
                version.path(_PARTIAL).unlink(missing_ok=True)
            self._versions[shard, expected_root] = version

    def begin(self, shard: int, shard_root: Hash32, tile_roots: Sequence[Hash32]) -> list[int]:
        """Make room for a version of which tiles will come one by one; its missing tiles.

        Tiles that another version here has under the same tile root are taken from there. Raises
        VerifyError if the tile roots do not lead to the shard root. May be called again.
        """
        spec = self._spec(shard)
        if merkle.shard_root(tile_roots, spec.data_bytes) != shard_root:
            raise VerifyError(f"shard {spec.name}: tile roots do not lead to {shard_root.hex()}")
        with self._lock:
            version = self._version_or_none(shard, shard_root)
            if version is None:
                version = self._new_version(spec, shard_root, tuple(tile_roots))
                with _disk(f"begin shard {spec.name}"):
                    _write_file(version.path(_ROOTS), [_roots_file(version)])
                    size = version.data_start + spec.data_bytes
                    _write_file(version.path(_PARTIAL), [shard_header(spec)], size)
                self._versions[shard, shard_root] = version
                self._adopt(version)
            return [i for i, h in enumerate(version.hashes) if h is None]

    def put_tile(self, shard: int, shard_root: Hash32, tile: int, data: Buffer) -> None:
        """Add one tile to a version that was begun. Raises VerifyError if it is not that tile."""
        with self._lock:
            version = self._version(shard, shard_root)
            expected = version.spec.tile_bytes(tile)
            if len(data) != expected:
                raise VerifyError(f"tile {tile}: {len(data)} bytes, expected {expected}")
            hashes = merkle.subtile_hashes(data)
            if merkle.tile_root_of(hashes, expected) != version.tile_roots[tile]:
                root = version.tile_roots[tile].hex()
                raise VerifyError(f"tile {tile} of {version.spec.name} has not the root {root}")
            if version.hashes[tile] is None:
                with _disk(f"write tile {tile} of shard {version.spec.name}"):
                    self._write_tile(version, tile, data, hashes)

    # --- asking --------------------------------------------------------------------

    def versions(self, shard: int) -> tuple[Hash32, ...]:
        """Shard roots of the whole versions, in ascending order."""
        return self._roots(shard, whole=True)

    def partial_versions(self, shard: int) -> tuple[Hash32, ...]:
        """Shard roots of the versions with tiles missing, in ascending order."""
        return self._roots(shard, whole=False)

    def presence(self, shard: int, shard_root: Hash32) -> tuple[bool, ...]:
        """For each tile whether it is here; empty for an unknown version."""
        version = self._version_or_none(shard, shard_root)
        return tuple(h is not None for h in version.hashes) if version else ()

    def has_tile(self, shard: int, shard_root: Hash32, tile: int) -> bool:
        presence = self.presence(shard, shard_root)
        return 0 <= tile < len(presence) and presence[tile]

    def tile_roots(self, shard: int, shard_root: Hash32) -> tuple[Hash32, ...]:
        """Tile roots of a version, whole or partial. Raises InputError for an unknown one."""
        return self._version(shard, shard_root).tile_roots

    def subtile_hashes(self, shard: int, shard_root: Hash32, tile: int) -> tuple[Hash32, ...]:
        """Leaf hashes of a tile that is here. Raises InputError if it is not."""
        version = self._version(shard, shard_root)
        version.spec.tile_range(tile)
        hashes = version.hashes[tile]
        if hashes is None:
            raise InputError(f"tile {tile} of shard {version.spec.name} is not held here")
        return hashes

    def path(self, shard: int, shard_root: Hash32) -> Path:
        """The .safetensors file of a whole version, for readers that map it themselves."""
        with self._lock:
            version = self._version(shard, shard_root)
            if not version.whole:
                raise InputError(f"shard {version.spec.name}: this version is not whole")
            return version.data_path

    # --- reading -------------------------------------------------------------------

    def read_tile(self, shard: int, shard_root: Hash32, tile: int) -> bytes:
        """The verified bytes of a tile. Raises InputError if it is not here, and StorageError
        naming the subtile if the disk returns something else; the tile then counts as missing.
        """
        version = self._version(shard, shard_root)
        version.spec.tile_range(tile)  # refuses an index beyond the shard
        data, bad = self._read(version, tile)
        if data is None:
            raise InputError(f"tile {tile} of shard {version.spec.name} is not held here")
        if bad is not None:
            raise StorageError(
                f"shard {version.spec.name}, tile {tile}: subtile {bad} is damaged on disk; the "
                "tile counts as missing now and can be fetched again"
            )
        return data

    def read_subtiles(
        self, shard: int, shard_root: Hash32, tile: int, first: int, count: int
    ) -> bytes:
        """Verified bytes of `count` subtiles of a tile from subtile `first`; fewer at its end."""
        data = self.read_tile(shard, shard_root, tile)
        return data[first * limits.SUBTILE_BYTES : (first + count) * limits.SUBTILE_BYTES]

    def read_shard(self, shard: int, shard_root: Hash32) -> bytes:
        """The verified data section of a whole version. Raises as `read_tile` does."""
        tiles = range(self._version(shard, shard_root).spec.tile_count)
        return b"".join(self.read_tile(shard, shard_root, tile) for tile in tiles)

    def open(self, shard: int, shard_root: Hash32, verify: bool = True) -> ShardFile:
        """Map a whole version without a copy, after one pass that verifies it."""
        spec = self._spec(shard)
        for tile in range(spec.tile_count) if verify else ():
            self.read_tile(shard, shard_root, tile)
        return open_shard(self.path(shard, shard_root), spec)

    # --- upkeep --------------------------------------------------------------------

    def drop(self, shard: int, shard_root: Hash32) -> None:
        """Remove a version. Whoever has it mapped keeps what they mapped."""
        with self._lock:
            version = self._versions.pop((shard, shard_root), None)
            if version is not None:
                with _disk(f"drop a version of shard {version.spec.name}"):
                    for suffix in (_WHOLE, _PARTIAL, _ROOTS):
                        version.path(suffix).unlink(missing_ok=True)

    def scrub(self) -> list[Damage]:
        """Read everything once; the damaged subtiles, one a tile. Damaged tiles become missing."""
        damages = []
        for version in list(self._versions.values()):
            for tile in range(version.spec.tile_count):
                _, bad = self._read(version, tile)
                if bad is not None:
                    damages.append(Damage(version.spec.index, version.root, tile, bad))
        return damages

    # --- inside --------------------------------------------------------------------

    def _folder(self, shard: int) -> Path:
        return self._directory / f"{shard:05d}"

    def _spec(self, shard: int) -> ShardSpec:
        try:
            return self._specs[shard]
        except KeyError:
            raise InputError(f"the model has no shard {shard}") from None

    def _version_or_none(self, shard: int, shard_root: Hash32) -> _Version | None:
        self._spec(shard)
        return self._versions.get((shard, shard_root))

    def _version(self, shard: int, shard_root: Hash32) -> _Version:
        version = self._version_or_none(shard, shard_root)
        if version is None:
            raise InputError(f"shard {shard}: version {shard_root.hex()} is not held here")
        return version

    def _roots(self, shard: int, *, whole: bool) -> tuple[Hash32, ...]:
        self._spec(shard)
        held = list(self._versions.values())
        return tuple(sorted(v.root for v in held if v.spec.index == shard and v.whole == whole))

    def _new_version(
        self, spec: ShardSpec, root: Hash32, tile_roots: tuple[Hash32, ...]
    ) -> _Version:
        stem = self._folder(spec.index) / root.hex()
        start = len(shard_header(spec))
        return _Version(spec, root, stem, start, tile_roots, [None] * spec.tile_count)

    def _read(self, version: _Version, tile: int) -> tuple[bytes | None, int | None]:
        """A tile's bytes and its first bad subtile. (None, None) if the tile is not here; a tile
        with a bad subtile is missing afterwards.
        """
        start, end = version.spec.tile_range(tile)
        with _disk(f"read tile {tile} of shard {version.spec.name}"):
            with self._lock:
                hashes = version.hashes[tile]
                if hashes is None or not self._is_held(version):
                    return None, None
                file = version.data_path.open("rb")
            with file:  # outside the lock: an open file outlives the version's name
                data = os.pread(file.fileno(), end - start, version.data_start + start)
        bad = _first_bad(data, end - start, hashes)
        if bad is not None:
            self._forget(version, tile)
        return data, bad

    def _is_held(self, version: _Version) -> bool:
        return self._versions.get((version.spec.index, version.root)) is version

    def _load(self, spec: ShardSpec, folder: Path) -> None:
        for leftover in folder.glob("*" + _TEMP):
            leftover.unlink()
        for data_path in [*folder.glob("*" + _WHOLE), *folder.glob("*" + _PARTIAL)]:
            if not data_path.with_suffix(_ROOTS).exists():
                data_path.unlink()  # a crash came before the hashes were written
        for roots_path in sorted(folder.glob("*" + _ROOTS)):
            version = self._read_version(spec, roots_path)
            if version is None:  # begun and never written, or damaged beyond use: fetch again
                for suffix in (_ROOTS, _PARTIAL, _WHOLE):
                    roots_path.with_suffix(suffix).unlink(missing_ok=True)
            else:
                self._versions[spec.index, version.root] = version

    def _read_version(self, spec: ShardSpec, roots_path: Path) -> _Version | None:
        """A version as `.roots` tells it, its data file under the right name; None if unusable."""
        try:
            root = Hash32(bytes.fromhex(roots_path.stem))
        except ValueError:
            return None
        if len(root) != 32 or root.hex() != roots_path.stem:
            return None
        raw = roots_path.read_bytes()
        hashes = [Hash32(raw[i : i + 32]) for i in range(0, len(raw), 32)]
        count = spec.tile_count
        version = self._new_version(spec, root, tuple(hashes[:count]))
        if len(raw) != len(_roots_file(version)):
            return None
        if merkle.shard_root(version.tile_roots, spec.data_bytes) != root:
            return None
        for tile in range(count):
            at, leaves = version.record(tile)
            record = tuple(hashes[at // 32 : at // 32 + leaves])
            if merkle.tile_root_of(record, spec.tile_bytes(tile)) == version.tile_roots[tile]:
                version.hashes[tile] = record
        other = version.path(_PARTIAL if version.whole else _WHOLE)
        if other.exists() and version.data_path.exists():
            other.unlink()
        elif other.exists():
            other.rename(version.data_path)
        if not version.data_path.exists():
            return None
        header = shard_header(spec)
        with version.data_path.open("rb") as file:
            sound = file.read(len(header)) == header
            sound &= file.seek(0, os.SEEK_END) == len(header) + spec.data_bytes
        return version if sound else None

    def _adopt(self, version: _Version) -> None:
        """Copy tiles that other versions of the shard hold under the same tile root."""
        shard = version.spec.index
        others = [v for (s, r), v in self._versions.items() if s == shard and r != version.root]
        for tile, root in enumerate(version.tile_roots):
            for other in others:
                data, bad = self._read(other, tile) if other.tile_roots[tile] == root else (None, 0)
                if data is not None and bad is None:
                    self.put_tile(shard, version.root, tile, data)
                    break

    def _write_tile(
        self, version: _Version, tile: int, data: Buffer, hashes: tuple[Hash32, ...]
    ) -> None:
        """Bytes, sync, hashes, sync; the last missing tile gives the file its final name."""
        invariant(not version.whole, "a whole version is never written to")
        start = version.data_start + version.spec.tile_range(tile)[0]
        _write_at(version.path(_PARTIAL), start, data)
        _write_at(version.path(_ROOTS), version.record(tile)[0], b"".join(hashes))
        version.hashes[tile] = hashes
        if version.whole:
            version.path(_PARTIAL).rename(version.path(_WHOLE))
            _sync_folder(version.stem.parent)

    def _forget(self, version: _Version, tile: int) -> None:
        """A tile found damaged is missing from now on, also after a restart."""
        with self._lock, _disk(f"mark tile {tile} of shard {version.spec.name} as missing"):
            if not self._is_held(version):
                return  # dropped meanwhile
            if version.whole:
                version.path(_WHOLE).rename(version.path(_PARTIAL))
            version.hashes[tile] = None
            at, leaves = version.record(tile)
            _write_at(version.path(_ROOTS), at, ZERO_HASH * leaves)


class ShardWriter:
    """Sequential bytes of a data section; `finish` makes them a version."""

    def __init__(self, store: TileStore, spec: ShardSpec) -> None:
        self._store, self._spec, self._data = store, spec, bytearray()

    def write(self, data: Buffer) -> None:
        """The next bytes. Raises VerifyError if there are more than the shard has."""
        self._data += data
        if len(self._data) > self._spec.data_bytes:
            raise VerifyError(f"shard {self._spec.name}: more than {self._spec.data_bytes} bytes")

    def finish(self) -> Hash32:
        """Store the version durably; its root."""
        if len(self._data) != self._spec.data_bytes:
            raise VerifyError(
                f"shard {self._spec.name}: {len(self._data)} bytes, "
                f"expected {self._spec.data_bytes}"
            )
        root = merkle.shard_root(merkle.tile_roots(self._data), self._spec.data_bytes)
        self._store.put_shard(self._spec.index, self._data, root)
        return root

    def abort(self) -> None:
        """Forget what was written."""
        self._data.clear()


def _tile_ranges(spec: ShardSpec) -> list[tuple[int, int]]:
    return [spec.tile_range(i) for i in range(spec.tile_count)]


def _roots_file(version: _Version) -> bytes:
    """The `.roots` file: tile roots, then each tile's subtile hashes or zeros."""
    parts = list(version.tile_roots)
    for tile, hashes in enumerate(version.hashes):
        parts += hashes or [ZERO_HASH] * version.record(tile)[1]
    return b"".join(parts)


def _first_bad(data: bytes, size: int, hashes: tuple[Hash32, ...]) -> int | None:
    """First subtile whose bytes are not those of its hash; None if all are."""
    parts = list(merkle.subtiles(data))
    for i, expected in enumerate(hashes):
        if i >= len(parts) or merkle.subtile_hash(i, parts[i]) != expected:
            return i
    invariant(len(data) == size, "verified bytes of a wrong size")
    return None


# --- disk --------------------------------------------------------------------------


@contextmanager
def _disk(what: str) -> Iterator[None]:
    """Turn the operating system's refusals into ours, in words an operator can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"cannot {what}: the disk is full; free some space or hold fewer tiles"
            ) from error
        raise StorageError(f"cannot {what}: {error.strerror}") from error


def _write_file(path: Path, parts: Sequence[Buffer], size: int | None = None) -> None:
    """Write a file under another name, sync it, then give it its name: all of it or nothing."""
    temp = path.with_name(path.name + _TEMP)
    try:
        with temp.open("wb") as file:
            for part in parts:
                file.write(part)
            if size is not None:
                file.truncate(size)  # the rest stays a hole until its tiles come
            file.flush()
            os.fsync(file.fileno())
        temp.rename(path)
    except OSError:
        temp.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_at(path: Path, offset: int, data: Buffer) -> None:
    """Overwrite a part of a file and sync it."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
