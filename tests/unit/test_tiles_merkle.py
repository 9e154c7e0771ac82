"""The tile trees against their reference vectors, and proofs at every level."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chain import limits
from chain.codec import decode, encode
from chain.errors import InputError, VerifyError
from tests.reference import merkle_ref as reference
from tiles import merkle, multiproof
from tiles.tree import ShardTree, prove_subtile_set

VECTORS = json.loads(reference.VECTORS.read_text())


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert reference.vectors() == VECTORS


@pytest.mark.parametrize("case", VECTORS["shards"], ids=lambda c: str(c["bytes"]))
def test_shard_vectors(case: dict[str, Any]) -> None:
    data = reference.noise(f"shard of {case['bytes']}", case["bytes"])
    roots = merkle.tile_roots(data)
    assert [r.hex() for r in roots] == case["tile_roots"]
    root = merkle.shard_root(roots, len(data))
    assert root.hex() == case["shard_root"]
    if not data:
        return  # a shard of no tiles has a root, and nothing to prove
    tile, last = data[: limits.TILE_BYTES], case["last_subtile"]
    part = list(merkle.subtiles(tile))[last]
    assert merkle.subtile_hash(last, part).hex() == case["subtile_hash"]
    proof = merkle.prove_subtile(tile, last)
    assert [s.hex() for s in proof.siblings] == case["subtile_siblings"]
    merkle.verify_subtile(roots[0], proof, part)
    first, count = case["range"]
    run = multiproof.prove_subtile_range(merkle.subtile_hashes(tile), len(tile), first, count)
    assert run.nodes.hex() == "".join(case["range_nodes"])
    start, end = (i * limits.SUBTILE_BYTES for i in (first, first + count))
    multiproof.verify_subtile_range(roots[0], run, tile[start:end])


@pytest.mark.parametrize("case", VECTORS["lists"], ids=lambda c: str(c["count"]))
def test_list_and_model_vectors(case: dict[str, Any]) -> None:
    leaves = [reference.noise(f"leaf {i}", 32) for i in range(case["count"])]
    root = merkle.merkle_root(leaves)
    assert root.hex() == case["list_root"]
    if leaves:
        assert merkle.model_root(leaves).hex() == case["model_root"]
        proof = merkle.merkle_proof(leaves, case["index"])
        assert [s.hex() for s in proof.siblings] == case["siblings"]
        merkle.verify_merkle(root, proof, leaves[case["index"]])
        shard = merkle.shard_root(leaves, case["shard_bytes"])
        assert shard.hex() == case["shard_root"]
        first, count = case["tile_range"]
        run = multiproof.prove_tile_range(leaves, case["shard_bytes"], first, count)
        assert run.nodes.hex() == "".join(case["tile_range_nodes"])
        multiproof.verify_tile_range(shard, run, leaves[first : first + count])


@pytest.mark.parametrize("case", VECTORS["sets"], ids=lambda c: str(len(c["nodes"])))
def test_set_vectors(case: dict[str, Any]) -> None:
    shards = [reference.noise(f"set {i}", size) for i, size in enumerate(case["sizes"])]
    trees = dict(enumerate(map(ShardTree.of_data, shards)))
    roots = [tree.root for tree in trees.values()]
    assert merkle.model_root(roots).hex() == case["root"]
    places = {i: [(p // 16, p % 16) for p in wanted] for i, wanted in case["places"]}
    proof = prove_subtile_set(roots, trees, places)
    assert proof.nodes.hex() == "".join(case["nodes"])
    assert [[s.index, list(s.subtiles)] for s in proof.shards] == case["places"]
    step = limits.SUBTILE_BYTES
    data = [shards[i][p * step : (p + 1) * step] for i, wanted in case["places"] for p in wanted]
    multiproof.verify_subtile_set(merkle.model_root(roots), proof, data)
    assert decode(multiproof.SubtileSet, encode(proof)) == proof


def test_one_subtile_is_shown_under_a_model_root() -> None:
    data = reference.noise("model", limits.TILE_BYTES + 3 * limits.SUBTILE_BYTES + 8)
    roots = merkle.tile_roots(data)
    shards = [reference.noise(f"shard {i}", 32) for i in range(10)]
    shards[9] = merkle.shard_root(roots, len(data))
    root = merkle.model_root(shards)
    path = merkle.SubtilePath(
        merkle.prove_subtile(data[limits.TILE_BYTES :], 3),
        merkle.prove_tile(roots, len(data), 1),
        merkle.prove_shard(shards, 9),
    )
    merkle.verify_path(root, path, data[-8:])
    assert decode(merkle.SubtilePath, encode(path)) == path
    with pytest.raises(VerifyError, match="model root"):
        merkle.verify_path(root, path, bytes(8))
    # a tile of another length than its place in the shard gives it
    whole = merkle.prove_subtile(data[: limits.TILE_BYTES], 3)
    with pytest.raises(VerifyError, match="has not the length"):
        merkle.verify_path(
            root,
            merkle.SubtilePath(whole, path.tile, path.shard),
            data[3 * limits.SUBTILE_BYTES : 4 * limits.SUBTILE_BYTES],
        )


def test_tile_and_shard_proofs() -> None:
    roots = [reference.noise(f"tile {i}", 32) for i in range(70)]
    size = 69 * limits.TILE_BYTES + 12
    root = merkle.shard_root(roots, size)
    for index in (0, 7, 8, 63, 64, 69):
        proof = merkle.prove_tile(roots, size, index)
        merkle.verify_tile(root, proof, roots[index])
        with pytest.raises(VerifyError):
            merkle.verify_tile(root, proof, roots[index - 1])
    top = merkle.model_root(roots)
    for index in (0, 9, 69):
        proof_of_shard = merkle.prove_shard(roots, index)
        merkle.verify_shard(top, proof_of_shard, roots[index])
        with pytest.raises(VerifyError):
            merkle.verify_shard(top, proof_of_shard, roots[index - 1])


def test_a_proof_in_a_model_of_a_million_tiles_fits_two_and_a_half_kilobytes() -> None:
    """However they are divided: 2**20 tiles in shards of 16 to 4,096."""
    for tiles in (16, 256, 1024, 4096):
        nodes = [reference.noise(f"node {i}", 32) for i in range(max(tiles, 2**20 // tiles))]
        path = merkle.SubtilePath(
            merkle.prove_subtile_of(nodes[:16], limits.TILE_BYTES, 9),
            merkle.prove_tile(nodes[:tiles], tiles * limits.TILE_BYTES, tiles // 2),
            merkle.prove_shard(nodes[: 2**20 // tiles], 2**20 // tiles // 3),
        )
        assert len(encode(path)) <= 2500


def test_kinds_and_sizes_never_share_a_root() -> None:
    leaf = [reference.noise("leaf", 32)]
    roots = {
        merkle.merkle_root(leaf),
        merkle.merkle_root([*leaf, *leaf]),
        merkle.merkle_root([]),
        merkle.model_root(leaf),
        merkle.shard_root([], 0),
        merkle.shard_root(leaf, 4),
        merkle.shard_root(leaf, 8),
        merkle.tile_root_of(leaf, 4),
        leaf[0],
    }
    assert len(roots) == 9


def test_a_stream_is_checked_against_hashes_that_lead_to_the_root() -> None:
    data = reference.noise("stream", 3 * limits.SUBTILE_BYTES)
    hashes = merkle.subtile_hashes(data)
    assert merkle.tile_root_of(hashes, len(data)) == merkle.tile_root(data)
    parts = list(merkle.subtiles(data))
    assert [merkle.subtile_hash(i, part) for i, part in enumerate(parts)] == list(hashes)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: merkle.tile_root(b""),
        lambda: merkle.tile_root(bytes(limits.TILE_BYTES + 1)),
        lambda: merkle.model_root([]),
        lambda: merkle.merkle_root([bytes(32)] * 5, 4),
        lambda: merkle.merkle_proof([], 0),
        lambda: merkle.prove_subtile(b"one", 1),
        lambda: multiproof.prove_tile_range([bytes(32)] * 5, 5 * limits.TILE_BYTES, 3, 3),
        lambda: multiproof.prove_tile_range([bytes(32)] * 5, 5 * limits.TILE_BYTES, 3, 0),
        lambda: multiproof.prove_subtile_range([bytes(32)], 9, -1, 1),
    ],
)
def test_our_own_wrong_arguments_are_refused(wrong: Any) -> None:
    with pytest.raises(InputError):
        wrong()
