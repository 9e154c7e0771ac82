"""The reading half of the store, for processes beside the one that writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chain import limits
from chain.errors import InputError, StorageError, VerifyError
from chain.hashes import Hash32
from tiles import merkle
from tiles.layout import SUBTILES_PER_TILE, ShardSpec, subtile_count
from tiles.shardfile import ShardFile, open_shard, shard_header


class TileReader:
    """Reads a store's directory without its lock; every read sees what is there then."""

    def __init__(self, directory: Path, specs: Sequence[ShardSpec]) -> None:
        self._directory, self._specs = directory, {spec.index: spec for spec in specs}

    def versions(self, shard: int) -> tuple[Hash32, ...]:
        """Shard roots of the whole versions, in ascending order."""
        folder = self._directory / f"{shard:05d}"
        stems = sorted(p.stem for p in folder.glob("*.safetensors") if len(p.stem) == 64)
        return tuple(Hash32(bytes.fromhex(stem)) for stem in stems)

    def tile_roots(self, shard: int, shard_root: Hash32) -> tuple[Hash32, ...]:
        """Tile roots of a version. Raises InputError for an unknown one."""
        raw = self._record(shard, shard_root)
        count = self._specs[shard].tile_count
        return tuple(Hash32(raw[32 * i : 32 * i + 32]) for i in range(count))

    def subtile_hashes(self, shard: int, shard_root: Hash32, tile: int) -> tuple[Hash32, ...]:
        """Leaf hashes of a tile that is here. Raises InputError if it is not."""
        raw, spec = self._record(shard, shard_root), self._specs[shard]
        size = spec.tile_bytes(tile)
        at = 32 * (spec.tile_count + tile * SUBTILES_PER_TILE)
        hashes = tuple(
            Hash32(raw[at + 32 * i : at + 32 * (i + 1)]) for i in range(subtile_count(size))
        )
        if merkle.tile_root_of(hashes, size) != raw[32 * tile : 32 * tile + 32]:
            raise InputError(f"tile {tile} of shard {spec.name} is not held here")
        return hashes

    def read_tile(self, shard: int, shard_root: Hash32, tile: int) -> bytes:
        """Verified bytes of a tile. Raises InputError, StorageError."""
        hashes, spec = self.subtile_hashes(shard, shard_root, tile), self._specs[shard]
        start, end = spec.tile_range(tile)
        try:
            with self._data_path(shard, shard_root).open("rb") as file:
                file.seek(len(shard_header(spec)) + start)
                data = file.read(end - start)
        except OSError as error:
            raise StorageError(f"shard {spec.name}: cannot be read: {error.strerror}") from None
        for i, part in enumerate(merkle.subtiles(data)):
            if merkle.subtile_hash(i, part) != hashes[i]:
                raise StorageError(f"shard {spec.name}, tile {tile}: subtile {i} is damaged")
        if len(data) != end - start:
            raise StorageError(f"shard {spec.name}, tile {tile}: its end is missing")
        return data

    def read_subtiles(
        self, shard: int, shard_root: Hash32, tile: int, first: int, count: int
    ) -> bytes:
        """Verified bytes of `count` subtiles of a tile from subtile `first`; fewer at its end."""
        data = self.read_tile(shard, shard_root, tile)
        return data[first * limits.SUBTILE_BYTES : (first + count) * limits.SUBTILE_BYTES]

    def open(self, shard: int, shard_root: Hash32, verify: bool = True) -> ShardFile:
        """Map a whole version without a copy."""
        spec = self._specs[shard]
        for tile in range(spec.tile_count) if verify else ():
            self.read_tile(shard, shard_root, tile)
        path = self._directory / f"{shard:05d}" / f"{shard_root.hex()}.safetensors"
        return open_shard(path, spec)

    def _data_path(self, shard: int, shard_root: Hash32) -> Path:
        whole = self._directory / f"{shard:05d}" / f"{shard_root.hex()}.safetensors"
        return whole if whole.exists() else whole.with_suffix(".partial")

    def _record(self, shard: int, shard_root: Hash32) -> bytes:
        spec = self._specs.get(shard)
        if spec is None:
            raise InputError(f"the model has no shard {shard}")
        path = self._directory / f"{shard:05d}" / f"{shard_root.hex()}.roots"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise InputError(
                f"shard {shard}: version {shard_root.hex()} is not held in {self._directory}"
            ) from None
        roots = [Hash32(raw[32 * i : 32 * i + 32]) for i in range(spec.tile_count)]
        try:
            led = merkle.shard_root(roots, spec.data_bytes)
        except VerifyError:
            led = None
        if led != shard_root:
            raise StorageError(f"{path.name}: its tile roots do not lead to its name")
        return raw
