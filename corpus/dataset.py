"""A dataset for the chain: manifest and chunks, content-addressed (docs/spec/datasets.md).

The text of a dataset is its documents back to back; chunks are ranges of it that travel as blobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from chain import limits
from chain.codec import U64, Seq, Text, decode, encode, wire
from chain.errors import DecodeError, InputError, VerifyError
from chain.hashes import BLOB, DATASET, DOCUMENT, Hash32
from chain.types import BlobId
from corpus.ingest import MIN_DATASET_BYTES, Document
from corpus.licenses import check_license

# One encoded manifest: 65,536 documents with names of 70 bytes fit. Reading one takes seconds for
# each 64 MiB, and whoever submits a dataset chooses what every validator reads.
MAX_MANIFEST_BYTES = 8 * 1024 * 1024


@wire(112)
@dataclass(frozen=True, slots=True)
class DocumentEntry:
    """Bytes [offset, offset + size) of the dataset's text; `hash` is DOCUMENT over them."""

    name: Annotated[str, Text(limits.MAX_DOCUMENT_NAME)]
    offset: U64
    size: U64
    hash: Hash32


@wire(113)
@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """What a dataset is. Chunk i holds bytes [i * 1 MiB, (i + 1) * 1 MiB) of the text."""

    title: Annotated[str, Text(limits.MAX_NAME)]
    license: Annotated[str, Text(limits.MAX_LICENSE)]
    size_bytes: U64
    documents: Annotated[tuple[DocumentEntry, ...], Seq(limits.MAX_DATASET_DOCUMENTS)]
    chunks: Annotated[tuple[BlobId, ...], Seq(limits.MAX_DATASET_CHUNKS)]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything a submitter hosts. `id` is DATASET over the manifest's bytes."""

    id: Hash32
    manifest: DatasetManifest
    manifest_bytes: bytes
    chunks: tuple[bytes, ...]


def build(documents: Sequence[Document], license: str, title: str) -> Dataset:
    """Cut documents into a dataset. Raises InputError for a bad licence, title or text."""
    check_license(license)
    if not 0 < len(title.encode()) <= limits.MAX_NAME or any(c < " " for c in title):
        raise InputError(f"title: expected one line of 1 to {limits.MAX_NAME} bytes")
    if not 0 < len(documents) <= limits.MAX_DATASET_DOCUMENTS:
        raise InputError(
            f"{len(documents)} documents, expected 1 to {limits.MAX_DATASET_DOCUMENTS}"
        )
    entries, offset = [], 0
    for document in documents:
        size = len(document.text)
        entries.append(DocumentEntry(document.name, offset, size, DOCUMENT.hash(document.text)))
        offset += size
    if offset < MIN_DATASET_BYTES:
        raise InputError(f"{offset} bytes of text, expected at least {MIN_DATASET_BYTES}")
    text = b"".join(document.text for document in documents)
    step = limits.MAX_CHUNK_BYTES
    chunks = tuple(text[i : i + step] for i in range(0, len(text), step))
    ids = tuple(BlobId(BLOB.hash(chunk)) for chunk in chunks)
    manifest = DatasetManifest(title, license, len(text), tuple(entries), ids)
    data = encode(manifest)
    if len(data) > MAX_MANIFEST_BYTES:
        raise InputError(
            f"a manifest of {len(data)} bytes, expected at most {MAX_MANIFEST_BYTES}; use shorter "
            "names or fewer documents"
        )
    return Dataset(DATASET.hash(data), manifest, data, chunks)


def dataset_id(manifest_bytes: bytes) -> Hash32:
    return DATASET.hash(manifest_bytes)


def decode_manifest(data: bytes) -> DatasetManifest:
    """A manifest whose parts agree: documents fill the text in order, chunks cover it.

    Raises DecodeError.
    """
    manifest: DatasetManifest = decode(DatasetManifest, data, most=MAX_MANIFEST_BYTES)
    offset = 0
    for entry in manifest.documents:
        if entry.offset != offset or entry.size == 0:
            raise DecodeError(f"document {entry.name!r} does not begin where the last one ends")
        offset += entry.size
    if offset != manifest.size_bytes or offset < MIN_DATASET_BYTES:
        raise DecodeError(f"documents hold {offset} bytes, the manifest says {manifest.size_bytes}")
    if len(manifest.chunks) != -(-offset // limits.MAX_CHUNK_BYTES):
        raise DecodeError(f"{len(manifest.chunks)} chunks cannot hold {offset} bytes")
    return manifest


def assemble(manifest: DatasetManifest, chunks: Mapping[BlobId, bytes]) -> bytes:
    """The text, from chunks by id, each verified. Raises VerifyError naming what is wrong."""
    parts = []
    for i, blob in enumerate(manifest.chunks):
        chunk = chunks.get(blob)
        if chunk is None:
            raise VerifyError(f"chunk {i} of {len(manifest.chunks)} is missing")
        if BlobId(BLOB.hash(chunk)) != blob:
            raise VerifyError(f"chunk {i}: its bytes do not hash to its id")
        parts.append(chunk)
    text = b"".join(parts)
    if len(text) != manifest.size_bytes:
        raise VerifyError(f"{len(text)} bytes of text, the manifest says {manifest.size_bytes}")
    view = memoryview(text)
    for entry in manifest.documents:
        if DOCUMENT.hash(view[entry.offset : entry.offset + entry.size]) != entry.hash:
            raise VerifyError(f"document {entry.name!r}: its bytes do not hash to its entry")
    return text
