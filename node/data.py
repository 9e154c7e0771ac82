"""The text of a round: its datasets fetched, verified and split, for learners and jurors alike
(docs/spec/rounds.md, "Data").

    train   = train parts of the round's datasets in the round's order, a zero byte between
    holdout = their holdout parts, joined in the same way
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from chain import limits
from chain.errors import VerifyError
from chain.records import DatasetRecord
from chain.types import BlobId
from corpus.dataset import DatasetManifest, assemble, dataset_id, decode_manifest
from corpus.split import SEAM, Split, split

Fetch = Callable[[BlobId], Awaitable[bytes]]
FETCHES = 2  # chunks asked for at once: whoever hosts them serves eight, and is asked by all


@dataclass(frozen=True, slots=True)
class RoundData:
    """What a round trains on and what its loss curve is measured on."""

    train: bytes
    holdout: bytes


async def fetch_dataset(record: DatasetRecord, fetch: Fetch) -> tuple[DatasetManifest, bytes]:
    """Manifest and text of a dataset, both verified against its id.

    `fetch` gives a blob or raises UnreachableError. Raises DecodeError or VerifyError for a
    dataset that can never be had: bytes that hash as promised and are not what was promised.
    """
    raw = await fetch(record.manifest)
    if dataset_id(raw) != record.id:
        raise VerifyError("the manifest blob is not the manifest of this dataset")
    manifest = decode_manifest(raw)
    claims = (record.size_bytes, record.documents, record.license, record.title)
    if claims != (manifest.size_bytes, len(manifest.documents), manifest.license, manifest.title):
        raise VerifyError("the submission says something else than the manifest")
    chunks = await fetch_chunks(manifest, fetch)
    return manifest, await asyncio.to_thread(assemble, manifest, chunks)


async def fetch_chunks(manifest: DatasetManifest, fetch: Fetch) -> dict[BlobId, bytes]:
    room = asyncio.Semaphore(FETCHES)

    async def one(blob: BlobId) -> bytes:
        async with room:
            data = await fetch(blob)
        if len(data) > limits.MAX_CHUNK_BYTES:
            raise VerifyError(f"a chunk of {len(data)} bytes; a chunk has at most 1 MiB")
        return data

    wanted = sorted(set(manifest.chunks))
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


async def fetch_round_data(records: Sequence[DatasetRecord], fetch: Fetch) -> RoundData:
    """Fetch, verify, split and join. `records`: the round's datasets, all active, in order."""
    splits = []
    for record in records:
        manifest, text = await fetch_dataset(record, fetch)
        splits.append(await asyncio.to_thread(split, manifest, text, record.split_seed))
    return join_splits(splits)
