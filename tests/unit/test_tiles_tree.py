"""The tree of a shard: what a write changes, what it needs to know, what it proves."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from blake3 import blake3

from chain import limits
from chain.errors import InputError, VerifyError
from chain.hashes import SUBTILE, Context
from tests.reference.merkle_ref import noise
from tiles import merkle, multiproof
from tiles.tree import ShardTree, prove_subtile_set

STEP = limits.SUBTILE_BYTES
DATA = noise("tree", 2 * limits.TILE_BYTES + 3 * STEP + 40)
TREE = ShardTree.of_data(DATA)


def part(tile: int, subtile: int) -> bytes:
    start = tile * limits.TILE_BYTES + subtile * STEP
    return DATA[start : start + STEP]


def test_a_tree_is_the_shards() -> None:
    roots = merkle.tile_roots(DATA)
    assert TREE.tile_roots == roots
    assert TREE.root == merkle.shard_root(roots, len(DATA))
    assert TREE.subtile_hashes(2) == merkle.subtile_hashes(DATA[2 * limits.TILE_BYTES :])
    assert ShardTree.of_hashes(len(DATA), [TREE.subtile_hashes(t) for t in range(3)]) == TREE
    empty = ShardTree.of_data(b"")
    assert (empty.tile_count, empty.root) == (0, merkle.shard_root([], 0))
    assert empty == ShardTree.of_roots(0, []) == empty.updated({})


def test_a_write_gives_the_tree_of_the_new_data() -> None:
    writes = {(0, 3): noise("a", STEP), (2, 3): noise("b", 40), (0, 15): noise("c", STEP)}
    new = bytearray(DATA)
    for (tile, subtile), data in writes.items():
        start = tile * limits.TILE_BYTES + subtile * STEP
        new[start : start + len(data)] = data
    after = TREE.updated(writes)
    assert after == ShardTree.of_data(new)
    assert list(after.changed_since(TREE)) == [0, 2]
    assert ShardTree.of_data(DATA) == TREE  # a value: the old one stays
    assert after.updated({p: part(*p) for p in writes}) == TREE
    tiles = {t: after.subtile_hashes(t) for t in (0, 2)}
    assert TREE.with_tiles(tiles) == after


def test_a_write_hashes_what_it_touched_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 % of a shard of 128 tiles: so many subtiles, and at most five nodes and roots for each."""
    count = 128
    hashes = [noise(f"leaf {i}", 32) for i in range(16)]
    tree = ShardTree.of_hashes(count * limits.TILE_BYTES, [hashes] * count)
    places = random.Random(5).sample([(t, s) for t in range(count) for s in range(16)], 102)
    calls: list[str] = []

    def counted(context: Context) -> Callable[[], blake3]:
        calls.append(context.name)
        return lambda: blake3(derive_key_context=context.name)

    monkeypatch.setattr(Context, "fresh", property(counted))
    tree.updated({place: bytes(STEP) for place in places})
    assert calls.count(SUBTILE.name) == len(places)
    assert len(calls) <= 6 * len(places)


def test_what_is_not_there_is_not_written() -> None:
    for place, data in (
        ((3, 0), bytes(STEP)),
        ((-1, 0), bytes(STEP)),
        ((0, 16), bytes(STEP)),
        ((0, -1), bytes(STEP)),
        ((2, 4), bytes(STEP)),
        ((0, 0), bytes(STEP - 1)),
        ((2, 3), bytes(STEP)),
        ((2, 3), b""),
    ):
        with pytest.raises(InputError):
            TREE.updated({place: data})
    with pytest.raises(InputError, match="has no subtile 16"):
        TREE.with_subtiles({(1, 16): merkle.subtile_hash(0, b"x")})
    with pytest.raises(VerifyError, match="do not make a tile"):
        TREE.with_tiles({0: TREE.subtile_hashes(2)})


def test_a_shard_held_in_part() -> None:
    held = ShardTree.of_roots(len(DATA), TREE.tile_roots, {1: TREE.subtile_hashes(1)})
    assert held.root == TREE.root
    assert [held.knows(t) for t in range(3)] == [False, True, False]
    assert held.prove_subtile((1, 2)) == TREE.prove_subtile((1, 2))
    whole = held.with_tiles({t: TREE.subtile_hashes(t) for t in (0, 2)})
    assert whole == TREE
    for refused in (
        lambda: held.subtile_hashes(0),
        lambda: held.prove_subtile((0, 2)),
        lambda: held.updated({(0, 2): part(0, 2)}),
        lambda: held.tile_root(3),
    ):
        with pytest.raises(InputError):
            refused()
    with pytest.raises(VerifyError, match="tile 1 are not its root's"):
        ShardTree.of_roots(len(DATA), TREE.tile_roots, {1: TREE.subtile_hashes(0)})
    with pytest.raises(VerifyError, match="do not make a shard"):
        ShardTree.of_roots(len(DATA), TREE.tile_roots[:2])
    with pytest.raises(VerifyError, match="do not make a shard"):
        ShardTree.of_hashes(len(DATA), [TREE.subtile_hashes(0)] * 2)


def test_proofs_need_no_data() -> None:
    shards = [noise(f"shard {i}", 32) for i in range(9)]
    shards[4] = TREE.root
    root = merkle.model_root(shards)
    path = TREE.path((2, 3), merkle.prove_shard(shards, 4))
    merkle.verify_path(root, path, part(2, 3))
    assert TREE.prove_tile(1) == merkle.prove_tile(TREE.tile_roots, len(DATA), 1)
    run = TREE.prove_subtile_range(2, 1, 3)
    multiproof.verify_subtile_range(TREE.tile_root(2), run, DATA[-2 * STEP - 40 :])
    tiles = TREE.prove_tile_range(1, 2)
    multiproof.verify_tile_range(TREE.root, tiles, TREE.tile_roots[1:])
    proof = prove_subtile_set(shards, {4: TREE}, {4: [(2, 3), (0, 1)]})
    assert list(multiproof.subtile_lengths(proof)) == [STEP, 40]
    multiproof.verify_subtile_set(root, proof, [part(0, 1), part(2, 3)])


def test_a_set_that_cannot_be_proven() -> None:
    shards = [TREE.root]
    for places in ({}, {0: []}, {0: [(0, 0), (0, 0)]}, {0: [(0, 16)]}, {0: [(3, 0)]}):
        with pytest.raises(InputError):
            prove_subtile_set(shards, {0: TREE}, places)
    far = {0: [(t, s) for t in range(300) for s in range(16)]}
    with pytest.raises(InputError, match="a set of 4800 subtiles"):
        prove_subtile_set(shards, {0: TREE}, far)
