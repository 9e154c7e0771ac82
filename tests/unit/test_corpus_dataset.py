"""Manifests, chunks and audits of datasets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain.codec import encode
from chain.errors import DecodeError, InputError, VerifyError
from chain.hashes import BLOB, DATASET
from chain.limits import MAX_CHUNK_BYTES
from chain.transactions import Verdict
from chain.types import BlobId
from corpus.audit import Finding, Report, audit
from corpus.dataset import Dataset, assemble, build, dataset_id, decode_manifest
from corpus.ingest import Document
from tests.reference.data_ref import prose


def dataset(*texts: bytes) -> Dataset:
    return build([Document(f"{i}.txt", t) for i, t in enumerate(texts)], "CC0-1.0", "a title")


def test_a_dataset_comes_back_from_its_chunks() -> None:
    texts = [prose(1, 700_000), prose(2, 900_000)]
    built = dataset(*texts)
    assert [len(c) for c in built.chunks] == [MAX_CHUNK_BYTES, 1_600_000 - MAX_CHUNK_BYTES]
    assert built.id == DATASET.hash(built.manifest_bytes) == dataset_id(built.manifest_bytes)
    manifest = decode_manifest(built.manifest_bytes)
    assert manifest == built.manifest
    chunks = {BlobId(BLOB.hash(c)): c for c in built.chunks}
    assert assemble(manifest, chunks) == b"".join(texts)


def test_chunks_are_verified() -> None:
    built = dataset(prose(1, 3000))
    (blob,) = built.manifest.chunks
    with pytest.raises(VerifyError, match="chunk 0 of 1 is missing"):
        assemble(built.manifest, {})
    with pytest.raises(VerifyError, match="chunk 0: its bytes"):
        assemble(built.manifest, {blob: built.chunks[0][:-1] + b"!"})
    wrong = replace(built.manifest.documents[0], hash=DATASET.hash(b""))
    with pytest.raises(VerifyError, match=r"document '0\.txt'"):
        assemble(replace(built.manifest, documents=(wrong,)), {blob: built.chunks[0]})


def test_a_hostile_manifest_is_refused() -> None:
    good = dataset(prose(1, 3000), prose(2, 3000)).manifest
    first, second = good.documents
    hostile = [
        replace(good, size_bytes=good.size_bytes + 1),
        replace(good, size_bytes=2**63),
        replace(good, documents=(first,)),
        replace(good, documents=(second, first)),
        replace(good, documents=(first, replace(second, offset=first.offset))),
        replace(good, documents=(first, replace(second, size=0))),
        replace(good, documents=()),
        replace(good, chunks=()),
        replace(good, chunks=good.chunks * 2),
    ]
    for manifest in hostile:
        with pytest.raises(DecodeError):
            decode_manifest(encode(manifest))
    for data in (b"", b"\xc1", encode(good) + b"\0", encode(good)[:-1]):
        with pytest.raises(DecodeError):
            decode_manifest(data)


def test_what_cannot_be_built() -> None:
    text = prose(1, 3000)
    with pytest.raises(InputError, match="licence"):
        build([Document("a", text)], "mine", "t")
    for title in ("", "two\nlines", "x" * 129):
        with pytest.raises(InputError, match="title"):
            build([Document("a", text)], "MIT", title)
    with pytest.raises(InputError, match="0 documents"):
        build([], "MIT", "t")
    with pytest.raises(InputError, match="at least 2048"):
        build([Document("a", b"short")], "MIT", "t")


# --- audit ---------------------------------------------------------------------------


def report(*texts: bytes) -> Report:
    built = dataset(*texts)
    return audit(built.id, built.manifest, b"".join(texts))


def test_ordinary_text_passes_and_auditors_agree() -> None:
    found = report(prose(1, 5000), prose(2, 5000))
    assert (found.verdict, found.score, found.findings) == (Verdict.YES, 100, ())
    assert report(prose(1, 5000), prose(2, 5000)) == found
    assert report(prose(1, 5000), prose(3, 5000)).report_root != found.report_root


@pytest.mark.parametrize(
    ("texts", "finding", "score"),
    [
        ([prose(1, 5000), b"\xff" * 100], Finding.NOT_UTF8, 0),
        ([prose(1, 5000), b"\0\1" * 100], Finding.BINARY, 0),
        ([prose(1, 3000)] * 12, Finding.ALL_DUPLICATES, 0),
        ([prose(1, 3000), prose(1, 3000), prose(2, 9000)], Finding.SOME_DUPLICATES, 90),
        ([prose(1, 50) * 100], Finding.VERY_REPETITIVE, 50),
        ([prose(1, 5000) + b"-----BEGIN RSA PRIVATE KEY-----\n"], Finding.SECRETS, 80),
        ([prose(1, 3000) + b"somebody@example.org " * 40], Finding.PERSONAL, 80),
        ([prose(i, 100) for i in range(40)], Finding.TINY_DOCUMENTS, 90),
    ],
)
def test_findings(texts: list[bytes], finding: Finding, score: int) -> None:
    found = report(*texts)
    assert finding in found.findings
    assert found.score == score
    assert found.verdict == (Verdict.YES if score >= 50 else Verdict.NO)


def test_an_audit_is_quick_on_hostile_text() -> None:
    size = 1 << 20
    for text in (b"a" * size, b"@" * size, b"a@b" * (size // 3), b"-" * size, b"xoxb-" * 200_000):
        found = report(text)  # quadratic work on a megabyte would take hours
        assert found.measures is not None
        assert 0 <= found.score <= 100
