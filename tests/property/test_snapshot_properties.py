"""Chunks of any state rebuild it, and no change of one byte goes through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from chain import snapshot
from chain.codec import decode, encode
from chain.errors import BlyanError
from chain.snapshot import SnapshotChunk, SnapshotManifest, check_chunk, make_chunk, places
from chain.tree import StateTree
from tests.kit.snapshots import manifest_of
from tests.reference import snapshot as reference

CONTENT = st.dictionaries(st.binary(min_size=1, max_size=6), st.binary(max_size=150), max_size=24)
LIMITS = st.integers(200, 2000)


@contextmanager
def chunks_of(most: int) -> Iterator[None]:
    before, snapshot.CHUNK_BYTES = snapshot.CHUNK_BYTES, most
    try:
        yield
    finally:
        snapshot.CHUNK_BYTES = before


@settings(derandomize=True, max_examples=100, deadline=None)
@given(CONTENT, LIMITS)
def test_chunks_rebuild_the_state(content: dict[bytes, bytes], most: int) -> None:
    with chunks_of(most):
        tree = StateTree.empty().set_many(content)
        manifest = manifest_of(tree)
        found = places(manifest)
        prefixes = [format(p.prefix, f"0{p.bits}b") if p.bits else "" for p in found]
        assert prefixes == reference.parts(content, most)
        rebuilt: dict[bytes, bytes] = {}
        for part, place in zip(manifest.parts, found, strict=True):
            if part.size:
                rebuilt.update(check_chunk(part, place, encode(make_chunk(tree, place))))
        assert rebuilt == content


@settings(derandomize=True, max_examples=150, deadline=None)
@given(CONTENT.filter(bool), LIMITS, st.data())
def test_no_byte_may_change(content: dict[bytes, bytes], most: int, data: st.DataObject) -> None:
    with chunks_of(most):
        tree = StateTree.empty().set_many(content)
        manifest = manifest_of(tree)
        full = [i for i, part in enumerate(manifest.parts) if part.size]
        index = data.draw(st.sampled_from(full))
        place = places(manifest)[index]
        good = encode(make_chunk(tree, place))
        at = data.draw(st.integers(0, len(good) - 1))
        flip = data.draw(st.integers(1, 255))
        bad = good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :]
        assert refused(lambda: check_chunk(manifest.parts[index], place, bad))
        listed = encode(manifest)
        at = data.draw(st.integers(0, len(listed) - 1))
        changed = listed[:at] + bytes([listed[at] ^ flip]) + listed[at + 1 :]
        try:
            other = decode(SnapshotManifest, changed)
            places(other)
        except BlyanError:
            return
        # Only the header, which is compared with one that is trusted, and sizes, which every chunk
        # tells, can differ.
        assert [(p.depth, p.hash) for p in other.parts] == [
            (p.depth, p.hash) for p in manifest.parts
        ]


def refused(check: object) -> bool:
    assert callable(check)
    try:
        check()
    except BlyanError:
        return True
    return False


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_junk_is_refused(junk: bytes) -> None:
    for cls in (SnapshotChunk, SnapshotManifest):
        try:
            value = decode(cls, junk)
        except BlyanError:
            continue
        assert encode(value) == junk
