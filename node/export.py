"""The chain's model as one .safetensors file, every tile verified on the way
(docs/guides/train.md).

Tensors are named `<shard>.<tensor>`, fp32, in order of the shards, so that the file's data is the
shards' data one after another and streams. Metadata: `blyan.model` (the model's shape, JSON, as
it was in force at that height), `blyan.root`, `blyan.height`, `blyan.version`.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from node.checkpoint.intake import Progress
from node.checkpoint.output import output_file
from node.model_at import FoundModel
from node.verified import FETCHES, VerifiedReader
from tiles.layout import ShardSpec, TensorSpec
from tiles.shardfile import build_header


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
    metadata = {
        "format": "pt",
        "blyan.model": json.dumps(model.spec.to_json(), sort_keys=True),
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
