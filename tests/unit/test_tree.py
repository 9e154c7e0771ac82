"""The state tree against its reference vectors, and what its proofs refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from chain.codec import decode, encode
from chain.errors import DecodeError, VerifyError
from chain.hashes import STATE_KEY, STATE_NODE, ZERO_HASH, Hash32
from chain.tree import StateLeaf, StateProof, StateTree, subtree_hash, verify_state_proof
from tests.reference import tree as reference

VECTORS: list[dict[str, Any]] = json.loads(reference.VECTORS.read_text())


def _tree(case: dict[str, Any]) -> StateTree:
    content = {bytes.fromhex(k): bytes.fromhex(v) for k, v in case["content"].items()}
    return StateTree.empty().set_many(content)


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert reference.vectors() == VECTORS


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    tree = _tree(case)
    assert tree.root.hex() == case["root"]
    for asked in case["proofs"]:
        key = bytes.fromhex(asked["key"])
        value = None if asked["value"] is None else bytes.fromhex(asked["value"])
        proof = tree.prove(key)
        assert [s.hex() for s in proof.siblings] == asked["siblings"]
        other = proof.other and [proof.other.path.hex(), proof.other.value_hash.hex()]
        assert other == asked["other"]
        assert tree.get(key) == value
        assert verify_state_proof(tree.root, key, value, proof)
        assert decode(StateProof, encode(proof)) == proof


def test_proofs_hold_for_nothing_else() -> None:
    case = VECTORS[-1]
    tree = _tree(case)
    for asked in case["proofs"]:
        key = bytes.fromhex(asked["key"])
        value = None if asked["value"] is None else bytes.fromhex(asked["value"])
        proof = tree.prove(key)
        for lie in (None, b"", b"x", (value or b"") + b"\x00"):
            if lie != value:
                assert not verify_state_proof(tree.root, key, lie, proof)
        assert not verify_state_proof(tree.root, key + b"x", value, proof)
        assert not verify_state_proof(Hash32(bytes(31) + b"\x01"), key, value, proof)
        for i in range(len(proof.siblings)):
            flipped = Hash32(bytes([proof.siblings[i][0] ^ 1]) + proof.siblings[i][1:])
            changed = [*proof.siblings[:i], flipped, *proof.siblings[i + 1 :]]
            bad = replace(proof, siblings=tuple(changed))
            assert not verify_state_proof(tree.root, key, value, bad)
        for siblings in (
            proof.siblings[:-1],
            proof.siblings[1:],
            (*proof.siblings, ZERO_HASH),
            (*proof.siblings, tree.root),
            proof.siblings * 30,
        ):
            bad = replace(proof, siblings=siblings)
            assert not verify_state_proof(tree.root, key, value, bad)


def test_a_present_key_cannot_be_shown_absent() -> None:
    """By naming a leaf off the path, the key's own leaf, or a branch as if it were a leaf."""
    tree = _tree(VECTORS[-1])
    keys = list(tree.keys())
    key = keys[0]
    proof = tree.prove(key)
    for other_key in keys:
        other = StateLeaf(STATE_KEY.hash(other_key), Hash32(b"\x01" * 32))
        for siblings in (proof.siblings, proof.siblings[:-1], tree.prove(other_key).siblings):
            assert not verify_state_proof(tree.root, key, None, StateProof(siblings, other))
        foreign = tree.prove(other_key)
        if other_key != key:
            assert not verify_state_proof(tree.root, key, None, foreign)
    assert not verify_state_proof(tree.root, key, None, StateProof((), None))


def test_an_empty_side_below_a_leaf_is_refused() -> None:
    """Only the compact form counts: STATE_NODE(leaf, empty) is no subtree of any honest state."""
    tree = StateTree.empty().set_many({b"k": b"v"})
    path = STATE_KEY.hash(b"k")
    pair = (ZERO_HASH, tree.root) if path[0] >> 7 else (tree.root, ZERO_HASH)
    root = STATE_NODE.hash(*pair)
    assert not verify_state_proof(root, b"k", b"v", StateProof((ZERO_HASH,), None))


def test_the_root_is_that_of_the_content_only() -> None:
    content = {f"k{i}".encode(): bytes([i]) for i in range(60)}
    at_once = StateTree.empty().set_many(content)
    one_by_one = StateTree.empty()
    for key in reversed(list(content)):
        one_by_one = one_by_one.set_many({key: content[key]})
    assert one_by_one.root == at_once.root
    assert list(one_by_one.items()) == sorted(content.items())
    grown = at_once.set_many({b"extra": b"1", b"k3": None, b"k4": b"other"})
    back = grown.set_many({b"extra": None, b"k3": b"\x03", b"k4": b"\x04", b"never": None})
    assert back.root == at_once.root
    emptied = back.set_many(dict.fromkeys(content))
    assert emptied.root == ZERO_HASH
    assert len(emptied) == 0
    assert list(emptied.items()) == []


