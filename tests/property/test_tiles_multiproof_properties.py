"""Ranges, sets and trees, for any shape: proven is verified, and only what was proven."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain import limits
from chain.codec import decode, encode
from chain.errors import VerifyError
from chain.hashes import Hash32
from tests.reference import merkle_ref as reference
from tiles import merkle, multiproof
from tiles.multiproof import SubtileSet
from tiles.tree import Place, ShardTree, prove_subtile_set

FAST = settings(derandomize=True, deadline=None, max_examples=60)
TILE, STEP = limits.TILE_BYTES, limits.SUBTILE_BYTES


def leaf(number: int) -> Hash32:
    return Hash32(number.to_bytes(32, "big"))


def tree_of(subtiles: int, salt: int) -> ShardTree:
    """A shard of so many subtiles, the last of one byte, with hashes of our own making."""
    size = (subtiles - 1) * STEP + 1 if subtiles else 0
    numbers = range(subtiles)
    hashes = [[leaf(salt << 32 | i) for i in numbers[t : t + 16]] for t in numbers[::16]]
    return ShardTree.of_hashes(size, hashes)


@FAST
@given(st.integers(1, 200), st.data())
def test_a_run_of_tiles_is_shown(count: int, data: st.DataObject) -> None:
    roots = [leaf(i) for i in range(count)]
    size = count * TILE - data.draw(st.integers(0, TILE - 1))
    first = data.draw(st.integers(0, count - 1))
    length = data.draw(st.integers(1, count - first))
    proof = multiproof.prove_tile_range(roots, size, first, length)
    wanted = set(range(first, first + length))
    assert proof.nodes == b"".join(reference.missing("shard", roots, wanted))
    root = merkle.shard_root(roots, size)
    run = roots[first : first + length]
    multiproof.verify_tile_range(root, decode(multiproof.TileRange, encode(proof)), run)
    for lie in (
        replace(proof, first=first + 1),
        replace(proof, count=length + 1),
        replace(proof, count=length - 1),
        replace(proof, shard_bytes=size + TILE),
        replace(proof, nodes=proof.nodes + bytes(32)),
        replace(proof, nodes=proof.nodes[:-32] if proof.nodes else bytes(32)),
    ):
        with pytest.raises(VerifyError):
            multiproof.verify_tile_range(root, lie, run)


@st.composite
def models(draw: st.DrawFn) -> tuple[list[ShardTree], dict[int, list[Place]]]:
    """Trees of a model, and some of their subtiles by shard."""
    sizes = draw(st.lists(st.integers(0, 150), min_size=1, max_size=12).filter(any))
    full = [i for i, n in enumerate(sizes) if n]
    shards = draw(st.lists(st.sampled_from(full), min_size=1, unique=True))
    places = {}
    for i in shards:
        chosen = draw(st.lists(st.integers(0, sizes[i] - 1), min_size=1, max_size=20, unique=True))
        places[i] = [(p // 16, p % 16) for p in sorted(chosen)]
    return [tree_of(n, i) for i, n in enumerate(sizes)], places


def shown(trees: list[ShardTree], places: dict[int, list[Place]]) -> list[Hash32]:
    return [trees[i].subtile_hashes(t)[s] for i in sorted(places) for t, s in places[i]]


@FAST
@given(models())
def test_a_set_is_shown_and_has_one_encoding(model: tuple[list[ShardTree], dict]) -> None:  # type: ignore[type-arg]
    trees, places = model
    roots = [tree.root for tree in trees]
    proof = prove_subtile_set(roots, dict(enumerate(trees)), places)
    backwards = {i: places[i][::-1] for i in sorted(places, reverse=True)}
    assert prove_subtile_set(roots, dict(enumerate(trees)), backwards) == proof
    assert decode(SubtileSet, encode(proof)) == proof
    hashes = shown(trees, places)
    assert multiproof.subtile_set_root(proof, hashes) == merkle.model_root(roots)
    # sharing nodes, it is never larger than the paths one by one
    alone = sum(len(path_nodes(trees, i, place)) for i in places for place in places[i])
    assert len(proof.nodes) // 32 <= alone


def path_nodes(trees: list[ShardTree], index: int, place: Place) -> list[Hash32]:
    roots = [tree.root for tree in trees]
    path = trees[index].path(place, merkle.prove_shard(roots, index))
    return [*path.subtile.siblings, *path.tile.siblings, *path.shard.siblings]


@FAST
@given(models(), st.data())
def test_a_set_shows_nothing_else(
    model: tuple[list[ShardTree], dict],  # type: ignore[type-arg]
    data: st.DataObject,
) -> None:
    """Any change of its numbers, nodes or hashes leads elsewhere or is refused."""
    trees, places = model
    root = merkle.model_root([tree.root for tree in trees])
    proof = prove_subtile_set([t.root for t in trees], dict(enumerate(trees)), places)
    hashes = shown(trees, places)
    which = data.draw(st.integers(0, len(proof.shards) - 1))
    shard = proof.shards[which]
    change = data.draw(
        st.sampled_from(["count", "index", "size", "place", "nodes", "hash", "drop"])
    )
    number = data.draw(st.integers(0, 2**32 - 1))
    match change:
        case "count":
            lie = replace(proof, shard_count=number)
        case "nodes" if proof.nodes:
            at = number % len(proof.nodes)
            flipped = bytes([proof.nodes[at] ^ 1 + number % 255])
            lie = replace(proof, nodes=proof.nodes[:at] + flipped + proof.nodes[at + 1 :])
        case "hash" | "nodes":
            lie = proof
            hashes = [leaf(2**255 + number), *hashes[1:]]
        case "drop":
            hashes, lie = hashes[:-1], proof
        case _:
            if change == "index":
                other = replace(shard, index=number)
            elif change == "size":
                other = replace(shard, shard_bytes=number)
            else:
                at = number % len(shard.subtiles)
                subtiles = (*shard.subtiles[:at], number % 200, *shard.subtiles[at + 1 :])
                other = replace(shard, subtiles=subtiles)
            lie = replace(proof, shards=(*proof.shards[:which], other, *proof.shards[which + 1 :]))
            if lie == proof:
                return
    if lie == proof and hashes == shown(trees, places):
        return
    with suppress(VerifyError):
        assert multiproof.subtile_set_root(lie, hashes) != root


@FAST
@given(st.integers(1, 120), st.data())
def test_writing_is_the_same_as_building_anew(subtiles: int, data: st.DataObject) -> None:
    tree = tree_of(subtiles, 1)
    numbers = data.draw(st.lists(st.integers(0, subtiles - 1), unique=True, max_size=30))
    changed = {(p // 16, p % 16): leaf(9 << 40 | p) for p in numbers}
    after = tree.with_subtiles(changed)
    hashes = [list(tree.subtile_hashes(t)) for t in range(tree.tile_count)]
    for (tile, subtile), new in changed.items():
        hashes[tile][subtile] = new
    assert after == ShardTree.of_hashes(tree.data_bytes, hashes)
    assert list(after.changed_since(tree)) == sorted({tile for tile, _ in changed})
    assert tree == tree_of(subtiles, 1)
