"""A state that is served in parts, each of which can be told from another by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chain.codec import encode
from chain.errors import DecodeError, VerifyError
from chain.hashes import Hash32
from chain.limits import TILE_BYTES
from learning import state_parts
from learning.held import Held
from learning.init import initial_shards
from learning.sizes import SIZES
from learning.spec import NANO_MODEL
from learning.state import TrainState, deserialize_state, header_of, serialize_state
from learning.state_parts import StateIndex, cut, is_index, is_parted, is_tile, join, read_index

SPEC = replace(NANO_MODEL, layers=1, width=600, heads=2, experts=2, expert_width=1200)  # 2 tiles
PART = Held(((1,),))


def state(spec_seed: int = 0) -> TrainState:
    weights = initial_shards(SPEC)
    noise = np.random.default_rng(spec_seed)
    first = tuple(noise.bytes(len(section)) for section in weights)
    zero = tuple(bytes(len(section)) for section in weights)
    return TrainState(tuple(weights), first, zero, step=3, updates=13, draws=96)


STATE = state()
CUT = cut(STATE)
RAW, HASH = encode(CUT.index), STATE.hash()


def test_parts_are_the_state() -> None:
    index = read_index(SPEC, RAW, HASH)
    assert index == CUT.index
    assert any(len(section) > TILE_BYTES for section in STATE.weights)
    assert len(CUT.tiles) < len(index.tile_roots)  # zeros alike are one
    assert all(is_tile(tile, root) for root, tile in CUT.tiles.items())
    whole = join(index, CUT.tiles)
    assert whole == serialize_state(STATE)
    assert deserialize_state(SPEC, whole).hash() == HASH


def test_a_part_of_a_model_has_its_own() -> None:
    kept = [i for i, shard in enumerate(SPEC.shards()) if shard.name != "layers.0.experts.0"]
    taken = (STATE.weights, STATE.first, STATE.second)
    weights, first, second = (tuple(sections[i] for i in kept) for sections in taken)
    part = replace(STATE, weights=weights, first=first, second=second)
    raw = encode(cut(part).index)
    assert is_index(SPEC, raw, part.hash(), PART)
    assert not is_index(SPEC, raw, part.hash())
    assert not is_index(SPEC, RAW, HASH, PART)


def test_false_indexes_are_told_by_themselves() -> None:
    roots = CUT.index.tile_roots
    other = Hash32(b"x" * 32)
    false = [
        StateIndex(replace(header_of(STATE), step=4), roots),
        StateIndex(replace(header_of(STATE), draws=0), roots),
        replace(CUT.index, tile_roots=(other, *roots[1:])),
        replace(CUT.index, tile_roots=(*roots[:-1], other)),
        replace(CUT.index, tile_roots=roots[::-1]),
    ]
    for index in false:
        with pytest.raises(VerifyError, match="not of the state"):
            read_index(SPEC, encode(index), HASH)
    fewer = replace(CUT.index, tile_roots=roots[:-1])
    more = replace(CUT.index, tile_roots=(*roots, roots[0]))
    for index in (fewer, more):
        with pytest.raises(DecodeError, match="tiles in a training state of"):
            read_index(SPEC, encode(index), HASH)
    with pytest.raises(DecodeError, match="another model"):
        read_index(replace(SPEC, expert_width=600), RAW, HASH)
    for junk in (b"", RAW[:-1], RAW + b"\0", serialize_state(STATE), bytes(2 << 20)):
        assert not is_index(SPEC, junk, HASH)
    assert not is_index(SPEC, RAW, other)


def test_false_tiles_are_told_by_themselves() -> None:
    root, tile = next(iter(CUT.tiles.items()))
    for junk in (b"", tile[:-1], tile + b"\0", tile[:-1] + bytes([tile[-1] ^ 1])):
        assert not is_tile(junk, root)
    assert not is_tile(bytes(TILE_BYTES + 1), root)


def test_large_models_are_parted() -> None:
    parted = {name: is_parted(size.model, None) for name, size in SIZES.items()}
    assert parted == {"nano": False, "tiny": False, "small": True}
    small = SIZES["small"].model
    assert 12 * small.parameters > 10 * state_parts.PARTED_BYTES
    roots = 3 * sum(-(-shard.data_bytes // TILE_BYTES) for shard in small.shards())
    assert 33 * roots < state_parts.MAX_INDEX_BYTES // 50
