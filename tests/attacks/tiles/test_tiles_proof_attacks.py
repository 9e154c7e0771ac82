"""Forged tile proofs: every lie about place, length, level or bytes is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain import limits
from chain.codec import decode, encode
from chain.errors import DecodeError, VerifyError
from chain.hashes import LIST
from tests.reference.merkle_ref import noise
from tiles import hash_tree, merkle

DATA = noise("attack", 10 * limits.SUBTILE_BYTES + 100)
ROOT = merkle.tile_root(DATA)
PARTS = [bytes(p) for p in merkle.subtiles(DATA)]
LEAVES = [noise(f"leaf {i}", 32) for i in range(75)]
LIST_ROOT = merkle.merkle_root(LEAVES)


@pytest.mark.parametrize("at", [0, 131_072, limits.SUBTILE_BYTES - 1])
def test_a_flipped_bit(at: int) -> None:
    part = bytearray(PARTS[4])
    part[at] ^= 0x80
    with pytest.raises(VerifyError, match="subtile 4 is not the one"):
        merkle.verify_subtile(ROOT, merkle.prove_subtile(DATA, 4), part)


def test_lies_about_place_and_length() -> None:
    proof = merkle.prove_subtile(DATA, 4)
    lies = [
        (replace(proof, index=5), PARTS[4]),
        (replace(proof, index=5), PARTS[5]),
        (replace(proof, index=10), PARTS[10]),
        (replace(proof, index=11), PARTS[4]),
        (replace(proof, index=2**32 - 1), PARTS[4]),
        (replace(proof, tile_bytes=len(DATA) + 4), PARTS[4]),
        (replace(proof, tile_bytes=limits.TILE_BYTES), PARTS[4]),
        (replace(proof, tile_bytes=0), b""),
        (replace(proof, tile_bytes=2**32 - 1), PARTS[4]),
        (proof, PARTS[4][:-1]),
        (proof, PARTS[4] + b"\0"),
        (proof, b""),
    ]
    for lie, data in lies:
        with pytest.raises(VerifyError):
            merkle.verify_subtile(ROOT, lie, data)


def test_too_few_too_many_and_swapped_siblings() -> None:
    proof = merkle.merkle_proof(LEAVES, 70)
    siblings = proof.siblings
    for changed in (
        (),
        siblings[:-1],
        siblings[1:],
        (*siblings, siblings[0]),
        (siblings[1], siblings[0], *siblings[2:]),
        (bytes(32), *siblings[1:]),
    ):
        with pytest.raises(VerifyError):
            merkle.verify_merkle(LIST_ROOT, replace(proof, siblings=changed), LEAVES[70])


def test_lies_about_index_and_count_of_a_list() -> None:
    proof = merkle.merkle_proof(LEAVES, 70)
    for lie in (
        replace(proof, index=71),
        replace(proof, index=75),
        replace(proof, index=2**64 - 1),
        replace(proof, count=74),
        replace(proof, count=76),
        replace(proof, count=0),
        replace(proof, count=2**64 - 1),
    ):
        with pytest.raises(VerifyError):
            merkle.verify_merkle(LIST_ROOT, lie, LEAVES[70])


def test_an_inner_node_is_no_leaf() -> None:
    """A proof cut off at an inner node, with counts that would fit, leads elsewhere."""
    proof = merkle.merkle_proof(LEAVES, 3)
    node = hash_tree.node(LIST, 1, 0, b"".join(LEAVES[:8]))
    cut = merkle.MerkleProof(0, 10, proof.siblings[7:])
    with pytest.raises(VerifyError):
        merkle.verify_merkle(LIST_ROOT, cut, node)


def test_a_tile_proof_of_an_impossible_shard() -> None:
    proof = merkle.prove_tile([ROOT], len(DATA), 0)
    for size in (0, 2**64 - 1):
        with pytest.raises(VerifyError, match="cannot exist"):
            merkle.verify_tile(ROOT, replace(proof, shard_bytes=size), ROOT)


def test_proofs_have_a_bounded_size_on_the_wire() -> None:
    proof = merkle.SubtileProof(0, 4, tuple([bytes(32)] * 15))
    with pytest.raises(DecodeError, match="at most 14"):
        encode(proof)
    raw = encode(merkle.prove_subtile(DATA, 4))
    for cut in (0, 1, len(raw) - 1):
        with pytest.raises(DecodeError):
            decode(merkle.SubtileProof, raw[:cut])
