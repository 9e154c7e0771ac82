"""Putting a dataset on the chain, and getting one's text back (docs/guides/datasets.md)."""

from __future__ import annotations

import asyncio

from chain import records as r
from chain.errors import InputError, TxError
from chain.hashes import BLOB, Hash32
from chain.records import DatasetStatus
from chain.transactions import DatasetSubmit
from chain.types import BlobId
from corpus.dataset import Dataset
from corpus.split import split
from node.client import Json
from node.data import fetch_dataset
from node.submission import Progress, Watch
from node.verified import VerifiedReader
from wallet.keys import Keys


async def submit_dataset(
    reader: VerifiedReader, keys: Keys, dataset: Dataset, progress: Progress, *, wait: bool
) -> Json:
    """Upload a dataset, submit it, and wait until it is in use. TxError if it is rejected.

    One's own dataset that is on the chain already is only waited for, so an interrupted call can
    be repeated.
    """
    client, manifest = reader.client, dataset.manifest
    known = await reader.read(r.DatasetRecord, r.dataset_key(dataset.id))
    if known is not None and known.submitter != keys.account.public:
        raise TxError("known_dataset", f"dataset {dataset.id.hex()} is on the chain already")
    for i, chunk in enumerate(dataset.chunks):
        await client.put_blob(chunk)
        if len(dataset.chunks) > 1:
            progress.say(f"uploaded chunk {i + 1} of {len(dataset.chunks)}")
    await client.put_blob(dataset.manifest_bytes)
    if known is None:
        submission = DatasetSubmit(
            dataset.id,
            BlobId(BLOB.hash(dataset.manifest_bytes)),
            len(dataset.manifest_bytes),
            manifest.size_bytes,
            len(manifest.documents),
            manifest.license,
            manifest.title,
        )
        await client.submit(submission, keys)
        progress.say(f"submitted dataset {dataset.id.hex()}")
    record = await reader.dataset(dataset.id)
    if wait:
        record = await _decided(reader, dataset.id, progress)
    return {
        "dataset": dataset.id.hex(),
        "status": DatasetStatus(record.status).name.lower(),
        "title": record.title,
        "license": record.license,
        "documents": record.documents,
        "size_bytes": record.size_bytes,
        "score": max((report.score for report in record.reports), default=None),
    }


async def _decided(reader: VerifiedReader, dataset: Hash32, progress: Progress) -> r.DatasetRecord:
    progress.say("waiting for the auditors")

    async def look() -> r.DatasetRecord | None:
        record = await reader.dataset(dataset)
        ends = (DatasetStatus.ACTIVE, DatasetStatus.REJECTED)
        return record if record.status in ends else None

    record = await Watch(reader).until(look)
    if record.status == DatasetStatus.REJECTED:
        raise TxError(
            "rejected",
            f"the auditors rejected dataset {dataset.hex()}; "
            f"`blyan dataset show {dataset.hex()}` lists their findings",
        )
    return record


async def export_split(reader: VerifiedReader, dataset: Hash32, part: str) -> bytes:
    """The text of a dataset, or its `train` or `holdout` part, verified against its id."""
    record = await reader.dataset(dataset)
    manifest, text = await fetch_dataset(record, reader.blob)
    if part == "all":
        return text
    if record.status != DatasetStatus.ACTIVE:
        status = DatasetStatus(record.status).name.lower()
        raise InputError(f"dataset {dataset.hex()} is {status}; its split is drawn when approved")
    found = await asyncio.to_thread(split, manifest, text, record.split_seed)
    return found.train if part == "train" else found.holdout
