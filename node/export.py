"""The chain's model as one .safetensors file, every tile verified on the way
(docs/guides/train.md).

Tensors are named `<shard>.<tensor>`, fp32, in order of the shards, so that the file's data is the
shards' data one after another and streams. Metadata: `blyan.model` (the model's shape, JSON),
`blyan.root`, `blyan.height`.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chain import records as r
from chain.errors import VerifyError
from chain.hashes import Hash32
from node.checkpoint.intake import Progress
from node.checkpoint.output import output_file
from node.verified import FETCHES, Finality, ShardVersion, VerifiedReader
from tiles.layout import ShardSpec, TensorSpec
from tiles.shardfile import build_header


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model version of the chain. `shown_by` says what shows that its root is the chain's."""

    root: Hash32
    version: int
    height: int
    shards: tuple[ShardVersion, ...]
    shown_by: str
    finality: Finality


async def find_model(reader: VerifiedReader, height: int | None) -> FoundModel:
    """The model as of a height (None: now). VerifyError unless its root is on the chain."""
    answer = await reader.client.model(height)
    try:
        root = Hash32(bytes.fromhex(answer["root"]))
        at, version = int(answer["height"]), int(answer["version"])
    except (KeyError, TypeError, ValueError):
        raise VerifyError("the node's model has no root, height or version") from None
    versions = reader.check_model(answer, root)
    proven = await reader.proven(r.MODEL)
    current = await reader.need(r.ModelRecord, r.MODEL, "model")
    shown_by = "the state's model record"
    if root != current.root:
        shown_by = await _round_of(reader, root)
    return FoundModel(root, version, at, tuple(versions), shown_by, proven.finality)


async def _round_of(reader: VerifiedReader, root: Hash32) -> str:
    """The round whose record names this model root: old roots stay provable that way."""
    for number in range((await reader.head()).round, -1, -1):
        record = await reader.round(number)
        if record.result_root == root:
            return f"the record of round {number}, as its result"
        if record.base_root == root:
            return f"the record of round {number}, as its base"
    raise VerifyError(f"no round of this chain had the model root {root.hex()}")


def model_header(specs: Sequence[ShardSpec], metadata: dict[str, str]) -> bytes:
    """The header of a file whose data is the shards' data sections one after another."""
    tensors = (
        TensorSpec(f"{spec.name}.{tensor.name}", tensor.dtype, tensor.shape)
        for spec in specs
        for tensor in spec.tensors
    )
    return build_header(tuple(tensors), metadata)


async def write_model(
    path: Path, reader: VerifiedReader, model: FoundModel, progress: Progress
) -> int:
    """Write the file, whole or not at all, a few tiles in memory at a time; its size in bytes."""
    spec = (await reader.specs_now()).model
    metadata = {
        "format": "pt",
        "blyan.model": json.dumps(spec.to_json(), sort_keys=True),
        "blyan.root": model.root.hex(),
        "blyan.height": str(model.height),
        "blyan.version": str(model.version),
    }
    header = model_header(reader.specs, metadata)
    total = len(header) + sum(spec.data_bytes for spec in reader.specs)
    with output_file(path) as file:
        file.append(header)
        async for data in _tiles(reader, model):
            await asyncio.to_thread(file.append, data)
            progress(file.size_bytes, total)
        await asyncio.to_thread(file.finish)
        return file.size_bytes


async def _tiles(reader: VerifiedReader, model: FoundModel) -> AsyncIterator[bytes]:
    """All tiles in order, verified; the next few are fetched meanwhile."""
    ahead: deque[asyncio.Task[bytes]] = deque()
    try:
        for version in model.shards:
            for tile in range(version.spec.tile_count):
                ahead.append(asyncio.create_task(reader.tile(version, tile)))
                if len(ahead) == FETCHES:
                    yield await ahead.popleft()
        while ahead:
            yield await ahead.popleft()
    finally:
        for task in ahead:
            task.cancel()
