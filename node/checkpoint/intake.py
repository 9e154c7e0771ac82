"""The bytes of an import: sources read once, whole files hashed, shards written, all at once.

Threads share a few buffers: one reads, one hashes whole files, one writes shards (and hashes their
tiles), one waits for the disk to have them. A buffer goes back when nobody needs it, so memory does
not grow with the checkpoint.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from blake3 import blake3

from chain.errors import invariant
from chain.hashes import Hash32
from node.checkpoint.lane import Lane
from node.checkpoint.manifest import FileRecord
from node.checkpoint.order import Act, reading_order
from node.checkpoint.sources import Sources
from tiles.checkpoint import Piece, ShardPlan
from tiles.store import ShardWriter, TileStore

CHUNK_BYTES = 2 << 20  # read at once
CHUNKS = 8  # buffers in all
OPEN_SHARDS = 8  # shards that are being written at once
SYNCING = 2  # written shards that wait for the disk; more would only fill the system's cache

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class _Chunk:
    """A buffer that returns to its pool when nobody holds it any more."""

    def __init__(self, pool: _Pool, size_bytes: int) -> None:
        self.view = memoryview(bytearray(size_bytes))
        self._pool, self._holders, self._lock = pool, 0, threading.Lock()

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            free = not self._holders
        if free:
            self._pool.put(self)


class _Pool:
    """At most CHUNKS buffers, made when they are first needed."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes, self._made = size_bytes, 0
        self._free: queue.SimpleQueue[_Chunk] = queue.SimpleQueue()
        self.put = self._free.put

    def take(self) -> _Chunk:
        """A buffer that the caller holds. Waits until one is free."""
        if self._made < CHUNKS and self._free.empty():
            self._made += 1
            self._free.put(_Chunk(self, self._size_bytes))
        chunk = self._free.get()
        chunk.hold()
        return chunk


class _FileReader:
    """One source from its first byte to its last, hashed as it goes by."""

    def __init__(
        self,
        sources: Sources,
        file: int,
        pool: _Pool,
        hashing: Lane,
        progress: Callable[[int], None],
    ) -> None:
        self.hasher, self.header_hasher = blake3(), blake3()
        self.at = 0  # place in the file of the next byte that `take` gives
        self.file = file
        self._sources, self._pool = sources, pool
        self._hashing, self._progress = hashing, progress
        self._size = sources.size(file)
        self._chunk: _Chunk | None = None
        self._rest = memoryview(b"")  # of the chunk

    def take(self, size: int) -> Iterator[tuple[_Chunk, memoryview]]:
        """The next `size` bytes, in parts. A part is valid while its chunk is held."""
        end = self.at + size
        while self.at < end:
            if not self._rest:
                self._read()
            part = self._rest[: end - self.at]
            self._rest, self.at = self._rest[len(part) :], self.at + len(part)
            invariant(self._chunk is not None and len(part) > 0, "nothing was read")
            if self._chunk is not None:
                yield self._chunk, part

    def _read(self) -> None:
        self.close()
        chunk = self._pool.take()
        view = chunk.view[: self._size - self.at]
        self._sources.read_into(self.file, self.at, view)
        chunk.hold()
        self._hashing.do(partial(_update, self.hasher, view), chunk.release)
        self._chunk, self._rest = chunk, view
        self._progress(len(view))

    def close(self) -> None:
        if self._chunk is not None:
            self._chunk.release()
            self._chunk = None


