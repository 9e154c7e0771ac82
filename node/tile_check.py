"""Checking tiles against the chain, and saying exactly what was checked (`blyan tile verify`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from chain import records as r
from chain.codec import decode
from chain.errors import InputError, StorageError, VerifyError
from chain.hashes import Hash32
from node.client import Json
from node.verified import Finality, ShardVersion, VerifiedReader
from tiles import merkle
from tiles.layout import ShardSpec
from tiles.store import TileReader


@dataclass(slots=True)
class TileReport:
    """What was checked, in order, and under which header."""

    shard: ShardSpec
    shard_root: Hash32
    model_root: Hash32
    height: int
    block_hash: Hash32
    finality: Finality
    certificate_height: int
    tiles: list[Json] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    def to_json(self) -> Json:
        return {
            "shard": self.shard.index,
            "name": self.shard.name,
            "shard_root": self.shard_root.hex(),
            "model_root": self.model_root.hex(),
            "height": self.height,
            "block_hash": self.block_hash.hex(),
            "certified": self.finality is Finality.CERTIFIED,
            "finality": self.finality.value,
            "certificate_height": self.certificate_height,
            "tiles": self.tiles,
            "checked": self.checked,
        }


def parse_target(text: str, specs: tuple[ShardSpec, ...]) -> tuple[ShardSpec, list[int]]:
    """SHARD[:TILE], the shard by name or index; without a tile all of them."""
    name, colon, tile = text.rpartition(":")
    if not colon:
        name, tile = text, ""
    spec = next((s for s in specs if s.name == name or str(s.index) == name), None)
    if spec is None:
        raise InputError(
            f"the model has no shard {name!r}; expected 0 to {len(specs) - 1} or a name such as "
            f"{specs[-1].name}"
        )
    if not colon:
        return spec, list(range(spec.tile_count))
    if not tile.isdigit() or int(tile) >= spec.tile_count:
        raise InputError(f"shard {spec.name} has tiles 0 to {spec.tile_count - 1}, not {tile!r}")
    return spec, [int(tile)]


async def check_tiles(
    reader: VerifiedReader, spec: ShardSpec, tiles: list[int], directory: Path | None
) -> TileReport:
    """Verify tiles from `directory` (a home's tiles/), or from the node if None.

    VerifyError names the tile, and for local files the subtile, that is wrong.
    """
    proven = await reader.proven(r.MODEL)
    if proven.value is None:
        raise VerifyError("the node's state has no model")
    model: r.ModelRecord = decode(r.ModelRecord, proven.value)
    finality, certificate_height = await reader.certify(proven.header)
    version = (await reader.model_roots(model.root))[spec.index]
    report = TileReport(
        spec,
        version.root,
        model.root,
        proven.header.height,
        proven.header.hash(),
        finality,
        certificate_height,
    )
    for tile in tiles:
        if directory is None:
            await reader.tile(version, tile)
        else:
            check_local(directory, version, tile)
        row = {"tile": tile, "root": version.tile_roots[tile].hex(), "ok": True}
        report.tiles.append({**row, "bytes": spec.tile_bytes(tile)})
    source = "the node's answer" if directory is None else f"{directory}"
    report.checked = [
        f"every byte of {len(tiles)} tile(s) from {source}, by subtile hash, to the tile root",
        f"tile root(s) to shard root {version.root.hex()}",
        f"shard root to model root {model.root.hex()}",
        f"model root by state proof to the state root of block {report.height}",
        _finality_line(report),
    ]
    return report


def _finality_line(report: TileReport) -> str:
    if report.finality is not Finality.CERTIFIED:
        return f"finality of block {report.height}: {report.finality.value}"
    by = "its own certificate"
    if report.certificate_height != report.height:
        by = f"the certificate of its descendant, block {report.certificate_height}"
    return f"finality of block {report.height}: {report.finality.value}, by {by}"


def check_local(directory: Path, version: ShardVersion, tile: int) -> None:
    """One tile of a home's store, read beside its node. InputError if it is not there, VerifyError
    that names the subtile if it differs.
    """
    spec = version.spec
    reader = TileReader(directory, [spec])
    try:
        data = reader.read_tile(spec.index, version.root, tile)
    except InputError:
        raise InputError(
            f"tile {tile} of {spec.name} at {version.root.hex()} is not in {directory}; "
            "--node URL checks another node's"
        ) from None
    except StorageError as error:
        raise VerifyError(f"{directory}: {error}") from None
    if merkle.tile_root(data) != version.tile_roots[tile]:
        raise VerifyError(f"{directory}: tile {tile} of {spec.name} has another root")
