"""Fuzzing the decoder and the verifiers of Merkle proofs.

A case is a valid proof, spoiled. Whatever is still accepted under the same root must be the
proof itself: nothing else is shown, and nothing has two encodings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import msgpack

from chain import limits
from chain.codec import decode, encode
from chain.errors import BlyanError
from chain.hashes import Hash32
from tests.attacks.mutation import anything, number, spoil_bytes, spoil_tree
from tests.reference.merkle_ref import noise
from tiles import merkle, multiproof
from tiles.tree import ShardTree, prove_subtile_set

STEP = limits.SUBTILE_BYTES
Verify = Callable[[Any], None]
CLASSES = (
    merkle.SubtileProof,
    merkle.TileProof,
    merkle.ShardProof,
    merkle.MerkleProof,
    merkle.SubtilePath,
    multiproof.SubtileRange,
    multiproof.TileRange,
    multiproof.ShardSubtiles,
    multiproof.SubtileSet,
)


class ProofTarget:
    name = "proof"
    size = 0

    def run(self, random: Random) -> str:
        """One case: what became of it. Raises AssertionError where a lie was believed."""
        value, verify = random.choice(subjects())
        raw = encode(value)
        changed = spoiled(random, raw)
        kind = type(value) if random.random() < 0.95 else random.choice(CLASSES)
        try:
            decoded = decode(kind, changed)
        except BlyanError:
            return "not decoded"
        assert encode(decoded) == changed, "two encodings of one value"
        if type(decoded) is not type(value):
            return "of another type"
        try:
            verify(decoded)
        except BlyanError:
            return "refused"
        assert decoded == value, f"believed: {decoded}"
        assert changed == raw, "two encodings of one proof"
        return "unchanged"


def spoiled(random: Random, raw: bytes) -> bytes:
    if random.random() < 0.25:
        return spoil_bytes(random, raw, random.choice((1, 1, 2, 4)))
    tree = msgpack.unpackb(raw, use_list=True)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        tree = spoil_tree(random, tree, spoil_leaf)
    try:
        packed: bytes = msgpack.packb(tree, use_bin_type=True)
    except (OverflowError, ValueError):  # a number that MessagePack cannot say
        return spoil_bytes(random, raw, 3)
    return packed


def spoil_leaf(random: Random, leaf: Any) -> Any:
    if type(leaf) is int:
        return number(random, leaf)
    if isinstance(leaf, bytes):
        match random.randrange(6):
            case 0:
                return leaf[: random.randrange(len(leaf) + 1)]
            case 1:
                return leaf + random.randbytes(random.choice((1, 32, 64)))
            case 2:
                return leaf[32:] + leaf[:32]
            case 3:
                return random.randbytes(len(leaf))
            case _:
                return spoil_bytes(random, leaf, 1)
    return anything(random)


@cache
def subjects() -> list[tuple[Any, Verify]]:
    """Proofs with what verifies them; the bytes shown are few, so that a case costs little."""
    small = noise("fuzzed tile", STEP + 40)
    counts = (1, 2, 9, 17, 64, 65)
    trees = {i: made_tree(n, i) for i, n in enumerate(counts)}
    trees[6] = ShardTree.of_data(small)
    roots = [tree.root for tree in trees.values()] + [leaf(7, i) for i in range(60)]
    root = merkle.model_root(roots)
    made: list[tuple[Any, Verify]] = []
    path = trees[6].path((0, 1), merkle.prove_shard(roots, 6))
    shown = small[STEP:]
    made.append((path, lambda p: merkle.verify_path(root, p, shown)))
    made.append((path.subtile, lambda p: merkle.verify_subtile(trees[6].tile_root(0), p, shown)))
    made.append((path.shard, lambda p: merkle.verify_shard(root, p, roots[6])))
    tile = trees[4].prove_tile(2)
    made.append((tile, lambda p: merkle.verify_tile(roots[4], p, trees[4].tile_root(2))))
    leaves = [leaf(8, i) for i in range(75)]
    entry = merkle.merkle_proof(leaves, 70)
    top = merkle.merkle_root(leaves)
    made.append((entry, lambda p: merkle.verify_merkle(top, p, leaves[70])))
    run = trees[6].prove_subtile_range(0, 1, 1)
    tile_root = trees[6].tile_root(0)
    made.append((run, lambda p: multiproof.verify_subtile_range(tile_root, p, shown)))
    tiles = trees[5].prove_tile_range(1, 3)
    some = trees[5].tile_roots[1:4]
    made.append((tiles, lambda p: multiproof.verify_tile_range(roots[5], p, some)))
    for places in (
        {3: [(1, 0)]},
        {0: [(0, 0)], 4: [(0, 1), (2, 15), (3, 3)], 5: [(4, 0)]},
        {2: [(0, s) for s in range(9)], 5: [(t, t) for t in range(4)]},
    ):
        proof = prove_subtile_set(roots, trees, places)
        hashes = [trees[i].subtile_hashes(t)[s] for i in sorted(places) for t, s in places[i]]
        made.append((proof, verifies_set(root, hashes)))
    for value, verify in made:
        verify(value)
    return made


def verifies_set(root: Hash32, hashes: list[Hash32]) -> Verify:
    def verify(proof: multiproof.SubtileSet) -> None:
        list(multiproof.subtile_lengths(proof))
        if multiproof.subtile_set_root(proof, hashes) != root:
            raise BlyanError("another root")

    return verify


def made_tree(subtiles: int, salt: int) -> ShardTree:
    """A tree of so many subtiles with hashes of our own making."""
    hashes = [leaf(salt, i) for i in range(subtiles)]
    groups = [hashes[at : at + 16] for at in range(0, subtiles, 16)]
    return ShardTree.of_hashes((subtiles - 1) * STEP + 1, groups)


def leaf(salt: int, index: int) -> Hash32:
    return Hash32(noise(f"fuzz {salt} {index}", 32))
