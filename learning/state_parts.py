"""A training state, or a residual, in parts: an index under its hash, and its tiles under their own
roots (docs/spec/training.md, "State").

A state takes 12 bytes a parameter, soon more than one blob may have, and a residual 4. Whoever
knows the hash can tell a false index by itself, and with it each false tile, whoever serves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from chain import limits
from chain.codec import Seq, decode, encode, wire
from chain.errors import DecodeError, VerifyError
from chain.hashes import Hash32
from learning.held import Held, layout_of
from learning.spec import ModelSpec
from learning.state import (
    StateHeader,
    TrainState,
    counters_leaf,
    deserialize_residual,
    deserialize_state,
    header_of,
    join_state,
)
from tiles import merkle

PARTED_BYTES = 32 * 1024 * 1024  # of weights and moments: larger states are served in parts
MAX_TILES = 16_384
MAX_INDEX_BYTES = 1024 * 1024
_HASH_BYTES = 32


@wire(116)
@dataclass(frozen=True, slots=True)
class StateIndex:
    """What a state consists of: the roots of all tiles of weights, first and second moments."""

    header: StateHeader
    tile_roots: Annotated[tuple[Hash32, ...], Seq(MAX_TILES)]


def is_parted(spec: ModelSpec, held: Held | None) -> bool:
    """Whether states of this model, or part of it, are served in parts."""
    return 3 * _section_bytes(spec, held) > PARTED_BYTES


def is_residual_parted(spec: ModelSpec, held: Held | None) -> bool:
    """Whether residuals are."""
    return _section_bytes(spec, held) > PARTED_BYTES


def _section_bytes(spec: ModelSpec, held: Held | None) -> int:
    return sum(shard.data_bytes for shard in layout_of(spec, held))


# --- what a learner uploads --------------------------------------------------------------


def served_state(
    spec: ModelSpec, data: bytes, state_hash: Hash32, held: Held | None = None
) -> dict[Hash32, bytes]:
    """What a serialised state is served as, by name; the last leads to all others."""
    if not is_parted(spec, held):
        return {state_hash: data}
    found = cut(deserialize_state(spec, data, held))
    return {**found.tiles, state_hash: encode(found.index)}


def served_residual(
    spec: ModelSpec, data: bytes, root: Hash32, held: Held | None = None
) -> dict[Hash32, bytes]:
    """The same of a residual, its sections back to back. Its index is the roots of its tiles."""
    if not is_residual_parted(spec, held):
        return {root: data}
    roots, tiles = _cut(deserialize_residual(spec, data, held))
    return {**tiles, root: b"".join(roots)}


@dataclass(frozen=True, slots=True)
class Cut:
    """A state's index and its tiles by root, equal ones once."""

    index: StateIndex
    tiles: Mapping[Hash32, bytes]


def cut(state: TrainState) -> Cut:
    roots, tiles = _cut((*state.weights, *state.first, *state.second))
    return Cut(StateIndex(header_of(state), tuple(roots)), tiles)


def _cut(sections: Sequence[bytes]) -> tuple[list[Hash32], dict[Hash32, bytes]]:
    """Roots of the tiles of all sections in order, and each tile by its root."""
    tiles: dict[Hash32, bytes] = {}
    roots: list[Hash32] = []
    for section in sections:
        for start in range(0, len(section), limits.TILE_BYTES):
            tile = section[start : start + limits.TILE_BYTES]
            roots.append(merkle.tile_root(tile))
            tiles[roots[-1]] = tile
    return roots, tiles


# --- what an auditor reads ---------------------------------------------------------------


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


def read_residual_index(
    spec: ModelSpec, data: bytes, root: Hash32, held: Held | None = None
) -> tuple[Hash32, ...]:
    """Tile roots of the residual with this root. Raises DecodeError or VerifyError for others."""
    sizes = [shard.data_bytes for shard in layout_of(spec, held)]
    count = sum(map(_tiles, sizes))
    if len(data) != _HASH_BYTES * count:
        raise DecodeError(f"{len(data)} bytes in the index of a residual of {count} tiles")
    roots = tuple(
        Hash32(data[at : at + _HASH_BYTES]) for at in range(0, _HASH_BYTES * count, _HASH_BYTES)
    )
    each = iter(roots)
    if merkle.model_root([_shard(each, size) for size in sizes]) != root:
        raise VerifyError(f"an index that is not of the residual {root.hex()}")
    return roots


def is_residual_index(spec: ModelSpec, data: bytes, root: Hash32, held: Held | None = None) -> bool:
    """Whether `read_residual_index` takes it."""
    try:
        read_residual_index(spec, data, root, held)
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
