"""Snapshots against their reference vectors, and what is refused of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from chain import snapshot
from chain.codec import decode, encode
from chain.errors import BlyanError, VerifyError
from chain.hashes import STATE_NODE, ZERO_HASH, Hash32
from chain.snapshot import (
    Place,
    SnapshotChunk,
    SnapshotManifest,
    SnapshotPart,
    WrongSize,
    check_chunk,
    leaf_size,
    make_chunk,
    places,
    plan,
)
from chain.tree import StateTree
from tests.kit.snapshots import header_of, manifest_of
from tests.reference import snapshot as reference

VECTORS: list[dict[str, Any]] = json.loads(reference.VECTORS.read_text())
MANY = next(case for case in VECTORS if case["name"] == "many")


def _tree(case: dict[str, Any]) -> StateTree:
    content = {bytes.fromhex(k): bytes.fromhex(v) for k, v in case["content"].items()}
    return StateTree.empty().set_many(content)


def _bits(place: Place) -> str:
    return format(place.prefix, f"0{place.bits}b") if place.bits else ""


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> tuple[StateTree, SnapshotManifest]:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", MANY["most"])
    tree = _tree(MANY)
    return tree, manifest_of(tree)


def test_the_vectors_are_what_the_reference_makes() -> None:
    assert reference.vectors() == VECTORS


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", case["most"])
    tree = _tree(case)
    manifest = manifest_of(tree)
    found = places(manifest)
    assert manifest.header.state_root.hex() == case["root"]
    rebuilt: dict[bytes, bytes] = {}
    for part, place, expected in zip(manifest.parts, found, case["parts"], strict=True):
        assert _bits(place) == expected["prefix"]
        assert (part.hash.hex(), part.size) == (expected["hash"], expected["size"])
        data = encode(make_chunk(tree, place))
        assert data.hex() == expected["chunk"]
        if part.size:
            rebuilt.update(check_chunk(part, place, data))
    assert StateTree.empty().set_many(rebuilt).root == tree.root
    assert decode(SnapshotManifest, encode(manifest)) == manifest


def test_a_leaf_counts_at_least_so_much_that_a_full_chunk_can_be_decoded() -> None:
    assert leaf_size(b"k", b"") == 128
    assert leaf_size(b"k" * 40, b"v" * 200) == 250
    content = {i.to_bytes(4, "big"): b"" for i in range(32_768)}
    tree = StateTree.empty().set_many(content)
    (part,) = plan(tree)
    assert part.size == snapshot.CHUNK_BYTES
    (place,) = places(manifest_of(tree))
    assert dict(check_chunk(part, place, encode(make_chunk(tree, place)))) == content
    more = tree.set_many({b"one more": b""})
    assert len(plan(more)) == 2


# --- chunks that lie --------------------------------------------------------------------------


def _lies(chunk: SnapshotChunk) -> dict[str, SnapshotChunk]:
    items = chunk.items
    return {
        "an extra key": SnapshotChunk((*items, b"extra", b"value")),
        "an extra key in order": SnapshotChunk(_with(items, b"extra/7", b"value")),
        "a missing key": SnapshotChunk(items[2:]),
        "a missing value": SnapshotChunk(items[:-1]),
        "another order": SnapshotChunk(items[2:4] + items[:2] + items[4:]),
        "a key twice": SnapshotChunk(items[:2] + items),
        "another value": SnapshotChunk((items[0], items[1] + b"x", *items[2:])),
        "another key": SnapshotChunk((items[0] + b"x", *items[1:])),
        "nothing": SnapshotChunk(()),
    }


def _with(items: tuple[bytes, ...], key: bytes, value: bytes) -> tuple[bytes, ...]:
    pairs = [*zip(items[::2], items[1::2], strict=True), (key, value)]
    return tuple(x for pair in sorted(pairs, key=lambda p: reference.bits(p[0])) for x in pair)


@pytest.mark.parametrize("lie", _lies(SnapshotChunk((b"a", b"b", b"c", b"d"))))
def test_a_chunk_that_lies_is_refused(lie: str, many: tuple[StateTree, SnapshotManifest]) -> None:
    tree, manifest = many
    tried = 0
    for part, place in zip(manifest.parts, places(manifest), strict=True):
        chunk = make_chunk(tree, place)
        if len(chunk.items) < 4:
            continue
        tried += 1
        with pytest.raises(VerifyError) as caught:
            check_chunk(part, place, encode(_lies(chunk)[lie]))
        assert not isinstance(caught.value, WrongSize)
    assert tried > 3


def test_no_byte_of_a_chunk_may_change(many: tuple[StateTree, SnapshotManifest]) -> None:
    tree, manifest = many
    index = max(range(len(manifest.parts)), key=lambda i: manifest.parts[i].size)
    part, place = manifest.parts[index], places(manifest)[index]
    good = encode(make_chunk(tree, place))
    check_chunk(part, place, good)
    for at in range(len(good)):
        for flip in (1, 0x80):
            bad = good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :]
            with pytest.raises(BlyanError):
                check_chunk(part, place, bad)
    for cut in range(len(good)):
        with pytest.raises(BlyanError):
            check_chunk(part, place, good[:cut])


def test_a_chunk_of_another_part_is_refused(many: tuple[StateTree, SnapshotManifest]) -> None:
    tree, manifest = many
    found = places(manifest)
    with pytest.raises(VerifyError, match="another subtree"):
        check_chunk(manifest.parts[0], found[0], encode(make_chunk(tree, found[-1])))


def test_a_size_that_is_not_the_parts_is_the_manifests_lie(
    many: tuple[StateTree, SnapshotManifest],
) -> None:
    tree, manifest = many
    place, part = places(manifest)[0], manifest.parts[0]
    with pytest.raises(WrongSize):
        check_chunk(replace(part, size=part.size + 1), place, encode(make_chunk(tree, place)))


def test_an_oversized_chunk_is_not_decoded() -> None:
    data = encode(SnapshotChunk((b"k", bytes(2 << 20), b"l", bytes(2 << 20), b"m", bytes(64))))
    part = SnapshotPart(0, Hash32(bytes(32)), snapshot.CHUNK_BYTES)
    with pytest.raises(BlyanError, match="at most"):
        check_chunk(part, Place(0, 0), data)


# --- manifests that lie -----------------------------------------------------------------------


def test_a_manifest_that_lies_is_refused(many: tuple[StateTree, SnapshotManifest]) -> None:
    _, manifest = many
    parts = manifest.parts
    first = parts[0]
    empty = next(i for i, part in enumerate(parts) if not part.size)
    half = snapshot.CHUNK_BYTES // 2
    lies: dict[str, tuple[tuple[SnapshotPart, ...], str]] = {
        "a part left out": (parts[1:], "cover|below|beyond"),
        "a part twice": ((first, *parts), "below|beyond|state|cover"),
        "two parts swapped": ((parts[1], first, *parts[2:]), "below|state|cover|beyond"),
        "none": ((), "cover"),
        "another hash": (
            (replace(first, hash=Hash32(b"x" * 32)), *parts[1:]),
            "not of the state",
        ),
        "too large": (
            (replace(first, size=snapshot.CHUNK_BYTES + 1), *parts[1:]),
            "impossible size",
        ),
        "a full part said to be empty": ((replace(first, size=0), *parts[1:]), "impossible size"),
        "an empty part said to be full": (
            (*parts[:empty], replace(parts[empty], size=1), *parts[empty + 1 :]),
            "impossible size",
        ),
        "beyond the last path": ((*parts, replace(first, depth=0)), "beyond"),
        "too deep": ((replace(first, depth=257), *parts[1:]), "not below"),
        "split where it need not be": (
            (
                SnapshotPart(1, Hash32(b"a" * 32), half),
                SnapshotPart(1, Hash32(b"b" * 32), half),
            ),
            "fit into one",
        ),
    }
    for name, (changed, why) in lies.items():
        with pytest.raises(VerifyError) as caught:
            places(replace(manifest, parts=changed))
        assert re.search(why, str(caught.value)), name


def test_a_manifest_of_another_header_is_refused(many: tuple[StateTree, SnapshotManifest]) -> None:
    _, manifest = many
    with pytest.raises(VerifyError, match="not of the state"):
        places(replace(manifest, header=header_of(Hash32(b"r" * 32))))


def test_halves_that_no_state_has() -> None:
    """Two claimed halves of impossible size fold up to a root, but not with a size that holds."""
    small = SnapshotPart(1, Hash32(b"a" * 32), 5)
    root = STATE_NODE.hash(small.hash, ZERO_HASH)
    with pytest.raises(VerifyError, match="fit into one"):
        places(SnapshotManifest(header_of(root), (small, SnapshotPart(1, ZERO_HASH, 0))))
