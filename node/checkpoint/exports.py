"""An imported model back as the files it came from, byte for byte (docs/spec/checkpoints.md).

Every subtile is verified before its bytes are written, and the hash of each file is compared with
that of its source before the file gets its name.
"""

from __future__ import annotations

import shutil
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from chain.errors import InputError, QuotaError, StorageError
from chain.hashes import Hash32
from chain.limits import SUBTILE_BYTES, TILE_BYTES
from node.checkpoint.imports import megabytes
from node.checkpoint.intake import Progress
from node.checkpoint.manifest import (
    HEADERS,
    INDEX,
    SHARDS,
    TILES,
    HashedLines,
    Manifest,
    ShardRecord,
    decode_shard,
)
from node.checkpoint.output import OutputFile, output_directory, output_file, refusals
from tiles.store import TileReader

MAX_READERS, MAX_READ_TENSORS = 64, 8192  # of shards known at once, and of tensors in these
CACHED_SUBTILES = 32  # 8 MiB: small tensors share subtiles
_COPY_BYTES = 1 << 20  # of a header or the index, copied at once
_FIELDS = 5  # of a segment


class _Tiles(TileReader):
    advice = "no other node is known to have it"


class SavedModel:
    """An imported model on disk, read and verified piece by piece."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Reads where every tensor belongs. Raises StorageError if that is damaged."""
        self.path, self.manifest = path, manifest
        self._lines = array("Q")  # where each shard's line begins
        self._segments = array("Q")  # file, start, end, shard, offset in the shard
        self._readers: OrderedDict[int, tuple[Hash32, TileReader, int]] = OrderedDict()
        self._read_tensors = 0
        self._subtiles: OrderedDict[tuple[int, int, int], memoryview] = OrderedDict()
        with self._open(SHARDS) as file:
            lines, at = HashedLines(file), 0
            for shard, line in enumerate(lines):
                self._lines.append(at)
                at += len(line)
                self._note(shard, self._decode(line))
        if lines.hash != manifest.shards_hash:
            raise self._damaged(f"{SHARDS} is not the one that was written")
        self._order = self._in_order()

    # --- files --------------------------------------------------------------------------

    def file(self, number: int) -> Iterator[memoryview]:
        """The bytes of a source file from first to last. Raises StorageError on any damage."""
        yield from self._header(number)
        for segment in self._order[number]:
            yield from self._read(segment)

    def index(self) -> Iterator[memoryview]:
        """The bytes of the index."""
        with self._open(INDEX) as file:
            while part := file.read(_COPY_BYTES):
                yield memoryview(part)

    def check(self, name: str, expected: str, found: str) -> None:
        """Compare the hash of an exported file with that of its source."""
        if found != expected:
            raise self._damaged(
                f"{name} would have the hash {found}, and its source had {expected}"
            )

    def _header(self, number: int) -> Iterator[memoryview]:
        files, hasher = self.manifest.files, blake3()
        left = files[number].data_start
        with self._open(HEADERS) as file:
            file.seek(sum(f.data_start for f in files[:number]))
            while part := file.read(min(left, _COPY_BYTES)):
                hasher.update(part)
                left -= len(part)
                yield memoryview(part)
        if hasher.hexdigest() != files[number].header_hash:
            raise self._damaged(f"the header of {files[number].name} is not as it was")

    # --- segments -----------------------------------------------------------------------

    def _note(self, shard: int, record: ShardRecord) -> None:
        """Keep where the pieces of a shard belong, as numbers: there may be very many."""
        offset = 0
        for piece in record.pieces:
            if piece.spec.data_bytes:
                self._segments.extend((piece.file, piece.start, piece.end, shard, offset))
            offset += piece.spec.data_bytes

    def _in_order(self) -> tuple[array[int], ...]:
        """For each file, which segments make its data, in order. StorageError if they do not."""
        rows, files = self._segments, self.manifest.files
        order = tuple(array("Q") for _ in files)
        ends = [0] * len(files)
        for at in sorted(range(0, len(rows), _FIELDS), key=lambda at: rows[at + 1]):
            file, start, end = rows[at : at + 3]
            if file >= len(files) or start != ends[file]:
                raise self._damaged(f"{SHARDS} does not tell where every tensor belongs")
            order[file].append(at)
            ends[file] = end
        if any(e != f.bytes - f.data_start for e, f in zip(ends, files, strict=True)):
            raise self._damaged(f"{SHARDS} does not tell where every tensor belongs")
        return order

    def _read(self, at: int) -> Iterator[memoryview]:
        """The verified bytes of a segment."""
        _, start, end, shard, offset = self._segments[at : at + _FIELDS]
        stop = offset + end - start
        while offset < stop:
            tile, within = divmod(offset, TILE_BYTES)
            size = min(stop - offset, TILE_BYTES - within)
            first, last = within // SUBTILE_BYTES, (within + size - 1) // SUBTILE_BYTES
            data = self._subtiles_of(shard, tile, first, last)
            within -= first * SUBTILE_BYTES
            if len(data) < within + size:
                raise self._damaged(f"shard {shard}, tile {tile}: its end is missing")
            yield data[within : within + size]
            offset += size

    def _subtiles_of(self, shard: int, tile: int, first: int, last: int) -> memoryview:
        """Subtiles `first` to `last` of a tile. The last of those read is kept for a while."""
        found = self._subtiles.get((shard, tile, first)) if first == last else None
        if found is None:
            root, reader = self._reader(shard)
            try:
                data = reader.read_subtiles(shard, root, tile, first, last + 1 - first)
            except (StorageError, InputError) as error:
                raise self._damaged(str(error)) from None
            found = memoryview(data)
            tail = bytes(found[(last - first) * SUBTILE_BYTES :])
            self._subtiles[shard, tile, last] = memoryview(tail)
            if len(self._subtiles) > CACHED_SUBTILES:
                self._subtiles.popitem(last=False)
        return found

    def _reader(self, shard: int) -> tuple[Hash32, TileReader]:
        found = self._readers.get(shard)
        if found is None:
            with self._open(SHARDS) as file:
                file.seek(self._lines[shard])
                record = self._decode(file.readline())
            reader = _Tiles(self.path / TILES, [record.spec(shard)])
            found = self._readers[shard] = record.root, reader, len(record.pieces)
            self._read_tensors += len(record.pieces)
            while len(self._readers) > 1 and (
                len(self._readers) > MAX_READERS or self._read_tensors > MAX_READ_TENSORS
            ):
                self._read_tensors -= self._readers.popitem(last=False)[1][2]
        self._readers.move_to_end(shard)
        return found[0], found[1]

    # --- damage -------------------------------------------------------------------------

    def _open(self, name: str) -> BinaryIO:
        try:
            return (self.path / name).open("rb")
        except OSError as error:
            raise self._damaged(f"{name} cannot be read ({error.strerror})") from None

    def _decode(self, line: bytes) -> ShardRecord:
        try:
            return decode_shard(line)
        except StorageError as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, what: str) -> StorageError:
        name = self.manifest.name
        return StorageError(
            f"the model {name!r} is damaged on disk: {what}; nothing was exported. Remove it with "
            f"`blyan model remove {name}` and import its files again"
        )