class Intake:
    """One run. `roots` (by shard) and `files` are complete when `run` returns."""

    def __init__(
        self,
        sources: Sources,
        plan: Sequence[ShardPlan],
        store: TileStore,
        put_header: Callable[[memoryview], None],
        progress: Progress,
    ) -> None:
        """`put_header` takes the header bytes of all files, one after another, in parts."""
        self.roots = [Hash32(b"")] * len(plan)
        self.files: list[FileRecord] = []
        self._sources, self._plan, self._store = sources, plan, store
        self._put_header, self._progress, self._done = put_header, progress, 0
        self._pool = _Pool(min(CHUNK_BYTES, sources.total_bytes))
        self._hashing, self._writing = Lane("hash", 4 * CHUNKS), Lane("write", 4 * CHUNKS)
        self._syncing = Lane("sync", SYNCING)
        self._writers: dict[int, ShardWriter] = {}

    def run(self) -> None:
        """Raises what any of the threads met; what shards were begun is then gone."""
        try:
            reader = self._begin(0)
            for step in reading_order(self._plan, OPEN_SHARDS):
                if step.piece is None:
                    self._writing.do(partial(self._finish, step.shard))
                elif step.act is Act.AGAIN:
                    self._again(step.shard, step.piece)
                else:
                    while reader.file < step.piece.file:
                        reader = self._next(reader)
                    self._pass(reader, step.shard if step.act is Act.STREAM else None, step.piece)
            while reader.file + 1 < len(self._sources.parsed):
                reader = self._next(reader)
            self._end(reader)
            for lane in (self._hashing, self._writing, self._syncing):
                lane.close()
        finally:
            for lane in (self._hashing, self._writing, self._syncing):
                lane.cancel()
            for writer in self._writers.values():
                writer.abort()

    # --- files in their order ------------------------------------------------------------

    def _begin(self, file: int) -> _FileReader:
        """Read a file up to its data, and keep its header."""
        reader = _FileReader(self._sources, file, self._pool, self._hashing, self._count)
        for chunk, part in reader.take(self._sources.parsed[file].data_start):
            for lane, job in (
                (self._hashing, partial(_update, reader.header_hasher, part)),
                (self._writing, partial(self._put_header, part)),
            ):
                chunk.hold()
                lane.do(job, chunk.release)
        return reader

    def _next(self, reader: _FileReader) -> _FileReader:
        self._end(reader)
        return self._begin(reader.file + 1)

    def _end(self, reader: _FileReader) -> None:
        invariant(reader.at == self._sources.size(reader.file), "a file was not read to its end")
        reader.close()
        self._hashing.do(partial(self._record, reader))

    def _record(self, reader: _FileReader) -> None:
        """On the hashing lane, behind the last byte of the file."""
        name = self._sources.found.files[reader.file].name
        size = self._sources.size(reader.file)
        start = self._sources.parsed[reader.file].data_start
        hashes = reader.hasher.hexdigest(), reader.header_hasher.hexdigest()
        self.files.append(FileRecord(name, size, start, *hashes))

    def _count(self, read: int) -> None:
        self._done += read
        self._progress(self._done, self._sources.total_bytes)

    # --- pieces ---------------------------------------------------------------------------

    def _pass(self, reader: _FileReader, shard: int | None, piece: Piece) -> None:
        """The next piece of the sources goes by; with a shard, it is written to that."""
        start = self._sources.parsed[reader.file].data_start + piece.start
        invariant(reader.at == start, f"tensor {piece.spec.name} is not the next in its file")
        for chunk, part in reader.take(piece.spec.data_bytes):
            if shard is not None:
                self._write(shard, chunk, part)

    def _again(self, shard: int, piece: Piece) -> None:
        """Read a piece that has passed by before."""
        at = self._sources.parsed[piece.file].data_start + piece.start
        end = at + piece.spec.data_bytes
        while at < end:
            chunk = self._pool.take()
            view = chunk.view[: end - at]
            self._sources.read_into(piece.file, at, view)
            self._write(shard, chunk, view)
            chunk.release()
            at += len(view)

    def _write(self, shard: int, chunk: _Chunk, part: memoryview) -> None:
        chunk.hold()
        self._writing.do(partial(self._put, shard, part), chunk.release)

    # --- on the writing lane ----------------------------------------------------------------

    def _put(self, shard: int, part: memoryview) -> None:
        self._writer(shard).write(part)

    def _writer(self, shard: int) -> ShardWriter:
        writer = self._writers.get(shard)
        if writer is None:
            self._store.add_shard(self._plan[shard].spec(shard))
            writer = self._writers[shard] = self._store.writer(shard)
        return writer

    def _finish(self, shard: int) -> None:
        writer = self._writer(shard)
        self._syncing.do(partial(self._settle, shard, writer), writer.abort)
        del self._writers[shard]

    # --- on the syncing lane ----------------------------------------------------------------

    def _settle(self, shard: int, writer: ShardWriter) -> None:
        self.roots[shard] = writer.finish()
        self._store.forget_shard(shard)  # a model of any size has passed through at the end


def _update(hasher: blake3, data: memoryview) -> None:
    hasher.update(data)
