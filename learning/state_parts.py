"""A training state in parts: an index under the state's hash, and its tiles under their own roots
(docs/spec/training.md, "State").

A state takes 12 bytes a parameter, soon more than one blob may have. Whoever knows its hash can
tell a false index by itself, and with it each false tile, whoever serves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from chain import limits
from chain.codec import Seq, decode, wire
from chain.errors import DecodeError, VerifyError
from chain.hashes import Hash32
from learning.held import Held, layout_of
from learning.spec import ModelSpec
from learning.state import StateHeader, TrainState, counters_leaf, header_of, join_state
from tiles import merkle

PARTED_BYTES = 32 * 1024 * 1024  # of weights and moments: larger states are served in parts
MAX_TILES = 16_384
MAX_INDEX_BYTES = 1024 * 1024


@wire(116)
@dataclass(frozen=True, slots=True)
class StateIndex:
    """What a state consists of: the roots of all tiles of weights, first and second moments."""

    header: StateHeader
    tile_roots: Annotated[tuple[Hash32, ...], Seq(MAX_TILES)]


def is_parted(spec: ModelSpec, held: Held | None) -> bool:
    """Whether states of this model, or part of it, are served in parts."""
    return 3 * sum(shard.data_bytes for shard in layout_of(spec, held)) > PARTED_BYTES


@dataclass(frozen=True, slots=True)
class Cut:
    """A state's index and its tiles by root, equal ones once."""

    index: StateIndex
    tiles: Mapping[Hash32, bytes]


def cut(state: TrainState) -> Cut:
    tiles: dict[Hash32, bytes] = {}
    roots: list[Hash32] = []
    for section in (*state.weights, *state.first, *state.second):
        for start in range(0, len(section), limits.TILE_BYTES):
            tile = section[start : start + limits.TILE_BYTES]
            roots.append(merkle.tile_root(tile))
            tiles[roots[-1]] = tile
    return Cut(StateIndex(header_of(state), tuple(roots)), tiles)


def read_index(
    spec: ModelSpec, data: bytes, state_hash: Hash32, held: Held | None = None
) -> StateIndex:
    """The index of the state with this hash. Raises DecodeError or VerifyError for others."""
    index: StateIndex = decode(StateIndex, data, most=MAX_INDEX_BYTES)
    header, roots = index.header, iter(index.tile_roots)
    if header.section_bytes != tuple(shard.data_bytes for shard in layout_of(spec, held)):
        raise DecodeError("the index of a training state of another model")
    count = 3 * sum(map(_tiles, header.section_bytes))
    if len(index.tile_roots) != count:
        raise DecodeError(f"{len(index.tile_roots)} tiles in a training state of {count}")
    parts = [merkle.model_root([_shard(roots, n) for n in header.section_bytes]) for _ in range(3)]
    if merkle.merkle_root([*parts, counters_leaf(header)]) != state_hash:
        raise VerifyError(f"an index that is not of the state {state_hash.hex()}")
    return index


def is_index(spec: ModelSpec, data: bytes, state_hash: Hash32, held: Held | None = None) -> bool:
    """Whether `read_index` takes it."""
    try:
        read_index(spec, data, state_hash, held)
    except (DecodeError, VerifyError):
        return False
    return True


def is_tile(data: bytes, root: Hash32) -> bool:
    """Whether these bytes are the tile with this root."""
    return 0 < len(data) <= limits.TILE_BYTES and merkle.tile_root(data) == root


def join(index: StateIndex, tiles: Mapping[Hash32, bytes]) -> bytes:
    """The serialised state of these tiles."""
    return join_state(index.header, (tiles[root] for root in index.tile_roots))


def _tiles(size: int) -> int:
    return -(-size // limits.TILE_BYTES)


def _shard(roots: Iterator[Hash32], size: int) -> Hash32:
    return merkle.shard_root([next(roots) for _ in range(_tiles(size))], size)