def export_model(model: SavedModel, out: Path, progress: Progress) -> None:
    """Write a model's file to `out`, or its files and index into the new directory `out`.

    All of it or nothing. Raises StorageError on damage, InputError or QuotaError where `out`
    cannot be written.
    """
    manifest = model.manifest
    _check_room(out, manifest.file_bytes)
    done = 0

    def put(parts: Iterator[memoryview], file: OutputFile) -> None:
        nonlocal done
        for part in parts:
            file.append(part)
            done += len(part)
            progress(done, manifest.file_bytes)

    if manifest.is_one_file:
        with output_file(out) as file:
            put(model.file(0), file)
            model.check(manifest.files[0].name, manifest.files[0].hash, file.finish())
        return
    with output_directory(out) as directory:
        for number, record in enumerate(manifest.files):
            with output_file(directory / record.name) as file:
                put(model.file(number), file)
                model.check(record.name, record.hash, file.finish())
        if manifest.index is not None:
            with output_file(directory / manifest.index.name) as file:
                put(model.index(), file)
                model.check(manifest.index.name, manifest.index.hash, file.finish())


def _check_room(out: Path, needed: int) -> None:
    with refusals(out):
        free = shutil.disk_usage(out.absolute().parent).free
    if needed > free:
        raise QuotaError(
            f"{out} takes {megabytes(needed)}, and {megabytes(free)} are free there; free some "
            "space or choose another place"
        )
