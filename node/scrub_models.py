"""Scrubbing the imported models of a home (docs/spec/versions.md, "Repair").

Nobody else has these bytes: what is damaged there, and has no equal tile in its shard, is named and
has to be imported again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from chain.errors import BlyanError, StorageError
from node.checkpoint.manifest import (
    HEADERS,
    INDEX,
    SHARDS,
    TILES,
    HashedLines,
    Manifest,
    decode_shard,
)
from node.checkpoint.models import Models
from node.home import Home
from node.scrub import (
    LEFT,
    REBUILT,
    Finding,
    Progress,
    Repair,
    ScrubReport,
    begin_report,
    end_report,
)
from tiles.layout import ShardSpec
from tiles.store import TileStore

IMPORT_AGAIN = "nobody else has it: remove the model and import its file again"
_READ_BYTES = 1024 * 1024


def scrub_models(home: Home, progress: Progress) -> list[tuple[ScrubReport, list[ShardSpec]]]:
    """A report on each imported model, and the shards that it names."""
    models = Models(home)
    return [_scrub(models, listed.name, progress) for listed in models.all()]


def _scrub(models: Models, name: str, progress: Progress) -> tuple[ScrubReport, list[ShardSpec]]:
    report = begin_report(name)
    named: dict[int, ShardSpec] = {}
    try:
        with models.reading(name) as (path, manifest):
            _check_files(path, manifest)
            with TileStore(path / TILES, []) as store:
                for spec, repairs in _shards(path, manifest, store, report, progress):
                    report.repairs += repairs
                    if repairs:
                        named[spec.index] = spec
    except BlyanError as error:
        report.error = str(error)
    return end_report(report), list(named.values())


def _shards(
    path: Path, manifest: Manifest, store: TileStore, report: ScrubReport, progress: Progress
) -> Iterator[tuple[ShardSpec, list[Repair]]]:
    """Shard by shard, so that memory does not grow with the model."""
    with (path / SHARDS).open("rb") as file:
        lines = HashedLines(file)
        for index, line in enumerate(lines):
            record = decode_shard(line)
            spec = record.spec(index)
            store.add_shard(spec)
            damages = store.scrub(lambda done, _: progress(report.tiles + done, manifest.tiles))
            bad = {damage.tile: damage.subtile for damage in damages}
            presence = store.presence(index, record.root) or (False,) * spec.tile_count
            if bad and all(presence):  # by equal tiles elsewhere in the shard
                store.compact(index, record.root)
            store.forget_shard(index)
            report.tiles += spec.tile_count
            yield (
                spec,
                [
                    Repair(
                        Finding((index, record.root, tile), bad.get(tile)),
                        REBUILT if is_here else LEFT,
                        "" if is_here else IMPORT_AGAIN,
                    )
                    for tile, is_here in enumerate(presence)
                    if tile in bad or not is_here
                ],
            )
        if lines.hash != manifest.shards_hash:
            raise StorageError(f"{path / SHARDS} is damaged: {IMPORT_AGAIN}")


def _check_files(path: Path, manifest: Manifest) -> None:
    """The headers and the index of the sources, which an export gives back."""
    try:
        with (path / HEADERS).open("rb") as file:
            sound = all(
                blake3(file.read(record.data_start)).hexdigest() == record.header_hash
                for record in manifest.files
            )
        if manifest.index is not None:
            hasher = blake3()
            with (path / INDEX).open("rb") as file:
                while part := file.read(_READ_BYTES):
                    hasher.update(part)
            sound &= hasher.hexdigest() == manifest.index.hash
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}; {IMPORT_AGAIN}") from None
    if not sound:
        raise StorageError(f"{path}: the headers of its sources are damaged: {IMPORT_AGAIN}")
