"""A delta that must be refused: noise in the shapes of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from learning.spec import ModelSpec
from node.delta_file import BASE_KEY

# The fresh model is surer of itself than it may be, so little noise makes it less wrong and passes
# the screen (0.05 does); three times the size of weights ruins it at any age.
SCALE = 0.15
SEED = 20


def write_garbage(path: Path, spec: dict[str, Any], base: str) -> None:
    """A safetensors file of fp32 noise, named as `blyan delta submit` expects, that says it starts
    from the model with this root, in hex."""
    source = np.random.default_rng(SEED)
    save_file(
        {
            f"{shard.name}.{tensor.name}": source.normal(0, SCALE, tensor.shape).astype(np.float32)
            for shard in ModelSpec.from_json(spec).shards()
            for tensor in shard.tensors
        },
        path,
        {BASE_KEY: base},
    )
