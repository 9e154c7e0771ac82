"""A checkpoint's files into a home, as a model of its own (docs/spec/checkpoints.md).

Everything is written under a name that nobody looks at, the manifest last, and becomes the model
by one rename. So a crash leaves the whole model or nothing, and so does any error.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from chain.errors import InputError, QuotaError
from chain.limits import TILE_BYTES
from node.checkpoint.intake import Intake, Progress
from node.checkpoint.manifest import (
    HEADERS,
    INDEX,
    MANIFEST,
    SHARDS,
    TILES,
    HashedLines,
    IndexRecord,
    Manifest,
    ShardRecord,
)
from node.checkpoint.models import NAME, Models, check_name
from node.checkpoint.sources import Found, Sources, find, opened
from tiles import merkle
from tiles.checkpoint import ShardPlan, plan_shards
from tiles.layout import subtile_count
from tiles.store import TileStore
from tiles.store.disk import Disk

_SHARD_ROOM = 24 << 10  # bytes of a shard on disk beside its data: folders, headers, a record
_TENSOR_ROOM = 512  # bytes of a tensor in its shard's header and in shards.jsonl
_SUBTILE_ROOM = 40  # bytes of a subtile's and its tile's hashes
_SMALL_ROOM = 1 << 20  # bytes of the rest
_COPY_BYTES = 1 << 20  # of the index, copied at once


def import_checkpoint(
    models: Models, paths: Sequence[Path], name: str | None, now_ms: int, progress: Progress
) -> Manifest:
    """Import files, an index or a directory as the model `name` (None: called after them).

    Raises InputError for what the user named, DecodeError for files that are no sound checkpoint,
    LockedError while another import runs, QuotaError where there is no room.
    """
    found = find(paths)
    name = _name(found, name)
    models.check_free(name)
    with Sources(found) as sources:
        plan = plan_shards([piece for source in sources.parsed for piece in source.tensors])
        with models.lock():
            models.check_free(name)
            _check_room(models.directory, sources, plan)
            with models.staging(name) as staging:
                return _fill(staging, models.disk, sources, plan, name, now_ms, progress)


def _name(found: Found, name: str | None) -> str:
    if name is None and not NAME.fullmatch(found.title):
        raise InputError(f"{found.title!r} cannot be the model's name: give one with --name")
    return check_name(found.title if name is None else name)


def _check_room(directory: Path, sources: Sources, plan: Sequence[ShardPlan]) -> None:
    """Refuse at once what would fill the disk at the end."""
    needed = sources.total_bytes + _SMALL_ROOM
    for shard in plan:
        needed += _SHARD_ROOM + _TENSOR_ROOM * len(shard.pieces)
        needed += _SUBTILE_ROOM * subtile_count(shard.data_bytes)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise QuotaError(
            f"this import needs {megabytes(needed)} in {directory}, and {megabytes(free)} are "
            "free; free some space, or choose a home on another disk with --home"
        )


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _fill(
    staging: Path,
    disk: Disk,
    sources: Sources,
    plan: Sequence[ShardPlan],
    name: str,
    now_ms: int,
    progress: Progress,
) -> Manifest:
    """Write all of a model into `staging`, durably, the manifest last."""
    with (
        TileStore(staging / TILES, [], disk=disk) as store,
        _File(disk, staging / HEADERS) as headers,
    ):
        intake = Intake(sources, plan, store, headers.append, progress)
        intake.run()
    lines = HashedLines(
        ShardRecord(shard.name, root, shard.pieces).encode()
        for shard, root in zip(plan, intake.roots, strict=True)
    )
    _write(disk, staging / SHARDS, lines)
    index = _keep_index(disk, staging / INDEX, sources.found.index)
    sources.check_unchanged()
    manifest = Manifest(
        name=name,
        root=merkle.model_root(intake.roots).hex() if plan else None,
        imported_ms=now_ms,
        tensors=sum(len(source.tensors) for source in sources.parsed),
        shards=len(plan),
        experts=sum(shard.is_expert for shard in plan),
        tiles=sum(-(-shard.data_bytes // TILE_BYTES) for shard in plan),
        data_bytes=sum(shard.data_bytes for shard in plan),
        shards_hash=lines.hash,
        files=tuple(intake.files),
        index=index,
    )
    _write(disk, staging / MANIFEST, [manifest.encode()])
    return manifest


def _keep_index(disk: Disk, path: Path, index: Path | None) -> IndexRecord | None:
    if index is None:
        return None
    with opened(index) as (read, size):
        parts = HashedLines(iter(lambda: read(_COPY_BYTES), b""))
        written = _write(disk, path, parts)
    if written != size:
        raise InputError(f"{index} changed while it was read, and nothing was imported")
    return IndexRecord(index.name, size, parts.hash)


class _File:
    """A new file that is appended to, and synced when it is left without an error."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk, self._fd, self.size_bytes = disk, disk.create(path), 0

    def append(self, data: bytes | memoryview) -> None:
        self._disk.write(self._fd, self.size_bytes, data)
        self.size_bytes += len(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._disk.sync(self._fd)
        finally:
            self._disk.close(self._fd)


def _write(disk: Disk, path: Path, parts: Iterable[bytes]) -> int:
    """Write a new file durably; its size."""
    with _File(disk, path) as file:
        batch = bytearray()
        for part in parts:
            batch += part
            if len(batch) >= _COPY_BYTES:
                file.append(bytes(batch))
                batch.clear()
        file.append(bytes(batch))
    return file.size_bytes
