"""What one node asks another for of a tile (docs/spec/tile-transfer.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chain.codec import U8, decode, encode, wire
from chain.errors import VerifyError
from chain.hashes import Hash32
from chain.types import ShardIndex, TileIndex
from tiles.layout import SUBTILES_PER_TILE, ShardSpec, subtile_count

PROTOCOL = "/blyan/tile/2"
MAX_REQUEST_BYTES = 64  # a request has 49 at most
HASH_BYTES = 32
MAX_HASHES_BYTES = HASH_BYTES * SUBTILES_PER_TILE


@wire(120)
@dataclass(frozen=True, slots=True)
class TileRequest:
    """Subtiles `first` to `first + count - 1` of a tile of the shard version `root`.

    With `hashes` 1 the answer begins with the hashes of all subtiles of the tile; `count` may be
    0 then. The answer is empty where the tile is not held.
    """

    shard: ShardIndex
    root: Hash32
    tile: TileIndex
    first: U8
    count: U8
    hashes: U8

    def encoded(self) -> bytes:
        return encode(self)


def read_request(data: bytes, specs: Sequence[ShardSpec]) -> TileRequest:
    """A request that can be meant. Raises DecodeError, or VerifyError for what cannot exist."""
    request: TileRequest = decode(TileRequest, data, most=MAX_REQUEST_BYTES)
    if request.shard >= len(specs):
        raise VerifyError(f"the model has no shard {request.shard}")
    spec = specs[request.shard]
    if request.tile >= spec.tile_count:
        raise VerifyError(f"shard {request.shard} has no tile {request.tile}")
    subtiles = subtile_count(spec.tile_bytes(request.tile))
    if request.first + request.count > subtiles or request.hashes > 1:
        raise VerifyError(f"tile {request.tile} has {subtiles} subtiles, and asked were others")
    if not request.count and not request.hashes:
        raise VerifyError("a request for nothing")
    return request
