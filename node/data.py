"""The text of a round: its datasets fetched, verified and split, for learners and jurors alike
(docs/spec/rounds.md, "Data").

    train   = train parts of the round's datasets in the round's order, a zero byte between
    holdout = their holdout parts, joined in the same way
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from chain import limits
from chain.errors import VerifyError
from chain.records import DatasetRecord
from chain.types import BlobId
from corpus.dataset import (
    MAX_MANIFEST_BYTES,
    DatasetManifest,
    assemble,
    dataset_id,
    decode_manifest,
)
from corpus.split import SEAM, Split, split

Keep = Callable[[bytes], Awaitable[None]]
FETCHES = 2  # chunks asked for at once: whoever hosts them serves eight, and is asked by all


class Fetch(Protocol):
    """Gives a blob of at most `most` bytes that hash to its name, or raises UnreachableError;
    VerifyError if it has more. What it gives may still be none of a dataset's: `Keep` gets what
    was found to be."""

    async def __call__(self, blob: BlobId, most: int) -> bytes: ...


async def keep_nothing(data: bytes) -> None:
    """For whoever hosts no datasets."""


@dataclass(frozen=True, slots=True)
class RoundData:
    """What a round trains on and what its loss curve is measured on."""

    train: bytes
    holdout: bytes


async def fetch_dataset(
    record: DatasetRecord, fetch: Fetch, keep: Keep = keep_nothing
) -> tuple[DatasetManifest, bytes]:
    """Manifest and text of a dataset, both verified against its id.

    Raises UnreachableError as `fetch` does; DecodeError or VerifyError for a dataset that can
    never be had: bytes that hash as promised and are not what was promised.
    """
    if record.manifest_bytes > MAX_MANIFEST_BYTES:
        raise VerifyError(
            f"a manifest of {record.manifest_bytes} bytes, expected at most {MAX_MANIFEST_BYTES}"
        )
    raw = await fetch(record.manifest, record.manifest_bytes)
    manifest = await asyncio.to_thread(manifest_of, record, raw)
    await keep(raw)
    chunks = await fetch_chunks(manifest, fetch, keep)
    return manifest, await asyncio.to_thread(assemble, manifest, chunks)


def manifest_of(record: DatasetRecord, raw: bytes) -> DatasetManifest:
    """The manifest of a dataset on the chain, for a thread: a hostile one takes long to refuse.
    DecodeError or VerifyError if these bytes are not what was submitted."""
    if dataset_id(raw) != record.id:
        raise VerifyError("the manifest blob is not the manifest of this dataset")
    manifest = decode_manifest(raw)
    claims = (record.size_bytes, record.documents, record.license, record.title)
    if claims != (manifest.size_bytes, len(manifest.documents), manifest.license, manifest.title):
        raise VerifyError("the submission says something else than the manifest")
    return manifest


async def fetch_chunks(
    manifest: DatasetManifest, fetch: Fetch, keep: Keep = keep_nothing
) -> dict[BlobId, bytes]:
    """The chunks by id, none longer than its place in the text. Errors as above."""
    room = asyncio.Semaphore(FETCHES)
    sizes: dict[BlobId, int] = {}
    for i, blob in enumerate(manifest.chunks):
        size = min(limits.MAX_CHUNK_BYTES, manifest.size_bytes - i * limits.MAX_CHUNK_BYTES)
        if sizes.setdefault(blob, size) != size:
            raise VerifyError(f"chunk {i} has {size} bytes, and is said to be one of {sizes[blob]}")

    async def one(blob: BlobId) -> bytes:
        async with room:
            data = await fetch(blob, sizes[blob])
            if len(data) != sizes[blob]:
                raise VerifyError(f"a chunk of {len(data)} bytes, expected {sizes[blob]}")
            await keep(data)
        return data

    wanted = sorted(sizes)
    tasks = [asyncio.create_task(one(blob)) for blob in wanted]
    try:
        parts = await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
    return dict(zip(wanted, parts, strict=True))


def join_splits(splits: Sequence[Split]) -> RoundData:
    """The round's data from its datasets' splits, in the round's order."""
    return RoundData(
        SEAM.join(part.train for part in splits), SEAM.join(part.holdout for part in splits)
    )


async def fetch_round_data(
    records: Sequence[DatasetRecord], fetch: Fetch, keep: Keep = keep_nothing
) -> RoundData:
    """Fetch, verify, split and join. `records`: the round's datasets, all active, in order."""
    splits = []
    for record in records:
        manifest, text = await fetch_dataset(record, fetch, keep)
        splits.append(await asyncio.to_thread(split, manifest, text, record.split_seed))
    return join_splits(splits)
