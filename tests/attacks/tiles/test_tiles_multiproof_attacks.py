"""Forged ranges and sets: nothing is shown that is not there, and each has one encoding."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import pytest

from chain import limits
from chain.codec import decode, encode
from chain.errors import DecodeError, VerifyError
from chain.hashes import SHARD, TILE_NODE, Hash32
from tests.reference.merkle_ref import noise
from tiles import hash_tree, merkle, multiproof
from tiles.multiproof import ShardSubtiles, SubtileRange, SubtileSet, TileRange
from tiles.tree import ShardTree, prove_subtile_set

STEP = limits.SUBTILE_BYTES
DATA = noise("set attack", limits.TILE_BYTES + 10 * STEP + 100)
TREE = ShardTree.of_data(DATA)
SHARDS = [Hash32(noise(f"shard {i}", 32)) for i in range(12)]
SHARDS[5] = TREE.root
ROOT = merkle.model_root(SHARDS)
PLACES = [(0, 3), (0, 4), (1, 0), (1, 10)]
PROOF = prove_subtile_set(SHARDS, {5: TREE}, {5: PLACES})
NUMBERS = (3, 4, 16, 26)
PARTS = [DATA[n * STEP : (n + 1) * STEP] for n in NUMBERS]


def lying(**changes: object) -> SubtileSet:
    return replace(PROOF, shards=(replace(PROOF.shards[0], **changes),))  # type: ignore[arg-type]


def refused(proof: SubtileSet, parts: Sequence[bytes] = PARTS) -> None:
    with pytest.raises(VerifyError):
        multiproof.verify_subtile_set(ROOT, proof, parts)


def test_the_honest_set() -> None:
    multiproof.verify_subtile_set(ROOT, PROOF, PARTS)


def test_subtiles_swapped_with_others_of_the_same_tree() -> None:
    refused(PROOF, [PARTS[1], PARTS[0], *PARTS[2:]])
    refused(PROOF, [DATA[5 * STEP : 6 * STEP], *PARTS[1:]])
    # the honest bytes of another place, under the numbers of that place, with this proof's nodes
    refused(lying(subtiles=(3, 5, 16, 26)), [PARTS[0], DATA[5 * STEP : 6 * STEP], *PARTS[2:]])
    # the same place of the other tile: a subtile's hash does not name its tile, its path does
    refused(lying(subtiles=(0, 3, 4, 26)), [PARTS[2], PARTS[0], PARTS[1], PARTS[3]])


@pytest.mark.parametrize(
    "numbers",
    [
        (4, 3, 16, 26),
        (3, 3, 16, 26),
        (3, 4, 16, 16),
        (16, 26, 3, 4),
        (3, 4, 16),
        (3, 4, 16, 26, 27),
        (3, 4, 16, 27),
        (3, 4, 16, 2**32 - 1),
        (),
    ],
)
def test_numbers_out_of_order_named_twice_or_past_the_end(numbers: tuple[int, ...]) -> None:
    refused(lying(subtiles=numbers))
    refused(lying(subtiles=numbers), [bytes(STEP)] * len(numbers))


def test_a_set_says_each_thing_once() -> None:
    """Not the same shard in two parts, not a shard without subtiles, not an empty set."""
    shard = PROOF.shards[0]
    halves = (replace(shard, subtiles=(3, 4)), replace(shard, subtiles=(16, 26)))
    refused(replace(PROOF, shards=halves))
    refused(replace(PROOF, shards=(ShardSubtiles(4, 0, ()), shard)))
    refused(replace(PROOF, shards=(ShardSubtiles(4, STEP, ()), shard)))
    refused(replace(PROOF, shards=(shard, ShardSubtiles(6, STEP, ()))))
    refused(replace(PROOF, shards=()), [])
    refused(SubtileSet(0, (), b""), [])


def test_nodes_of_a_wrong_number_or_length() -> None:
    nodes = PROOF.nodes
    for wrong in (
        b"",
        nodes[:-32],
        nodes[32:],
        nodes[:-1],
        nodes + b"\0",
        nodes + bytes(32),
        nodes[32:64] + nodes[:32] + nodes[64:],
        nodes[::-1],
    ):
        refused(replace(PROOF, nodes=wrong))


def test_lies_about_sizes_and_counts() -> None:
    for size in (0, 1, len(DATA) - 1, len(DATA) + 1, limits.TILE_BYTES, 2**40, 2**64 - 1):
        refused(lying(shard_bytes=size))
    for index in (4, 6, 11, 12, 2**32 - 1):
        refused(lying(index=index))
    for count in (0, 5, 11, 13, 2**32 - 1):
        refused(replace(PROOF, shard_count=count))


def test_parts_of_wrong_lengths() -> None:
    refused(PROOF, PARTS[:-1])
    refused(PROOF, [*PARTS, b""])
    refused(PROOF, [PARTS[0][:-1], *PARTS[1:]])
    refused(PROOF, [PARTS[0][:-1], PARTS[0][-1:] + PARTS[1], *PARTS[2:]])
    refused(PROOF, [*PARTS[:-1], PARTS[-1] + b"\0"])


def test_an_inner_node_is_no_leaf() -> None:
    """The top of half a tile as the leaf of a smaller tile, with counts that would fit."""
    hashes = TREE.subtile_hashes(0)
    inner = hash_tree.node(TILE_NODE, 1, 0, b"".join(hashes[:8]))
    other = hash_tree.node(TILE_NODE, 1, 1, b"".join(hashes[8:]))
    missing = hash_tree.MissingNodes(other)
    size = limits.TILE_BYTES
    honest = hash_tree.root_over(
        TILE_NODE, 16, size, hash_tree.node(TILE_NODE, 2, 0, inner + other)
    )
    assert honest == TREE.tile_root(0)
    assert hash_tree.climb_set(TILE_NODE, [0], [inner], 2, size, missing) != honest
    # and a tile root as the root of a shard of one tile
    proof = TileRange(0, 1, limits.TILE_BYTES, b"")
    with pytest.raises(VerifyError):
        multiproof.verify_tile_range(TREE.tile_root(0), proof, [TREE.tile_root(0)])


def test_ranges() -> None:
    tile, root = TREE.subtile_hashes(1), TREE.tile_root(1)
    size = len(DATA) - limits.TILE_BYTES
    proof = multiproof.prove_subtile_range(tile, size, 2, 9)
    data = DATA[limits.TILE_BYTES + 2 * STEP :]
    multiproof.verify_subtile_range(root, proof, data)
    for lie, shown in (
        (proof, data[:-1]),
        (proof, data + b"\0"),
        (proof, data[STEP:] + data[:STEP]),
        (replace(proof, first=1), data),
        (replace(proof, first=3, count=8), data[STEP:]),
        (replace(proof, count=8), data[: 8 * STEP]),
        (replace(proof, count=0), b""),
        (replace(proof, first=11, count=1), b""),
        (replace(proof, first=2**32 - 1), data),
        (replace(proof, count=2**32 - 1), data),
        (replace(proof, tile_bytes=0), data),
        (replace(proof, tile_bytes=2**32 - 1), data),
        (replace(proof, tile_bytes=size - 1), data[:-1]),
        (replace(proof, nodes=b""), data),
        (replace(proof, nodes=proof.nodes + bytes(32)), data),
        (replace(proof, nodes=proof.nodes[:-1]), data),
    ):
        with pytest.raises(VerifyError):
            multiproof.verify_subtile_range(root, lie, shown)
    for size in (0, 2**64 - 1, 2**34 + 1):
        lie_of_tiles = TileRange(0, 1, size, b"")
        with pytest.raises(VerifyError, match="no tiles to show"):
            multiproof.verify_tile_range(root, lie_of_tiles, [root])


def test_huge_numbers_allocate_nothing() -> None:
    big = 2**32 - 1
    tracemalloc.start()
    try:
        for lie in (
            lambda: multiproof.verify_subtile_range(ROOT, SubtileRange(0, big, big, b""), b"x"),
            lambda: multiproof.verify_tile_range(ROOT, TileRange(0, big, 2**64 - 1, b""), [ROOT]),
            lambda: multiproof.verify_tile_range(ROOT, TileRange(0, 4096, 2**34, b""), [ROOT]),
            lambda: multiproof.subtile_set_root(
                SubtileSet(big, (ShardSubtiles(big, 2**34, (big,)),), b""), [ROOT]
            ),
            lambda: multiproof.subtile_set_root(
                SubtileSet(big, (ShardSubtiles(big - 1, 2**34, (65535,)),), b""), [ROOT]
            ),
        ):
            with pytest.raises(VerifyError):
                lie()
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_a_set_of_too_many() -> None:
    """More than a set may show is refused before anything is hashed, however it is divided."""
    numbers = tuple(range(limits.MAX_PROOF_SUBTILES))
    with pytest.raises(DecodeError, match="at most 4096"):
        encode(SubtileSet(1, (ShardSubtiles(0, 2**34, (*numbers, 4096)),), b""))
    two = SubtileSet(2, (ShardSubtiles(0, 2**34, numbers), ShardSubtiles(1, 2**34, (0,))), b"")
    assert decode(SubtileSet, encode(two)) == two
    with pytest.raises(VerifyError, match="a set of 4097 subtiles"):
        multiproof.verify_subtile_set(ROOT, two, [])


def test_roots_of_different_kinds_do_not_stand_for_each_other() -> None:
    run = multiproof.prove_tile_range(TREE.tile_roots, len(DATA), 0, 2)
    model = merkle.model_root(TREE.tile_roots)
    assert hash_tree.root_of(SHARD, TREE.tile_roots, 0) not in (model, TREE.root)
    with pytest.raises(VerifyError):
        multiproof.verify_tile_range(model, run, TREE.tile_roots)
