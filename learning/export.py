"""A model as one ordinary .safetensors file (docs/spec/model.md, "Export").

Tensors are named `<shard>.<tensor>`; the metadata key `blyan.model` holds the spec as JSON, so the
file is enough to compute with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from safetensors.numpy import save

from chain.errors import InputError
from learning.spec import ModelSpec

MODEL_KEY = "blyan.model"


def export_model(spec: ModelSpec, shards: Sequence[bytes]) -> bytes:
    """The file's bytes, from data sections in shard order. Raises InputError for wrong sizes."""
    tensors = {}
    layout = spec.shards()
    if [len(section) for section in shards] != [shard.data_bytes for shard in layout]:
        raise InputError("these shards are not of this model")
    for shard, section in zip(layout, shards, strict=True):
        values = np.frombuffer(section, "<f4")
        for name, (start, end) in shard.offsets().items():
            shape = next(t.shape for t in shard.tensors if t.name == name)
            tensors[f"{shard.name}.{name}"] = values[start // 4 : end // 4].reshape(shape)
    data: bytes = save(tensors, {MODEL_KEY: json.dumps(spec.to_json(), sort_keys=True)})
    return data