def test_trees_do_not_change_and_share_what_is_untouched() -> None:
    content = {f"k{i}".encode(): bytes([i]) for i in range(200)}
    first = StateTree.empty().set_many(content)
    root = first.root
    second = first.set_many({b"k7": None, b"new": b"x"})
    assert (first.root, len(first), first.get(b"k7")) == (root, 200, b"\x07")
    assert (second.get(b"k7"), second.get(b"new"), len(second)) == (None, b"x", 200)
    assert first.set_many({b"k7": b"\x07", b"never": None}) is first
    assert first.set_many({}) is first
    third = first.set_many({b"k7": b"other"})
    assert third._keys is first._keys
    assert b"k7" in third
    assert b"nope" not in third


def test_items_by_prefix_across_chunks() -> None:
    content = {f"{p}/{i:04}".encode(): b"%d" % i for p in ("a", "b", "bb", "c") for i in range(700)}
    tree = StateTree.empty().set_many(content)
    assert len(tree._keys.chunks) > 4
    for prefix in (b"", b"a", b"a/", b"b", b"b/", b"bb/", b"c/0699", b"c/07", b"0", b"z", b"b/03"):
        expected = [(k, v) for k, v in sorted(content.items()) if k.startswith(prefix)]
        assert list(tree.items(prefix)) == expected
    tree = tree.set_many(dict.fromkeys(k for k in content if not k.endswith(b"00")))
    assert len(tree._keys.chunks) == 1
    assert list(tree.keys(b"bb/")) == [b"bb/%04d" % i for i in range(0, 700, 100)]


def test_subtrees() -> None:
    content = {f"k{i}".encode(): bytes([i]) for i in range(100)}
    tree = StateTree.empty().set_many(content)
    ordered = sorted(content.items(), key=lambda item: STATE_KEY.hash(item[0]))
    assert list(tree.subtree(0, 0).leaves()) == ordered
    assert tree.subtree(0, 0).hash == tree.root == subtree_hash(ordered, 0, 0)
    for bits in (1, 4, 5, 7, 11, 40):
        seen = []
        for prefix in range(1 << bits) if bits < 12 else [_prefix(k, bits) for k, _ in ordered]:
            part = tree.subtree(prefix, bits)
            leaves = list(part.leaves())
            assert all(_prefix(key, bits) == prefix for key, _ in leaves)
            assert part.hash == subtree_hash(leaves, prefix, bits)
            assert bool(leaves) == (part.hash != ZERO_HASH)
            seen += leaves
        assert seen == ordered
    halves = [tree.subtree(half, 1).hash for half in (0, 1)]
    assert STATE_NODE.hash(*halves) == tree.root


def _prefix(key: bytes, bits: int) -> int:
    return int.from_bytes(STATE_KEY.hash(key), "big") >> 256 - bits


def test_leaves_of_no_subtree_are_refused() -> None:
    keys = sorted((f"k{i}".encode() for i in range(9)), key=STATE_KEY.hash)
    leaves = [(key, b"v") for key in keys]
    for bad in ([leaves[1], leaves[0]], [leaves[0], leaves[0]]):
        with pytest.raises(VerifyError, match="order"):
            subtree_hash(bad, 0, 0)
    with pytest.raises(VerifyError, match="another"):
        subtree_hash(leaves, 0, 1)


def test_proofs_stay_small() -> None:
    """At most 2 KB in the honest case; depth grows with log2 of the number of keys."""
    content = {i.to_bytes(4, "big"): b"v" for i in range(20_000)}
    tree = StateTree.empty().set_many(content)
    largest = max(len(encode(tree.prove(i.to_bytes(4, "big")))) for i in range(0, 21_000, 50))
    assert largest < 1024


@pytest.mark.parametrize("hashes", [1, 250])
def test_a_value_read_decoded_is_the_one_that_this_tree_holds(hashes: int) -> None:
    """Whether it is kept at its leaf or among those that all trees share."""
    one = StateProof((Hash32(bytes([1]) * 32),) * hashes, None)
    two = StateProof((Hash32(bytes([2]) * 32),) * hashes, None)
    before = StateTree.empty().set_many({b"key": encode(one)})
    after = before.set_many({b"key": encode(two)})
    for _ in range(2):
        assert before.read(b"key", StateProof) == one
        assert after.read(b"key", StateProof) == two
    with pytest.raises(DecodeError):  # the same bytes as another struct
        after.read(b"key", StateLeaf)


def test_what_is_read_in_every_block_is_decoded_once() -> None:
    value = StateProof((ZERO_HASH,) * 20, None)
    first = StateTree.empty().set_many({b"key": encode(value)})
    again = first.set_many({b"other": b"changed"})
    assert first.read(b"key", StateProof) is again.read(b"key", StateProof)
