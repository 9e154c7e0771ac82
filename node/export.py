"""The model as one .safetensors file, every tile verified on the way (docs/guides/train.md).

Tensors are named `<shard>.<tensor>`, fp32. Metadata: `blyan.model` (the model's shape, JSON),
`blyan.root`, `blyan.height`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from chain import records as r
from chain.errors import InputError, VerifyError
from chain.hashes import Hash32
from node.verified import Finality, ShardVersion, VerifiedReader
from tiles.layout import ShardSpec


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


def tensors_of(
    specs: Sequence[ShardSpec], shards: Sequence[bytes]
) -> dict[str, npt.NDArray[np.float32]]:
    """fp32 arrays by `<shard>.<tensor>`, views of the data sections."""
    found = {}
    for spec, data in zip(specs, shards, strict=True):
        flat = np.frombuffer(data, "<f4")
        for tensor in spec.tensors:
            start, end = spec.offsets()[tensor.name]
            found[f"{spec.name}.{tensor.name}"] = flat[start // 4 : end // 4].reshape(tensor.shape)
    return found


def write_model(
    path: Path, reader: VerifiedReader, model: FoundModel, shards: Sequence[bytes]
) -> int:
    """Write the file, whole or not at all; its size in bytes."""
    metadata = {
        "format": "pt",
        "blyan.model": json.dumps(reader.spec.to_json(), sort_keys=True),
        "blyan.root": model.root.hex(),
        "blyan.height": str(model.height),
        "blyan.version": str(model.version),
    }
    part = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors_of(reader.specs, shards), part, metadata)
        part.replace(path)
        return path.stat().st_size
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
