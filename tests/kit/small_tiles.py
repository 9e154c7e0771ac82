"""Tiles of 64 KiB instead of 4 MiB, for stores that come and go by the thousand.

What the store does with files knows no sizes; hashing and steps stay what they are.
"""

from __future__ import annotations

import numpy as np

from chain import limits
from chain.hashes import Hash32
from tiles import merkle
from tiles.layout import ShardSpec
from tiles.steps import TileStep
from tiles.store import slots

TILE = 1 << 16


def leaves(data: bytes) -> tuple[Hash32, ...]:
    """`merkle.subtile_hashes`, which is written for tiles of full size."""
    return tuple(merkle.subtile_hash(i, part) for i, part in enumerate(merkle.subtiles(data)))


def xor_step(spec: ShardSpec, step: TileStep, base: bytes) -> bytes:
    """Stands for the aggregation: its bytes are not what is tested."""
    return (np.frombuffer(base, "u1") ^ step.weights[0]).tobytes()


# What is to be replaced: of what, its name, by what.
PATCHES: tuple[tuple[object, str, object], ...] = (
    (limits, "TILE_BYTES", TILE),
    (limits, "SUBTILE_BYTES", TILE // 16),
    (merkle, "subtile_hashes", leaves),
    (slots, "apply_step", xor_step),
)
