"""Corpus for any text: splits keep every byte once, batches and slices stay where they may."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from chain.hashes import Hash32
from chain.types import PubKey
from corpus.batches import Assignment, page_grid
from corpus.dataset import assemble, build, decode_manifest
from corpus.ingest import MIN_DATASET_BYTES, Document
from corpus.split import SEAM, split

HASHES = st.binary(min_size=32, max_size=32)
WORDS = st.lists(st.sampled_from([b"tile", b"shard", b"Round ", b"\n", b"x", b"7 "]), min_size=1)


@st.composite
def documents(draw: st.DrawFn) -> list[bytes]:
    """Texts of repeated phrases, so that near-duplicates are common; none has a zero byte."""
    phrases = draw(st.lists(WORDS.map(b"".join), min_size=1, max_size=50))
    times = draw(st.lists(st.integers(1, 200), min_size=len(phrases), max_size=len(phrases)))
    texts = [phrase * n for phrase, n in zip(phrases, times, strict=True)]
    return [*texts, bytes(range(1, 256)) * (MIN_DATASET_BYTES // 255 + 1)]


@settings(max_examples=60)
@given(documents(), HASHES)
def test_a_split_keeps_every_byte_once(texts: list[bytes], seed: bytes) -> None:
    dataset = build([Document(str(i), t) for i, t in enumerate(texts)], "MIT", "t")
    manifest = decode_manifest(dataset.manifest_bytes)
    text = assemble(manifest, dict(zip(manifest.chunks, dataset.chunks, strict=True)))
    assert text == b"".join(texts)
    found = split(manifest, text, Hash32(seed))
    both = (found.train + found.holdout).replace(SEAM, b"")
    assert sorted(both) == sorted(text)
    assert all(part in text for part in found.holdout.split(SEAM))
    assert found.train
    assert found.holdout
    assert len(found.holdout) < len(text) // 2


@settings(max_examples=60)
@given(st.integers(17, 200_000), HASHES, HASHES, HASHES, st.integers(0, 10**6))
def test_windows_lie_in_their_pages(
    size: int, seed: bytes, jury: bytes, learner: bytes, round_: int
) -> None:
    train = (b"%07d" % size) * (size // 7 + 1)
    shape = {"steps": 2, "batch": 3, "context": 16}
    given_ = Assignment(train[:size], Hash32(seed), PubKey(learner), round_, **shape)
    page, count = page_grid(size, 17)
    assert given_.batches(0, 2).shape == (2, 3, 17)
    assert len(set(given_.pages)) == len(given_.pages) >= 1
    slices = given_.jury_slices(Hash32(jury), 9)
    for start in slices.starts:
        assert start + 17 <= size
        touched = {min(start // page, count - 1), min((start + 16) // page, count - 1)}
        assert count == 1 or touched.isdisjoint(given_.pages)
